"""The decoder's weights under plain names, as the fast decoders read them: no copies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from deepseek_ocr.model.int8_layers import Int8Experts, Int8Linear
from deepseek_ocr.model.network import Network
from deepseek_ocr.model.weight_matrix import Matrix


@dataclass(frozen=True)
class Mlp:
    """A gated MLP: the shared experts, or that of a dense layer."""

    gate: Matrix
    up: Matrix
    down: Matrix


@dataclass(frozen=True)
class Experts:
    """Routed experts: `router [E, hidden]`, and the rest as in `experts.py`."""

    router: torch.Tensor
    inner: Matrix
    outer: Matrix


@dataclass(frozen=True)
class Layer:
    """One decoder layer."""

    first_norm: torch.Tensor
    query: Matrix
    key: Matrix
    value: Matrix
    output: Matrix
    second_norm: torch.Tensor
    mlp: Mlp
    experts: Experts | None


@dataclass(frozen=True)
class DecoderWeights:
    """The whole decoder. `cosines` and `sines` are `[context, head size]`, in the network's
    type, as the class rounds them."""

    embedding: torch.Tensor
    layers: tuple[Layer, ...]
    norm: torch.Tensor
    head: Matrix
    cosines: torch.Tensor
    sines: torch.Tensor
    heads: int
    chosen: int
    routed_scale: float
    epsilon: float

    @property
    def dtype(self) -> torch.dtype:
        """Number type of activations and cache."""
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where all of it is."""
        return self.embedding.device


def missing(network: Network) -> str | None:
    """What the fast decoders do not know about this network's decoder; None where they know all."""
    text = network.config.text_config
    known = {
        "layer types": set(text.layer_types) == {"full_attention"},
        "rotary type": text.rope_parameters["rope_type"] == "default",
        "key-value heads": text.num_key_value_heads == text.num_attention_heads,
        "biases": not (text.attention_bias or text.mlp_bias),
        "activation": text.hidden_act == "silu",
        "choice of experts": text.topk_method == "greedy"
        and text.num_experts_per_tok <= text.num_experts,
    }
    unknown = [name for name, is_known in known.items() if not is_known]
    return ", ".join(unknown) or None


def read(network: Network, context: int) -> DecoderWeights:
    """The weights of `network` and tables for `context` positions. Ask `missing` first."""
    text = network.model.language_model
    config = text.config
    positions = torch.arange(context, device=text.embed_tokens.weight.device)[None]
    cosines, sines = text.rotary_emb(text.embed_tokens.weight, positions)
    return DecoderWeights(
        embedding=text.embed_tokens.weight,
        layers=tuple(_layer(layer) for layer in text.layers),
        norm=text.norm.weight,
        head=_rows(network.lm_head),
        cosines=cosines[0],
        sines=sines[0],
        heads=config.num_attention_heads,
        chosen=config.num_experts_per_tok,
        routed_scale=float(config.routed_scaling_factor),
        epsilon=config.rms_norm_eps,
    )


def _layer(layer: Any) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    dense = not hasattr(mlp, "experts")
    return Layer(
        first_norm=layer.input_layernorm.weight,
        query=_rows(attention.q_proj),
        key=_rows(attention.k_proj),
        value=_rows(attention.v_proj),
        output=_rows(attention.o_proj),
        second_norm=layer.post_attention_layernorm.weight,
        mlp=_mlp(mlp if dense else mlp.shared_experts),
        experts=None if dense else _experts(mlp.gate, mlp.experts),
    )


def _mlp(mlp: Any) -> Mlp:
    return Mlp(_rows(mlp.gate_proj), _rows(mlp.up_proj), _rows(mlp.down_proj))


def _rows(linear: Any) -> Matrix:
    return linear.rows if isinstance(linear, Int8Linear) else Matrix(linear.weight)


def _experts(gate: Any, experts: Any) -> Experts:
    if isinstance(experts, Int8Experts):
        return Experts(gate.weight, experts.inner, experts.outer)
    return Experts(gate.weight, Matrix(experts.gate_up_proj), Matrix(experts.down_proj))
