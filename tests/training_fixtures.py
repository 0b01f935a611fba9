"""Annotated pages and other inputs that the tests of `training/` share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deepseek_ocr.cli.main import main
from deepseek_ocr.files import write_bytes
from deepseek_ocr.training.data.samples import Sample, samples_to_json
from tests.conftest import ROOT

EXAMPLES = {"invoice": "Invoice", "total": "Total 498", "fruit": "Apple 12\nLemon 34"}
"""What stands on the example pages that the bundled model reads."""


def put_page(folder: Path, name: str, annotation: object, colour: str | None = None) -> Path:
    """A picture `name` (with suffix), an example page or of one colour, and its annotation."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if colour is None:
        shutil.copy(ROOT / "examples" / f"{path.stem}.png", path)
    else:
        Image.new("RGB", (40, 30), colour).save(path)
    path.with_suffix(".json").write_text(json.dumps(annotation))
    return path


def put_examples(folder: Path) -> Path:
    """The three example pages with their texts; test.json lists them. Returns that file."""
    for name, text in EXAMPLES.items():
        put_page(folder, f"{name}.png", {"text": text})
    return put_list(
        folder, [{"image": f"{name}.png", "text": text} for name, text in EXAMPLES.items()]
    )


def put_list(folder: Path, entries: list[Any]) -> Path:
    """A test.json with these entries."""
    path = folder / "test.json"
    path.write_text(json.dumps(entries))
    return path


def jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of one a line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def train(arguments: Sequence[str]) -> int:
    """The exit status of `deepseek-ocr train`."""
    return main(["train", *arguments])


def evaluate(arguments: Sequence[str], load: Callable[..., Any] | None = None) -> int:
    """The exit status of `deepseek-ocr evaluate`; `load` takes the place of loading an engine."""
    with pytest.MonkeyPatch.context() as patch:
        if load is not None:
            patch.setattr("deepseek_ocr.training.evaluation.evaluation_run.load_engine", load)
        return main(["evaluate", *arguments])


def save_samples(data_root: Path, file: Path, samples: Sequence[Sample]) -> None:
    """Write `samples` as `load_samples` reads them."""
    write_bytes(file, samples_to_json(data_root, samples))
