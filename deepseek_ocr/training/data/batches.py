"""From an annotated page to tensors: ids with labels, views, and batches of them.

Only the answer and its end token teach; prompt, vision and padding positions are masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from deepseek_ocr.errors import InputError
from deepseek_ocr.images.views import Views
from deepseek_ocr.model import prompts
from deepseek_ocr.model.prompts import Codec

IGNORED = -100
"""Label of a position that teaches nothing (PyTorch's cross-entropy leaves it out)."""


class ExampleError(InputError):
    """An example that cannot be trained on."""


@dataclass(frozen=True)
class EncodedExample:
    """Token ids `[n]`, labels `[n]` (`IGNORED` if nothing is taught), and the page's views."""

    ids: torch.Tensor
    labels: torch.Tensor
    views: Views


@dataclass(frozen=True)
class Batch:
    """Examples side by side, padded on the right.

    - `ids`, `labels`: `[B, T]`
    - `global_views`: `[B, 3, S, S]`; `tiles`: `[n, 3, T, T]` of all pages, or None
    - `tile_counts`, `grids`: per page
    """

    ids: torch.Tensor
    labels: torch.Tensor
    global_views: torch.Tensor
    tiles: torch.Tensor | None
    tile_counts: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]

    @property
    def taught(self) -> int:
        """Positions that teach, in tokens."""
        return int((self.labels[:, 1:] != IGNORED).sum())

    def to(self, device: torch.device) -> Self:
        """The same batch on `device`."""
        tensors = {name: one for name, one in vars(self).items() if isinstance(one, torch.Tensor)}
        moved: dict[str, Any] = {name: one.to(device) for name, one in tensors.items()}
        return replace(self, **moved)


def encode_example(
    codec: Codec, views: Views, prompt: str, answer: str, max_tokens: int
) -> EncodedExample:
    """Prompt, answer (of an empty page empty) and an end token as ids, the last two as labels too.
    Raises `ExampleError` if the whole has more than `max_tokens`."""
    encoded = prompts.encode(codec, prompts.with_image(prompt), views.token_count)
    taught = [*codec.encode_text(answer), min(codec.end_ids)]
    length = len(encoded.ids) + len(taught)
    if length > max_tokens:
        raise ExampleError(
            f"page, prompt and answer have {length} tokens, more than {max_tokens}; "
            "choose a smaller preset, raise --max_tokens, or split the page."
        )
    ids = torch.tensor([*encoded.ids, *taught])
    labels = torch.tensor([IGNORED] * len(encoded.ids) + taught)
    return EncodedExample(ids, labels, views)


def collate(examples: Sequence[EncodedExample], pad_id: int) -> Batch:
    """One batch; shorter examples are padded on the right with `pad_id`, unlabelled. Padding comes
    after all that teaches, and attention looks back only, so no mask is needed."""
    sequences = torch.nn.utils.rnn.pad_sequence
    tiles = [example.views.tiles for example in examples if len(example.views.tiles)]
    return Batch(
        ids=sequences([e.ids for e in examples], batch_first=True, padding_value=pad_id),
        labels=sequences([e.labels for e in examples], batch_first=True, padding_value=IGNORED),
        global_views=torch.stack([example.views.global_view for example in examples]),
        tiles=torch.cat(tiles) if tiles else None,
        tile_counts=tuple(len(example.views.tiles) for example in examples),
        grids=tuple(example.views.grid for example in examples),
    )
