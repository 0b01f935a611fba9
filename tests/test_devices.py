"""Devices and types: chosen by what is there, refused by what is not."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from deepseek_ocr.devices import ascend, selection
from deepseek_ocr.errors import DeviceError
from tests.conftest import ROOT


@pytest.fixture
def have(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Make the machine look as if it had exactly these devices besides the CPU."""

    def set_devices(*kinds: str, capability: tuple[int, int] = (9, 0)) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in kinds)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if "cuda" in kinds else 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in kinds)
        monkeypatch.setattr(selection, "_npu_problem", lambda: None if "npu" in kinds else "no NPU")

    return set_devices


def test_auto_takes_the_first_of_the_preferred(have) -> None:  # type: ignore[no-untyped-def]
    for kinds, expected in [
        (("cuda", "npu", "mps"), "cuda"),
        (("npu", "mps"), "npu"),
        (("mps",), "mps"),
        ((), "cpu"),
    ]:
        have(*kinds)
        assert selection.available()[0] == expected
    have("cuda")
    assert selection.choose_device("auto") == torch.device("cuda")
    assert selection.choose_device("CUDA:1") == torch.device("cuda:1")
    assert selection.choose_device(torch.device("cpu")) == torch.device("cpu")


def test_a_device_that_is_not_there_is_an_error_that_says_what_is(have) -> None:  # type: ignore[no-untyped-def]
    have("mps")
    with pytest.raises(DeviceError, match="this machine has mps, cpu"):
        selection.choose_device("cuda")
    have("cuda")
    with pytest.raises(DeviceError, match="there are 2 of kind cuda"):
        selection.choose_device("cuda:2")
    for name in ("gpu", "cuda:x", "cuda:-1", "cpu:", "cuda:00", ""):
        with pytest.raises(DeviceError, match="no device called"):
            selection.choose_device(name)


