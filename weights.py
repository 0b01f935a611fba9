"""Named checkpoints: where they live and what they are asked for by default."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deepseek_ocr.errors import CheckpointError


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint known by name, with the task and preset it is best at."""

    task: str
    resolution: str


CHECKPOINTS: dict[str, Checkpoint] = {
    "deepseek-ocr": Checkpoint("Convert to Markdown", "Gundam (Recommended)"),
    "pocket": Checkpoint("Free OCR", "Tiny"),
}


def ensure(model: str, checkpoints: Path) -> Path:
    """The folder of `model`: a named checkpoint below `checkpoints`, or a folder given as it is.

    Raises `CheckpointError` where it is not there.
    """
    if model in CHECKPOINTS:
        folder = checkpoints / model
        if (folder / "config.json").is_file():
            return folder
        raise CheckpointError(
            f"The checkpoint {model!r} is not in {folder}; see checkpoints/README.md for how to "
            "put it there, or try --model pocket (bundled, reads a few large printed words)."
        )
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise CheckpointError(
            f"There is no checkpoint called {model!r} and no folder of that name; "
            f"use {', '.join(CHECKPOINTS)} or the path of a checkpoint folder."
        )
    return folder
