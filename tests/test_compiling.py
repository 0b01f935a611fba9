"""The kernel is compiled once, kept where only its user can write, and never in the way."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from deepseek_ocr.decoding.decoder import PlainDecoder
from deepseek_ocr.kernels import compiling, slot_decoder
from deepseek_ocr.kernels.slot_decoder import SlotDecoder
from deepseek_ocr.model import int8_layers
from deepseek_ocr.model.loader import load_network
from tests.conftest import GOLDEN, ROOT
from tests.goldens import relative_error

SOURCE = Path(compiling.__file__).with_name("decode.cpp")

pytestmark = pytest.mark.skipif(compiling.library() is None, reason="needs a C++ compiler")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that the kernel is kept in, for this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiling, "FLAGS", ["-O1"])  # is compiled sooner
    compiling.library.cache_clear()
    yield tmp_path / "deepseek-ocr" / "kernels"
    compiling.library.cache_clear()


def test_it_is_compiled_once_and_kept_to_oneself(kept: Path) -> None:
    assert compiling.library() is not None
    (made,) = kept.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o700
    written = made.stat().st_mtime_ns
    compiling.library.cache_clear()
    assert compiling.library() is not None
    assert [path.stat().st_mtime_ns for path in kept.iterdir()] == [written]


def test_two_processes_may_compile_at_once(kept: Path) -> None:
    code = (
        "from deepseek_ocr.kernels import compiling\n"
        "assert compiling.library() is not None, 'not compiled'"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=os.environ) for _ in range(2)
    ]
    assert [one.wait() for one in both] == [0, 0]
    assert [path.suffix for path in kept.iterdir()] == [".so"]


def test_a_folder_others_can_write_to_is_not_trusted(
    kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept.mkdir(parents=True)
    kept.chmod(0o777)
    assert compiling.library() is None
    assert "not this user's alone" in caplog.text
    assert list(kept.iterdir()) == []


def test_a_link_in_the_folders_place_is_not_followed(
    kept: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    kept.parent.mkdir()
    kept.symlink_to(elsewhere)
    assert compiling.library() is None
    assert "not this user's alone" in caplog.text


def test_a_cache_that_cannot_be_made_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert compiling.library() is None
    assert len(caplog.records) == 1


def test_a_user_without_a_home_is_no_error(
    monkeypatch: pytest.MonkeyPatch, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", unknown)
    assert compiling.library() is None
    assert "set XDG_CACHE_HOME" in caplog.text


@pytest.mark.parametrize("script", ["exit 1", "echo broken >&2; exit 3"])
def test_a_broken_compiler_is_no_error(
    kept: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    script: str,
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    compiler = tools / "g++"
    compiler.write_text(f'#!/bin/sh\ncase "$1" in --version) echo 1;; *) {script};; esac\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    assert compiling.library() is None
    assert "failed" in caplog.text
    assert list(kept.iterdir()) == []


def test_another_compiler_or_processor_gets_a_kernel_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["g++", "-O3"]
    first = compiling._fingerprint(command, SOURCE)
    assert compiling._fingerprint(command, SOURCE) == first
    assert compiling._fingerprint([*command, "-march=native"], SOURCE) != first
    monkeypatch.setattr(compiling, "_processor", lambda: "flags: none")
    assert compiling._fingerprint(command, SOURCE) != first


@pytest.mark.parametrize("flags", [["-mavx2", "-mfma"], []], ids=["avx2", "plain"])
def test_the_kernel_is_right_without_this_processors_features(
    kept: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    if flags and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("needs a processor with AVX2")
    monkeypatch.setattr(compiling, "FLAGS", ["-O1", *flags])
    network = load_network(GOLDEN / "checkpoint", "cpu", "float32")
    for quant, tolerance in (("none", 1e-5), ("int8", 5e-4)):
        if quant == "int8":
            int8_layers.quantize_decoder(network)
        plain, ours = PlainDecoder(network), SlotDecoder(network, 1, 64, slot_decoder.NATIVE)
        prompt = network.get_input_embeddings()(torch.tensor([[5, 9, 80, 17]]))
        for one in (plain, ours):
            one.prefill(0, prompt)
        assert relative_error(ours.step([0], [8]), plain.step([0], [8])) < tolerance
