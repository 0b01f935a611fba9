"""Writing checkpoints in the official format, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from deepseek_ocr.model.checkpoint import TensorFiles, official_pieces
from deepseek_ocr.model.network import Network
from deepseek_ocr.files import explain_write_errors

TENSORS = "model.safetensors"

COMPANIONS = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
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
    """Write the network into `folder` in the official format, whole or not at all.

    Config and tokenizer are those of the checkpoint `source` it came from; `dtype` is the type of
    the file. Raises `FileWriteError` where it cannot be written.
    """
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


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` when the block ends without an error.

    Raises `FileWriteError` where the disk says no; what was in `folder` then stays.
    """
    staging = folder.with_name(f".{folder.name}.part")
    old = folder.with_name(f".{folder.name}.old")
    with explain_write_errors(folder):
        recover_folder(folder)
        try:
            for leftover in (staging, old):
                shutil.rmtree(leftover, ignore_errors=True)
            staging.mkdir(parents=True)
            yield staging
            if folder.exists():
                os.replace(folder, old)
            os.replace(staging, folder)
        finally:
            recover_folder(folder)
            for leftover in (staging, old):
                shutil.rmtree(leftover, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Put back what `replace_folder` had set aside when it was stopped between its two steps.

    Several processes may look at once; one of them does it. Raises `OSError`.
    """
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        with suppress(FileNotFoundError):
            os.replace(old, folder)


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write `tensors` as safetensors and see them onto the disk. Raises `OSError`."""
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:  # the library wraps what the system says
        raise OSError(str(error)) from error
    with path.open("rb") as file:
        os.fsync(file.fileno())
