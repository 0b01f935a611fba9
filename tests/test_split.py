"""Folders of annotated pictures, split: every pair is used or named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from deepseek_ocr.cli.main import main
from deepseek_ocr.training.data.annotations import Annotation
from deepseek_ocr.training.data.data_split import split
from deepseek_ocr.training.data.samples import Sample, load_samples
from tests.conftest import ROOT
from tests.test_weights_places import mounted
from tests.training_fixtures import put_page

COLOURS = ("red", "green", "blue", "white", "black", "yellow", "pink", "navy", "teal", "gold")


def run(data: Path, output: Path, *more: str) -> int:
    return main(["split", "--data_root", str(data), "--output_dir", str(output), *more])


def names(data: Path, file: Path) -> list[str]:
    samples, rejections = load_samples(data, file)
    assert rejections == []
    return [sample.name for sample in samples]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for colour in COLOURS:
        put_page(folder, f"some/{colour}.png", {"text": colour}, colour)
    return folder


def test_every_pair_is_on_one_side(data: Path, tmp_path: Path) -> None:
    assert run(data, tmp_path / "out", "--test_fraction", "0.3") == 0
    train, test = (names(data, tmp_path / "out" / f"{side}.json") for side in ("train", "test"))
    assert (len(train), len(test)) == (7, 3)
    assert sorted(train + test) == sorted(f"some/{colour}" for colour in COLOURS)
    assert json.loads((tmp_path / "out" / "rejected.json").read_text()) == []


def test_the_same_seed_gives_the_same_split(data: Path, tmp_path: Path) -> None:
    for output, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        run(data, tmp_path / output, "--seed", seed, "--test_fraction", "0.5")
    a, b, c = ((tmp_path / output / "test.json").read_bytes() for output in "abc")
    assert a == b
    assert a != c


def test_a_split_into_the_data_folder_can_be_done_again(data: Path) -> None:
    assert run(data, data) == 0
    first = (data / "train.json").read_bytes()
    assert run(data, data) == 0
    assert (data / "train.json").read_bytes() == first


def test_duplicates_stay_on_one_side(data: Path, tmp_path: Path) -> None:
    for number in range(12):  # twins by name, by format, and by compression
        colour = COLOURS[number % 4]
        twin = data / f"twin{number}.{('png', 'bmp', 'tif')[number % 3]}"
        Image.new("RGB", (40, 30), colour).save(twin)
        twin.with_suffix(".json").write_text(json.dumps({"text": colour}))
    for seed in range(8):
        output = tmp_path / str(seed)
        assert run(data, output, "--seed", str(seed), "--test_fraction", "0.4") == 0
        sides = [
            {sample.annotation.text for sample in load_samples(data, output / file)[0]}
            for file in ("train.json", "test.json")
        ]
        assert not sides[0] & sides[1]
        assert sides[0] | sides[1] == set(COLOURS)


@pytest.mark.parametrize(
    ("fraction", "sizes"), [(0.0, (10, 0)), (0.01, (9, 1)), (0.99, (1, 9)), (1.0, (0, 10))]
)
def test_extreme_shares(fraction: float, sizes: tuple[int, int]) -> None:
    samples = [
        (Sample(Path(f"{at}.png"), Annotation(text="a"), str(at)), f"hash {at}") for at in range(10)
    ]
    train, test = split(samples, fraction, seed=1)
    assert (len(train), len(test)) == sizes


def test_a_picture_added_later_moves_few_others() -> None:
    samples = [
        (Sample(Path(f"{at}.png"), Annotation(text="a"), str(at)), f"hash {at}")
        for at in range(101)
    ]
    before = {sample.name for sample in split(samples[:-1], 0.2, seed=1)[1]}
    after = {sample.name for sample in split(samples, 0.2, seed=1)[1]}
    assert len(before ^ after) <= 2


def test_what_cannot_be_used_is_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_page(data, "empty.png", {"text": ""}, "red")
    put_page(data, "broken.png", {"text": "a"}, "red").with_suffix(".json").write_text("{")
    put_page(data, "damaged.png", {"text": "a"}, "red").write_bytes(b"no picture")
    whole = put_page(data, "half.png", {"text": "a"}, "red")
    whole.write_bytes(whole.read_bytes()[:60])
    (data / "lonely.json").write_text("{}")
    shutil.copy(data / "some" / "red.png", data / "bare.png")
    for suffix in (".png", ".bmp"):
        put_page(data, f"two{suffix}", {"text": "a"}, "red")
    (data / ".hidden.png").write_bytes(b"")
    assert run(data, tmp_path / "out") == 1
    rejected = {
        one["name"]: one["reason"]
        for one in json.loads((tmp_path / "out" / "rejected.json").read_text())
    }
    said = capsys.readouterr()
    assert set(rejected) == {
        "empty.png",
        "broken.png",
        "damaged.png",
        "half.png",
        "lonely.json",
        "bare.png",
        "two.png",
        "two.bmp",
    }
    assert "text is empty" in rejected["empty.png"]
    assert "not valid JSON" in rejected["broken.png"]
    assert "not a picture" in rejected["damaged.png"]
    assert "damaged or incomplete" in rejected["half.png"]
    assert "no picture" in rejected["lonely.json"]
    assert "no bare.json" in rejected["bare.png"]
    assert "share one annotation" in rejected["two.bmp"]
    assert "8 rejected" in said.out
    assert all(name in said.err for name in rejected)


def test_an_annotation_is_never_written_over(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_page(data, "test.png", {"text": "a", "note": "mine"}, "red")
    before = (data / "test.json").read_bytes()
    assert run(data, data) == 2
    assert "no earlier split" in capsys.readouterr().err
    assert (data / "test.json").read_bytes() == before
    assert not (data / "train.json").exists()


def test_folders_that_are_not_searched_are_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_page(tmp_path / "elsewhere", "page.png", {"text": "a"}, "red")
    (data / "archive").symlink_to(tmp_path / "elsewhere")
    (data / "closed").mkdir()
    look = os.scandir

    def refuse(path: str) -> object:  # as the system does for others than root
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return look(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert run(data, tmp_path / "out") == 1
    rows = json.loads((tmp_path / "out" / "rejected.json").read_text())
    reasons = {row["name"]: row["reason"] for row in rows}
    assert set(reasons) == {"archive", "closed"}
    assert "not followed" in reasons["archive"]
    assert "Permission denied" in reasons["closed"]


def test_rejected_names_are_the_files_own(data: Path, tmp_path: Path) -> None:
    name = f"page  {'1' * 200}.png"
    put_page(data, f"{'long' * 30}/{name}", {"text": ""}, "red")
    run(data, tmp_path / "out")
    (row,) = json.loads((tmp_path / "out" / "rejected.json").read_text())
    assert row["name"] == f"{'long' * 30}/{name}"
    assert row["reason"].startswith("text is empty")


def test_unknown_keys_are_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_page(data, "typo.png", {"text": "a", "refrence": 1}, "red")
    assert run(data, tmp_path) == 0
    assert "'refrence' (1)" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "empty"])
def test_a_folder_without_pairs(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if content:
        (tmp_path / "data").mkdir()
    assert run(tmp_path / "data", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()
    said = capsys.readouterr().err
    assert "no usable pair" in said if content else "is not a folder" in said


@pytest.mark.parametrize("fraction", ["-0.1", "1.1", "nan", "half"])
def test_a_share_that_is_none(tmp_path: Path, fraction: str) -> None:
    with pytest.raises(SystemExit) as left:
        run(tmp_path, tmp_path, "--test_fraction", fraction)
    assert left.value.code == 2


def test_a_full_disk_leaves_nothing_half_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for colour in COLOURS:
        (data / "some" / f"{colour}.json").write_text(json.dumps({"text": colour * 5000}))
    with mounted(tmp_path / "disk", "64k") as disk:
        assert run(data, disk / "out") == 2
        assert list((disk / "out").iterdir()) == []
    assert "No space left on device" in capsys.readouterr().err


def test_it_runs_as_a_program(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deepseek_ocr", "split"]
    arguments = ["--data_root", str(data), "--output_dir", str(tmp_path / "out")]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "9 samples in train.json, 1 in test.json, 0 rejected" in done.stdout
    assert (tmp_path / "out" / "train.json").is_file()
    taught = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert "exit status" in taught.stdout
