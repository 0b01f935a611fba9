"""Train a model of the bundled one's size from nothing.

    python -m deepseek_ocr.training.pocket.stages --output DIR

Five stages: the encoders alone learn letters, on pages full of them; then all of it reads short
lines, then lines as long and small as a page holds; then pages of every kind, for every task and
preset; at last clean ones, and empty ones. Each page is drawn once and never seen again. Reading
from nothing stays on a plateau for hundreds of thousands of pages while the text is all that
teaches; the losses of `deepseek_ocr.training.pocket.auxiliary` show the network where to look.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from statistics import fmean

import numpy as np
import torch
from accelerate import Accelerator
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deepseek_ocr import presets as tasks
from deepseek_ocr.devices import selection
from deepseek_ocr.errors import OcrError
from deepseek_ocr.images.views import Views
from deepseek_ocr.model.checkpoint import read_config
from deepseek_ocr.model.network import load_network
from deepseek_ocr.model.prompts import Codec, load_codec
from deepseek_ocr.training.data.batches import IGNORED, EncodedExample, collate, encode_answer
from deepseek_ocr.training.data.samples import Example, Sample, examples_of
from deepseek_ocr.files import explain_write_errors
from deepseek_ocr.training.finetune.optimizer import OptimiserSettings, Stepper, StepResult, cosine
from deepseek_ocr.training.finetune.saved_checkpoints import save_checkpoint
from deepseek_ocr.training.pocket import auxiliary
from deepseek_ocr.training.pocket.auxiliary import AuxiliaryObjective, Lessons
from deepseek_ocr.training.pocket.forward import patchify
from deepseek_ocr.training.pocket.untrained import CONFIG, CONTEXT, write_untrained
from deepseek_ocr.training.synthetic import synthetic_pages
from deepseek_ocr.training.synthetic.layouts import Glyph
from deepseek_ocr.training.synthetic.synthetic_pages import Recipe


@dataclass(frozen=True)
class Source:
    """Pages of a recipe seen through a square view of `view` px; `weight` is how often; where
    nothing `reads`, they are for the encoders alone."""

    recipe: Recipe
    view: int
    weight: float = 1.0
    reads: bool = True


@dataclass(frozen=True)
class Stage:
    """Pages of some recipes, once each.

    - `sources`: what pages are made of
    - `pages`: how many there are, at 512 px (larger views make smaller batches)
    - `batch`: pages a step, at 512 px
    - `tasks`: short names of tasks with weights
    - `lr`: highest learning rate, reached after `warmup` optimiser steps, falling to a twentieth
      where `decays`
    """

    name: str
    sources: tuple[Source, ...]
    pages: int
    batch: int = 28
    tasks: dict[str, float] = field(default_factory=lambda: {"ocr": 1.0})
    lr: float = 3e-3
    warmup: int = 30
    decays: bool = False


WINDOW: int = CONFIG["vision_config"]["width"]["sam_vit_b"]["window_size"]
"""Patches on a side of SAM's attention windows."""

POOL = 4
"""Batches made together, so that pages of like length share one and little is padding."""


@dataclass(frozen=True)
class Page:
    """One task of one drawn page: ids and labels, its patches and what stands where."""

    example: EncodedExample
    slots: Tensor
    places: Tensor


