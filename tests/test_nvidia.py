"""A driver that is too old, a card that is not passed in, a card without kernels: each is named
with what to do, and `auto` does not take the CPU in silence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from deepseek_ocr.cli import device_report, doctor
from deepseek_ocr.configuration import Settings
from deepseek_ocr.devices import nvidia, selection
from deepseek_ocr.errors import DeviceError

CLOSED = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Thu Feb 22 01:44:30 UTC 2024\n"
    "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n"
)
OPEN = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  "
    "(dvs-builder@U22-I3-H04-01-5)  Tue Sep 23 10:11:16 UTC 2025\n"
    "GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04)\n"
)

VOLTA, TURING, HOPPER = (7, 0), (7, 5), (9, 0)
BUILT_FOR_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
"""As torch 2.13 from PyPI."""

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    """A machine with this driver, these files of cards, and a torch built for this CUDA that sees
    no card."""

    def make(driver: str | None, built: str | None, cards: int = 1, form: str = CLOSED) -> None:
        file, folder = tmp_path / "version", tmp_path / "dev"
        folder.mkdir()
        (folder / "nvidiactl").touch()
        for number in range(cards):
            (folder / f"nvidia{number}").touch()
        if driver is not None:
            file.write_text(form.format(driver))
        monkeypatch.setattr(nvidia, "DRIVER_FILE", file)
        monkeypatch.setattr(nvidia, "DEVICE_FOLDER", folder)
        monkeypatch.setattr(torch.version, "cuda", built)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setattr(selection, "_npu_problem", lambda: "no NPU")

    selection._warn_once.cache_clear()
    yield make
    selection._warn_once.cache_clear()


@pytest.mark.parametrize("form", [CLOSED, OPEN])
@pytest.mark.parametrize(
    ("driver", "built", "old"),
    [
        ("550.54.14", "13.0", True), ("575.57.08", "13.0", True), ("580.65.06", "13.0", False),
        ("570.86", "12.8", False), ("525.60.13", "12.8", False), ("520.61.05", "12.8", True),
        ("450.80.02", "11.8", False), ("440.33.01", "11.8", True), ("550.54.14", "14.1", False),
    ],
)  # fmt: skip
def test_a_driver_that_is_too_old_is_named(
    machine: Machine, driver: str, built: str, old: bool, form: str
) -> None:
    machine(driver, built, form=form)
    why = selection.absent()["cuda"]
    assert driver in why
    assert ("too old" in why) is old
    if old:
        assert f"torch ({torch.__version__}, built for CUDA {built}, which needs" in why
        assert "https://pytorch.org/get-started/previous-versions/" in why


@pytest.mark.parametrize(
    ("driver", "built", "cards", "why"),
    [
        (None, "13.0", 0, "version names no driver"),
        ("580.65.06", "13.0", 0, "start a container with --gpus all"),
        ("580.65.06", "13.0", 1, "nvidia-smi must list one"),
        ("580.65.06", None, 1, "without CUDA, although the NVIDIA driver 580.65.06 is here"),
        (None, None, 0, "this build of torch is without CUDA"),
    ],
)
def test_other_reasons(
    machine: Machine, driver: str | None, built: str | None, cards: int, why: str
) -> None:
    machine(driver, built, cards)
    assert why in selection.absent()["cuda"]
    with pytest.raises(DeviceError, match="this machine has cpu") as caught:
        selection.choose_device("cuda")
    assert why in str(caught.value)


def test_a_file_that_says_something_else_is_no_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "version").write_bytes(b"\xff\xfe something else 1.2.3\n")
    monkeypatch.setattr(nvidia, "DRIVER_FILE", tmp_path / "version")
    assert nvidia.driver_version() is None


@pytest.mark.parametrize(
    ("driver", "built", "told"),
    [("550.54.14", "13.0", 1), (None, "13.0", 0), ("580.65.06", None, 0)],
)
def test_auto_says_once_that_it_takes_the_cpu(
    machine: Machine,
    caplog: pytest.LogCaptureFixture,
    driver: str | None,
    built: str | None,
    told: int,
) -> None:
    """But not where torch was installed without CUDA, or there is nothing of NVIDIA."""
    machine(driver, built)
    for name in ("auto", "auto", "cpu"):
        assert selection.choose_device(name) == torch.device("cpu")
    assert len(caplog.messages) == told
    assert all("reading on the CPU: the NVIDIA driver 550" in text for text in caplog.messages)


def test_the_reports_say_it_with_the_fix(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine("550.54.14", "13.0")
    settings = Settings(model="pocket", device="cpu")
    (finding,) = [found for found in doctor._devices(settings) if found.what == "cuda"]
    assert "550.54.14 is here" in finding.how
    assert "update the driver" in finding.fix
    assert not finding.bad  # the CPU reads
    device_report.show(settings)
    assert "cuda: not here; the NVIDIA driver 550.54.14 is too old" in capsys.readouterr().out


# --- cards ----------------------------------------------------------------------------------------


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[int, int], list[str]], None]:
    """A card of this compute capability, and a torch with code for these architectures."""

    def put(capability: tuple[int, int], architectures: list[str]) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla V100")
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (10**10, 10**10))
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: architectures)
        monkeypatch.setattr(torch.version, "cuda", "13.0")

    return put


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
def test_a_card_without_kernels_is_refused_by_name(
    card: Callable[[tuple[int, int], list[str]], None], name: str
) -> None:
    card(VOLTA, BUILT_FOR_13)
    with pytest.raises(DeviceError) as caught:
        selection.choose_device(name)
    for words in ("Tesla V100", "compute capability 7.0", "built for CUDA 13.0", "device cpu"):
        assert words in str(caught.value)
    assert "no kernels" in selection.describe(torch.device("cuda:0")).name


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        (TURING, BUILT_FOR_13, True), (HOPPER, BUILT_FOR_13, True), ((8, 9), BUILT_FOR_13, True),
        ((12, 1), BUILT_FOR_13, True), ((13, 0), BUILT_FOR_13, True),  # from compute_120
        ((11, 0), BUILT_FOR_13, False), (VOLTA, ["sm_70", "sm_80"], True),
        ((8, 0), ["sm_86"], False), ((9, 0), ["sm_90a"], True), ((9, 1), ["sm_90a"], False),
        ((10, 3), ["sm_100f"], True), ((10, 3), ["sm_100a"], False), (VOLTA, [], True),
        (VOLTA, ["something new"], True),
    ],
)  # fmt: skip
def test_which_cards_code_runs_on(
    card: Callable[[tuple[int, int], list[str]], None],
    capability: tuple[int, int],
    architectures: list[str],
    runs: bool,
) -> None:
    card(capability, architectures)
    assert (nvidia.card_problem(torch.device("cuda")) is None) is runs


# --- settings of the process ----------------------------------------------------------------------


def settings() -> tuple[bool, bool, bool, bool, bool, str]:
    matmul = torch.backends.cuda.matmul
    return (
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
        torch.backends.cuda.cudnn_sdp_enabled(),
        torch.backends.cudnn.allow_tf32,
        matmul.allow_tf32,
        torch.get_float32_matmul_precision(),
    )


@pytest.fixture
def as_torch_has_it() -> Iterator[None]:
    fp16, bf16, cudnn, convolutions, _, _ = settings()
    matmul = torch.backends.cuda.matmul
    yield
    matmul.allow_fp16_reduced_precision_reduction = fp16
    matmul.allow_bf16_reduced_precision_reduction = bf16
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    torch.backends.cudnn.allow_tf32 = convolutions


@pytest.mark.usefixtures("as_torch_has_it")
def test_a_card_sets_what_the_process_decides_once() -> None:
    matmul = torch.backends.cuda.matmul
    matmul.allow_fp16_reduced_precision_reduction = True
    matmul.allow_bf16_reduced_precision_reduction = True
    torch.backends.cuda.enable_cudnn_sdp(True)
    torch.backends.cudnn.allow_tf32 = True
    before = settings()
    assert before == (True, True, True, True, False, "highest")
    for kind in ("cpu", "mps"):
        selection.configure(torch.device(kind))
    assert settings() == before
    selection.configure(torch.device("cuda:1"))
    assert settings() == (False, False, False, False, False, "highest")
