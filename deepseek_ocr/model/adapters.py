"""LoRA adapters that `deepseek-ocr train` or peft wrote, read and merged into a network.

Merged, the network is as fast as without one. `peft` is needed only here.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from deepseek_ocr.devices import memory
from deepseek_ocr.errors import CheckpointError
from deepseek_ocr.model.network import Network, replace_parameter
from deepseek_ocr.settings import LARGEST_RANK

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
"""peft's names for an adapter's two files. Pickled adapters are not read: they can run code."""

WHOLE = "trained_parameters.safetensors"
"""Parameters that were trained whole beside the adapter (the vision encoder), by their names in
the library's network. Not every adapter has any."""

_NAME = re.compile(r"[\w.]{1,256}", re.ASCII)
"""A dotted name of a module or parameter, or the end of one. peft takes other strings for patterns,
and a pattern from outside may take for ever to match."""

_MOST_NAMES, _MOST_PATTERNS = 1024, 256
"""In a list; in a `rank_pattern` or `alpha_pattern`, all of which peft tries on every module."""


def merge_adapter(network: Network, folder: Path) -> Network:
    """`network` with the adapter in `folder` added to its weights; the same object, changed. Raises
    `CheckpointError` where the adapter is missing, damaged or of another model, or where peft is
    not installed, and what a device without memory raises."""
    config = _config(folder)
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise CheckpointError(
            "Adapters need peft, of cog-deepseek-ocr[train]: pip install peft. Or merge the "
            "adapter into a checkpoint where peft is at hand (deepseek-ocr train --merge)."
        ) from error
    try:
        # On the meta device nothing is allocated: a config may claim any rank.
        with quiet_peft(), torch.device("meta"):
            wrapped = get_peft_model(network, LoraConfig(**config))
        _fill(wrapped, _tensors(folder / TENSORS))
        merged: Network = wrapped.merge_and_unload(safe_merge=True)
        _take_whole(merged, folder / WHOLE)
    except Exception as error:  # peft raises many kinds for what does not fit
        if memory.is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"The adapter in {folder} does not fit this model ({error}); give the model it was "
            "trained on."
        ) from error
    return merged.requires_grad_(False).eval()


def _fill(wrapped: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Put the adapter's tensors where they belong, once every one of them fits.

    peft's own function would first rename them as if they came from an official checkpoint.
    """
    places = {
        name.replace(".default.", "."): name
        for name, _ in wrapped.named_parameters()
        if "lora_" in name
    }
    if strangers := sorted(places.keys() ^ tensors.keys()):
        raise CheckpointError(f"{strangers[0]} and {len(strangers) - 1} other tensors differ")
    for name, values in tensors.items():
        wanted = wrapped.get_parameter(places[name]).shape
        if values.shape != wanted:
            raise CheckpointError(f"{name} is {list(values.shape)}, not {list(wanted)}")
    for name, values in tensors.items():
        adapted: Any = wrapped.get_submodule(places[name].partition(".lora_")[0])
        device = next(adapted.get_base_layer().parameters()).device
        dtype = wrapped.get_parameter(places[name]).dtype
        replace_parameter(wrapped, places[name], values.to(device, dtype))


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without peft's remark that it asks transformers in a way about to change."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def _config(folder: Path) -> dict[str, Any]:
    """What `LoraConfig` needs, checked. Raises `CheckpointError`."""
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} is not an adapter: it has no {name}. Give a folder that "
                "deepseek-ocr train wrote with LoRA; pickled adapters are not read."
            )
    try:
        raw = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / CONFIG} is not JSON ({error}).") from error
    if not isinstance(raw, dict) or raw.get("peft_type") != "LORA":
        raise CheckpointError(f"{folder / CONFIG} does not describe a LoRA adapter.")
    if raw.get("modules_to_save") or raw.get("bias", "none") != "none":
        raise CheckpointError(
            f"{folder / CONFIG} trains biases or whole modules, which are not read from adapters; "
            "merge it where it was made."
        )
    # peft writes null for what nobody set; a rank is always set.
    taken: dict[str, Any] = {
        key: raw.get(key) for key in _TAKEN if key == "r" or raw.get(key) is not None
    }
    for key, value in taken.items():
        fits, wanted = _TAKEN[key]
        if not fits(value):
            raise CheckpointError(
                f"{folder / CONFIG}: {key} must be {wanted}; correct it, or merge the adapter "
                "where it was made."
            )
    for key in taken.keys() & {"rank_pattern", "alpha_pattern"}:
        # peft takes names for patterns: escaped, they are found as they are written.
        taken[key] = {re.escape(name): value for name, value in taken[key].items()}
    return taken


def _is_rank(value: object) -> bool:
    return type(value) is int and 0 < value <= LARGEST_RANK


def _is_scale(value: object) -> bool:
    """A number that a float can hold, which "not a number" and infinity are not."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max
    )


def _is_name(value: object) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and len(value) <= _MOST_NAMES and all(map(_is_name, value))


def _is_by_name(value: object, fits: Callable[[Any], bool]) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= _MOST_PATTERNS
        and all(map(_is_name, value))
        and all(map(fits, value.values()))
    )


_RANK = f"a rank from 1 to {LARGEST_RANK}"

_LIST = (
    f"a list of up to {_MOST_NAMES} plain names like layers.0.self_attn.q_proj (write the list of "
    "what a pattern stands for)"
)

_BY_NAME = f"an object of up to {_MOST_PATTERNS} plain names, no patterns, each with"

_TAKEN: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_is_rank, _RANK),
    "lora_alpha": (_is_scale, "a finite number"),
    "target_modules": (_is_list_of_names, _LIST),
    "target_parameters": (_is_list_of_names, _LIST),
    "rank_pattern": (lambda value: _is_by_name(value, _is_rank), f"{_BY_NAME} {_RANK}"),
    "alpha_pattern": (
        lambda value: _is_by_name(value, lambda alpha: _is_scale(alpha) and alpha > 0),
        f"{_BY_NAME} a finite number above 0",
    ),
    "use_rslora": (lambda value: isinstance(value, bool), "true or false"),
}
"""What is taken from a config, and what it must be: as a test and in words. Other keys could name
classes to import or files to open."""


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy it again.") from error


def _take_whole(network: Network, path: Path) -> None:
    if not path.is_file():
        return
    parameters = dict(network.named_parameters())
    for name, values in _tensors(path).items():
        if name not in parameters or parameters[name].shape != values.shape:
            raise CheckpointError(f"{path} holds {name}, which this model does not have.")
        target = parameters[name]
        replace_parameter(network, name, values.to(target.device, target.dtype))
