"""`devices`, `doctor` and the report of a device, as a person runs them."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import report
from deepseek_ocr import configuration, presets
from deepseek_ocr.cli import device_report, doctor
from deepseek_ocr.cli.main import main
from deepseek_ocr.configuration import Settings
from deepseek_ocr.devices import memory, selection
from deepseek_ocr.errors import SettingsError
from tests.conftest import ROOT

POCKET = Settings(model="pocket", device="cpu")


def test_devices_are_listed_with_what_would_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--model", "pocket", "--quant", "int8"]) == 0
    out = capsys.readouterr().out
    assert "cpu: " in out
    assert "threads: " in out
    for kind in selection.absent():
        assert f"{kind}: not here; " in out
    assert "chosen: cpu (as the settings say) in " in out
    assert "quant int8" in out
    assert "gundam" in out
    assert "for each further page" in out


def test_a_card_shows_its_memory_and_types(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (10**8, 15 * 10**9))
    settings = Settings(model="pocket", vision_device="cpu")
    assert device_report.show(settings) == 0
    out = capsys.readouterr().out
    assert "cuda:0: Tesla T4, compute capability 7.5, 0.1 GB of 15.0 GB free" in out
    assert "types: float16, float32; auto takes float16" in out
    assert "chosen: cuda (the first of" in out
    assert "encoders: cpu in " in out
    assert "does not fit now" in out


def test_without_the_model_the_rest_is_still_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["devices", "--model", "deepseek-ocr", "--checkpoints", str(tmp_path)]) == 0
    assert "not known before the model is here" in capsys.readouterr().out


def test_too_little_memory_is_told_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_and_total", lambda device: (2 * 10**8, 10**9))
    folder = ROOT / "checkpoints" / "pocket"
    device_report.warn_of_too_little(POCKET, presets.crop_for("large"), folder)
    told = capsys.readouterr().err
    assert "may run out of memory" in told
    assert "--size tiny" in told


def test_a_sound_installation_has_nothing_to_fix(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--model", "pocket"]) == 0
    out = capsys.readouterr().out
    assert "nothing to fix" in out
    assert "!!" not in out
    for what in ("python", "packages", "torch", "device", "threads", "checkpoint", "reading"):
        assert f"  {what}: " in out
    assert "fast paths: cpu in float32: decoding by " in out or "cpu in bfloat16: " in out


def test_what_is_wrong_is_marked_with_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = importlib.metadata.version

    def version(package: str) -> str:
        if package == "einops":
            raise importlib.metadata.PackageNotFoundError(package)
        return "0.1" if package == "nh3" else real(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(doctor, "_reading", lambda settings: iter(()))
    wanted = ["--model", "deepseek-ocr", "--checkpoints", str(tmp_path), "--device", "npu"]
    assert main(["doctor", *wanted]) == 1
    out = capsys.readouterr().out
    assert "!!  packages: missing: einops" in out
    assert "pip install -r requirements/checkout.txt" in out
    assert "?   packages: not as in requirements/checkout.txt: nh3 0.1 (==" in out
    assert "cog-deepseek-ocr[npu]" in out
    assert "deepseek-ocr weights fetch deepseek-ocr" in out
    assert "marked !!" in out


def test_torch_that_does_not_import_ends_the_examination(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Iterator[doctor.Finding]:
        raise RuntimeError("Failed to load the backend extension: torch_npu.")
        yield

    monkeypatch.setattr(doctor, "_torch", broken)
    assert doctor.examine(POCKET, "tiny") == 1
    out = capsys.readouterr().out
    assert "set_env.sh" in out
    assert "reading" not in out


@pytest.mark.parametrize("name", ["requirements/checkout.txt", "requirements/npu.txt"])
def test_pins_are_read(name: str) -> None:
    pins = doctor.pins(ROOT / name)
    assert {"torch", "transformers", "pillow"} <= pins.keys()
    assert "pytest" not in pins


def test_without_the_files_of_a_checkout_the_distribution_says_what_it_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = ["torch>=2.6", "einops>=99", "nothing-like-this>=1", 'fastapi>=1; extra == "serve"']
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    missing, other = list(doctor._packages())
    assert str(missing).startswith("!!  packages: missing: nothing-like-this\n")
    assert "pip install 'nothing-like-this>=1'" in str(missing)
    assert "pip install 'einops>=99'" in str(other)
    assert "not as in cog-deepseek-ocr: einops" in str(other)
    assert "torch" not in str(other)
    assert "fastapi" not in f"{missing}{other}"


def test_an_ascend_pins_what_belongs_together() -> None:
    pins, local = (
        doctor.pins(ROOT / "requirements/npu.txt"),
        doctor.pins(ROOT / "requirements/cuda.txt"),
    )
    assert pins["torch-npu"].startswith(pins["torch"])
    assert {name: version for name, version in pins.items() if "torch" not in name} == {
        name: version for name, version in local.items() if name != "torch"
    } | {"rich": doctor.pins(ROOT / "requirements/checkout.txt")["rich"], "pyyaml": pins["pyyaml"]}


# --- settings ------------------------------------------------------------------------------------


def test_settings_of_devices() -> None:
    assert configuration.load({}, {}).threads == 0
    assert configuration.load({}, {"OMP_NUM_THREADS": "3,2"}).threads == 3
    both = {"OMP_NUM_THREADS": "3", "DEEPSEEK_OCR_THREADS": "5"}
    assert configuration.load({}, both).threads == 5
    assert configuration.load({}, {"DEEPSEEK_OCR_STRICT": "yes"}).strict is True
    assert configuration.load({}, {"DEEPSEEK_OCR_STRICT": "0"}).strict is False
    assert configuration.load({}, {"DEEPSEEK_OCR_VISION_DEVICE": "cpu"}).vision_device == "cpu"
    assert configuration.load({"vision_device": "same"}, {}).vision_device is None
    for wrong in ({"DEEPSEEK_OCR_STRICT": "maybe"}, {"DEEPSEEK_OCR_THREADS": "many"}):
        with pytest.raises(SettingsError, match=r"must be"):
            configuration.load({}, wrong)


# --- the report ----------------------------------------------------------------------------------

ABOUT = {"device": "npu:0", "name": "Ascend910B2", "dtype": "float16", "software": "torch 2.6.0",
         "model": "deepseek-ocr, quant none", "load_seconds": 23.6}  # fmt: skip


def test_the_table_has_what_the_samples_say() -> None:
    samples = [
        report.PageTime("a", 10.0, 400, "stop"),
        report.PageTime("b", 20.0, 800, "stop"),
        report.PageTime("c", 30.0, 1200, "stop"),
        report.PageTime("d", 90.0, 9000, "loop"),
        report.PageTime("e", 1.0, 0, "failed"),
    ]
    text = "\n".join(report.table(ABOUT, samples))
    assert "| loading (with imports) | 23.6 s |" in text
    assert "| a page of under 500 characters | 10.0 s (mean of 1) |" in text
    assert "| a page of 500 to 2,000 characters | 25.0 s (mean of 2) |" in text
    assert "over 2,000" not in text
    assert "| all pages | 20.0 s a page, 40 characters a second |" in text
    assert "| success | 3 of 5 (60%) |" in text


def test_a_report_of_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, gone = str(ROOT / "examples/total.png"), str(tmp_path / "gone.png")
    kept = tmp_path / "report.json"
    status = report.main(["--model", "pocket", "--device", "cpu", "--json", str(kept), page, gone])
    assert status == 1
    told = capsys.readouterr()
    assert "| success | 1 of 2 (50%) |" in told.out
    assert "gone.png" in told.err
    pages = json.loads(kept.read_text())["pages"]
    assert [page["ended"] for page in pages] == ["stop", "failed"]
    assert report.main(["--model", "nobody/knows", page]) == 2
