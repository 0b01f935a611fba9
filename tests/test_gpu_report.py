"""The report of a card: its parts, run on the CPU at tiny size, and the command."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from benchmarks import (
    decode_speed,
    full_size,
    golden,
    gpu,
    machine,
    page_stages,
    quality,
    random_checkpoint,
)
from benchmarks.part_rows import Figures, ReportRows
from benchmarks.part_runner import ReportPart, ReportSettings
from deepseek_ocr.devices import memory, nvidia
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.errors import InputError
from deepseek_ocr.kernels import op_fallbacks, torch_steps
from deepseek_ocr.kernels.rehearsal import TOLERANCES, RehearsalOutcome
from deepseek_ocr.kernels.slot_decoder import GRAPHS, NATIVE, TORCH
from tests import report_parts
from tests.conftest import GOLDEN, ROOT


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights for the golden checkpoint's decoder and vision encoders of a layer each."""
    folder = tmp_path_factory.mktemp("random")
    config = json.loads((GOLDEN / "checkpoint" / "config.json").read_text())
    towers = config["vision_config"]["width"]
    towers["sam_vit_b"] |= {"layers": 1, "global_attn_indexes": []}
    towers["clip-l-14-224"]["layers"] = 1
    random_checkpoint.write(folder, config)
    return folder


@pytest.fixture
def settings(checkpoint: Path) -> ReportSettings:
    return ReportSettings("cpu", "float32", checkpoint, pages=(1, 3), read=3, tokens=4, repeat=1)


@pytest.fixture
def rows() -> ReportRows:
    return ReportRows(math.inf)


# --- the parts themselves -------------------------------------------------------------------------


def test_golden_in_every_type_by_every_way(
    settings: ReportSettings, rows: ReportRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden, "VIEWS", ("tiny",))
    monkeypatch.setattr(golden, "CASES", ("case_tiny",))
    golden.check(settings, rows)
    kept = rows.found["rows"]
    for dtype in ("float32", "bfloat16", "float16"):
        for what in ("vision, plain", "vision, fast", "decoding, plain", "decoding, torch"):
            assert kept[f"{dtype}, {what}"]["difference"] > 0
        assert kept[f"{dtype}, vision, fast"]["attention"] == "fast"
        assert kept[f"{dtype}, decoding, torch"]["attention"] == "sdpa"
    assert kept["float32, decoding, torch"]["greedy"] == "48 of 48 ids"
    assert "int8 in bfloat16, decoding, torch" in kept
    assert [row for row in kept.values() if "wrong" in row or "error" in row] == []


