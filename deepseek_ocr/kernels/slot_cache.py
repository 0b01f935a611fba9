"""Keys and values of several pages in one tensor that only grows when a page needs the room."""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache, DynamicLayer

from deepseek_ocr.kernels.decoder_weights import DecoderWeights

BLOCK = 1024
"""Tokens by which the room of every slot grows."""


class SlotCache:
    """Room for `slots` pages of at most `context` tokens.

    `entries` is `[layers, 2 (keys, values), slots, heads, capacity, head size]`; what it holds is
    kept when it grows, and `capacity` never exceeds `context`. `lengths` is how many tokens each
    slot holds. Type and device are those of `weights`; `zeroed` room can be read before it is
    filled, any other costs memory only where it is filled. Where `whole`, all room is made at once
    and never moves.
    """

    def __init__(
        self, weights: DecoderWeights, slots: int, context: int, *, zeroed: bool, whole: bool
    ) -> None:
        heads, size = weights.heads, weights.cosines.shape[1]
        self.context = context
        self.lengths = [0] * slots
        self.entries = weights.embedding.new_empty(len(weights.layers), 2, slots, heads, 0, size)
        self._zeroed, self._whole = zeroed, whole
        if whole:
            self.reserve(context)

    @property
    def capacity(self) -> int:
        """Tokens for which every slot has room now."""
        return self.entries.shape[4]

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` in every slot. Raises `ValueError` for more than the context."""
        if tokens > self.context:
            raise ValueError(f"{tokens} tokens do not fit into a context of {self.context}")
        if tokens <= self.capacity:
            return
        capacity = min(-(-tokens // BLOCK) * BLOCK, self.context)
        old = self.entries
        shape = (*old.shape[:4], capacity, old.shape[5])
        # The system gives pages of memory only when they are written to.
        self.entries = old.new_zeros(shape) if self._zeroed else old.new_empty(shape)
        for slot, length in enumerate(self.lengths):
            self.entries[:, :, slot, :, :length] = old[:, :, slot, :, :length]

    def free(self, slot: int) -> None:
        """Forget what `slot` holds; if that was the last, give the memory back."""
        self._clear(slot)
        if not self._whole and not any(self.lengths):
            self.entries = self.entries[..., :0, :].clone()

    def for_prompt(self, slot: int, tokens: int) -> Cache:
        """A cache for the library's class that writes a prompt of `tokens` into `slot`."""
        self._clear(slot)
        self.reserve(tokens)
        cache = Cache(layers=[_SlotLayer(layer[:, slot]) for layer in self.entries])
        self.lengths[slot] = tokens
        return cache

    def _clear(self, slot: int) -> None:
        """Empty `slot`. Steps that look behind its end multiply what lies there by 0, and a number
        that ran over in float16 would spoil every later page in the slot."""
        if self._zeroed:  # a step that another slot asked for has written one token more
            self.entries[:, :, slot, :, : self.lengths[slot] + 1] = 0
        self.lengths[slot] = 0


class _SlotLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's part of a slot, filled once with the whole prompt."""

    def __init__(self, room: torch.Tensor) -> None:
        super().__init__()
        self._room = room  # [2, heads, capacity, size]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the prompt's keys and values `[1, heads, L, size]`; the same back."""
        length = key_states.shape[2]
        self._room[0, :, :length] = key_states[0]
        self._room[1, :, :length] = value_states[0]
        return key_states, value_states
