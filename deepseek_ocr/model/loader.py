"""The network, loaded from a checkpoint folder straight to its device and type."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrTextRotaryEmbedding

from deepseek_ocr.devices import hugepages, selection
from deepseek_ocr.errors import CheckpointError, DeviceError
from deepseek_ocr.model import int8_layers, position_tables
from deepseek_ocr.model.checkpoint import TensorFiles, plan, read_config
from deepseek_ocr.model.network import Network, empty_network, replace_parameter
from deepseek_ocr.model.weight_matrix import quantize_into
from deepseek_ocr.settings import check_quant

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
    (`int8_layers`): only their 8 bits, and a block of rows, ever lie on the device. `adapt`
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
    if not folder.is_dir():
        raise CheckpointError(f"There is no folder {folder}; give the folder of a checkpoint.")
    adapted_first = quant == "int8" and adapt is not None
    places = {"": (torch.device("cpu") if adapted_first else target, kind)}
    places |= dict.fromkeys(_VISION, (vision, selection.vision_dtype(kind, vision, target)))
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
    position_tables.keep(network)
    network.requires_grad_(False)
    return network.eval()


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
