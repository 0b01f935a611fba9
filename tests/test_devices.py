"""Devices and types: chosen by what is there, refused by what is not."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch

from deepseek_ocr import devices
from deepseek_ocr.errors import DeviceError


@pytest.fixture
def have(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Make the machine look as if it had exactly these devices besides the CPU."""

    def set_devices(*kinds: str, capability: tuple[int, int] = (9, 0)) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in kinds)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if "cuda" in kinds else 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in kinds)
        monkeypatch.setattr(devices, "_npu_available", lambda: "npu" in kinds)

    return set_devices


def test_auto_takes_the_first_of_the_preferred(have) -> None:  # type: ignore[no-untyped-def]
    for kinds, expected in [
        (("cuda", "npu", "mps"), "cuda"),
        (("npu", "mps"), "npu"),
        (("mps",), "mps"),
        ((), "cpu"),
    ]:
        have(*kinds)
        assert devices.available()[0] == expected
    have("cuda")
    assert devices.choose_device("auto") == torch.device("cuda")
    assert devices.choose_device("CUDA:1") == torch.device("cuda:1")
    assert devices.choose_device(torch.device("cpu")) == torch.device("cpu")


def test_a_device_that_is_not_there_is_an_error_that_says_what_is(have) -> None:  # type: ignore[no-untyped-def]
    have("mps")
    with pytest.raises(DeviceError, match="this machine has mps, cpu"):
        devices.choose_device("cuda")
    have("cuda")
    with pytest.raises(DeviceError, match="there are 2 of kind cuda"):
        devices.choose_device("cuda:2")
    for name in ("gpu", "cuda:x", "cuda:-1", "cpu:", "cuda:00", ""):
        with pytest.raises(DeviceError, match="no device called"):
            devices.choose_device(name)


def test_types_follow_what_the_device_does_well(have, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    have("cuda", capability=(8, 0))
    assert devices.choose_dtype("auto", torch.device("cuda")) == torch.bfloat16
    have("cuda", capability=(7, 5))
    assert devices.choose_dtype("auto", torch.device("cuda")) == torch.float16
    monkeypatch.setattr(devices, "_cpu_has_bfloat16", lambda: True)
    assert devices.choose_dtype("auto", torch.device("cpu")) == torch.bfloat16
    monkeypatch.setattr(devices, "_cpu_has_bfloat16", lambda: False)
    assert devices.choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert devices.choose_dtype("float16", torch.device("cpu")) == torch.float16
    assert devices.choose_dtype(torch.float32, torch.device("cuda")) == torch.float32
    with pytest.raises(DeviceError, match="no type 'int8'"):
        devices.choose_dtype("int8", torch.device("cpu"))


def test_flash_attention_only_where_installed_and_supported(
    have,  # type: ignore[no-untyped-def]
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda, found = torch.device("cuda"), types.ModuleType("flash_attn")
    have("cuda")
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    assert devices.decoder_attention(cuda, torch.bfloat16) == "sdpa"
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: found)
    assert devices.decoder_attention(cuda, torch.bfloat16) == "flash_attention_2"
    assert devices.decoder_attention(cuda, torch.float32) == "sdpa"
    assert devices.decoder_attention(torch.device("cpu"), torch.bfloat16) == "sdpa"
    have("cuda", capability=(7, 0))
    assert devices.decoder_attention(cuda, torch.float16) == "sdpa"


def test_an_ascend_device_is_found_through_torch_npu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    plugin = types.ModuleType("torch_npu")
    plugin.__spec__ = __import__("importlib.machinery").machinery.ModuleSpec("torch_npu", None)
    npu = types.SimpleNamespace(is_available=lambda: True, device_count=lambda: 8)
    monkeypatch.setitem(sys.modules, "torch_npu", plugin)
    monkeypatch.setattr(torch, "npu", npu, raising=False)
    assert devices.available() == ["npu", "cpu"]


def test_a_plugin_that_does_not_import_leaves_the_other_devices(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    (tmp_path / "torch_npu.py").write_text("raise ImportError('libhccl.so: not found')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert devices.available() == ["cpu"]
