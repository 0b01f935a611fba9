"""Losses beside the text's own that teach a network from nothing if to look.

A drawn page is known to the pixel. Each vision token has to tell the characters that stand in its
cell, each of SAM's patches the characters in it, and the decoder, half way up, where on the page
the next character stands. The heads that tell it are thrown away after training.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from deepseek_ocr.errors import CheckpointError
from deepseek_ocr.files import write_bytes
from deepseek_ocr.grounding.parser import SCALE
from deepseek_ocr.model.network import Network
from deepseek_ocr.settings import CELL
from deepseek_ocr.training.data.batches import IGNORED, Batch
from deepseek_ocr.training.finetune.objective import embedded, vision_tokens
from deepseek_ocr.training.synthetic.layouts import Glyph
from deepseek_ocr.training.synthetic.phrases import CHARACTERS

PATCH = 16
"""Side of SAM's patches, px."""

SLOT = (8, 16)
"""Width and height of the slots that characters are sorted into, px of the view: narrower than
nearly every letter, lower than every line."""

SLOTS = (CELL // SLOT[0]) * (CELL // SLOT[1])
"""Slots in a cell, row by row."""

IN_PATCH = PATCH // SLOT[0]
"""Slots in a patch, which is as high as one."""

PLACES = 64
"""Parts into which a side of the page is divided to say where a character stands."""

NOTHING = 0
"""Class of a slot without a character; the others are 1 + the place in `CHARACTERS`."""

CLASSES = 1 + len(CHARACTERS)

_BOXES = re.compile(r"<\|det\|>.*?<\|/det\|>")
_BOX = re.compile(r"\[(\d{1,3}), (\d{1,3}), (\d{1,3}), (\d{1,3})\]")

_CLASS = {character: at for at, character in enumerate(CHARACTERS, 1)}


@dataclass(frozen=True)
class Lessons(Batch):
    """Pages to train on, with what stands where. There are no ids if only the encoders learn; views
    have no tiles and are bytes.

    - `slots`: class of each slot of the page `[B, S / 16, S / 8]`
    - `places`: where the character that a position's label stands for is, in parts of the page
      across and down `[B, T, 2]`; `IGNORED` if that is not known
    """

    slots: Tensor
    places: Tensor

    @property
    def taught(self) -> int:
        """Positions that teach, in tokens; characters, if only the encoders learn."""
        if self.ids.shape[1] == 0:
            return int((self.slots != NOTHING).sum())
        return super().taught


def slots_of(lines: Sequence[Sequence[Glyph]], size: tuple[int, int], view: int) -> Tensor:
    """Classes of the slots `[view / 16, view / 8]` of a square page of `size` px seen as `view` px.
    Of two characters in one slot the first stays; spaces are nothing."""
    slots = np.full((view // SLOT[1], view // SLOT[0]), NOTHING)
    for character, x, y in (glyph for line in lines for glyph in line):
        column = int(x * view / size[0] / SLOT[0])
        row = int(y * view / size[1] / SLOT[1])
        inside = 0 <= row < slots.shape[0] and 0 <= column < slots.shape[1]
        if inside and character in _CLASS and slots[row, column] == NOTHING:
            slots[row, column] = _CLASS[character]
    return torch.from_numpy(slots)


def places_of(
    answer: str, lines: Sequence[Sequence[Glyph]], size: tuple[int, int], lengths: Sequence[int]
) -> Tensor:
    """Where each token of `answer` stands on a page of `size` px `[tokens, 2]`, `IGNORED` if it
    stands nowhere; `lengths` are the tokens' lengths in characters.

    A token of several characters stands where its first does, a line break where its line ends, a
    number of a box at the corner it is of. `lines` are looked for in the answer, in their order.
    """
    if not lengths:
        return torch.empty(0, 2, dtype=torch.long)
    spots = [(IGNORED, IGNORED)] * len(answer)
    # A line of digits is not looked for among the numbers of boxes.
    outside = _BOXES.sub(lambda boxes: "\0" * len(boxes[0]), answer)
    end = 0
    for line in lines:
        start = outside.find("".join(character for character, _, _ in line), end)
        if start >= 0:
            stands = [(_part(x, size[0]), _part(y, size[1])) for _, x, y in line]
            end = start + len(line)
            spots[start:end] = stands
            if outside[end : end + 1] == "\n":
                spots[end] = stands[-1]
    for box in _BOX.finditer(answer):
        for across, down in ((1, 2), (3, 4)):
            corner = (_part(int(box[across]), SCALE), _part(int(box[down]), SCALE))
            first, last = box.start(across), box.end(down)
            spots[first:last] = [corner] * (last - first)
    starts = accumulate(lengths[:-1], initial=0)
    return torch.tensor([spots[start] for start in starts])


def _part(value: float, side: int) -> int:
    return min(max(int(value / side * PLACES), 0), PLACES - 1)


WEIGHTS = {"text": 1.0, "cells": 0.5, "patches": 0.25, "here": 0.25, "next": 0.25}
"""Of the losses, beside the text's own."""


def normalized(views: Tensor) -> Tensor:
    """Views in bytes `[B, 3, S, S]` as `make_views` gives them to the network, in float32."""
    return views.float().div_(127.5).sub_(1)


class AuxiliaryObjective(nn.Module):
    """The network with its loss and the auxiliary ones; see `Objective` for the plain one."""

    def __init__(self, network: Network, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype
        hidden = network.config.text_config.hidden_size
        channels = network.model.vision_tower.sam_encoder.neck.conv2.out_channels
        self.cell_head = nn.Linear(hidden, SLOTS * CLASSES)
        self.patch_head = nn.Linear(channels, IN_PATCH * CLASSES)
        self.here_head = nn.Linear(hidden, 2 * PLACES)
        self.next_head = nn.Linear(hidden, 2 * PLACES)
        self.parts: dict[str, float] = {}

    def forward(self, lessons: Lessons) -> tuple[Tensor, Tensor]:
        """The sum over the tokens of all losses (nats), and 0 for the routers' balance. The means
        are then in `parts`: `text`, `here`, `next` of a token, `cells` and `patches` of a slot."""
        device = lessons.ids.device.type
        with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            rows, patches = self._encoded(lessons)
            # The last of each row is the line break, the last of all the end of the page.
            side = lessons.global_views.shape[-1] // CELL
            cells = rearrange(rows[:, :-1], "b (y x) c -> b y x c", y=side)[:, :, :-1]
            parts = {
                "cells": _slot_loss(self.cell_head, cells, lessons.slots, CELL),
                "patches": _slot_loss(self.patch_head, patches, lessons.slots, PATCH),
            }
            if lessons.ids.shape[1]:
                parts |= self._reading(lessons, rows)
        self.parts = {name: float(part.detach()) for name, part in parts.items()}
        total = torch.stack([WEIGHTS[name] * part for name, part in parts.items()]).sum()
        return total * lessons.taught, torch.zeros((), device=total.device)

    def save_heads(self, file: Path) -> None:
        """Write the heads of the auxiliary losses, whole or not at all. Raises `FileWriteError`."""
        kept = {n: v.detach().to("cpu", torch.bfloat16) for n, v in self._heads()}
        write_bytes(file, save(kept))

    def load_heads(self, file: Path) -> None:
        """Take over what `save_heads` wrote. Raises `CheckpointError`."""
        try:
            kept = load_file(file)
            for name, values in self._heads():
                values.data.copy_(kept[name])
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"{file} does not hold the heads of this network ({error}); leave out --heads."
            ) from error

    def _heads(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.named_parameters() if not n.startswith("network.")]

    def _encoded(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The vision tokens of each page `[B, tokens, hidden]`, line breaks and the end included,
        and SAM's features of each patch before they are merged `[B, S / 16, S / 16, C]`."""
        patches: list[Tensor] = []
        neck = self.network.model.vision_tower.sam_encoder.neck
        handle = neck.register_forward_hook(lambda module, given, made: patches.append(made))
        try:
            views = normalized(batch.global_views)
            tokens = torch.stack(vision_tokens(self.network, replace(batch, global_views=views)))
        finally:
            handle.remove()
        return tokens, rearrange(patches[0], "b c y x -> b y x c")

    def _reading(self, lessons: Lessons, rows: Tensor) -> dict[str, Tensor]:
        output = self.network.model.language_model(
            inputs_embeds=embedded(self.network, lessons.ids, rows.flatten(0, 1)),
            use_cache=False,
            output_hidden_states=True,
        )
        states = output.hidden_states[1:]  # after each layer, the last ones normalised
        targets = lessons.labels[:, 1:]
        taught = targets != IGNORED
        scores = self.network.lm_head(output.last_hidden_state[:, :-1][taught])
        # Half way up where the token itself stands, then where the next one does.
        half, later = states[len(states) // 2 - 1], states[-2]
        return {
            "text": functional.cross_entropy(scores.float(), targets[taught]),
            "here": _place_loss(self.here_head, half, lessons.places),
            "next": _place_loss(self.next_head, later[:, :-1], lessons.places[:, 1:]),
        }


def _place_loss(head: nn.Linear, states: Tensor, places: Tensor) -> Tensor:
    """Mean loss over the positions whose place is known, across and down."""
    known = places[..., 0] != IGNORED
    if not bool(known.any()):
        return torch.zeros((), device=states.device)
    both = rearrange(_head(head, states[known]).float(), "n (two part) -> (n two) part", two=2)
    return functional.cross_entropy(both, places[known].flatten())


def _slot_loss(head: nn.Linear, features: Tensor, slots: Tensor, side: int) -> Tensor:
    """Mean loss over the slots with a character and as many without one, drawn at random;
    `side` is how many px a feature stands for."""
    rows, columns = side // SLOT[1], side // SLOT[0]
    wanted = rearrange(slots, "b (y r) (x c) -> (b y x) (r c)", r=rows, c=columns)
    filled = wanted != NOTHING
    share = filled.sum() / max(1, int((~filled).sum()))
    asked = filled | (torch.rand(wanted.shape, device=wanted.device) < share)
    at, slot = asked.nonzero(as_tuple=True)
    if not len(at):  # empty pages only
        return torch.zeros((), device=features.device)
    used, place = torch.unique(at, return_inverse=True)
    scores = _head(head, rearrange(features, "b y x c -> (b y x) c")[used])
    scores = rearrange(scores, "n (slot k) -> n slot k", slot=rows * columns)
    return functional.cross_entropy(scores[place, slot].float(), wanted[at, slot])


def _head(head: nn.Linear, x: Tensor) -> Tensor:
    scores: Tensor = head(functional.layer_norm(x, x.shape[-1:]))
    return scores
