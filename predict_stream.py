"""The Cog predictor that gives text as it is decoded: build it with `cog.stream.yaml`."""

from __future__ import annotations

from cog import BasePredictor, ConcatenateIterator, Input, Path, streaming

from deepseek_ocr.engine import Delta, Failure, Reading
from deepseek_ocr.errors import OcrError
from deepseek_ocr.formats.markdown import PAGE_SPLIT
from predict import load_engine, metrics, page_sources, values

TASK_TYPES = ["Convert to Markdown", "Free OCR", "Parse Figure", "Locate Object by Reference"]
RESOLUTION_SIZES = ["Gundam (Recommended)", "Tiny", "Small", "Base", "Large"]


class Predictor(BasePredictor):
    """As `predict.Predictor`, a piece of text at a time."""

    def setup(self) -> None:
        """Fetch and verify the weights, load them, and read a blank page to warm up."""
        self.engine = load_engine()

    @streaming
    def predict(
        self,
        image: Path = Input(
            description="Picture of a page (JPEG, PNG, WebP, HEIC …), or a PDF or TIFF of pages"
        ),
        task_type: str = Input(
            description="What to do with the page",
            default="Convert to Markdown",
            choices=TASK_TYPES,
        ),
        resolution_size: str = Input(
            description="How closely to look: Gundam cuts large pages into tiles, Tiny is fastest",
            default="Gundam (Recommended)",
            choices=RESOLUTION_SIZES,
        ),
        reference_text: str = Input(
            description="What to find on the page; only for Locate Object by Reference",
            default="",
        ),
        max_new_tokens: int = Input(
            description="Longest answer in tokens for a page", default=8192, ge=1, le=8192
        ),
        pages: str = Input(
            description="Pages of a PDF or TIFF, such as 1-3,7,-1 (-1 is the last); empty is all",
            default="",
        ),
    ) -> ConcatenateIterator[str]:
        """Read a page, or the pages of a document, yielding text as the model writes it."""
        prompt, crop, decode = values(task_type, resolution_size, reference_text, max_new_tokens)
        outcomes: list[tuple[int, Reading | Failure]] = []
        for page in page_sources(image, pages):
            if outcomes:
                yield PAGE_SPLIT
            try:
                for event in self.engine.stream(page.picture(), prompt, crop, decode):
                    if not isinstance(event, Delta):
                        outcomes.append((page.number, event))
                    elif event.text:
                        yield event.text
            except OcrError as error:  # the other pages of a document are read all the same
                outcomes.append((page.number, Failure(error)))
        for name, value in metrics(outcomes).items():
            self.record_metric(name, value)
