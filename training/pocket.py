"""Train a model of the bundled one's size from nothing: `python -m training.pocket --output DIR`.

The curriculum goes from single large characters on small views to pages of every kind: reading
from nothing stays on a plateau until attention finds the glyphs, and it finds large ones first.
Every stage begins with the bfloat16 weights that the one before left.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from deepseek_ocr.checkpoint import read_config
from deepseek_ocr.errors import OcrError
from deepseek_ocr.images import make_views
from deepseek_ocr.model import load_network
from deepseek_ocr.prompts import Codec, load_codec
from deepseek_ocr.settings import CELL, CropSettings
from training import synth
from training.batches import Batch, EncodedExample, collate, encode_example
from training.checkpoints import save_checkpoint
from training.files import writing
from training.objective import Objective
from training.optimisation import OptimiserSettings, Stepper, StepResult, cosine
from training.samples import Sample, examples_of
from training.synth import Recipe
from training.untrained import CONTEXT, write_untrained


@dataclass(frozen=True)
class Source:
    """Pages of a recipe seen through a square view of `view` px; `weight` is how often."""

    recipe: Recipe
    view: int
    weight: float = 1.0


@dataclass(frozen=True)
class Step:
    """One step of the curriculum: pages of some recipes until the loss is low or `pages` are seen.

    - `sources`: what pages are made of
    - `tasks`: short names of tasks with weights
    - `until`: mean loss (nats a token) of the last 20 steps that ends it early
    - `lr`: highest learning rate, reached after `warmup` optimiser steps, falling to a twentieth
      where `decays`
    """

    name: str
    sources: tuple[Source, ...]
    pages: int
    batch: int
    tasks: dict[str, float] = field(default_factory=lambda: {"ocr": 1.0})
    until: float = 0.0
    lr: float = 1e-3
    warmup: int = 100
    decays: bool = False


POOL = 4
"""Batches made together, so that pages of like length share one and little is padding."""


class Pools(Dataset[list[Batch]]):
    """Synthetic pages of one step as pools of batches; pool `i` is always the same."""

    def __init__(self, step: Step, codec: Codec, pad_id: int, seed: int) -> None:
        self.step = step
        self.codec = codec
        self.pad_id = pad_id
        self.seed = seed

    def __len__(self) -> int:
        return max(1, self.step.pages // (self.step.batch * POOL))

    def __getitem__(self, number: int) -> list[Batch]:
        rng = Random(f"{self.seed}:{self.step.name}:{number}")
        source = rng.choices(self.step.sources, [s.weight for s in self.step.sources])[0]
        size = max(1, round(self.step.batch * min(1.0, (512 / source.view) ** 2)))
        crop = CropSettings(base_size=source.view, image_size=source.view, crop_mode=False)
        encoded: list[EncodedExample] = []
        while len(encoded) < size * POOL:
            page = synth.make_page(source.recipe, rng.getrandbits(64))
            task = rng.choices(list(self.step.tasks), list(self.step.tasks.values()))[0]
            if task == "figure" and not page.annotation.figure:
                task = "ocr"
            views = make_views(page.image, crop)
            for example in examples_of(Sample(Path(), page.annotation, ""), [task]):
                encoded.append(
                    encode_example(self.codec, views, example.prompt, example.answer, CONTEXT)
                )
        encoded = sorted(encoded[: size * POOL], key=lambda example: len(example.ids))
        parts = [encoded[at : at + size] for at in range(0, len(encoded), size)]
        rng.shuffle(parts)
        return [collate(part, self.pad_id) for part in parts]


SAVE_EVERY_S = 300.0
"""Seconds after which the weights are saved in the middle of a step."""


def run_step(
    step: Step, stepper: Stepper, data: Pools, log: Log, workers: int, save: Callable[[], None]
) -> None:
    """Train one step of the curriculum, until its pages are seen or its loss is low; `save` is
    called every `SAVE_EVERY_S` seconds and at the end."""
    loader = DataLoader(
        data, batch_size=None, num_workers=workers, prefetch_factor=3 if workers else None
    )
    total = len(data) * POOL
    share = cosine(step.warmup, total) if step.decays else cosine(step.warmup, total, floor=1.0)
    recent: list[float] = []
    saved = time.monotonic()
    for pool in loader:
        for batch in pool:
            moved = batch.to(stepper.accelerator.device)
            result = stepper.step([moved], step.lr * share(len(recent)))
            recent.append(result.loss)
            log.step(step.name, len(batch.ids), result)
        if len(recent) >= 40 and sum(recent[-20:]) / 20 < step.until:
            break
        if time.monotonic() - saved > SAVE_EVERY_S:
            save()
            saved = time.monotonic()
    save()


class Log:
    """Losses as they come, on screen now and then and as JSON lines in a file."""

    def __init__(self, file: Path, every: int = 25) -> None:
        self._file = file
        self._every = every
        self._start = time.monotonic()
        self._pages = 0
        self._taken = 0
        self._losses: list[float] = []

    def step(self, name: str, pages: int, result: StepResult) -> None:
        """Note one optimiser step of `pages` pages. Raises `OutputError`."""
        self._pages += pages
        self._taken += 1
        self._losses.append(result.loss)
        if self._taken % self._every:
            return
        seconds = time.monotonic() - self._start
        entry = {
            "step": name,
            "taken": self._taken,
            "pages": self._pages,
            "loss": round(sum(self._losses) / len(self._losses), 4),
            "lr": round(result.lr, 6),
            "gradient_norm": round(result.gradient_norm, 3),
            "seconds": round(seconds, 1),
        }
        self._losses.clear()
        with writing(self._file), self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        print(json.dumps(entry), flush=True)


# --- the curriculum -------------------------------------------------------------------------------


def _glyphs(kind: str, view: int, sizes: tuple[int, int]) -> Source:
    columns = view // CELL
    recipe = Recipe((view, view), {kind: 1.0}, *sizes, columns, columns, effects=0.0, dark=0.0)
    return Source(recipe, view)


def _lines(view: int, sizes: tuple[int, int], longest: int, most: int, share: float) -> Source:
    recipe = Recipe(
        (view, view), {"lines": 1.0}, *sizes, longest, most, random_share=share, effects=0.05
    )
    return Source(recipe, view)


_PRINT = Recipe(smallest=22, largest=56, longest=24, most_lines=7, random_share=0.3)
_KINDS = replace(
    synth.MIXED, smallest=20, largest=48, kinds={"article": 0.5, "table": 0.3, "chart": 0.2}
)

_SMALLER = (
    replace(_lines(512, (32, 72), 12, 5, 0.5), weight=0.4),
    replace(_lines(512, (24, 56), 18, 6, 0.5), weight=0.6),
)

STEPS = (
    Step("grid", (_glyphs("grid", 256, (60, 80)),), 60_000, 64, until=0.5),
    Step("glyphs", (_glyphs("glyphs", 256, (56, 84)),), 60_000, 64, until=0.35),
    Step("strings", (_lines(256, (40, 80), 6, 4, 1.0),), 60_000, 32, until=1.2),
    Step(
        "short lines",
        (
            replace(_lines(256, (40, 80), 6, 4, 0.8), weight=0.4),
            replace(_lines(256, (24, 60), 14, 6, 0.5), weight=0.6),
        ),
        60_000,
        64,
        until=1.0,
    ),
    Step("large lines", (_lines(512, (36, 84), 9, 4, 0.3),), 9_000, 24, until=0.8),
    Step(
        "pages",
        (
            Source(_PRINT, 512, 0.76),
            Source(_KINDS, 512, 0.14),
            Source(_PRINT, 640, 0.06),
            Source(_PRINT, 1024, 0.04),
        ),
        8_000,
        20,
        tasks={"ocr": 0.84, "markdown": 0.08, "locate": 0.06, "figure": 0.02},
    ),
    Step("smaller lines", _SMALLER, 9_000, 24, until=0.7),
    Step("smaller lines, slower", _SMALLER, 8_000, 24, until=0.7, lr=4e-4, warmup=20),
    Step(
        "every size",
        (
            Source(_PRINT, 512, 0.62),
            Source(_KINDS, 512, 0.12),
            Source(_PRINT, 640, 0.13),
            Source(_PRINT, 1024, 0.13),
        ),
        12_000,
        20,
        tasks={"ocr": 0.74, "markdown": 0.13, "locate": 0.11, "figure": 0.02},
        lr=4e-4,
        warmup=20,
        decays=True,
    ),
    Step(
        "print",
        (
            replace(_lines(512, (36, 96), 10, 3, 0.3), weight=0.25),
            Source(_PRINT, 512, 0.5),
            Source(_KINDS, 512, 0.09),
            Source(_PRINT, 640, 0.08),
            Source(_PRINT, 1024, 0.08),
        ),
        10_000,
        20,
        tasks={"ocr": 0.8, "markdown": 0.1, "locate": 0.09, "figure": 0.01},
        lr=4e-4,
        warmup=20,
        decays=True,
    ),
)

STAGES = (STEPS[:4], STEPS[4:8], STEPS[8:])
"""Letters and short lines; lines of every size; pages and every task. Each at most two hours on two
cores."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one stage; exit status 0, or 2 where it could not."""
    given = _parser().parse_args(arguments)
    try:
        train_stage(given.stage, given.output, given.start, given.seed, given.workers)
    except OcrError as error:
        print(f"pocket: {error}", file=sys.stderr)
        return 2
    print(f"The model is in {given.output / 'model'}.")
    return 0


