"""The checkpoint of the container: named by the settings, fetched at start if it is not there."""

from __future__ import annotations

from pathlib import Path

from deepseek_ocr.configuration import Settings
from deepseek_ocr.weights import registry


def place_checkpoint(settings: Settings) -> Path:
    """The folder of the checkpoint that `settings` name, below their folder of checkpoints.

    In the container that folder is `checkpoints/` beside this file. What is missing or damaged is
    fetched first and checked. Raises `CheckpointError` if it cannot be had, and `SettingsError`
    for a source that does not exist.
    """
    return registry.ensure(settings.model, Path(settings.checkpoints), settings.source)


if __name__ == "__main__":
    from deepseek_ocr.cli.legacy import run_script

    raise SystemExit(run_script("weights.py", "weights"))
