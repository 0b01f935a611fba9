"""Reading a page once more in float32 where float16 ran over.

float16 ends at 65504. Norms, softmax and the router compute in float32 whatever the type (the
library's class does that, and torch's kernels for layer norm and attention do inside), but what
lies between them does not, and trained weights have outliers that random ones lack. A page whose
numbers overflow ends in logits that are not finite, which the decoding refuses
(`GenerationError`); it can then be read with the arithmetic in float32.

The weights stay where and as they are. Each module gets a float32 copy of its own for the moment it
computes, so that a card that holds the weights in 16 bits need not hold them in 32: room for the
largest module is enough (the experts of one layer: 0.9 GB). A token takes several times as long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from deepseek_ocr.decoding.decoder import Decoder, PlainDecoder
from deepseek_ocr.model.network import Network


@contextmanager
def in_float32(network: nn.Module) -> Iterator[None]:
    """Within, `network` computes in float32, whatever type it is held in. One thread at a time;
    the network must not be trained meanwhile."""
    with ExitStack() as stack:
        stack.enter_context(_built_in_attention(network))
        for module in network.modules():
            if not any(True for _ in module.parameters(recurse=False)):
                continue
            widened = _Widened(module)
            # The two rows beside the vision tokens, which belong to the whole, are used by other
            # methods than `forward`.
            is_root = module is network or module is getattr(network, "model", None)
            if is_root or type(module).forward is nn.Module.forward:
                widened.enter()  # used by others directly: for as long as this lasts
                stack.callback(widened.leave)
                continue
            before = module.register_forward_pre_hook(widened.before, with_kwargs=True)
            after = module.register_forward_hook(widened.after, always_call=True)
            stack.callback(before.remove)
            stack.callback(after.remove)
        yield


@contextmanager
def _built_in_attention(network: nn.Module) -> Iterator[None]:
    """flash-attn knows no float32: transformers would hand it the weights' type."""
    text = getattr(getattr(network, "model", None), "language_model", None)
    if text is None or text.config._attn_implementation in (None, "sdpa", "eager"):
        yield
        return
    before = text.config._attn_implementation
    text.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        text.set_attn_implementation(before)


class _Widened:
    """A module whose own parameters are float32 while it computes."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._kept: dict[str, nn.Parameter | None] = {}

    def enter(self) -> None:
        self._kept = dict(self._module._parameters)
        for name, held in self._kept.items():
            if held is not None and held.is_floating_point():
                # As if trained: nothing derived from it may be kept for other values at its place.
                self._module._parameters[name] = nn.Parameter(held.float(), requires_grad=True)

    def leave(self) -> None:
        if self._kept:
            self._module._parameters.update(self._kept)
            self._kept = {}

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        self.enter()
        return tree_map(_wide, args), tree_map(_wide, kwargs)

    def after(self, module: nn.Module, args: Any, result: Any) -> None:
        self.leave()


def _wide(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.float()
    return value


class Float32Fallback:
    """A `Decoder` over a network in float16 that goes on in float32 with the pages that run over;
    the others stay with `decoder`."""

    def __init__(self, network: Network, decoder: Decoder) -> None:
        self.slots, self.context = decoder.slots, decoder.context
        self._network, self._decoder = network, decoder
        self._exact = PlainDecoder(network)
        self._over: set[int] = set()

    def widen(self, slot: int) -> bool:
        """Compute in float32 for `slot` until it is freed: its prompt and what was written must be
        read in anew. False where that is so already, or the network is not whole."""
        if slot in self._over or not can_widen(self._network):
            return False
        self._decoder.free(slot)
        self._over.add(slot)
        return True

    def prefill(self, slot: int, embeddings: torch.Tensor) -> torch.Tensor:
        """See `Decoder.prefill`."""
        if slot not in self._over:
            return self._decoder.prefill(slot, embeddings)
        with in_float32(self._network):
            return self._exact.prefill(slot, embeddings.float())

    def step(self, slots: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
        """See `Decoder.step`."""
        if not self._over:
            return self._decoder.step(slots, ids)
        rows: dict[int, torch.Tensor] = {}
        pairs = list(zip(slots, ids, strict=True))
        if narrow := [pair for pair in pairs if pair[0] not in self._over]:
            chosen, tokens = zip(*narrow, strict=True)
            rows |= zip(chosen, self._decoder.step(chosen, tokens), strict=True)
        if wide := [pair for pair in pairs if pair[0] in self._over]:
            chosen, tokens = zip(*wide, strict=True)
            with in_float32(self._network):
                rows |= zip(chosen, self._exact.step(chosen, tokens), strict=True)
        return torch.stack([rows[slot] for slot in slots])

    def free(self, slot: int) -> None:
        """See `Decoder.free`."""
        self._over.discard(slot)
        self._exact.free(slot)
        self._decoder.free(slot)


def widening(network: Network, decoder: Decoder) -> Decoder:
    """`decoder`, with a way out where the network is held in float16."""
    if network.get_input_embeddings().weight.dtype != torch.float16:
        return decoder
    return Float32Fallback(network, decoder)


def widen(decoder: Decoder, slot: int) -> bool:
    """Make `decoder` compute in float32 for `slot` from its next prefill on; False where it cannot
    or does so already."""
    return isinstance(decoder, Float32Fallback) and decoder.widen(slot)


def can_widen(network: Network) -> bool:
    """True where `network` is whole, so that float32 may help: a decoder that took the weights over
    leaves nothing to compute with."""
    return not any(value.is_meta or not value.numel() for value in network.parameters())
