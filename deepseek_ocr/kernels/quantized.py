"""The decoder's weights in 8 bits, in modules that stand in for the library's.

Attention, experts, dense layers and the output head are held so; embeddings, norms, routers and
the encoders stay as they are, and so do inputs.
"""

from __future__ import annotations

import torch
from torch import nn

from deepseek_ocr.kernels.experts import looped
from deepseek_ocr.kernels.rows import linear, quantize
from deepseek_ocr.model import Network


class Int8Linear(nn.Module):
    """Stands in for an `nn.Linear` without bias."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.rows = quantize(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., k]` to `[..., rows]`."""
        return linear(x.reshape(-1, x.shape[-1]), self.rows).view(*x.shape[:-1], -1)


class Int8Experts(nn.Module):
    """Stands in for the library's experts."""

    def __init__(self, inner: torch.Tensor, outer: torch.Tensor) -> None:
        super().__init__()
        self.inner, self.outer = quantize(inner), quantize(outer)

    def forward(
        self, hidden: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor
    ) -> torch.Tensor:
        """As `experts.looped`."""
        return looped(hidden, chosen, shares, self.inner, self.outer)


def is_quantized(network: Network) -> bool:
    """True where the decoder's weights have 8 bits already."""
    return isinstance(network.lm_head, Int8Linear)


@torch.inference_mode(False)
@torch.no_grad()
def quantize_decoder(network: Network) -> None:
    """Put 8-bit weights into the decoder of `network`, one module at a time, and let go of the
    originals: the most that is ever held beside them is one module's.
    """
    for layer in network.model.language_model.layers:
        mlp = layer.mlp
        if hasattr(mlp, "experts"):
            mlp.experts = Int8Experts(mlp.experts.gate_up_proj, mlp.experts.down_proj)
            mlp = mlp.shared_experts
        for part in (layer.self_attn, mlp):
            for name, module in list(part.named_children()):
                if isinstance(module, nn.Linear):
                    setattr(part, name, Int8Linear(module.weight))
    network.lm_head = Int8Linear(network.lm_head.weight)
