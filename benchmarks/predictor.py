"""Many predictions at once on the real Cog server: `python -m benchmarks.predictor`.

The server runs `predict.py` as the container of `cog.cpu.yaml` does, with the bundled model:

- predictions: so many one after the other, and the same at the same moment, in turn
- alone: what of a prediction's seconds is vision and prefill, which pages do not share
- document: a PDF of so many pages, and its pages as predictions one after the other
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import command, machine
from benchmarks.command import EXAMPLES
from benchmarks.timing import CPU, in_turn, medians
from tests import papers
from tests.cog_server import Server, copy_image, data_uri, ready

KINDS = {
    "two words, Tiny": ("total.png", "Free OCR", "Tiny"),
    "two lines, Tiny": ("fruit.png", "Free OCR", "Tiny"),
    "a letter, Tiny": ("letter.png", "Convert to Markdown", "Tiny"),
    "a letter, Gundam": ("letter.png", "Convert to Markdown", "Gundam (Recommended)"),
}
"""Pages: the picture, how it is asked for."""

FREE_OCR = {"task_type": "Free OCR", "resolution_size": "Tiny"}


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = command.parser("predictor", __doc__)
    parser.add_argument("--predictions", type=int, default=16, metavar="N", help="at once")
    parser.add_argument("--pages", type=int, default=40, metavar="N", help="of the PDF")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="the median counts")
    flags = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name, ready(copy_image(Path(name))) as server:
        figures: dict[str, Any] = {
            "machine": machine.describe(CPU),
            "predictions": {
                kind: predictions(server, *asked, flags.predictions, flags.turns)
                for kind, asked in KINDS.items()
            },
            "document": document(server, Path(name), flags.pages, flags.turns),
        }
    print(json.dumps(figures, indent=1))
    command.write_json(flags.json, figures)


def predictions(
    server: Server, picture: str, task: str, size: str, count: int, turns: int
) -> dict[str, Any]:
    """Seconds a prediction, one after the other and all at once, and the ratio; each page is tried
    once."""
    image = data_uri(EXAMPLES / picture)
    inputs = {"image": image, "task_type": task, "resolution_size": size, "retries": 0}
    (page,) = json.loads(read(server, {**inputs, "output_format": "JSON"}))["pages"]
    timings = page["timings"]

    def one_by_one() -> None:
        for _ in range(count):
            read(server, inputs)

    def at_once() -> None:
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(lambda _: read(server, inputs), range(count)))

    return {
        "tokens": page["counts"]["output"],
        "vision_and_prefill_s": round(timings["vision"] + timings["prefill"], 4),
        **_compared({"in_turn_s": one_by_one, "at_once_s": at_once}, count, turns),
    }


def document(server: Server, folder: Path, pages: int, turns: int) -> dict[str, Any]:
    """Seconds a page of a PDF in one prediction, and of its pages in predictions of their own; the
    PDFs are made in `folder`."""
    pictures = command.few_words(pages)
    whole, *single = (
        {"image": data_uri(papers.picture_pdf(folder / "x.pdf", some)), **FREE_OCR}
        for some in (pictures, *([picture] for picture in pictures))
    )

    def alone() -> None:
        for inputs in single:
            read(server, inputs)

    calls = {"single_pages_s_per_page": alone, "document_s_per_page": lambda: read(server, whole)}
    return {"pages": pages, **_compared(calls, pages, turns)}


def _compared(
    calls: Mapping[str, Callable[[], object]], count: int, turns: int
) -> dict[str, float]:
    """Seconds of two calls for each of `count` pages, and how many times the first takes longer."""
    seconds = medians(in_turn(calls, turns, warm_up=0))
    slow, fast = seconds.values()
    each = {name: round(one / count, 4) for name, one in seconds.items()}
    return {**each, "ratio": round(slow / fast, 2)}


def read(server: Server, inputs: dict[str, Any]) -> str:
    """The output of a prediction."""
    reply = server.predict(**inputs)
    if reply.body["status"] != "succeeded":
        raise SystemExit(reply.body["error"])
    return str(reply.body["output"])


if __name__ == "__main__":
    main()
