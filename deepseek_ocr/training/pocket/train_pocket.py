"""Train a model of the bundled one's size from nothing.

    python -m deepseek_ocr.training.pocket.train_pocket --output DIR

One run is one stage of `curriculum.py`. Each page is drawn once and never seen again. Reading from
nothing stays on a plateau for hundreds of thousands of pages while the text is all that teaches;
the losses of `auxiliary.py` show the network where to look.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from deepseek_ocr.devices import selection
from deepseek_ocr.errors import OcrError
from deepseek_ocr.files import explain_write_errors
from deepseek_ocr.model.checkpoint import read_config
from deepseek_ocr.model.loader import load_network
from deepseek_ocr.model.prompts import codec_of
from deepseek_ocr.training.experiment_log import append_line
from deepseek_ocr.training.finetune.objective import route_in_float32
from deepseek_ocr.training.finetune.optimizer import OptimiserSettings, Stepper, StepResult, cosine
from deepseek_ocr.training.finetune.saved_checkpoints import save_checkpoint
from deepseek_ocr.training.pocket.auxiliary import AuxiliaryObjective, Lessons
from deepseek_ocr.training.pocket.curriculum import STAGES, Stage
from deepseek_ocr.training.pocket.page_pools import POOL, PagePools
from deepseek_ocr.training.pocket.untrained import write_untrained


@dataclass(frozen=True)
class StageOptions:
    """One run of stage `stage` (from 1) into `output`, which gets `model`, `log.jsonl` and `HEADS`.

    It goes on from the checkpoint `start` and the `heads` of the stage before; without, from
    nothing. `seed` is that of weights and pages, `workers` how many processes draw pages.
    """

    output: Path
    stage: int = 1
    start: Path | None = None
    heads: Path | None = None
    seed: int = 1
    workers: int = 1


HEADS = "heads.safetensors"
"""Where a stage leaves the heads of its auxiliary losses, which are no part of the model."""

SAVE_EVERY_S = 300.0
"""Seconds after which the weights are saved in the middle of a stage."""


def run(
    stage: Stage,
    stepper: Stepper,
    objective: AuxiliaryObjective,
    data: DataLoader[list[Lessons]],
    log: StageLog,
    save: Callable[[], None],
) -> None:
    """Take a step for every batch of `data`; `save` is called every `SAVE_EVERY_S` seconds and at
    the end."""
    total = len(data) * POOL
    share = cosine(stage.warmup, total, floor=0.05 if stage.decays else 1.0)
    taken, saved = 0, time.monotonic()
    for pool in data:
        for batch in pool:
            moved = batch.to(stepper.accelerator.device)
            result = stepper.step([moved], stage.lr * share(taken))
            log.step(stage.name, len(batch.ids), result, objective.parts)
            taken += 1
        if time.monotonic() - saved > SAVE_EVERY_S:
            save()
            saved = time.monotonic()
    save()


class StageLog:
    """Losses as they come, on screen now and then and as JSON lines in a file."""

    def __init__(self, file: Path, every: int = 25) -> None:
        self._file = file
        self._every = every
        self._start = time.monotonic()
        self._pages = 0
        self._taken = 0
        self._parts: dict[str, list[float]] = {}

    def step(self, name: str, pages: int, result: StepResult, parts: dict[str, float]) -> None:
        """Note one optimiser step of `pages` pages and the parts of its loss.

        Raises `FileWriteError`.
        """
        self._pages += pages
        self._taken += 1
        for part, value in parts.items():
            self._parts.setdefault(part, []).append(value)
        if self._taken % self._every:
            return
        seconds = time.monotonic() - self._start
        entry = {
            "stage": name,
            "taken": self._taken,
            "pages": self._pages,
            **{part: round(fmean(values), 4) for part, values in self._parts.items()},
            "lr": round(result.lr, 6),
            "gradient_norm": round(result.gradient_norm, 3),
            "seconds": round(seconds, 1),
        }
        self._parts.clear()
        append_line(self._file, json.dumps(entry))
        print(json.dumps(entry), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one stage; exit status 0, 2 if it could not, 130 if it was interrupted."""
    given = _parser().parse_args(arguments)
    try:
        train_stage(StageOptions(**vars(given)))
    except OcrError as error:
        print(f"pocket: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"pocket: interrupted; the last weights are in {given.output}.", file=sys.stderr)
        return 130
    print(f"The model is in {given.output / 'model'}.")
    return 0


def _dtype(device: torch.device) -> torch.dtype:
    """bfloat16, or float32 on a processor that lacks it and would take many times as long."""
    return selection.choose_dtype("auto", device) if device.type == "cpu" else torch.bfloat16


def train_stage(options: StageOptions) -> None:
    """Train one stage; the last weights are saved every few minutes.

    Raises `CheckpointError` and `FileWriteError`.
    """
    output, stage = options.output, STAGES[options.stage - 1]
    with explain_write_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    start = options.start or output / "untrained"
    if options.start is None:
        write_untrained(start, options.seed)
    accelerator = Accelerator(mixed_precision="no")
    network = load_network(start, accelerator.device, torch.float32).train().requires_grad_(True)
    route_in_float32(network)
    torch.manual_seed(options.seed)
    objective = AuxiliaryObjective(network, _dtype(accelerator.device)).to(accelerator.device)
    stepper = Stepper(objective, OptimiserSettings(orthogonal=True), accelerator)
    if options.heads is not None:
        objective.load_heads(options.heads)

    def save() -> None:
        save_checkpoint(network, start, output / "model")
        objective.save_heads(output / HEADS)

    data = _pools(stage, start, options)
    run(stage, stepper, objective, data, StageLog(output / "log.jsonl"), save)


def _pools(stage: Stage, start: Path, options: StageOptions) -> DataLoader[list[Lessons]]:
    """The pages of a stage as the tokenizer of the checkpoint `start` spells them."""
    config = read_config(start)
    pad_id = config.text_config.pad_token_id
    return DataLoader(
        PagePools(stage, codec_of(start, config), pad_id, options.seed),
        batch_size=None,
        num_workers=options.workers,
        prefetch_factor=3 if options.workers else None,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deepseek_ocr.training.pocket.train_pocket",
        description="Train a model of the bundled one's size from nothing, on synthetic pages.",
        epilog="Example: make pocket",
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR")
    add("--stage", type=int, choices=range(1, len(STAGES) + 1), default=1, help="default: 1")
    add("--start", type=Path, metavar="FOLDER", help="checkpoint to go on from (default: nothing)")
    add("--heads", type=Path, metavar="FILE",
        help=f"{HEADS} of the stage before (default: new ones)")  # fmt: skip
    add("--seed", type=int, default=1, help="of weights and pages (default: 1)")
    add("--workers", type=int, default=1, metavar="N",
        help="processes that draw pages (default: 1)")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
