"""The Cog predictor: weights at start, one page a prediction.

Cog reads the inputs off this file without running it, so choices and descriptions are literals
here; `tests/test_predict.py` holds them against `tasks.py`.
"""

from __future__ import annotations

import json
import pathlib
from typing import BinaryIO

from cog import BasePredictor, Input, Path

import configuration
import tasks
import weights
from deepseek_ocr.engine import OcrEngine, Reading
from deepseek_ocr.errors import InputError
from deepseek_ocr.exports import document_to_json, page_to_json
from deepseek_ocr.settings import CropSettings, DecodeSettings

TASK_TYPES = ["Convert to Markdown", "Free OCR", "Parse Figure", "Locate Object by Reference"]
RESOLUTION_SIZES = ["Gundam (Recommended)", "Tiny", "Small", "Base", "Large"]
OUTPUT_FORMATS = ["Text", "Markdown", "JSON"]


class Predictor(BasePredictor):
    """Loads the model once and answers predictions, one at a time."""

    def setup(self) -> None:
        """Fetch and verify the weights, load them, and read a blank page to warm up."""
        self.engine = load_engine()

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
        output_format: str = Input(
            description="Text as the model writes it, cleaned Markdown, or JSON with boxes",
            default="Text",
            choices=OUTPUT_FORMATS,
        ),
        max_new_tokens: int = Input(
            description="Longest answer in tokens", default=8192, ge=1, le=8192
        ),
    ) -> str:
        """Read one page."""
        if output_format not in OUTPUT_FORMATS:
            raise InputError(f"output_format must be one of {', '.join(OUTPUT_FORMATS)}.")
        prompt, crop, decode = values(task_type, resolution_size, reference_text, max_new_tokens)
        with opened(image) as file:
            reading = self.engine.read(file, prompt, crop, decode)
        for name, value in metrics(reading).items():
            self.record_metric(name, value)
        return rendered(reading, output_format)


def load_engine() -> OcrEngine:
    """The engine of the configured checkpoint, fetched if it is not there, and warmed up."""
    settings = configuration.load()
    checkpoints = pathlib.Path(settings.checkpoints)
    folder = weights.ensure(settings.model, checkpoints, source=settings.source)
    engine = OcrEngine.load(folder, settings.device, settings.dtype)
    warm_up(engine, settings.model)
    return engine


def warm_up(engine: OcrEngine, name: str) -> None:
    """Read a blank page, so that the first prediction does not pay for first-time work."""
    from PIL import Image

    best = weights.known_as(name)
    blank = Image.new("RGB", (1240, 1754), "white")  # A4 at 150 dpi
    prompt, crop = tasks.prompt_for(best.task), tasks.crop_for(best.resolution)
    engine.read(blank, prompt, crop, DecodeSettings(max_new_tokens=8))


def opened(image: Path) -> BinaryIO:
    """The file behind `image`, which Cog has fetched.

    Raises `InputError` for anything else: a plain string would be a path inside the container.
    """
    if image is None:
        raise InputError("image is missing; give a file, an http(s) URL or a data URI.")
    if not isinstance(image, pathlib.Path):
        raise InputError(
            "image must be a file, an http(s) URL or a data URI (put data:image/jpeg;base64, in "
            "front of base64); a path inside the container is refused."
        )
    return image.open("rb")


def values(
    task_type: str, resolution_size: str, reference_text: str, max_new_tokens: int
) -> tuple[str, CropSettings, DecodeSettings]:
    """Prompt, crop and decode settings for the inputs of a prediction.

    Raises `PromptError` where locating lacks a reference, `SettingsError` for unknown names.
    """
    return (
        tasks.prompt_for(task_type, reference_text),
        tasks.crop_for(resolution_size),
        DecodeSettings(max_new_tokens=max_new_tokens),
    )


def metrics(reading: Reading) -> dict[str, int | float | str]:
    """What a prediction reports besides its output."""
    values: dict[str, int | float | str] = {
        "vision_tokens": reading.counts.vision,
        "output_tokens": reading.counts.output,
        "tokens_per_second": round(reading.counts.output / max(reading.timings.decode, 1e-6), 2),
        "finish_reason": reading.finish_reason,
    }
    if reading.confidence is not None:
        values["confidence"] = round(reading.confidence.mean, 4)
    return values


def rendered(reading: Reading, output_format: str) -> str:
    """The reading in one of `OUTPUT_FORMATS`."""
    if output_format == "Markdown":
        return reading.markdown
    if output_format == "JSON":
        return json.dumps(document_to_json([page_to_json(reading, "image")]), ensure_ascii=False)
    return reading.text
