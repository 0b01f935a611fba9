"""The checkpoint folder: its config and its tensors, in the official format or the library's.

The official `config.json` is mapped onto the library's config class, and every parameter of the
library's network is traced to the tensors of the official file that make it up. Nothing in the
folder is executed, and only safetensors are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.models.unlimited_ocr.configuration_unlimited_ocr import (
    UnlimitedOcrConfig,
    UnlimitedOcrSamVisionConfig,
    UnlimitedOcrTextConfig,
    UnlimitedOcrVisionEncoderConfig,
)

from deepseek_ocr.errors import CheckpointError

OFFICIAL_TYPES = ("DeepseekOCR", "deepseek_vl_v2")
"""`model_type` of official configs: this project's copies and the hub's."""

LIBRARY_TYPE = "unlimited_ocr"
"""`model_type` that the library's class writes with `save_pretrained`."""

OFFICIAL_IMAGE_TOKEN_ID = 128815
"""Id of `<image>` in the official tokenizer; the official config does not state it."""

_LARGEST = {"num_hidden_layers": 256, "layers": 256, "n_routed_experts": 1024}
_LARGEST_SIZE = 1 << 20
"""Bounds on a config's numbers, far above any checkpoint of this kind."""

_COPIED = (
    "hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "n_routed_experts", "n_shared_experts",
    "num_experts_per_tok", "vocab_size", "max_position_embeddings", "rms_norm_eps",
    "first_k_dense_replace", "bos_token_id", "eos_token_id",
)  # fmt: skip
"""Keys that the official config and the library's share."""

_IGNORED = re.compile(
    r"model\.vision_model\.embeddings\.(position_ids|patch_embedding\.weight)"
    r"|model\.vision_tower\.vision_encoder\.embeddings\.(position_ids|patch_embedding\.weight)"
)
"""CLIP's own patch embedding (SAM's map takes its place) and a table some copies carry."""


# --- config -------------------------------------------------------------------------------------


def read_config(folder: Path) -> UnlimitedOcrConfig:
    """The network's config from `folder/config.json`, in either schema. Raises `CheckpointError`
    naming the file and the key that is missing, mistyped or absurd."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is not a checkpoint: it has no config.json. Give the folder that holds "
            "config.json, tokenizer.json and the safetensors file."
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); download it again.") from error
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if kind not in (*OFFICIAL_TYPES, LIBRARY_TYPE):
        raise CheckpointError(
            f"{path} has model_type {kind!r}; this program runs "
            f"{', '.join((*OFFICIAL_TYPES, LIBRARY_TYPE))}. Choose a DeepSeek-OCR checkpoint."
        )
    try:
        arguments = _from_library(raw) if kind == LIBRARY_TYPE else _from_official(raw)
        _check_sizes(arguments, "")
        config = UnlimitedOcrConfig(**arguments)
        _check_values(config)
        return config
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except KeyError as error:
        raise CheckpointError(f"{path} lacks {error}; download it again.") from error
    except Exception as error:  # the library's validation raises many kinds
        raise CheckpointError(f"{path} does not describe this network: {error}") from error


def _check_sizes(values: Any, where: str) -> None:
    """Refuse numbers that would exhaust memory before a single tensor is compared."""
    for key, value in values.items():
        if isinstance(value, dict):
            _check_sizes(value, f"{where}{key}.")
        elif isinstance(value, int) and not isinstance(value, bool):
            limit = _LARGEST.get(key, _LARGEST_SIZE)
            if key.endswith(("_size", "_layers", "_dim", "_experts")) and not 0 < value <= limit:
                raise CheckpointError(f"{where}{key} is {value}, outside 1 to {limit}.")


def _check_values(config: UnlimitedOcrConfig) -> None:
    """Refuse what fits the schema but not the network.

    That is ids that no token has, more experts a token than there are, other rotary embeddings.
    """
    text = config.text_config
    ends = text.eos_token_id if isinstance(text.eos_token_id, list) else [text.eos_token_id]
    named = {"bos_token_id": text.bos_token_id, "image_token_id": config.image_token_id}
    for name, value in [*named.items(), *(("eos_token_id", end) for end in ends)]:
        if not isinstance(value, int) or not 0 <= value < text.vocab_size:
            raise CheckpointError(f"{name} is {value!r}, outside the vocabulary.")
    if not ends:
        raise CheckpointError("eos_token_id names no token, so no page would end.")
    if text.rope_parameters["rope_type"] != "default":
        raise CheckpointError(f"rope_type is {text.rope_parameters['rope_type']!r}, not 'default'.")
    if not 0 < text.num_experts_per_tok <= text.n_routed_experts:
        raise CheckpointError(f"num_experts_per_tok is {text.num_experts_per_tok}.")


def _from_library(raw: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the library's config class from its own schema.

    Only what describes the network is taken over. A config could otherwise name kernels to be
    downloaded and run (`attn_implementation`), or code (`auto_map`).
    """
    vision = raw["vision_config"]
    return {
        "text_config": _described(UnlimitedOcrTextConfig, raw["text_config"]),
        "vision_config": {
            "sam_config": _described(UnlimitedOcrSamVisionConfig, vision["sam_config"]),
            "encoder_config": _described(UnlimitedOcrVisionEncoderConfig, vision["encoder_config"]),
        },
        "image_token_id": raw["image_token_id"],
    }


