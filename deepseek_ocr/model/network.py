"""The network, loaded from a checkpoint folder straight to its device and type.

The class is the library's own (`transformers`); this file only fills it and asks it for vision
tokens. Nothing here knows about pages, prompts or text.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from einops import rearrange
from torch import nn
from transformers.models.unlimited_ocr.configuration_unlimited_ocr import UnlimitedOcrConfig
from transformers.models.unlimited_ocr.modeling_unlimited_ocr import (
    UnlimitedOcrForConditionalGeneration,
    UnlimitedOcrTextRotaryEmbedding,
)

from deepseek_ocr.devices import hugepages, selection
from deepseek_ocr.errors import CheckpointError, DeviceError, InputError
from deepseek_ocr.images.views import Views
from deepseek_ocr.model import int8_layers
from deepseek_ocr.model.checkpoint import TensorFiles, plan, read_config
from deepseek_ocr.model.int8_rows import quantize_into
from deepseek_ocr.settings import check_quant

Network: TypeAlias = UnlimitedOcrForConditionalGeneration
"""The library's class, under the name this project uses for it."""


def load_network(
    folder: str | os.PathLike[str],
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    vision_device: str | torch.device | None = None,
    quant: str = "none",
    adapt: Callable[[Network], Network] | None = None,
) -> Network:
    """The network of the checkpoint in `folder`, in evaluation mode, gradients off.

    Every tensor goes from the file to its place on the device at most once; a second full copy
    never exists. On the CPU, in the type of the file, the encoders and the embeddings stay
    memory-mapped: do not write to the file while the network is in use (replacing it is fine). A
    folder without a tokenizer will do.

    `vision_device` is where the encoders and the projector go, if not where the decoder is; on a
    device of another kind they have the type that it does well (`selection.vision_dtype`).

    With `quant` "int8" the decoder's matrices are quantised as they are read
    (`kernels.quantized`): only their 8 bits, and a block of rows, ever lie on the device. `adapt`
    changes the weights before that, as merging an adapter does; the decoder that it is given lies
    on the CPU then.

    Raises `CheckpointError` (folder, config, tensors), `DeviceError`, and `SettingsError` for an
    unknown `quant`.
    """
    check_quant(quant)
    folder = Path(folder)
    target = selection.choose_device(device)
    kind = selection.choose_dtype(dtype, target)
    vision = target if vision_device is None else selection.choose_device(vision_device)
    adapted_first = quant == "int8" and adapt is not None
    places = {"": (torch.device("cpu") if adapted_first else target, kind)}
    for part in _VISION:
        places[part] = (vision, selection.vision_dtype(kind, vision, target))
    if not folder.is_dir():
        raise CheckpointError(f"There is no folder {folder}; give the folder of a checkpoint.")
    for place, _ in places.values():
        selection.configure(place)
    network = empty_network(read_config(folder))
    _fill(network, folder, places, "none" if adapted_first else quant)
    rebuild_buffers(network, target)
    if adapt is not None:
        network = adapt(network)
    if adapted_first:
        int8_layers.quantize_decoder(network, target)
        _move_rest(network, target)
    network.model.language_model.set_attn_implementation("sdpa")
    _keep_position_tables(network)
    _keep_relative_tables(network)
    network.requires_grad_(False)
    return network.eval()


def empty_network(config: UnlimitedOcrConfig) -> Network:
    """The network of this config without any memory behind its parameters.

    Raises `CheckpointError` where the sizes contradict each other.
    """
    try:
        with torch.device("meta"):
            return UnlimitedOcrForConditionalGeneration(config)
    except Exception as error:  # sizes that contradict each other fail anywhere in the class
        raise CheckpointError(
            f"The config does not describe this network ({error}); download it again."
        ) from error


_VISION = ("model.vision_tower.", "model.multi_modal_projector.")
"""How the names of what may lie on a device of its own begin."""

_EACH_TOKEN = ("model.language_model.layers.", "lm_head.")
"""How the names of what is read for every token begin."""

Places: TypeAlias = Mapping[str, tuple[torch.device, torch.dtype]]
"""Where parameters go and in which type, by how their names begin."""


def _fill(network: Network, folder: Path, places: Places, quant: str) -> None:
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    files = TensorFiles(folder)
    planned = plan(files, shapes)
    in_8_bits = int8_layers.empty_decoder(network, places[""][0]) if quant == "int8" else {}
    for name, pieces in planned.items():
        device, dtype = places[max(filter(name.startswith, places), key=len)]
        if rows := in_8_bits.get(name):
            for piece in pieces:
                quantize_into(rows[piece.target], files.read(piece.tensor, piece.rows), dtype)
            assert rows.scales is not None
            _check_range(name, dtype, rows.scales)
            continue
        if len(pieces) == 1 and not (device.type == "cpu" and name.startswith(_EACH_TOKEN)):
            # Where nothing has to change, this stays the file's own memory-mapped pages, which
            # the system loads when they are needed and shares between processes.
            values = files.read(pieces[0].tensor, pieces[0].rows).to(device, dtype)
        else:
            values = hugepages.empty(shapes[name], dtype, device)
            for piece in pieces:
                values[piece.target].copy_(files.read(piece.tensor, piece.rows))
        _check_range(name, dtype, values)
        replace_parameter(network, name, values)