def test_types_follow_what_the_device_does_well(have, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    have("cuda", capability=(8, 0))
    assert selection.choose_dtype("auto", torch.device("cuda")) == torch.bfloat16
    have("cuda", capability=(7, 5))
    assert selection.choose_dtype("auto", torch.device("cuda")) == torch.float16
    monkeypatch.setattr(selection.cpu, "has_bfloat16", lambda: True)
    assert selection.choose_dtype("auto", torch.device("cpu")) == torch.bfloat16
    monkeypatch.setattr(selection.cpu, "has_bfloat16", lambda: False)
    assert selection.choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert selection.choose_dtype("float16", torch.device("cpu")) == torch.float16
    assert selection.choose_dtype(torch.float32, torch.device("cuda")) == torch.float32
    with pytest.raises(DeviceError, match="no type 'int8'"):
        selection.choose_dtype("int8", torch.device("cpu"))


def test_bfloat16_by_name_on_a_card_without_it_warns(
    have,  # type: ignore[no-untyped-def]
    caplog: pytest.LogCaptureFixture,
) -> None:
    card = torch.device("cuda:1")
    have("cuda", capability=(8, 6))
    assert selection.choose_dtype("bfloat16", card) == torch.bfloat16
    assert not caplog.messages
    have("cuda", capability=(7, 5))
    assert selection.choose_dtype("auto", card) == torch.float16
    assert selection.choose_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    assert not caplog.messages
    assert selection.choose_dtype("bfloat16", card) == torch.bfloat16
    assert [message.split(":")[0] for message in caplog.messages] == [
        "bfloat16 will be slow on cuda"
    ]


def test_flash_attention_only_where_installed_and_supported(
    have,  # type: ignore[no-untyped-def]
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda, found = torch.device("cuda"), types.ModuleType("flash_attn")
    have("cuda")
    monkeypatch.setattr(selection.importlib.util, "find_spec", lambda name: None)
    assert selection.prompt_attention(cuda, torch.bfloat16) == ("sdpa",)
    monkeypatch.setattr(selection.importlib.util, "find_spec", lambda name: found)
    assert selection.prompt_attention(cuda, torch.bfloat16) == ("flash_attention_2", "sdpa")
    assert selection.prompt_attention(cuda, torch.float32) == ("sdpa",)
    assert selection.prompt_attention(torch.device("cpu"), torch.bfloat16) == ("sdpa",)
    have("cuda", capability=(7, 0))
    assert selection.prompt_attention(cuda, torch.float16) == ("sdpa",)


def test_an_ascend_device_is_found_through_torch_npu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    plugin = types.ModuleType("torch_npu")
    plugin.__spec__ = __import__("importlib.machinery").machinery.ModuleSpec("torch_npu", None)
    npu = types.SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 8, synchronize=lambda: None
    )
    monkeypatch.setitem(sys.modules, "torch_npu", plugin)
    monkeypatch.setattr(torch, "npu", npu, raising=False)
    assert selection.available() == ["npu", "cpu"]


def test_a_plugin_that_does_not_import_leaves_the_other_devices(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    (tmp_path / "torch_npu.py").write_text("raise ImportError('libhccl.so: not found')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert selection.available() == ["cpu"]


# --- Ascend's toolkit ----------------------------------------------------------------------------


def without_toolkit(folder: Path) -> None:
    """Put a torch-npu into `folder` that fails as the real one (2.6.0.post5) does in a shell where
    the toolkit's script was not sourced."""
    (folder / "torch_npu.py").write_text(
        "raise ImportError('libhccl.so: cannot open shared object file: No such file or directory')"
    )
    about = folder / "torch_npu-2.6.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torch-npu\nVersion: 2.6.0\n")
    (about / "entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")


@pytest.mark.parametrize("wanted", [["read", str(ROOT / "examples/fruit.png")], ["devices"]])
def test_a_missing_toolkit_names_the_script_to_source(tmp_path: Path, wanted: list[str]) -> None:
    without_toolkit(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "deepseek_ocr", *wanted, "--model", "pocket"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
                          "DEEPSEEK_OCR_DEVICE": "auto"},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "libhccl.so" in done.stderr
    assert "source /usr/local/Ascend/ascend-toolkit/set_env.sh" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_npu_asked_for_by_name_says_why_it_is_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(DeviceError, match=r"cog-deepseek-ocr\[npu\]"):
        selection.choose_device("npu")
    (tmp_path / "torch_npu.py").write_text("raise OSError('libascend_hal.so: cannot open')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DeviceError, match="mount /usr/local/Ascend/driver"):
        selection.choose_device("npu:0")
    assert "set_env.sh" in selection.absent()["npu"]


def test_a_toolkit_without_a_device_says_what_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = types.ModuleType("torch_npu")
    plugin.__spec__ = __import__("importlib.machinery").machinery.ModuleSpec("torch_npu", None)
    monkeypatch.setitem(sys.modules, "torch_npu", plugin)
    monkeypatch.setattr(
        torch, "npu", types.SimpleNamespace(is_available=lambda: False), raising=False
    )
    with pytest.raises(DeviceError, match="npu-smi"):
        selection.choose_device("npu")


def test_other_import_errors_are_not_the_toolkit() -> None:
    assert ascend.advice(ImportError("No module named 'einops'")) is None
    assert ascend.advice(OSError("libcudart.so.12: cannot open shared object file")) is None


# --- operators handed to the CPU -----------------------------------------------------------------

FALLBACK = """
import types, warnings
import torch
torch.utils.rename_privateuse1_backend("npu")
torch._register_device_module("npu", types.ModuleType("torch.npu"))
library = torch.library.Library("_", "IMPL")
library.fallback(lambda op, *args, **more: op(*args, **more), "PrivateUse1")
kernel = torch.library.Library("aten", "IMPL")
kernel.impl("topk", lambda *args: None, "PrivateUse1")

from deepseek_ocr.kernels import op_fallbacks as operators
from deepseek_ocr.errors import DeviceError
npu = torch.device("npu:0")
assert operators.falls_back("aten::histc", "npu")
assert operators.falls_back("aten::add.Tensor", "npu")
assert not operators.falls_back("aten::topk", "npu")
assert not operators.falls_back("aten::reshape", "npu")
assert not operators.falls_back("aten::histc", "cpu")

def work():
    for _ in range(3):
        torch.ones(4).histc(bins=2)
    return torch.nn.functional.linear(torch.ones(1, 2), torch.ones(3, 2))

with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    with torch.inference_mode(), operators.watch(npu, strict=False) as handed:
        work()
assert handed["aten::histc"] == 3, handed
assert any(name in handed for name in ("aten::addmm", "aten::mm")), handed
assert len(told) == 1 and "aten::histc (3)" in str(told[0].message), told
try:
    with operators.watch(npu, strict=True):
        work()
except DeviceError as error:
    print(error)
"""


def test_operators_that_would_run_on_the_cpu_are_noticed() -> None:
    """With the dispatcher's own table: a process that registers a fallback as torch-npu does."""
    done = subprocess.run(
        [sys.executable, "-c", FALLBACK], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "has no kernel on npu:0" in done.stdout
    assert "DEEPSEEK_OCR_STRICT=no" in done.stdout


# --- what is told and done -----------------------------------------------------------------------


def test_memory_goes_back_after_the_device_is_done_on_apple_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: calls.append("synchronize"))
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: calls.append("empty_cache"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("cuda"))
    selection.release(torch.device("cpu"))
    selection.release(torch.device("cuda"))
    assert calls == []
    selection.release(torch.device("mps"))
    assert calls == ["synchronize", "empty_cache"]


def test_every_device_is_described(have, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    have("cuda", "mps", capability=(7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (14 * 10**9, 15 * 10**9))
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: False)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 20)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 5)
    found = {str(device): selection.describe(device) for device in selection.every()}
    assert list(found) == ["cuda:0", "cuda:1", "mps", "cpu"]
    card = found["cuda:0"]
    assert "Tesla T4" in card.name
    assert (card.dtype, card.types) == (torch.float16, ("float16", "float32"))
    assert "before Ampere" in card.why
    assert card.memory == (14 * 10**9, 15 * 10**9)
    assert found["mps"].dtype == torch.float16
    assert found["mps"].memory == (15, 20)
    assert found["cpu"].memory is None
    assert set(selection.absent()) == {"npu"}


def test_the_vision_part_keeps_the_type_its_device_does_well(
    have,  # type: ignore[no-untyped-def]
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    have("cuda", capability=(7, 0))
    cpu, cuda = torch.device("cpu"), torch.device("cuda")

    def chosen(bfloat16: bool, decoder: torch.dtype, vision: torch.device) -> Any:
        monkeypatch.setattr(selection.cpu, "has_bfloat16", lambda: bfloat16)
        return selection.vision_dtype(decoder, vision, cuda)

    assert chosen(True, torch.float16, cpu) == torch.bfloat16
    assert chosen(False, torch.float16, cpu) == torch.float32
    assert chosen(True, torch.float32, cpu) == torch.float32
    assert chosen(True, torch.bfloat16, torch.device("cuda:1")) == torch.bfloat16
