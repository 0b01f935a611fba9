"""What a training run is told, as one value. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deepseek_ocr.configuration import Settings
from deepseek_ocr.errors import SettingsError
from deepseek_ocr.files import explain_write_errors, recover_folder

STATE = "state"
"""Folder in a run's output from which it can go on."""


@dataclass(frozen=True)
class TrainOptions:
    """One training run. Tasks and preset by long name; the rest as the flags of `deepseek-ocr
    train` say."""

    data_root: Path
    train_file: Path
    output_dir: Path
    settings: Settings
    tasks: tuple[str, ...]
    resolution: str
    epochs: int = 1
    batch_size: int = 1
    lr: float = 1e-4
    warmup: float = 0.05
    weight_decay: float = 0.01
    grad_accum: int = 1
    lora: bool = True
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_experts: bool = False
    train_vision: bool = False
    balance: float = 0.0
    checkpointing: bool = True
    val_file: Path | None = None
    val_pages: int = 50
    resume: bool = False
    merge: bool = False
    keep: int = 3
    seed: int = 0
    max_tokens: int = 4096
    max_rejected: float = 0.05
    workers: int = 2


def check_output(options: TrainOptions) -> None:
    """Put back the folders that a run left half renamed. Raises `SettingsError` if there is a run
    that is not to be resumed, and `FileWriteError`."""
    with explain_write_errors(options.output_dir):
        for name in (STATE, "best"):
            recover_folder(options.output_dir / name)
    if not options.resume and (options.output_dir / STATE).exists():
        raise SettingsError(
            f"{options.output_dir} holds a run already; add --resume to go on with it, or choose "
            "another --output_dir."
        )
