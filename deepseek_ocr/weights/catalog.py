"""The checkpoints known by name, and the places that have them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deepseek_ocr.weights.places import bundled_folder


@dataclass(frozen=True)
class WeightSource:
    """One place that has a checkpoint.

    - `kind`: tar (`url` is the tar itself), huggingface or modelscope (`url` is the hub's)
    - `repository`, `revision`: of a hub
    - `timeout_s`: how long to wait for an answer about the files
    - `stall_s`: how long a download may put nothing on the disk before it is given up. Generous,
      because pget keeps its first chunks in memory until the earliest of them is whole.
    """

    name: str
    kind: Literal["tar", "huggingface", "modelscope"]
    url: str
    repository: str = ""
    revision: str = ""
    timeout_s: float = 30.0
    stall_s: float = 600.0


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint known by name, with the task and preset it is best at.

    `files` are fetched from one of `sources`, tried in order; one without sources is bundled.
    `size` is about how many bytes they have.
    """

    name: str
    task: str
    preset: str
    files: tuple[str, ...] = ()
    size: int = 0
    sources: tuple[WeightSource, ...] = ()


_REPOSITORY = "deepseek-ai/DeepSeek-OCR"
_REVISION = "9f30c71f441d010e5429c532364a86705536c53a"

_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "model.safetensors.index.json", "model-00001-of-000001.safetensors",
)  # fmt: skip

_SOURCES = (
    WeightSource(
        "replicate", "tar", f"https://weights.replicate.delivery/default/{_REPOSITORY}/model.tar"
    ),
    WeightSource("huggingface", "huggingface", "https://huggingface.co", _REPOSITORY, _REVISION),
    WeightSource("modelscope", "modelscope", "https://www.modelscope.cn", _REPOSITORY, "master"),
)

AUTO = "auto"
SOURCE_NAMES = (AUTO, *(source.name for source in _SOURCES))

_REAL = Checkpoint("deepseek-ocr", "markdown", "gundam", _FILES, 6_680_000_000, _SOURCES)
CHECKPOINTS = {one.name: one for one in (_REAL, Checkpoint("pocket", "ocr", "tiny"))}

FETCHED = tuple(name for name, checkpoint in CHECKPOINTS.items() if checkpoint.sources)


def known_as(model: str) -> Checkpoint:
    """What is known of `model`, a name or the folder of a bundled one; else of the real model."""
    for name, checkpoint in CHECKPOINTS.items():
        if model == name or Path(model).expanduser().resolve() == bundled_folder(name):
            return checkpoint
    return CHECKPOINTS[FETCHED[0]]
