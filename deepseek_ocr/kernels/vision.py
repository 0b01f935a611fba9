"""The fast path of the vision encoders: which attention, and weights laid out for the processor.

Everything here steps aside while gradients are wanted: training runs the library's own code.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from deepseek_ocr.kernels import compiled_attention, sam_attention
from deepseek_ocr.kernels.sam_attention import Heads, Positions
from deepseek_ocr.model.network import Network
from deepseek_ocr.model.position_tables import identity

_ROWS = 400
"""Cells that the layers after the attention take at a time."""

Attention = Callable[[Heads, Positions], torch.Tensor]


def prepare(network: Network, chosen: frozenset[str]) -> None:
    """Put the fast paths called `chosen` on the vision encoders of `network`, for the device and
    type it has now; does nothing without "vision".

    Adapters are merged before. Weights may change afterwards; what is derived from them follows.
    """
    if "vision" not in chosen:
        return
    tower = network.model.vision_tower
    for layer in tower.sam_encoder.layers:
        _hook_layer(layer, "compiled" in chosen)
    if _packing_pays(network):
        for module in tower.modules():
            if isinstance(module, nn.Linear):
                _hook_linear(module)
    if tower.sam_encoder.patch_embed.projection.weight.device.type == "cpu":
        _hook_images(tower.sam_encoder)
        for layer in tower.sam_encoder.layers:
            _hook_mlp(layer.mlp)


def remove_attention(network: Network) -> None:
    """Give the SAM layers their own attention back."""
    for layer in network.model.vision_tower.sam_encoder.layers:
        for module in (layer, layer.attn):
            vars(module).pop("forward", None)


def _hook_layer(layer: Any, compiled: bool) -> None:
    """Exchange the attention of one SAM layer."""
    weight = layer.attn.qkv.weight
    if not layer.attn.use_rel_pos:
        return
    dim = weight.shape[0] // 3 // layer.attn.num_attention_heads
    if compiled and compiled_attention.can_run(weight.device, weight.dtype, dim):
        layer.forward = _compiled_layer(layer)
    elif attention := torch_attention(weight.device, weight.dtype, layer.window_size):
        layer.attn.forward = _with_attention(layer.attn, attention)


def torch_attention(device: torch.device, dtype: torch.dtype, window: int) -> Attention | None:
    """The attention of torch that is fastest on a device, None where it is the library's own."""
    if device.type != "cpu":
        return sam_attention.fused
    if window:
        return None  # the bias of a window is small
    return sam_attention.blocked if dtype == torch.bfloat16 else sam_attention.by_rows


def _with_attention(module: Any, attention: Attention) -> Callable[..., Any]:
    """`module.forward` with another attention inside."""
    plain = module.forward
    positions = Positions(module)

    def forward(hidden_states: torch.Tensor, output_attentions: object = None) -> Any:
        if _wants_gradients(module, hidden_states):
            return plain(hidden_states, output_attentions)
        batch, height, width, _ = hidden_states.shape
        count = module.num_attention_heads
        qkv = module.qkv(hidden_states).view(batch, height * width, 3, count, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).flatten(1, 2).unbind(0)
        mixed = attention(Heads(query, key, value, (height, width)), positions)
        rows = mixed.view(batch, count, height * width, -1).transpose(1, 2)
        return module.proj(rows.reshape(batch, height, width, -1)), None

    return forward


def _compiled_layer(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """`layer.forward` with the compiled attention, which finds windows in the map by itself."""
    plain: Callable[[torch.Tensor], torch.Tensor] = layer.forward
    attn = layer.attn
    positions = Positions(attn)

    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        if _wants_gradients(layer, hidden_states):
            return plain(hidden_states)
        hidden_states = hidden_states.contiguous()  # the first layer gets the strides of an image
        qkv = attn.qkv(layer.layer_norm1(hidden_states))
        padding = attn.qkv.bias if attn.qkv.bias is not None else qkv.new_zeros(qkv.shape[-1])
        mixed = compiled_attention.attend(
            qkv, padding, positions, layer.window_size, attn.num_attention_heads
        )
        del qkv
        hidden_states = hidden_states + attn.proj(mixed)
        output: torch.Tensor = hidden_states + layer.mlp(layer.layer_norm2(hidden_states))
        return output

    return forward


def _wants_gradients(module: nn.Module, hidden_states: torch.Tensor) -> bool:
    if not torch.is_grad_enabled():
        return False
    return hidden_states.requires_grad or any(p.requires_grad for p in module.parameters())


def _packing_pays(network: Network) -> bool:
    """True where oneDNN multiplies bfloat16 in hardware: packed, it comes 10 % closer to the
    processor's peak (440 instead of 400 of 470 GFLOP/s on a Zen 4), for 0.8 GB more."""
    # The encoders may be on a device of their own.
    weight = network.model.vision_tower.sam_encoder.patch_embed.projection.weight
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return False
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _hook_linear(linear: nn.Linear) -> None:
    """Keep the weights of `linear` packed as oneDNN wants them, from the first use on."""
    plain = linear.forward
    packed: dict[object, torch.Tensor] = {}

    def forward(states: torch.Tensor) -> torch.Tensor:
        weight = linear.weight
        if _wants_gradients(linear, states) or weight.dtype != torch.bfloat16:
            return plain(states)
        key = identity(weight)
        if key not in packed:
            packed.clear()
            packed[key] = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            states, packed[key], linear.bias, "none", [], "none"
        )
        return result

    vars(linear)["forward"] = forward


def _hook_mlp(mlp: Any) -> None:
    """Run the two layers of `mlp` over some rows at a time, so that what lies between them stays
    in cache and its memory is used again."""
    plain: Callable[[torch.Tensor], torch.Tensor] = mlp.forward

    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        if _wants_gradients(mlp, hidden_states):
            return plain(hidden_states)
        rows = hidden_states.flatten(0, -2)
        output = torch.empty_like(rows)
        for first in range(0, len(rows), _ROWS):
            some = slice(first, first + _ROWS)
            output[some] = mlp.lin2(mlp.act(mlp.lin1(rows[some])))
        return output.view_as(hidden_states)

    mlp.forward = forward


def _hook_images(encoder: Any) -> None:
    """Take one image after the other: less memory, and more of it in cache."""
    plain = encoder.forward

    def forward(pixel_values: torch.Tensor, **options: Any) -> Any:
        if len(pixel_values) == 1 or options or _wants_gradients(encoder, pixel_values):
            return plain(pixel_values, **options)
        maps = [plain(image[None]).last_hidden_state for image in pixel_values]
        return BaseModelOutput(last_hidden_state=torch.cat(maps))

    encoder.forward = forward