class Pools(Dataset[list[Lessons]]):
    """Synthetic pages of one stage as pools of batches; pool `i` is always the same."""

    def __init__(self, stage: Stage, codec: Codec, pad_id: int, seed: int) -> None:
        self.stage = stage
        self.codec = codec
        self.pad_id = pad_id
        self.seed = seed

    def __len__(self) -> int:
        return max(1, self.stage.pages // (self.stage.batch * POOL))

    def __getitem__(self, number: int) -> list[Lessons]:
        rng = Random(f"{self.seed}:{self.stage.name}:{number}")
        source = rng.choices(self.stage.sources, [s.weight for s in self.stage.sources])[0]
        size = max(1, round(self.stage.batch * (512 / source.view) ** 2))
        pages: list[Page] = []
        while len(pages) < size * POOL:
            drawn = synthetic_pages.make_page(source.recipe, rng.getrandbits(64))
            wanted = self.stage.tasks
            task = rng.choices(list(wanted), list(wanted.values()))[0] if source.reads else None
            pages += _pages(drawn, task, source.view, self.codec)
        pages = sorted(pages[: size * POOL], key=lambda page: len(page.example.ids))
        parts = [pages[at : at + size] for at in range(0, len(pages), size)]
        rng.shuffle(parts)
        return [_lessons(part, self.pad_id) for part in parts]


def _pages(
    drawn: synthetic_pages.SynthPage, task: str | None, view: int, codec: Codec
) -> list[Page]:
    """What `task` asks of a page seen through a view of `view` px: nothing where it has no
    answer there. Without a task a page has no ids."""
    if task == "figure" and not drawn.annotation.figure:
        task = "ocr"
    # Bytes for as long as possible: they are a quarter of what travels between processes.
    pixels = np.array(drawn.image.resize((view, view)))
    views = Views(rearrange(torch.from_numpy(pixels), "h w c -> c h w"), torch.empty(0), (1, 1))
    slots = auxiliary.slots_of(drawn.glyphs, drawn.image.size, view)
    if task is None:
        nothing = torch.empty(0, dtype=torch.long)
        return [Page(EncodedExample(nothing, nothing, views), slots, nothing.view(0, 2))]
    pages: list[Page] = []
    for asked in _asked(drawn, task):
        example = encode_answer(codec, views, asked.prompt, asked.answer, CONTEXT)
        places = torch.full((len(example.ids), 2), IGNORED)
        ids = example.labels[example.labels != IGNORED].tolist()[:-1]
        lengths = [len(codec.decode([i])) for i in ids]
        lines = [line for line in drawn.glyphs if task != "locate" or _is_asked(line, drawn)]
        found = auxiliary.places_of(asked.answer, lines, drawn.image.size, lengths)
        places[-1 - len(found) : -1] = found
        pages.append(Page(example, slots, places))
    return pages


def _is_asked(line: Sequence[Glyph], drawn: synthetic_pages.SynthPage) -> bool:
    text = "".join(character for character, _, _ in line)
    return any(reference.text == text for reference in drawn.annotation.reference)


def _asked(drawn: synthetic_pages.SynthPage, task: str) -> list[Example]:
    """What `task` asks of a page; of an empty one, where there is nothing to locate, all of it."""
    sample = Sample(Path(), drawn.annotation, "")
    if drawn.annotation.text or task == "locate":
        return examples_of(sample, [task])
    name = tasks.task_title(task)
    return [Example(sample.image, name, tasks.prompt_for(name), "", sample.name)]


def _lessons(pages: Sequence[Page], pad_id: int) -> Lessons:
    batch = collate([page.example for page in pages], pad_id)
    padded = torch.nn.utils.rnn.pad_sequence
    return Lessons(
        batch.ids,
        batch.labels,
        patchify(batch.global_views, WINDOW),
        torch.stack([page.slots for page in pages]),
        padded([page.places for page in pages], batch_first=True, padding_value=IGNORED),
    )


HEADS = "heads.safetensors"
"""Where a stage leaves the heads of its auxiliary losses, which are no part of the model."""

SAVE_EVERY_S = 300.0
"""Seconds after which the weights are saved in the middle of a stage."""


def run(
    stage: Stage,
    stepper: Stepper,
    objective: AuxiliaryObjective,
    data: DataLoader[list[Lessons]],
    log: Log,
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


class Log:
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
        with explain_write_errors(self._file), self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        print(json.dumps(entry), flush=True)


# --- the stages -----------------------------------------------------------------------------------

_LINES = Recipe(smallest=22, largest=52, longest=24, most_lines=9, random_share=0.25, effects=0.05)
"""Pages full of text: what is empty teaches nothing."""

_FEW = replace(_LINES, most_lines=4)

_KINDS = replace(
    synthetic_pages.MIXED,
    smallest=20,
    largest=48,
    kinds={"article": 0.5, "table": 0.3, "chart": 0.2},
)

_SHORT = replace(_LINES, size=(256, 256), longest=9, most_lines=5)

_LARGE = replace(_LINES, smallest=44, largest=104, longest=12, most_lines=4)
"""As large views show the same pages, and as headings are."""

_CLEAN = replace(
    synthetic_pages.CLEAN_LINES, random_share=0.1, kinds={"lines": 0.95, "blank": 0.05}
)
"""What it is measured on, strings that cannot be guessed, and empty pages."""

_SMALL = replace(_CLEAN, smallest=22, largest=32)
"""Where its errors are: as much print in a vision token as there can be."""

_TALL = replace(_CLEAN, smallest=36, largest=68, longest=14)
"""Through large views: print there as it is on a page of few words."""

_FULL = replace(_LINES, kinds={"full": 1.0})

STAGES = (
    Stage(
        "glyphs",
        (
            Source(_FULL, 512, 0.8, reads=False),
            Source(replace(_FULL, smallest=44, largest=104), 512, 0.2, reads=False),
        ),
        40_000,
        batch=24,
    ),
    Stage(
        "short lines",
        (Source(_SHORT, 256, 0.8), Source(_FEW, 512, 0.2)),
        50_000,
        tasks={"ocr": 0.95, "locate": 0.05},
    ),
    Stage(
        "lines",
        (
            Source(_LINES, 512, 0.45),
            Source(_FEW, 512, 0.25),
            Source(_LARGE, 512, 0.15),
            Source(_SHORT, 256, 0.15),
        ),
        60_000,
        tasks={"ocr": 0.88, "markdown": 0.05, "locate": 0.07},
    ),
    Stage(
        "pages",
        (
            Source(_LINES, 512, 0.38),
            Source(_FEW, 512, 0.12),
            Source(_LARGE, 512, 0.08),
            Source(_KINDS, 512, 0.1),
            Source(_LINES, 640, 0.12),
            Source(_LINES, 1024, 0.2),
        ),
        45_000,
        tasks={"ocr": 0.45, "markdown": 0.3, "locate": 0.23, "figure": 0.02},
    ),
    Stage(
        "clean pages",
        (
            Source(_SMALL, 512, 0.28),
            Source(_CLEAN, 512, 0.16),
            Source(replace(_FULL, largest=36), 512, 0.25, reads=False),
            Source(_LINES, 512, 0.02),
            Source(_LARGE, 512, 0.02),
            Source(_KINDS, 512, 0.04),
            Source(_CLEAN, 640, 0.06),
            Source(_CLEAN, 1024, 0.12),
            Source(_TALL, 1024, 0.05),
        ),
        108_000,
        tasks={"ocr": 0.62, "markdown": 0.2, "locate": 0.16, "figure": 0.02},
        lr=2e-3,
        decays=True,
    ),
)
"""Each is meant for less than two hours on two cores."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one stage; exit status 0, 2 where it could not, 130 where it was interrupted."""
    given = _parser().parse_args(arguments)
    try:
        train_stage(given.stage, given.output, given.start, given.heads, given.seed, given.workers)
    except OcrError as error:
        print(f"pocket: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"pocket: interrupted; the last weights are in {given.output}.", file=sys.stderr)
        return 130
    print(f"The model is in {given.output / 'model'}.")
    return 0


def _dtype(device: torch.device) -> torch.dtype:
    """bfloat16, or float32 on a processor that lacks it, where it would take many times as long."""
    return selection.choose_dtype("auto", device) if device.type == "cpu" else torch.bfloat16


def train_stage(
    stage: int,
    output: Path,
    start: Path | None = None,
    heads: Path | None = None,
    seed: int = 1,
    workers: int = 1,
) -> None:
    """Train stage `stage` (from 1), from the checkpoint `start`, or from nothing, into
    `output/model`; losses go to `output/log.jsonl`, the auxiliary losses' heads to `output/HEADS`,
    from where the next stage may take them as `heads`.

    Raises `CheckpointError` and `FileWriteError`.
    """
    with explain_write_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    if start is None:
        start = output / "untrained"
        write_untrained(start, seed)
    accelerator = Accelerator(mixed_precision="no")
    network = load_network(start, accelerator.device, torch.float32).train().requires_grad_(True)
    text = read_config(start).text_config
    codec = load_codec(
        start, text.bos_token_id, frozenset([text.eos_token_id]), network.config.image_token_id
    )
    torch.manual_seed(seed)
    objective = AuxiliaryObjective(network, _dtype(accelerator.device)).to(accelerator.device)
    stepper = Stepper(objective, OptimiserSettings(orthogonal=True), accelerator)
    log = Log(output / "log.jsonl")
    if heads is not None:
        objective.load_heads(heads)

    def save() -> None:
        save_checkpoint(network, start, output / "model")
        objective.save_heads(output / HEADS)

    pools = Pools(STAGES[stage - 1], codec, text.pad_token_id, seed)
    data: DataLoader[list[Lessons]] = DataLoader(
        pools, batch_size=None, num_workers=workers, prefetch_factor=3 if workers else None
    )
    run(STAGES[stage - 1], stepper, objective, data, log, save)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deepseek_ocr.training.pocket.stages",
        description="Train a model of the bundled one's size from nothing, on synthetic pages.",
        epilog="Example: make pocket",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--stage", type=int, choices=range(1, len(STAGES) + 1), default=1, help="default: 1"
    )
    parser.add_argument(
        "--start", type=Path, metavar="FOLDER", help="checkpoint to go on from (default: nothing)"
    )
    parser.add_argument(
        "--heads",
        type=Path,
        metavar="FILE",
        help=f"{HEADS} of the stage before (default: new ones)",
    )
    parser.add_argument("--seed", type=int, default=1, help="of weights and pages (default: 1)")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes that draw pages (default: 1)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
