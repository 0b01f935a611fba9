"""What the document pipeline costs beside the model: `python -m benchmarks.document_cost`.

Three figures, each of the real parts (rendering process, bundled model, files on disk):

- overhead: wall-clock time of a run over a PDF of 200 pages of one to six short lines, less what
  the same engine takes for the same pictures when they lie ready, in turn, as a share of the run;
  beside it the same with one to four words a page
- rendering and preparing: pages a second of a text PDF (A4, 144 dpi), from file to the model's
  views at Gundam
- memory: the peak of all processes together over 3 and over 3,000 pages, reading left out
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import command, machine
from benchmarks.timing import in_turn
from deepseek_ocr import presets
from deepseek_ocr.documents.inputs import find
from deepseek_ocr.documents.pipeline import AHEAD, read_documents
from deepseek_ocr.documents.plan import Plan
from deepseek_ocr.documents.renderer import Ahead, Rendered, Renderer
from deepseek_ocr.documents.run_store import Store
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.engine.results import Failure, Page, Reading
from deepseek_ocr.images.views import make_views
from deepseek_ocr.settings import DecodeSettings
from deepseek_ocr.training.synthetic import recipes, synthetic_pages
from tests import papers, scripted


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = command.parser("document_cost", __doc__)
    parser.add_argument("--pages", type=int, default=200, metavar="N", help="of the read PDF")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="of run and engine")
    flags = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = replace(recipes.CLEAN_LINES, font_set="all")  # one to six short lines of English
        lines = list(synthetic_pages.write_pages(folder, recipe, range(flags.pages), 1, 1))
        words = command.few_words(flags.pages)
        figures = {
            "overhead": overhead(folder / "lines", lines, flags.turns),
            "overhead_of_tiny_pages": overhead(folder / "words", words, flags.turns),
            "rendering": rendering(folder),
            "memory": {str(pages): peak_memory(folder, pages) for pages in (3, 3000)},
        }
    print(json.dumps(figures, indent=1))
    command.write_json(flags.json, figures)


# --- overhead -----------------------------------------------------------------------------------


def overhead(folder: Path, pictures: list[Path], turns: int) -> dict[str, float]:
    """Seconds a page of the pipeline and of the engine alone, and the share between them."""
    folder.mkdir()
    pages = len(pictures)
    engine = OcrEngine.load(command.POCKET)
    prompt, crop = presets.prompt_for("ocr"), presets.crop_for("tiny")
    plan = Plan(prompt, presets.attempts(crop, DecodeSettings(), 0), ("md", "json"))
    path = papers.picture_pdf(folder / "read.pdf", pictures)
    with Renderer() as renderer:
        document = renderer.open(path)
        images = [renderer.render(document, number + 1).image for number in range(pages)]
        ready = [Page(image, prompt, crop) for image in images]

        def run() -> None:
            with Store(Path(tempfile.mkdtemp(dir=folder))) as store:
                tally = read_documents(find([str(path)]).inputs, [engine], plan, store, renderer)
            if tally.read != pages or tally.retried or tally.failures:
                raise SystemExit(f"{tally} instead of {pages} pages read")

        list(engine.read_many(ready[:5]))  # the first pages pay for first-time work
        calls = {"engine": lambda: list(engine.read_many(ready)), "pipeline": run}
        times = in_turn(calls, turns, warm_up=0)
    engine.close()
    shares = [1 - alone / whole for alone, whole in zip(*times.values(), strict=True)]
    return {
        "pages": pages,
        "turns": turns,
        "pipeline_s_per_page": round(statistics.median(times["pipeline"]) / pages, 4),
        "engine_s_per_page": round(statistics.median(times["engine"]) / pages, 4),
        "overhead_percent": round(100 * statistics.median(shares), 2),
    }


# --- rendering ----------------------------------------------------------------------------------


def rendering(folder: Path, pages: int = 40) -> dict[str, float]:
    """Pages a second from the file to views, by one rendering process and this one."""
    path = _text_pdf(folder / "text.pdf", pages)
    crop = presets.crop_for("gundam")
    with Renderer() as renderer:
        document = renderer.open(path)
        renderer.render(document, 1)  # the process is up
        requests = ((number, document, number) for number in range(1, pages + 1))
        began = time.perf_counter()
        with closing(Ahead(renderer, requests, AHEAD)) as ahead:
            for _, picture in ahead:
                assert isinstance(picture, Rendered)
                make_views(picture.image, crop)
        seconds = time.perf_counter() - began
    return {"pages": pages, "pages_per_second": round(pages / seconds, 2)}


def _text_pdf(path: Path, pages: int) -> Path:
    from reportlab.lib.pagesizes import A4
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(path), pagesize=A4)
    for page in range(pages):
        canvas.setFont("Helvetica", 10)
        for line in range(60):
            words = f"Page {page + 1}, line {line + 1}: the quick brown fox jumps over the dog. "
            canvas.drawString(50, 790 - 12 * line, words * 2)
        canvas.showPage()
    canvas.save()
    return path


# --- memory -------------------------------------------------------------------------------------


class _Instant:
    """An engine that says what page it is given, so that memory is the pipeline's alone."""

    is_running = True

    def read_many(self, pages: Iterable[Page]) -> Iterator[Reading | Failure]:
        text = "<|ref|>text<|/ref|><|det|>[[1, 1, 998, 998]]<|/det|>\n" + "words of a page " * 100
        for page in pages:
            image: Any = page.image
            yield scripted.reading(text, "stop", image.size)


def peak_memory(folder: Path, pages: int) -> float:
    """Most MB of resident memory that a run over so many A4 pages takes, all processes together."""
    import psutil

    path = _text_pdf(folder / f"{pages}.pdf", pages)
    process = multiprocessing.get_context("spawn").Process(
        target=_run_instantly, args=(str(path), str(folder / f"memory{pages}"))
    )
    process.start()
    watched = psutil.Process(process.pid)
    with machine.highest(lambda: machine.family_memory(watched) / 1e6, 0.05) as peak:
        process.join()
    if process.exitcode:
        sys.exit(f"the run over {pages} pages ended with {process.exitcode}")
    return round(peak[0], 1)


def _run_instantly(path: str, folder: str) -> None:
    plan = Plan(
        presets.prompt_for("ocr"), presets.attempts(presets.crop_for("tiny"), DecodeSettings())
    )
    with Store(Path(folder)) as store, Renderer() as renderer:
        tally = read_documents(find([path]).inputs, [_Instant()], plan, store, renderer)
    if tally.failures:
        sys.exit(str(tally))


if __name__ == "__main__":
    main()