def test_the_plain_class_gets_stand_ins_too(
    settings: ReportSettings, rows: ReportRows, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(op_fallbacks, "lacking", lambda device, dtype: {"grouped product"})
    seen = [page_stages.load_pair(checkpoint, "cpu", "float32", "plain").plain]
    monkeypatch.setattr(golden, "_decoding", lambda network, *_: seen.append(network) or {})
    monkeypatch.setattr(golden, "VIEWS", ("tiny",))
    golden._check_type(settings, rows, {}, "float32", "none")
    for network in seen[:2]:
        assert network.config.text_config._experts_implementation == "eager"


def test_a_way_that_computes_something_else_is_wrong(
    settings: ReportSettings, rows: ReportRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = torch_steps.step
    monkeypatch.setattr(torch_steps, "step", lambda *given: right(*given) * torch.tensor(1.001))
    monkeypatch.setattr(golden, "VIEWS", ("tiny",))
    monkeypatch.setattr(golden, "CASES", ("case_tiny",))
    monkeypatch.setattr(golden, "TYPES", ("float32",))
    golden.check(settings, rows)
    kept = rows.found["rows"]
    assert "1e-05 at most" in kept["float32, decoding, torch"]["wrong"]
    assert "wrong" not in kept["float32, decoding, plain"]


def test_quality_by_every_choice_of_kernels(
    settings: ReportSettings, rows: ReportRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not installed, or goes wrong with synthetic pages, loses only them."""

    def no_fonts(*given: object) -> tuple[quality.Measure, Figures]:
        raise InputError("No fonts were found.")

    monkeypatch.setattr(quality, "synthetic", no_fonts)
    quality.check(settings, rows)
    kept = rows.found["rows"]
    assert kept.pop("synthetic pages")["left_out"] == "No fonts were found."
    assert list(kept) == ["plain", "auto", "auto,-compiled", "auto, int8"]
    for row in kept.values():
        assert (row["exact"], row["cer"]) == (3, 0)
        assert "wrong" not in row


def test_an_error_with_synthetic_pages_loses_only_them(
    settings: ReportSettings, rows: ReportRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(engine: OcrEngine) -> Figures:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(quality, "synthetic", lambda folder: (refusing, {"pages": 1}))
    monkeypatch.setattr(quality, "KERNELS", {"cpu": ("plain",)})
    quality.check(settings, rows)
    kept = rows.found["rows"]
    assert kept["plain"]["exact"] == 3
    assert kept["plain, synthetic pages"]["error"]["text"] == "out of luck"


def test_synthetic_pages_are_scored_if_they_can_be_made(
    settings: ReportSettings, rows: ReportRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = quality.synthetic
    monkeypatch.setattr(quality, "synthetic", lambda folder: make(folder, 2))
    monkeypatch.setattr(quality, "KERNELS", {"cpu": ("auto",)})
    quality.check(settings, rows)
    kept = rows.found["rows"]
    if "left_out" in kept["synthetic pages"]:  # no fonts, or no packages of training
        assert list(kept) == ["synthetic pages", "auto"]
        return
    figures = kept["auto, synthetic pages"]
    assert 0 <= figures["cer"] < 0.5
    assert figures["failed"] == 0
    assert 0.5 < figures["iou"] <= 1


def test_a_reading_that_got_worse_is_wrong() -> None:
    plain = {"cer": 0.01}
    assert "wrong" not in quality._judged({"cer": 0.015}, plain)
    assert "wrong" not in quality._judged({"exact": 3, "cer": 0.0}, None)
    assert "2 of 3 examples" in quality._judged({"exact": 2, "cer": 0.03}, None)["wrong"]
    assert "above 0.06" in quality._judged({"exact": 2, "cer": 0.07}, None)["wrong"]
    assert "0.010 by plain" in quality._judged({"cer": 0.05}, plain)["wrong"]
    assert "wrong" in quality._judged({"cer": float("nan")}, None)


@pytest.mark.parametrize(
    ("one", "other", "edits"),
    [
        ("kitten", "sitting", 3),
        ("", "abc", 3),
        ("abc", "", 3),
        ("same", "same", 0),
        ("ab", "ba", 2),
    ],
)
def test_edit_distance_by_hand(one: str, other: str, edits: int) -> None:
    assert quality.edit_distance(one, other) == edits


def test_start_decoding_and_pages(
    settings: ReportSettings, rows: ReportRows, tmp_path: Path
) -> None:
    full_size.write_checkpoint(settings, rows)
    full_size.start(settings, rows)
    full_size.decode(settings, rows)
    full_size.pages(settings, rows)
    kept = rows.found["rows"]
    assert [row for row in kept.values() if "wrong" in row or "error" in row] == []
    assert kept["checkpoint"]["was_there"]
    assert kept["load"]["slots"] >= 1
    assert kept["plain, 1 page"]["agreement"] is None
    assert (kept["task"]["prompt"], kept["task"]["span"]) == (page_stages.PROMPT, 1024)
    for pages in ("1 page", "3 pages"):
        row = kept[f"torch, {pages}"]
        assert row["attention"] == "sdpa"
        assert row["agreement"] < TOLERANCES[torch.float32]
        assert row["times_plain"] == pytest.approx(
            row["tokens_per_s"] / kept["plain, 1 page"]["tokens_per_s"]
        )
    assert kept["3 pages at once, second time"]["tokens_per_page"] == 4
    assert kept["3 pages one by one"]["pages_per_s"] > 0


def test_stages_and_memory(
    settings: ReportSettings, rows: ReportRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_size, "A4_VIEWS", (512, 0))
    monkeypatch.setattr(full_size, "PRESETS", ("tiny",))
    full_size.stages_of_a_page(settings, rows)
    full_size.memory_use(settings, rows)
    kept = rows.found["rows"]
    assert [row for row in kept.values() if "error" in row] == []
    assert kept["vision, A4 at Gundam"]["ratio"] > 0
    assert kept["prefill"]["tokens"] == page_stages.PROMPT
    assert kept["vision, tiny"]["estimated_bytes"] > 0
    one, three = kept["1 slot"], kept["3 slots"]
    cache = one["estimated_cache_bytes_per_slot"]
    assert three["estimated_cache_bytes_per_slot"] == cache
    assert one["estimated_total_bytes"] == pytest.approx(one["estimated_weights_bytes"] + cache)
    assert one["weights_bytes"] is None  # the CPU counts no tensors
    assert one["total_bytes"] is None


def test_a_card_that_is_too_small_is_left_out(
    settings: ReportSettings, rows: ReportRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**6)
    full_size.start(settings, rows)
    full_size.decode(settings, rows)
    full_size.pages(settings, rows)
    full_size.stages_of_a_page(settings, rows)
    full_size.memory_use(settings, rows)
    assert list(rows.found["rows"]) == ["network"]
    assert rows.found["rows"]["network"]["left_out"].startswith("needs ")
    assert rows.found["rows"]["network"]["left_out"].endswith(", 0.0 GB free")


def test_shares_are_of_the_limits_that_were_measured_once() -> None:
    limits = {"bytes_per_second": 1e12, "operations_per_second": 2e12}
    earlier = {"card": {"rows": {decode_speed.LIMITS: limits}}}
    assert asdict(decode_speed.limits(torch.device("cpu"), torch.float32, earlier)) == limits
    assert decode_speed.too_low(0.5, 1.04) == {}
    assert decode_speed.too_low(1.06, 0.1) == {"remark": "the limit was measured too low"}


@pytest.mark.parametrize(
    ("length", "repeat", "expected"),
    [(913, 3, (27, 1024)), (913, 10, (9, 1024)), (100, 1, (32, 512)), (1024, 3, (32, 2048))],
)
def test_decoding_is_timed_within_one_span(
    length: int, repeat: int, expected: tuple[int, int]
) -> None:
    tokens, span = decode_speed.within_one_span(length, 32, repeat)
    assert (tokens, span) == expected
    prompt = torch.zeros(1, length, 4)
    task = decode_speed.DecodeTask(prompt, (0,) * tokens, repeat, prompt, prompt)
    assert length + task.most_tokens <= span


class Engine:
    """One that was loaded."""

    def __init__(self, kind: str, decoder: str) -> None:
        self.device = torch.device(kind)
        self.rehearsal = RehearsalOutcome(
            kind, "bfloat16", decoder, "dense", "sdpa", "folded", 64, 1e-3
        )


@pytest.mark.parametrize(
    ("kind", "decoder", "wrong"),
    [("cuda", GRAPHS.name, False), ("cuda", TORCH.name, True), ("cpu", NATIVE.name, False)],
)
def test_a_card_that_decodes_without_graphs_is_wrong(kind: str, decoder: str, wrong: bool) -> None:
    figures = full_size.rehearsal(Engine(kind, decoder))  # type: ignore[arg-type]
    assert figures["decoder"] == decoder
    assert figures["difference"] == 1e-3
    assert ("wrong" in figures) == wrong


# --- the command ----------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--dtype", "float32",
         "--pages", "1,2", "--read", "2", "--tokens", "3", "--repeat", "1", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.timeout(900)  # starts programs of its own, which a busy machine may starve
def test_the_command_runs_parts_to_their_end(checkpoint: Path, tmp_path: Path) -> None:
    """The other parts are run by tests above, in this process."""
    output = tmp_path / "folder" / "report.json"
    chosen = ["card", "checkpoint", "start"]
    done = command(
        "--checkpoint", str(checkpoint), "--json", str(output), "--seconds", "800",
        "--only", *chosen,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(output.read_text())
    assert report["complete"]
    assert {name: part["status"] for name, part in report["parts"].items()} == dict.fromkeys(
        chosen, "done"
    )
    card = report["parts"]["card"]["rows"]
    assert card["machine"]["revision"]
    assert card["packages"]["torch"] == torch.__version__
    assert card["limits"]["bytes_per_second"] > 0
    assert report["parts"]["start"]["rows"]["load"]["seconds_to_load"] > 0
    assert "cpu: no NVIDIA card" in done.stdout
    assert done.stdout.endswith(f"nothing is wrong\nThe report is {output}\n")


def test_what_was_left_out_is_said_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "PARTS", (ReportPart("leaving_out", report_parts.leaving_out),))
    output = tmp_path / "report.json"
    assert gpu.main(["--device", "cpu", "--json", str(output)]) == 0
    assert capsys.readouterr().out.endswith(
        f"left out: leaving_out (2 rows)\nnothing that ran is wrong\nThe report is {output}\n"
    )


@pytest.mark.timeout(900)
def test_a_wrong_checkpoint_is_reported_and_the_rest_is_there(tmp_path: Path) -> None:
    folder, output = tmp_path / "checkpoint", tmp_path / "report.json"
    folder.mkdir()
    (folder / random_checkpoint.FILE).write_bytes(b"")
    done = command(
        "--checkpoint", str(folder), "--json", str(output), "--only", "checkpoint", "start"
    )  # fmt: skip
    assert done.returncode == 1
    assert "!! start: CheckpointError" in done.stdout
    assert json.loads(output.read_text())["parts"]["start"]["status"] == "failed"


def test_what_cannot_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--device", "cuda:77"]) == 2
    assert "not available here" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert gpu.main(["--device", "cpu", "--json", str(tmp_path / "file" / "report.json")]) == 2
    assert "cannot be written" in capsys.readouterr().err


# --- what only a card does ------------------------------------------------------------------------


def test_what_a_card_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert machine.card(torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.10  Wed Jan 1\n")
    monkeypatch.setattr(nvidia, "DRIVER_FILE", driver)
    card = machine.card(torch.device("cuda"))
    assert card
    assert (card["name"], card["capability"]) == ("NVIDIA H100", "9.0")
    assert (card["free_bytes"], card["driver"]) == (70 * 10**9, "570.86.10")
    driver.unlink()
    assert (machine.card(torch.device("cuda")) or {})["driver"] is None
