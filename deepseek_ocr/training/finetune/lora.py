"""Which weights are trained: adapters on the decoder, the whole decoder, the vision encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import nn

from deepseek_ocr.files import replace_folder
from deepseek_ocr.model.adapters import CONFIG, TENSORS, WHOLE, quiet_peft
from deepseek_ocr.model.network import Network
from deepseek_ocr.training.finetune.saved_checkpoints import save_tensors

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def target_modules(network: Network) -> list[str]:
    """Full paths of the decoder's attention, dense and shared projections, in order. Full paths,
    because CLIP has a `q_proj` too: by short name it would be caught."""
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith("model.language_model.layers.")
        and name.endswith(_PROJECTIONS)
    ]


def target_parameters(network: Network) -> list[str]:
    """Full paths of the routed experts' stacked weights."""
    stacked = (".mlp.experts.gate_up_proj", ".mlp.experts.down_proj")
    return [name for name, _ in network.named_parameters() if name.endswith(stacked)]


def add_lora(
    network: Network, rank: int = 16, alpha: int = 32, dropout: float = 0.0, experts: bool = False
) -> PeftModel:
    """`network` with untrained adapters in place (float32), everything else frozen. Their scale is
    alpha / rank; with `experts` the routed experts have some too."""
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_modules(network),
        target_parameters=target_parameters(network) if experts else None,
    )
    with quiet_peft():
        return get_peft_model(network, config)


def train_vision(network: Network) -> None:
    """Make the vision encoder and what joins it to the decoder trainable, in float32."""
    # CLIP's own patch embedding is never used: SAM's map takes its place.
    unused = "vision_encoder.embeddings.patch_embedding"
    for name, parameter in network.named_parameters():
        if is_vision(name) and unused not in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


def is_vision(name: str) -> bool:
    """True for parameters of the encoders, the projector, and the two learned rows."""
    bare = name.replace("base_model.model.", "", 1)
    parts = ("vision_tower.", "multi_modal_projector.", "image_newline", "view_separator")
    return bare.startswith(tuple(f"model.{part}" for part in parts))


def save_adapter(wrapped: PeftModel, folder: Path) -> None:
    """Write the adapter as peft does, and what was trained whole beside it; all or nothing. Raises
    `FileWriteError`."""
    config = wrapped.peft_config["default"].to_dict()
    config = {key: sorted(v) if isinstance(v, set) else v for key, v in config.items()}
    config |= {"base_model_name_or_path": None, "inference_mode": True}
    adapter = get_peft_model_state_dict(wrapped)
    whole = {
        name.removeprefix("base_model.model."): parameter
        for name, parameter in wrapped.named_parameters()
        if parameter.requires_grad and "lora_" not in name
    }
    with replace_folder(folder) as staging:
        text = json.dumps(config, indent=1, default=str, sort_keys=True)
        (staging / CONFIG).write_text(text + "\n", encoding="utf-8")
        save_tensors(_on_cpu(adapter), staging / TENSORS)
        if whole:
            save_tensors(_on_cpu(whole), staging / WHOLE)


def _on_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: values.detach().to("cpu").contiguous() for name, values in tensors.items()}
