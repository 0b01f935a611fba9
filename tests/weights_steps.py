"""Verbs of the tests of `registry.py`: fetch, fail, check, and harm a folder."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deepseek_ocr.errors import CheckpointError
from deepseek_ocr.weights import folders, registry
from tests.weights_world import FILES, INDEX, NAME, WEIGHTS, World, table

SOURCES = ("replicate", "huggingface", "modelscope")

CARRIERS = ("pget", "library")

CONTENT = {"replicate": "/default/model.tar", "huggingface": "/cdn/", "modelscope": "model-00001"}

"""What is in the path of a request for the large file, or the tar."""

PAUSE = threading.Event()
"""Never set: waiting for it is a pause that no test has patched away."""

NOWHERE = table(dict.fromkeys(SOURCES, 1))
"""The table with sources that nobody can reach: no test may ever download the real thing."""


def ensure(world: World, source: str = "auto", **changes: Any) -> str:
    """Fetch from the servers, with `changes` to the sources; returns what was said meanwhile."""
    checkpoint = world.table[NAME]
    sources = tuple(replace(one, **changes) for one in checkpoint.sources)
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(io.StringIO()) as said:
        known = {**world.table, NAME: replace(checkpoint, sources=sources)}
        patch.setattr(registry, "CHECKPOINTS", known)
        assert registry.ensure(NAME, world.home, source) == world.target
    return said.getvalue()


def failing(world: World, source: str, message: str, **changes: Any) -> str:
    """Fetching fails with a message, and nothing is to be seen under the final name."""
    with pytest.raises(CheckpointError, match=message) as caught:
        ensure(world, source, **changes)
    assert not world.target.exists()
    return str(caught.value)


def check(world: World, source: str) -> None:
    """The checkpoint is whole, comes from `source`, and nothing else is left."""
    record = registry.verify(NAME, world.home)
    assert record is not None
    assert record.source == source
    assert set(record.files) == set(FILES)
    assert sorted(path.name for path in world.target.iterdir()) == sorted([*FILES, folders.RECORD])
    assert all((world.target / name).read_bytes() == world.files[name] for name in FILES)
    assert left_in(world.home) == [f".{NAME}.lock", NAME]


def left_in(home: Path) -> list[str]:
    """What is in a folder of checkpoints, but for damaged ones that were kept."""
    return sorted(path.name for path in home.iterdir() if ".damaged-" not in path.name)


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"not within 30 seconds: {what}"
        PAUSE.wait(0.01)


def cut(path: Path) -> None:
    """Take the last byte of a file away."""
    path.write_bytes(path.read_bytes()[:-1])


def lose(*paths: Path) -> None:
    """Take files away."""
    for path in paths:
        path.unlink()


def point_elsewhere(index: Path, name: object = "../x.safetensors") -> None:
    """Have the index name another file."""
    index.write_text(json.dumps({"weight_map": {"weight": name}}))


INCOMPLETE: list[tuple[Callable[[Path], Any], str]] = [
    (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    (lambda folder: (folder / "tokenizer.json").write_text("{"), "not JSON"),
    (lambda folder: (folder / "config.json").write_text("[" * 100_000), "not JSON"),
    (lambda folder: cut(folder / WEIGHTS), "damaged or cut off"),
    (lambda folder: (folder / WEIGHTS).write_bytes(b""), "damaged or cut off"),
    (lambda folder: (folder / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
    (lambda folder: lose(folder / WEIGHTS, folder / INDEX), "model\\*"),
    (lambda folder: point_elsewhere(folder / INDEX), "none of this folder's"),
    (lambda folder: point_elsewhere(folder / INDEX, "/x.safetensors"), "none of this folder's"),
    (lambda folder: point_elsewhere(folder / INDEX, "x.bin"), "none of this folder's"),
    (lambda folder: point_elsewhere(folder / INDEX, 3), "none of this folder's"),
    (lambda folder: (folder / INDEX).write_text('{"weight_map": {}}'), "none of this folder's"),
    (lambda folder: (folder / INDEX).write_text("[]"), "lists no files"),
]
