"""The golden checkpoint and what the official implementation computed with it; without pytest, so
that the report of a card (`benchmarks/golden.py`) compares with the same numbers as the tests."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from deepseek_ocr.images.views import Views
from deepseek_ocr.model.network import Network, embed, vision_tokens

GOLDEN = Path(__file__).resolve().parent / "golden"

Golden = dict[str, torch.Tensor]

VIEW_SIZES = {"tiny": 512, "small": 640, "base": 1024, "large": 1280}

VIEWS = (*VIEW_SIZES, "gundam_1x2", "gundam_2x1", "gundam_2x3")
"""Names of the views whose vision tokens are stored."""

CASES = {"case_tiny": "tiny", "case_small": "small", "case_gundam": "gundam_2x1"}
"""Prompts whose logits, loss and greedy ids are stored, and the views that each shows."""


def load_golden() -> Golden:
    """What the official implementation computed, by name."""
    return load_file(GOLDEN / "model_outputs.safetensors")


def golden_views(golden: Golden, name: str) -> Views:
    """The views whose features are stored under `name`, one of `VIEWS`."""
    if not name.startswith("gundam_"):
        page = _enlarge(golden[f"{name}.input_16x16"][0], VIEW_SIZES[name])
        return Views(page, torch.empty(0, 3, 640, 640), (1, 1))
    columns, rows = (int(number) for number in name.removeprefix("gundam_").split("x"))
    page = _enlarge(golden["base.input_16x16"][0], 1024)
    return Views(page, _enlarge(golden[f"{name}.tiles_input_16x16"], 640), (columns, rows))


def _enlarge(small: torch.Tensor, side: int) -> torch.Tensor:
    times = side // small.shape[-1]
    return small.repeat_interleave(times, -1).repeat_interleave(times, -2)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Norm of the difference over the norm of `theirs`; both have one shape."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).norm() / theirs.norm())


def embedded(network: Network, golden: Golden, case: str) -> tuple[list[int], torch.Tensor]:
    """Ids of a case's prompt, and its embeddings `[1, L, H]` with the page in them."""
    ids = golden[f"{case}.input_ids"][0].tolist()
    mask = golden[f"{case}.images_seq_mask"][0].tolist()
    rows = vision_tokens(network, golden_views(golden, CASES[case]))
    return ids, embed(network, ids, rows, mask.index(True))
