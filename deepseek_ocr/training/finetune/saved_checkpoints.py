"""Writing checkpoints in the official format, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from deepseek_ocr.files import replace_folder, sync_path
from deepseek_ocr.model.checkpoint import TensorFiles, official_pieces
from deepseek_ocr.model.network import Network

TENSORS = "model.safetensors"

COMPANIONS = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
"""Files of a checkpoint beside its tensors that are handed on unchanged."""


def official_tensors(
    parameters: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Parameters of the library's network under their official names and shapes, on the CPU."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in parameters:
        values = parameter.detach().to("cpu", dtype)
        for piece in official_pieces(name, tuple(values.shape)):
            part = values[piece.target] if piece.target else values
            if piece.rows is None:
                tensors[piece.tensor] = part.contiguous()
                continue
            whole = tensors.setdefault(piece.tensor, torch.empty(piece.shape, dtype=dtype))
            whole[slice(*piece.rows)] = part
    return tensors


def save_checkpoint(
    network: Network, source: Path, folder: Path, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write the network into `folder` in the official format, whole or not at all. Config and
    tokenizer are those of the checkpoint `source` it came from; `dtype` is the type of the file.
    Raises `FileWriteError` if it cannot be written."""
    with replace_folder(folder) as staging:
        for name in COMPANIONS:
            if (source / name).is_file():
                shutil.copyfile(source / name, staging / name)
        tensors = official_tensors(network.named_parameters(), dtype)
        save_tensors(tensors, staging / TENSORS)


def stored_dtype(folder: Path) -> torch.dtype:
    """The type of the numbers in the checkpoint `folder`. Raises `CheckpointError`."""
    files = TensorFiles(folder)
    return files.read(next(iter(files.shapes))).dtype


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write `tensors` as safetensors and see them onto the disk. Raises `OSError`."""
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:  # the library wraps what the system says
        raise OSError(str(error)) from error
    sync_path(path)
