"""Three ways through routed experts, which give the same; the device and the number of rows say
which is fastest.

All take `x [n, hidden]`, the experts `chosen [n, c]` with their `shares [n, c]`, `inner
[E, 2 * width, hidden]` (gate before up) and `outer [E, hidden, width]`, and return `[n, hidden]`,
summed in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from deepseek_ocr.model.network import Network
from deepseek_ocr.model.weight_matrix import STEPS, Matrix, linear

GATHERED = 2
"""Rows up to which the weights of the chosen experts are gathered on a GPU; steps have 1, 2, 4, 8 …
rows. Six experts a row are read, written and read again: from 4 rows on that is more than reading
all 64 once."""

Way = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Matrix, Matrix], torch.Tensor]


def way_for(device: torch.device, rows: int) -> Way:
    """How `rows` tokens pass through experts: `looped` where looking at the choice costs nothing;
    elsewhere `gathered` for few and `dense` for many, neither of which waits for the device."""
    if device.type == "cpu":
        return looped
    return gathered if rows <= GATHERED else dense


def use_in_class(network: Network) -> None:
    """Let the class's own experts pass prompts through `looped`, where that is the way to go."""
    if way_for(network.device, rows=0) is looped:
        ALL_EXPERTS_FUNCTIONS.register("looped", _looped_in_class)
        network.model.language_model.set_experts_implementation("looped")


def _looped_in_class(
    experts: Any, hidden: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor
) -> torch.Tensor:
    inner, outer = Matrix(experts.gate_up_proj), Matrix(experts.down_proj)
    return looped(hidden, chosen, shares, inner, outer)


def looped(
    x: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor, inner: Matrix, outer: Matrix
) -> torch.Tensor:
    """One chosen expert after the other, each with all of its rows."""
    total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    flat, weights = chosen.flatten(), shares.flatten()
    order = flat.argsort(stable=True)
    counts = flat.bincount(minlength=len(inner.values)).tolist()
    for expert, places in enumerate(torch.split(order, counts)):
        if len(places):
            owners = places // chosen.shape[1]
            passed = linear(_gated(linear(x[owners], inner[expert])), outer[expert])
            total.index_add_(0, owners, passed * weights[places, None].float())
    return total.to(x.dtype)


def gathered(
    x: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor, inner: Matrix, outer: Matrix
) -> torch.Tensor:
    """The weights of the chosen experts copied together, once for every row."""
    flat = chosen.flatten()
    inputs = x.repeat_interleave(chosen.shape[1], 0)
    passed = _batched(_gated(_batched(inputs, inner, flat)), outer, flat)
    passed = passed.view(*chosen.shape, -1)
    return (passed * shares[:, :, None].float()).sum(1).to(passed.dtype)


def dense(
    x: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor, inner: Matrix, outer: Matrix
) -> torch.Tensor:
    """Every row through every expert, and what was not chosen left out: each weight is read once,
    whatever the card, the type and the version of torch (those of 8 bits are widened first)."""
    gate_and_up = _through_all(x.expand(len(inner.values), *x.shape), inner)
    passed = _through_all(_gated(gate_and_up), outer)  # [E, n, hidden]
    share = torch.zeros(len(x), len(inner.values), device=x.device)
    share.scatter_(1, chosen, shares.float())
    # An expert that was not chosen may run over; infinity times 0 would be no number.
    passed = passed.float().masked_fill((share == 0).T[:, :, None], 0)
    return torch.einsum("enh,ne->nh", passed, share).to(x.dtype)


def _gated(both: torch.Tensor) -> torch.Tensor:
    gate, up = both.chunk(2, dim=-1)
    return nn.functional.silu(gate) * up


def _batched(x: torch.Tensor, rows: Matrix, chosen: torch.Tensor) -> torch.Tensor:
    """Row i of `x [m, k]` times the matrix `chosen[i]`: `[m, rows]`."""
    if rows.scales is None:
        return torch.bmm(rows.values[chosen], x[:, :, None])[:, :, 0]
    product = torch.bmm(rows.values[chosen].to(x.dtype), (x / STEPS)[:, :, None])[:, :, 0]
    return product * (rows.scales[chosen] * STEPS).to(x.dtype)


def _through_all(x: torch.Tensor, rows: Matrix) -> torch.Tensor:
    """`x [E, n, k]` times the transpose of each of E matrices: `[E, n, rows]`."""
    if rows.scales is None:
        return torch.bmm(x, rows.values.transpose(1, 2))
    product = torch.bmm(x / STEPS, rows.values.to(x.dtype).transpose(1, 2))
    return product * (rows.scales[:, None] * STEPS).to(x.dtype)
