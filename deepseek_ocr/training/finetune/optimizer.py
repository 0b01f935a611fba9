"""One step of training: AdamW over micro-batches, the same numbers on one process or several."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.overrides import TorchFunctionMode

from deepseek_ocr.devices import cpu
from deepseek_ocr.errors import GenerationError
from deepseek_ocr.training.data.batches import Batch


@dataclass(frozen=True)
class StepResult:
    """Mean loss of the step's tokens (nats), tokens taught, norm of the gradient, rate used."""

    loss: float
    tokens: int
    gradient_norm: float
    lr: float


class Stepper:
    """Moves the trainable weights of an objective, one call a step.

    The objective takes a batch and gives the sum of its tokens' losses (nats), and the routers'
    balance loss.

    - `weight_decay`: on matrices only; `balance`: weight of the balance loss, 0 for none
    - `orthogonal`: matrices are moved by Muon instead of AdamW, which takes fewer pages to train
      a small network from nothing
    """

    def __init__(
        self,
        objective: nn.Module,
        accelerator: Accelerator,
        weight_decay: float = 0.01,
        balance: float = 0.0,
        orthogonal: bool = False,
    ) -> None:
        self.accelerator = accelerator
        self.balance = balance
        device = accelerator.device
        self.optimisers = make_optimisers(objective, weight_decay, orthogonal, device)
        prepared = accelerator.prepare(objective, *self.optimisers)
        self.objective: nn.Module = prepared[0]
        self._prepared = prepared[1:]

    def step(self, batches: Sequence[Batch], lr: float) -> StepResult:
        """One step over `batches` (this process's micro-batches), every token counting the same
        wherever it lies; the balance of a micro-batch counts by its tokens.

        Raises `GenerationError` if the loss or the gradient is not a number; the weights are
        then as they were.
        """
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr * group.get("share", 1.0)
        processes = self.accelerator.num_processes
        tokens = self._summed(sum(batch.taught for batch in batches))
        total = 0.0
        for at, batch in enumerate(batches):
            last = at == len(batches) - 1
            # Gradients are exchanged between processes once, with the last micro-batch.
            with nullcontext() if last else self.accelerator.no_sync(self.objective):
                loss, balance = self.objective(batch)
                # Gradients are averaged over processes; this makes it a mean over tokens.
                share = loss + self.balance * balance * batch.taught
                self.accelerator.backward(share * processes / max(tokens, 1))
            total += float(loss.detach())
        mean = self._summed(total) / max(tokens, 1)
        norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), _LARGEST_NORM)
        # In float16 a gradient may run over; the scaler then leaves the step out.
        bounded = self.accelerator.scaler is not None or math.isfinite(float(norm))
        if not (math.isfinite(mean) and bounded):
            raise GenerationError(
                "The loss or its gradient is not a number any more; lower --lr, lengthen --warmup, "
                "or train in float32 (--dtype float32)."
            )
        with _bfloat16_as_float32(self.accelerator.device):
            for optimiser in self._prepared:
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
        return StepResult(mean, int(tokens), float(norm), lr)

    def _summed(self, value: float) -> float:
        if self.accelerator.num_processes == 1:
            return value
        tensor = torch.tensor(float(value), device=self.accelerator.device, dtype=torch.float64)
        return float(self.accelerator.reduce(tensor, reduction="sum"))


class _InFloat32(TorchFunctionMode):
    """Tensors that are made bfloat16 become float32 instead."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.bfloat16:
            return args[0].to(torch.float32, copy=True)  # a copy, as bfloat16() is: it is changed
        return func(*args, **(kwargs or {}))


def _bfloat16_as_float32(device: torch.device) -> AbstractContextManager[object]:
    """Muon orthogonalises in bfloat16, which takes a processor without bfloat16 units many times as
    long as float32."""
    if device.type == "cpu" and not cpu.has_bfloat16():
        return _InFloat32()
    return nullcontext()


_LARGEST_NORM = 1.0
"""Of the gradient; a larger one is scaled down to it."""

_ADAMW_SHARE = 0.3
"""Of Muon's learning rate for what AdamW moves beside it."""


def make_optimisers(
    module: nn.Module, weight_decay: float, orthogonal: bool, device: torch.device
) -> list[torch.optim.Optimizer]:
    """AdamW over all that is trainable, or beside Muon over what is not a matrix; tables are none,
    and matrices alone decay. The learning rates are given with each step."""
    moved: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            table = any(part in name for part in ("embed", "rel_pos", "position"))
            if parameter.ndim < 2 or table:
                rest.append(parameter)
            else:
                by_muon = orthogonal and parameter.ndim == 2 and "lm_head" not in name
                (moved if by_muon else decayed).append(parameter)
    optimisers: list[torch.optim.Optimizer] = []
    if orthogonal:
        rule = "match_rms_adamw"
        optimisers = [torch.optim.Muon(moved, weight_decay=weight_decay, adjust_lr_fn=rule)]
    shared = {"share": _ADAMW_SHARE} if orthogonal else {}
    groups: list[dict[str, Any]] = [
        {"params": some, "weight_decay": decay, **shared}
        for some, decay in ((decayed, weight_decay), (rest, 0.0))
    ]
    fused = device.type in ("cpu", "cuda")
    return [*optimisers, torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=fused)]


def cosine(warmup: int, total: int, floor: float = 0.05) -> Callable[[int], float]:
    """Share of the highest rate at a step: up over `warmup` steps, down to `floor` at `total`."""

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / max(warmup, 1)
        done = min(1.0, (step - warmup) / max(total - warmup, 1))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))

    return share
