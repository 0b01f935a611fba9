"""Threads by physical cores and the container's share; instructions by torch's word."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deepseek_ocr.devices import cpu
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.settings import CropSettings
from tests.conftest import ROOT


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """A tree of system files: eight logical processors on four cores; `files` come on top."""

    def make(files: dict[str, str] | None = None, allowed: range = range(8)) -> Path:
        for number in range(8):
            folder = tmp_path / f"sys/devices/system/cpu/cpu{number}/topology"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "thread_siblings_list").write_text(f"{number % 4},{number % 4 + 4}\n")
        for name, text in (files or {}).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        monkeypatch.setattr(cpu, "_allowed", lambda: set(allowed))
        return tmp_path

    return make


def test_one_thread_a_core(machine) -> None:  # type: ignore[no-untyped-def]
    assert cpu.threads(machine()) == 4
    assert cpu.threads(machine(allowed=range(2))) == 2
    assert cpu.threads(machine(allowed=range(3, 5))) == 2


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, 4),
        ({"sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"sys/fs/cgroup/cpu.max": "800000 100000\n"}, 4),
        # a limit on a folder above the process's own counts as well
        (
            {
                "proc/self/cgroup": "0::/pods/ours\n",
                "sys/fs/cgroup/pods/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/pods/ours/cpu.max": "max 100000\n",
            },
            3,
        ),
        # version 1
        (
            {
                "proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/docker/abc\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
    ],
)
def test_no_more_threads_than_the_container_may_run(machine, files, expected) -> None:  # type: ignore[no-untyped-def]
    assert cpu.threads(machine(files)) == expected


def test_without_system_files_torch_guesses(tmp_path: Path) -> None:
    assert 1 <= cpu.threads(tmp_path) <= torch.get_num_threads()


def test_threads_are_set_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        assert cpu.use_threads(1) == 1
        monkeypatch.setattr(cpu, "threads", lambda: 2)
        assert cpu.use_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("flags", "names", "bfloat16"),
    [
        ({"avx2": True}, ["AVX2"], False),
        ({"avx2": True, "avx512_f": True, "avx512_bw": True}, ["AVX-512", "AVX2"], False),
        ({"avx2": True, "avx512_bf16": True}, ["AVX-512 BF16", "AVX2"], True),
        ({"amx_bf16": True}, ["AMX"], True),
        ({"bf16": True, "sve": True}, ["Arm BF16", "SVE"], True),
        ({}, [], False),
    ],
)
def test_instructions_and_what_follows(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], names: list[str], bfloat16: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    assert cpu.instructions() == names
    assert cpu.has_bfloat16() is bfloat16


def test_older_torch_is_asked_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    answers = {"amx_tile": False, "avx512_bf16": False, "avx512": True, "avx2": True}
    for name, answer in ((f"_is_{key}_supported", value) for key, value in answers.items()):
        monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
    assert cpu.instructions() == ["AVX-512", "AVX2"]


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="needs a processor with x86 instructions"
)
@pytest.mark.parametrize("isa", ["AVX2", "SSE41"])
def test_older_processors_read_the_same(pocket: OcrEngine, isa: str) -> None:
    """torch and oneDNN held to what an older processor has."""
    page = str(ROOT / "examples" / "total.png")
    expected = pocket.read(page, "Free OCR.", CropSettings(512, 512, False)).text
    held = {
        "ATEN_CPU_CAPABILITY": "avx2" if isa == "AVX2" else "default",
        "ONEDNN_MAX_CPU_ISA": isa,
        "DEEPSEEK_OCR_DTYPE": "float32",
    }
    done = subprocess.run(
        [sys.executable, "-m", "deepseek_ocr", "read", "--model", "pocket", page],
        cwd=ROOT, check=True,
        env=os.environ | held, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == expected.strip()