def _check_range(name: str, dtype: torch.dtype, values: torch.Tensor) -> None:
    """Raises `DeviceError` if `values`, or their scales, are not finite in float16."""
    if dtype != torch.float16:
        return
    ends = torch.stack((values.amin(), values.amax()))  # without a copy of all values
    if not bool(torch.isfinite(ends).all()):
        raise DeviceError(f"{name} does not fit float16; use the dtype bfloat16 or float32.")


def replace_parameter(module: nn.Module, name: str, values: torch.Tensor) -> None:
    """Make `values` the parameter of `module` called `name`: not a copy into the old one, which may
    be the checkpoint's own file, or nothing but a shape."""
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, nn.Parameter(values, requires_grad=False))


def _move_rest(network: Network, device: torch.device) -> None:
    """Move what is left of the decoder's parameters to `device`."""
    for name, parameter in list(network.named_parameters()):
        if not name.startswith(_VISION):
            replace_parameter(network, name, parameter.to(device))


def rebuild_buffers(network: Network, device: torch.device) -> None:
    """Compute what no checkpoint holds: rotary frequencies (float32 always) and position ids."""
    text = network.model.language_model
    text.rotary_emb = UnlimitedOcrTextRotaryEmbedding(config=text.config).to(device)
    embeddings = network.model.vision_tower.vision_encoder.embeddings
    positions = torch.arange(embeddings.num_positions, device=embeddings.class_embedding.device)
    embeddings.position_ids = positions[None]
    left = [name for name, buffer in network.named_buffers() if buffer.is_meta]
    if left:
        raise CheckpointError(f"This version of transformers has unknown buffers: {left}.")


def _keep_position_tables(network: Network) -> None:
    """Interpolate the two position tables once per view size instead of once per call.

    While a table is being trained it is resized anew each time, as the library does.
    """
    sam = network.model.vision_tower.sam_encoder
    clip = network.model.vision_tower.vision_encoder.embeddings
    sam_kept: dict[object, torch.Tensor] = {}
    clip_kept: dict[object, torch.Tensor] = {}

    def sam_table(height: int, width: int) -> torch.Tensor:
        return kept(sam_kept, sam.pos_embed, (height, width), _resize_grid)

    def clip_table(_: torch.Tensor, height: int, width: int) -> torch.Tensor:
        size = (height // clip.patch_size, width // clip.patch_size)
        return kept(clip_kept, clip.position_embedding.weight, size, _resize_class_and_grid)

    sam.interpolate_pos_encoding = sam_table
    clip.interpolate_pos_encoding = clip_table


def _keep_relative_tables(network: Network) -> None:
    """Lay out SAM's relative positions once per view size; the library does it in every call, with
    coordinates made on the CPU whatever the device."""
    for layer in network.model.vision_tower.sam_encoder.layers:
        layer.attn.get_rel_pos = _RelativeTables(layer.attn.get_rel_pos)


class _RelativeTables:
    """Remembers what `lay_out(q_size, k_size, table)` gives: `[q_size, k_size, head]`."""

    def __init__(self, lay_out: Callable[[int, int, torch.Tensor], torch.Tensor]) -> None:
        self._lay_out = lay_out
        self._tables: dict[object, torch.Tensor] = {}

    def __call__(self, q_size: int, k_size: int, table: torch.Tensor) -> torch.Tensor:
        return kept(
            self._tables, table, (q_size, k_size), lambda rows, size: self._lay_out(*size, rows)
        )


def kept(
    store: dict[object, torch.Tensor],
    table: torch.Tensor,
    size: tuple[int, int],
    resize: Callable[[torch.Tensor, tuple[int, int]], torch.Tensor],
) -> torch.Tensor:
    """What `resize` makes of `table` for `size`, from `store` where it was made before.

    New values in `table` make a new one; while it is being trained it is made anew each time.
    """
    if table.requires_grad:
        return resize(table, size)
    key = (size, *identity(table))
    if key not in store:
        store[key] = resize(table.cpu(), size).to(table.device)
    return store[key]


def identity(table: torch.Tensor) -> tuple[object, ...]:
    """What changes when a tensor is given new values or is moved."""
    version = 0 if table.is_inference() else table._version  # inference mode counts no versions
    return (table.dtype, table.device, table.data_ptr(), version)


def _resize_grid(table: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`[1, h, w, C]` to `[1, H, W, C]`: bicubic, antialiased, in float32, as the model was made."""
    if table.shape[1:3] == size:
        return table
    planes = rearrange(table.float(), "n h w c -> n c h w")
    resized = nn.functional.interpolate(planes, size, mode="bicubic", antialias=True)
    return rearrange(resized, "n c h w -> n h w c").to(table.dtype)


def _resize_class_and_grid(table: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`[1 + h*w, C]` (class token first, h = w) to `[1, 1 + H*W, C]`."""
    side = round((len(table) - 1) ** 0.5)
    grid = _resize_grid(rearrange(table[1:], "(h w) c -> 1 h w c", h=side), size)
    return torch.cat([table[None, :1], rearrange(grid, "1 h w c -> 1 (h w) c")], dim=1)


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
    `[1, len(ids), hidden]`.

    Raises `InputError` where the placeholders are not exactly as many as the rows.
    """
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
