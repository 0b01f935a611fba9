"""Drawn pages as batches for the pocket model, with what stands where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from deepseek_ocr import presets
from deepseek_ocr.images.views import Views
from deepseek_ocr.model.prompts import Codec
from deepseek_ocr.training.data.batches import IGNORED, EncodedExample, collate, encode_example
from deepseek_ocr.training.data.samples import Example, Sample, examples_of
from deepseek_ocr.training.pocket import auxiliary
from deepseek_ocr.training.pocket.auxiliary import Lessons
from deepseek_ocr.training.pocket.curriculum import Stage
from deepseek_ocr.training.synthetic.layouts import Glyph
from deepseek_ocr.training.synthetic.synthetic_pages import SynthPage, make_page

CONTEXT = 2048
"""Tokens that a page and its answer may have together: the model's `max_position_embeddings`."""

POOL = 4
"""Batches made together, so that pages of like length share one and little is padding."""


@dataclass(frozen=True)
class TaughtPage:
    """One task of one drawn page: ids and labels, its view and what stands where."""

    example: EncodedExample
    slots: Tensor
    places: Tensor


def pool_count(stage: Stage) -> int:
    """How many pools of batches the pages of a stage make."""
    return max(1, stage.pages // (stage.batch * POOL))


def pool(stage: Stage, codec: Codec, pad_id: int, seed: int, number: int) -> list[Lessons]:
    """The batches of pool `number` of a stage, always the same."""
    rng = Random(f"{seed}:{stage.name}:{number}")
    source = rng.choices(stage.sources, [s.weight for s in stage.sources])[0]
    size = max(1, round(stage.batch * (512 / source.view) ** 2))
    pages: list[TaughtPage] = []
    while len(pages) < size * POOL:
        drawn = make_page(source.recipe, rng.getrandbits(64))
        wanted = stage.tasks
        task = rng.choices(list(wanted), list(wanted.values()))[0] if source.reads else None
        pages += pages_of(drawn, task, source.view, codec)
    pages = sorted(pages[: size * POOL], key=lambda page: len(page.example.ids))
    parts = [pages[at : at + size] for at in range(0, len(pages), size)]
    rng.shuffle(parts)
    return [lessons_of(part, pad_id) for part in parts]


def pages_of(drawn: SynthPage, task: str | None, view: int, codec: Codec) -> list[TaughtPage]:
    """What `task` asks of a page seen through a view of `view` px: nothing if it has no
    answer there. Without a task a page has no ids."""
    if task == "figure" and not drawn.annotation.figure:
        task = "ocr"
    # Bytes for as long as possible: they are a quarter of what travels between processes.
    pixels = np.array(drawn.image.resize((view, view)))
    views = Views(rearrange(torch.from_numpy(pixels), "h w c -> c h w"), torch.empty(0), (1, 1))
    slots = auxiliary.slots_of(drawn.glyphs, drawn.image.size, view)
    if task is None:
        nothing = torch.empty(0, dtype=torch.long)
        return [TaughtPage(EncodedExample(nothing, nothing, views), slots, nothing.view(0, 2))]
    pages: list[TaughtPage] = []
    for asked in _asked(drawn, task):
        example = encode_example(codec, views, asked.prompt, asked.answer, CONTEXT)
        places = torch.full((len(example.ids), 2), IGNORED)
        ids = example.labels[example.labels != IGNORED].tolist()[:-1]
        lengths = [len(codec.decode([i])) for i in ids]
        lines = [line for line in drawn.glyphs if task != "locate" or _is_asked(line, drawn)]
        found = auxiliary.places_of(asked.answer, lines, drawn.image.size, lengths)
        places[-1 - len(found) : -1] = found
        pages.append(TaughtPage(example, slots, places))
    return pages


def _is_asked(line: Sequence[Glyph], drawn: SynthPage) -> bool:
    text = "".join(character for character, _, _ in line)
    return any(reference.text == text for reference in drawn.annotation.reference)


def _asked(drawn: SynthPage, task: str) -> list[Example]:
    """What `task` asks of a page; of an empty one, if there is nothing to locate, all of it."""
    sample = Sample(Path(), drawn.annotation, "")
    if drawn.annotation.text or task == "locate":
        return examples_of(sample, [task])
    name = presets.task_title(task)
    return [Example(sample.image, name, presets.prompt_for(name), "", sample.name)]


def lessons_of(pages: Sequence[TaughtPage], pad_id: int) -> Lessons:
    """One batch of `pages`, padded with `pad_id`."""
    batch = collate([page.example for page in pages], pad_id)
    padded = torch.nn.utils.rnn.pad_sequence
    places = padded([page.places for page in pages], batch_first=True, padding_value=IGNORED)
    return Lessons(**vars(batch), slots=torch.stack([page.slots for page in pages]), places=places)
