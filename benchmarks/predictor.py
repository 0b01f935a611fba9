"""Many predictions at once on the real Cog server: `python -m benchmarks.predictor`.

The server runs `predict.py` as the container of `cog.cpu.yaml` does, with the bundled model:

- predictions: so many one after the other, and the same at the same moment; the two take turns, so
  that a machine whose speed drifts favours neither
- alone: what of a prediction's seconds is vision and prefill, which pages do not share
- document: a PDF of so many pages, and its pages as predictions one after the other
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from tests import papers
from tests.cog_server import Server, copy_image, data_uri, ready

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
KINDS = {
    "two words, Tiny": ("total.png", "Free OCR", "Tiny"),
    "two lines, Tiny": ("fruit.png", "Free OCR", "Tiny"),
    "a letter, Tiny": ("letter.png", "Convert to Markdown", "Tiny"),
    "a letter, Gundam": ("letter.png", "Convert to Markdown", "Gundam (Recommended)"),
}
"""Pages: the picture, how it is asked for."""


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.predictor",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--predictions", type=int, default=16, metavar="N", help="at once")
    parser.add_argument("--pages", type=int, default=40, metavar="N", help="of the PDF")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="the median counts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    flags = parser.parse_args(arguments)
    with server() as running_server:
        figures: dict[str, Any] = {
            "machine": machine.describe(torch.device("cpu")),
            "predictions": {
                name: predictions(running_server, inputs_of(*kind), flags.predictions, flags.turns)
                for name, kind in KINDS.items()
            },
            "document": document(running_server, flags.pages, flags.turns),
        }
    text = json.dumps(figures, indent=1)
    print(text)
    if flags.json:
        flags.json.write_text(text + "\n")


@contextmanager
def server() -> Iterator[Server]:
    """The server, warm."""
    with tempfile.TemporaryDirectory() as name, ready(copy_image(Path(name))) as started:
        yield started


def inputs_of(picture: str, task: str, size: str) -> dict[str, Any]:
    """The inputs of a prediction; each page is tried once."""
    image = data_uri(EXAMPLES / picture)
    return {"image": image, "task_type": task, "resolution_size": size, "retries": 0}


def predictions(server: Server, inputs: dict[str, Any], count: int, turns: int) -> dict[str, Any]:
    """Seconds a prediction, one after the other and all at once, and the ratio."""
    (page,) = json.loads(read(server, {**inputs, "output_format": "JSON"}))["pages"]
    timings = page["timings"]

    def in_turn() -> None:
        for _ in range(count):
            read(server, inputs)

    def at_once() -> None:
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(lambda _: read(server, inputs), range(count)))

    seconds = in_turns({"in_turn": in_turn, "at_once": at_once}, turns)
    return {
        "tokens": page["counts"]["output"],
        "vision_and_prefill_s": round(timings["vision"] + timings["prefill"], 4),
        "in_turn_s": round(seconds["in_turn"] / count, 4),
        "at_once_s": round(seconds["at_once"] / count, 4),
        "ratio": round(seconds["in_turn"] / seconds["at_once"], 2),
    }


def document(server: Server, pages: int, turns: int) -> dict[str, Any]:
    """Seconds a page of a PDF in one prediction, and of its pages in predictions of their own."""
    names = [("invoice", "total", "fruit")[at % 3] for at in range(pages)]
    asked = {"task_type": "Free OCR", "resolution_size": "Tiny"}
    with tempfile.TemporaryDirectory() as name:
        pictures = [EXAMPLES / f"{name}.png" for name in names]
        whole = data_uri(papers.picture_pdf(Path(name) / "x.pdf", pictures))
        single = [
            data_uri(papers.picture_pdf(Path(name) / f"{at}.pdf", [picture]))
            for at, picture in enumerate(pictures)
        ]

    def alone() -> None:
        for image in single:
            read(server, {"image": image, **asked})

    seconds = in_turns(
        {"document": lambda: read(server, {"image": whole, **asked}), "single_pages": alone}, turns
    )
    return {
        "pages": pages,
        "document_s_per_page": round(seconds["document"] / pages, 4),
        "single_pages_s_per_page": round(seconds["single_pages"] / pages, 4),
        "ratio": round(seconds["single_pages"] / seconds["document"], 2),
    }


def in_turns(ways: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Median seconds of each of `ways`, which take turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(found) for name, found in times.items()}


def read(server: Server, inputs: dict[str, Any]) -> str:
    """The output of a prediction."""
    reply = server.predict(**inputs)
    if reply.body["status"] != "succeeded":
        raise SystemExit(reply.body["error"])
    return str(reply.body["output"])


if __name__ == "__main__":
    main()