def _described(kind: type, raw: dict[str, Any]) -> dict[str, Any]:
    """The values of `raw` that the config class `kind` itself declares as fields."""
    declared = {name for name, hint in kind.__annotations__.items() if "ClassVar" not in str(hint)}
    return {name: value for name, value in raw.items() if name in declared}


def _from_official(raw: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the library's config class from the official schema."""
    fixed = {"use_mla": False, "scoring_func": "softmax", "tie_word_embeddings": False}
    for key, expected in fixed.items():
        if raw.get(key, expected) != expected:
            raise CheckpointError(f"{key} is {raw[key]!r}; this network has {expected!r}.")
    layers = raw["num_hidden_layers"]
    if not isinstance(layers, int) or not 0 < layers <= _LARGEST["num_hidden_layers"]:
        raise CheckpointError(f"num_hidden_layers is {layers!r}, outside 1 to 256.")
    text = {key: raw[key] for key in _COPIED}
    text |= {
        "pad_token_id": raw.get("pad_token_id"),
        "routed_scaling_factor": raw.get("routed_scaling_factor", 1.0),
        "topk_method": "greedy",
        "rope_parameters": {"rope_type": "default", "rope_theta": float(raw["rope_theta"])},
        "layer_types": ["full_attention"] * layers,
        "sliding_window": 128,  # the class insists on a number; no layer uses it
    }
    width = raw["vision_config"]["width"]
    return {
        "text_config": text,
        "vision_config": {
            "sam_config": _sam_config(width["sam_vit_b"]),
            "encoder_config": _clip_config(width["clip-l-14-224"]),
        },
        "image_token_id": raw.get("image_token_id", OFFICIAL_IMAGE_TOKEN_ID),
    }


def _sam_config(sam: dict[str, Any]) -> dict[str, Any]:
    # The last three are fixed in the official code; small checkpoints may state their own.
    return {
        "hidden_size": sam["width"],
        "num_hidden_layers": sam["layers"],
        "num_attention_heads": sam["heads"],
        "global_attn_indexes": sam["global_attn_indexes"],
        "downsample_channels": sam["downsample_channels"],
        "mlp_dim": 4 * sam["width"],
        "output_channels": sam.get("neck_channels", 256),
        "window_size": sam.get("window_size", 14),
        "image_size": sam.get("image_size", 1024),
    }


def _clip_config(clip: dict[str, Any]) -> dict[str, Any]:
    return {
        "hidden_size": clip["width"],
        "num_hidden_layers": clip["layers"],
        "num_attention_heads": clip["heads"],
        "image_size": clip["image_size"],
        "patch_size": clip["patch_size"],
        "intermediate_size": clip.get("mlp_dim", 4 * clip["width"]),
        "hidden_act": "quick_gelu",
    }


# --- tensors ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorPiece:
    """One official tensor (or the `rows` of it) and the part of a parameter it fills."""

    tensor: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    target: tuple[int | slice, ...] = ()


_RENAMES = [
    (r"^model\.vision_tower\.sam_encoder\.layers\.(\d+)\.layer_norm([12])\.", r"model.sam_model.blocks.\1.norm\2."),
    (r"^model\.vision_tower\.sam_encoder\.layers\.", r"model.sam_model.blocks."),
    (r"^model\.vision_tower\.sam_encoder\.patch_embed\.projection\.", r"model.sam_model.patch_embed.proj."),
    (r"^model\.vision_tower\.sam_encoder\.neck\.conv1\.", r"model.sam_model.neck.0."),
    (r"^model\.vision_tower\.sam_encoder\.neck\.layer_norm1\.", r"model.sam_model.neck.1."),
    (r"^model\.vision_tower\.sam_encoder\.neck\.conv2\.", r"model.sam_model.neck.2."),
    (r"^model\.vision_tower\.sam_encoder\.neck\.layer_norm2\.", r"model.sam_model.neck.3."),
    (r"^model\.vision_tower\.sam_encoder\.proj\.conv1\.", r"model.sam_model.net_2."),
    (r"^model\.vision_tower\.sam_encoder\.proj\.conv2\.", r"model.sam_model.net_3."),
    (r"^model\.vision_tower\.sam_encoder\.", r"model.sam_model."),
    (r"^model\.vision_tower\.vision_encoder\.encoder\.", r"model.vision_model.transformer."),
    (r"^model\.vision_tower\.vision_encoder\.", r"model.vision_model."),
    (r"^model\.multi_modal_projector\.", r"model.projector.layers."),
    (r"^model\.view_separator$", r"model.view_seperator"),
    (r"^model\.language_model\.", r"model."),
]  # fmt: skip
"""From the library's parameter names to the official ones; the first that matches applies."""


def official_pieces(parameter: str, shape: tuple[int, ...]) -> list[TensorPiece]:
    """The official tensors that make up the library's `parameter` of this `shape`.

    Most parameters are one tensor; CLIP's query, key and value are thirds of one fused tensor,
    and the library stacks the experts `[experts, out, in]`, gate above up.
    """
    name = parameter
    for pattern, replacement in _RENAMES:
        name, count = re.subn(pattern, replacement, name)
        if count:
            break
    if expert := re.fullmatch(r"(.*\.mlp\.experts\.)(gate_up_proj|down_proj)", name):
        return _expert_pieces(expert[1], expert[2], shape)
    if thirds := re.fullmatch(r"(model\.vision_model\..*\.self_attn\.)([qkv])_proj\.(.*)", name):
        size, which = shape[0], "qkv".index(thirds[2])
        rows = (which * size, (which + 1) * size)
        return [TensorPiece(f"{thirds[1]}qkv_proj.{thirds[3]}", (3 * size, *shape[1:]), rows)]
    return [TensorPiece(name, shape)]


def _expert_pieces(prefix: str, kind: str, shape: tuple[int, ...]) -> list[TensorPiece]:
    experts, out, size = shape
    if kind == "down_proj":
        return [
            TensorPiece(f"{prefix}{e}.down_proj.weight", (out, size), target=(e,))
            for e in range(experts)
        ]
    half = out // 2
    return [
        TensorPiece(f"{prefix}{e}.{part}_proj.weight", (half, size), target=(e, rows))
        for e in range(experts)
        for part, rows in (("gate", slice(0, half)), ("up", slice(half, out)))
    ]


class TensorFiles:
    """The safetensors files of one folder as one table of named tensors.

    Raises `CheckpointError` where a file is missing, damaged, or lies outside the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._file_of: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in _tensor_paths(folder):
            file = _open(path)
            for name in file.keys():  # noqa: SIM118 - not a dict
                if name in self.shapes:
                    raise CheckpointError(f"{path} repeats tensor {name}; remove the older file.")
                self.shapes[name] = tuple(file.get_slice(name).get_shape())
                self._file_of[name] = file

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """Tensor `name` (or some `rows` of it) on the CPU in the file's type, memory-mapped."""
        file = self._file_of[name]
        tensor: torch.Tensor = file.get_slice(name)[slice(*rows)] if rows else file.get_tensor(name)
        if not tensor.is_floating_point():
            raise CheckpointError(f"Tensor {name} holds {tensor.dtype}, not floating point.")
        return tensor


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        damage = f"{path} is damaged or incomplete ({error}); download it again."
        raise CheckpointError(damage) from error


def _tensor_paths(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{index} is damaged ({error!r}); download it again.") from error
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise CheckpointError(f"{index} points outside its folder ({name!r}); refused.")
        paths = [folder / name for name in sorted(names)]
    else:
        paths = sorted(folder.glob("model*.safetensors"))
    if not paths:
        raise CheckpointError(
            f"{folder} has no model*.safetensors; download the weights (other formats, such as "
            "pickled .bin files, are not read because they can run code)."
        )
    if missing := [path.name for path in paths if not path.is_file()]:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}; download it again.")
    return paths


def plan(files: TensorFiles, shapes: dict[str, tuple[int, ...]]) -> dict[str, list[TensorPiece]]:
    """For every parameter (name → shape) the tensors of `files` that fill it. Raises
    `CheckpointError` naming each missing, unexpected and mis-shaped tensor."""
    pieces = {
        name: [TensorPiece(name, shape)] if name in files.shapes else official_pieces(name, shape)
        for name, shape in shapes.items()
    }
    expected = {piece.tensor: piece.shape for parts in pieces.values() for piece in parts}
    found = {name for name in files.shapes if not _IGNORED.fullmatch(name)}
    problems = [*_listed("missing", expected.keys() - found)]
    problems += _listed("unexpected", found - expected.keys())
    wrong = {
        f"{name} (is {list(files.shapes[name])}, should be {list(shape)})"
        for name, shape in expected.items()
        if files.shapes.get(name, shape) != shape
    }
    problems += _listed("of the wrong shape", wrong)
    if problems:
        raise CheckpointError(
            f"The tensors do not fit the config: {'; '.join(problems)}. "
            "The files are damaged or not of one checkpoint; download them again."
        )
    return pieces


def _listed(what: str, names: set[str], most: int = 5) -> Iterator[str]:
    if names:
        shown = ", ".join(sorted(names)[:most])
        rest = f" and {len(names) - most} more" if len(names) > most else ""
        yield f"{what}: {shown}{rest}"
