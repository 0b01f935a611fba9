"""The Cog predictor that gives text as it is decoded: build it with `cog.stream.yaml`."""

from __future__ import annotations

from cog import BasePredictor, ConcatenateIterator, Input, Path, streaming

from deepseek_ocr.engine import Delta
from predict import load_engine, metrics, opened, values

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
        image: Path = Input(description="Picture of a page: JPEG, PNG, WebP, TIFF, BMP or GIF"),
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
            description="Longest answer in tokens", default=8192, ge=1, le=8192
        ),
    ) -> ConcatenateIterator[str]:
        """Read one page, yielding text as the model writes it."""
        prompt, crop, decode = values(task_type, resolution_size, reference_text, max_new_tokens)
        with opened(image) as file:
            for event in self.engine.stream(file, prompt, crop, decode):
                if isinstance(event, Delta):
                    if event.text:
                        yield event.text
                else:
                    for name, value in metrics(event).items():
                        self.record_metric(name, value)
