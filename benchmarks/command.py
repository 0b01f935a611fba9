"""What the commands share: where things lie, flags, and the file of figures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from deepseek_ocr.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
POCKET = ROOT / "checkpoints" / "pocket"
RANDOM_CHECKPOINT = ROOT / "build" / "random-checkpoint"


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m benchmarks.NAME` with the flag `--json`."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures to this file too"
    )
    return made


def full_size_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """`parser` with the flags of what runs the full-size network of random weights."""
    made = parser(name, description)
    # fmt: off
    made.add_argument("--checkpoint", type=Path, default=RANDOM_CHECKPOINT, metavar="FOLDER",
                      help="keep the random weights here (default: build/random-checkpoint)")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    made.add_argument("--dtype", default="auto", help="number type of the weights")
    made.add_argument("--repeat", type=int, default=3, help="repetitions; the median counts")
    # fmt: on
    return made


def counts(text: str) -> tuple[int, ...]:
    """The value of a flag such as `1,8,64`. Raises `ValueError` if a part is not a number."""
    return tuple(int(word) for word in text.split(","))


def few_words(pages: int) -> list[Path]:
    """So many example pages of one to four words: the least that a page can have."""
    return [EXAMPLES / f"{('invoice', 'total', 'fruit')[at % 3]}.png" for at in range(pages)]


def write_json(path: Path | None, content: object) -> None:
    """Write `content`, whole or not at all, if there is a `path`; numbers that are not finite as
    text."""
    if path is not None:
        finite = json.loads(json.dumps(content), parse_constant=lambda name: str(float(name)))
        with atomic_write(path) as stream:
            stream.write((json.dumps(finite, indent=1) + "\n").encode())
