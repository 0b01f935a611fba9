"""Train a model of the bundled one's size from nothing.

    python -m deepseek_ocr.training.pocket.train_pocket --output DIR

One run is one stage of `curriculum.py`. Each page is drawn once and never seen again. Reading from
nothing stays on a plateau for hundreds of thousands of pages while the text is all that teaches;
the losses of `auxiliary.py` show the network where to look.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import cast

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from deepseek_ocr.console import complain
from deepseek_ocr.devices import selection
from deepseek_ocr.errors import OcrError
from deepseek_ocr.files import explain_write_errors
from deepseek_ocr.model.checkpoint import read_config
from deepseek_ocr.model.loader import load_network
from deepseek_ocr.model.prompts import codec_of
from deepseek_ocr.training.experiment_log import append_line
from deepseek_ocr.training.finetune.objective import route_in_float32
from deepseek_ocr.training.finetune.optimizer import Stepper, StepResult, cosine
from deepseek_ocr.training.finetune.saved_checkpoints import save_checkpoint
from deepseek_ocr.training.pocket.auxiliary import AuxiliaryObjective, Lessons
from deepseek_ocr.training.pocket.curriculum import STAGES, Stage
from deepseek_ocr.training.pocket.page_pools import POOL, pool, pool_count
from deepseek_ocr.training.pocket.untrained import write_untrained

HEADS = "heads.safetensors"
"""Where a stage leaves the heads of its auxiliary losses, which are no part of the model."""

SAVE_EVERY_S = 300.0
"""Seconds after which the weights are saved in the middle of a stage."""

TELL_EVERY = 25
"""Steps after which losses are told."""


def run(
    stage: Stage,
    stepper: Stepper,
    objective: AuxiliaryObjective,
    data: DataLoader[list[Lessons]],
    log: Path,
    save: Callable[[], None],
) -> None:
    """Take a step for every batch of `data`; `save` is called every `SAVE_EVERY_S` seconds and at
    the end. Losses are told now and then, on the screen and as JSON lines in the file `log`. Raises
    `FileWriteError`."""
    share = cosine(stage.warmup, len(data) * POOL, floor=0.05 if stage.decays else 1.0)
    taken = pages = 0
    parts: dict[str, list[float]] = {}
    start = saved = time.monotonic()
    for batches in data:
        for batch in batches:
            moved = batch.to(stepper.accelerator.device)
            result = stepper.step([moved], stage.lr * share(taken))
            taken, pages = taken + 1, pages + len(batch.ids)
            for part, value in objective.parts.items():
                parts.setdefault(part, []).append(value)
            if taken % TELL_EVERY == 0:
                row = {"stage": stage.name, "taken": taken, "pages": pages, **_told(parts, result)}
                row["seconds"] = round(time.monotonic() - start, 1)
                parts.clear()
                append_line(log, json.dumps(row))
                print(json.dumps(row), flush=True)
        if time.monotonic() - saved > SAVE_EVERY_S:
            save()
            saved = time.monotonic()
    save()


def _told(parts: dict[str, list[float]], last: StepResult) -> dict[str, float]:
    means = {part: round(fmean(values), 4) for part, values in parts.items()}
    return means | {"lr": round(last.lr, 6), "gradient_norm": round(last.gradient_norm, 3)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one stage; exit status 0, 2 if it could not, 130 if it was interrupted."""
    given = _parser().parse_args(arguments)
    try:
        train_stage(**vars(given))
    except OcrError as error:
        complain(str(error), "pocket")
        return 2
    except KeyboardInterrupt:
        complain(f"interrupted; the last weights are in {given.output}.", "pocket")
        return 130
    print(f"The model is in {given.output / 'model'}.")
    return 0


def _dtype(device: torch.device) -> torch.dtype:
    """bfloat16, or float32 on a processor that lacks it and would take many times as long."""
    return selection.choose_dtype("auto", device) if device.type == "cpu" else torch.bfloat16


def train_stage(
    output: Path, stage: int, start: Path | None, heads: Path | None, seed: int, workers: int
) -> None:
    """Train stage `stage` (from 1) into `output`, which gets `model`, `log.jsonl` and `HEADS`; the
    last weights are saved every few minutes.

    It goes on from the checkpoint `start` and the `heads` of the stage before; without, from
    nothing. `seed` is that of weights and pages, `workers` how many processes draw pages.

    Raises `CheckpointError` and `FileWriteError`.
    """
    with explain_write_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    source = start or output / "untrained"
    if start is None:
        write_untrained(source, seed)
    accelerator = Accelerator(mixed_precision="no")
    network = load_network(source, accelerator.device, torch.float32).train().requires_grad_(True)
    route_in_float32(network)
    torch.manual_seed(seed)
    objective = AuxiliaryObjective(network, _dtype(accelerator.device)).to(accelerator.device)
    stepper = Stepper(objective, accelerator, orthogonal=True)
    if heads is not None:
        objective.load_heads(heads)

    def save() -> None:
        save_checkpoint(network, source, output / "model")
        objective.save_heads(output / HEADS)

    taught = STAGES[stage - 1]
    data = _pools(taught, source, seed, workers)
    run(taught, stepper, objective, data, output / "log.jsonl", save)


def _pools(stage: Stage, start: Path, seed: int, workers: int) -> DataLoader[list[Lessons]]:
    """The pages of a stage as the tokenizer of the checkpoint `start` spells them."""
    config = read_config(start)
    codec, pad_id = codec_of(start, config), config.text_config.pad_token_id
    return DataLoader(
        cast(Dataset[list[Lessons]], range(pool_count(stage))),
        batch_size=None,
        collate_fn=partial(pool, stage, codec, pad_id, seed),
        num_workers=workers,
        prefetch_factor=3 if workers else None,
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
    raise SystemExit(main())
