"""The network, and what it is asked for: vision tokens and embeddings.

The class is the library's own (`transformers`); `loader` fills it from a checkpoint. Nothing here
knows about pages, prompts or text.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import nn
from transformers.models.unlimited_ocr.configuration_unlimited_ocr import UnlimitedOcrConfig
from transformers.models.unlimited_ocr.modeling_unlimited_ocr import (
    UnlimitedOcrForConditionalGeneration,
)

from deepseek_ocr.errors import CheckpointError, InputError
from deepseek_ocr.images.views import Views

Network: TypeAlias = UnlimitedOcrForConditionalGeneration
"""The library's class, under the name this project uses for it."""


def empty_network(config: UnlimitedOcrConfig) -> Network:
    """The network of this config without any memory behind its parameters. Raises `CheckpointError`
    where the sizes contradict each other."""
    try:
        with torch.device("meta"):
            return UnlimitedOcrForConditionalGeneration(config)
    except Exception as error:  # sizes that contradict each other fail anywhere in the class
        raise CheckpointError(
            f"The config does not describe this network ({error}); download it again."
        ) from error


def replace_parameter(module: nn.Module, name: str, values: torch.Tensor) -> None:
    """Make `values` the parameter of `module` called `name`: not a copy into the old one, which may
    be the checkpoint's own file, or nothing but a shape."""
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, nn.Parameter(values, requires_grad=False))


@torch.inference_mode()
def vision_tokens(network: Network, views: Views) -> torch.Tensor:
    """The rows that stand for a page in the sequence: `[N, hidden]`, N = `views.token_count`.

    Order: tiles as they lie on the page, global view, view separator; an image newline ends each
    row of cells.
    """
    weight = network.model.vision_tower.sam_encoder.patch_embed.projection.weight
    tiles = views.tiles.to(weight.device, weight.dtype) if len(views.tiles) else None
    features = network.get_image_features(
        pixel_values=views.global_view[None].to(weight.device, weight.dtype),
        pixel_values_local=tiles,
        num_local_patches=[len(views.tiles)],
        patches_grid=[list(views.grid)],
    )
    rows: torch.Tensor = features.pooler_output[0]
    return rows


@torch.inference_mode()
def embed(network: Network, ids: list[int], rows: torch.Tensor, start: int) -> torch.Tensor:
    """Embeddings of a prompt with the vision `rows` in place of its placeholders from `start` on:
    `[1, len(ids), hidden]`. Raises `InputError` where the placeholders are not exactly as many as
    the rows."""
    image_id = network.config.image_token_id
    stop = start + len(rows)
    placeholders = [position for position, token in enumerate(ids) if token == image_id]
    if placeholders != list(range(start, stop)):
        raise InputError(
            f"The prompt has {len(placeholders)} image placeholders and the page {len(rows)} "
            "vision tokens; encode the prompt for these views."
        )
    table = network.get_input_embeddings()
    device = table.weight.device
    before = table(torch.tensor(ids[:start], device=device))
    after = table(torch.tensor(ids[stop:], device=device, dtype=torch.long))
    return torch.cat([before, rows.to(device, before.dtype), after])[None]