def train_stage(
    stage: int, output: Path, start: Path | None, seed: int = 1, workers: int = 2
) -> None:
    """Train stage `stage` (from 1), from the checkpoint `start`, or from nothing, into
    `output/model`; losses go to `output/log.jsonl`.

    Raises `CheckpointError` and `OutputError`.
    """
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    if start is None:
        start = output / "untrained"
        write_untrained(start, seed)
    accelerator = Accelerator(mixed_precision="bf16")
    network = load_network(start, accelerator.device, torch.float32).train().requires_grad_(True)
    if accelerator.device.type == "cpu":
        # The flash kernel's backward pass is slower there than plain products at these sizes.
        network.model.language_model.set_attn_implementation("eager")
        network.model.vision_tower.vision_encoder.set_attn_implementation("eager")
    text = read_config(start).text_config
    codec = load_codec(
        start, text.bos_token_id, frozenset([text.eos_token_id]), network.config.image_token_id
    )
    stepper = Stepper(Objective(network), OptimiserSettings(orthogonal=True), accelerator)
    log = Log(output / "log.jsonl")
    save = partial(save_checkpoint, network, start, output / "model")
    for step in STAGES[stage - 1]:
        run_step(step, stepper, Pools(step, codec, text.pad_token_id, seed), log, workers, save)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.pocket",
        description="Train a model of the bundled one's size from nothing, on synthetic pages.",
        epilog="Example: python -m training.pocket --stage 1 --output build/pocket-1 && "
        "python -m training.pocket --stage 2 --start build/pocket-1/model --output build/pocket-2",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--stage", type=int, choices=range(1, len(STAGES) + 1), default=1, help="default: 1"
    )
    parser.add_argument(
        "--start", type=Path, metavar="FOLDER", help="checkpoint to go on from (default: nothing)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of weights and pages (default: 1)")
    parser.add_argument(
        "--workers", type=int, default=2, metavar="N", help="processes that draw pages (default: 2)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
