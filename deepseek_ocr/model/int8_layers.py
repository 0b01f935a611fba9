"""The decoder's weights in 8 bits, in modules that stand in for the library's.

Attention, experts, dense layers and the output head are held so; embeddings, norms, routers and
the encoders stay as they are, and so do inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from deepseek_ocr.model.experts import looped
from deepseek_ocr.model.network import Network
from deepseek_ocr.model.weight_matrix import Matrix, empty_int8, linear, quantize


class Int8Linear(nn.Module):
    """Stands in for an `nn.Linear` without bias."""

    def __init__(self, rows: Matrix) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., k]` to `[..., rows]`."""
        return linear(x.reshape(-1, x.shape[-1]), self.rows).view(*x.shape[:-1], -1)


class Int8Experts(nn.Module):
    """Stands in for the library's experts."""

    def __init__(self, inner: Matrix, outer: Matrix) -> None:
        super().__init__()
        self.inner, self.outer = inner, outer

    def forward(
        self, hidden: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor
    ) -> torch.Tensor:
        """As `experts.looped`."""
        return looped(hidden, chosen, shares, self.inner, self.outer)


def matrices(network: Network) -> list[str]:
    """Names of the modules of `network` whose weights are held in 8 bits: experts, linear layers
    without bias, the output head."""
    return [
        name
        for name, module in network.named_modules()
        if name.startswith(("model.language_model.layers.", "lm_head"))
        and (name.endswith(".experts") or (isinstance(module, nn.Linear) and module.bias is None))
    ]


def empty_decoder(network: Network, device: torch.device) -> dict[str, Matrix]:
    """Put 8-bit weights without values, on `device`, into the decoder of `network`.

    They are to be filled by `weight_matrix.quantize_into`; each by the name of the parameter whose
    place it takes.
    """
    held: dict[str, Matrix] = {}
    for name in matrices(network):
        held |= _replace(network, name, lambda weight: empty_int8(weight.shape, device))
    return held


@torch.inference_mode(False)
@torch.no_grad()
def quantize_decoder(network: Network, device: torch.device | None = None) -> None:
    """Put 8-bit weights, on `device` or where the originals are, into the decoder of `network`, one
    module at a time, and let go of the originals.

    The most that is ever held beside them is one module's; on another device than theirs, a block
    of its rows.
    """
    for name in matrices(network):
        _replace(network, name, lambda weight: quantize(weight, device))


def _replace(
    network: Network, name: str, make: Callable[[torch.Tensor], Matrix]
) -> dict[str, Matrix]:
    """Put what `make` makes of its weights in place of the module called `name`; the new weights by
    the names of the old ones."""
    held = {leaf: make(weight) for leaf, weight in network.get_submodule(name).named_parameters()}
    stand_in = (
        Int8Experts(held["gate_up_proj"], held["down_proj"])
        if name.endswith(".experts")
        else Int8Linear(held["weight"])
    )
    network.set_submodule(name, stand_in)
    return {f"{name}.{leaf}": rows for leaf, rows in held.items()}
