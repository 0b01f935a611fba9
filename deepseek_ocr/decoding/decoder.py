"""The decoder with room for several pages at once, each in a slot of its own."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Protocol

import torch
from transformers.cache_utils import Cache, DynamicCache
from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrTextModel

from deepseek_ocr.model.network import Network


class Decoder(Protocol):
    """What reads prompts and continues them, one token a step.

    `slots` is how many pages it holds at once, `context` how many tokens a slot holds, prompt
    included.
    """

    slots: int
    context: int

    def prefill(self, slot: int, embeddings: torch.Tensor) -> torch.Tensor:
        """Read a prompt's embeddings `[1, L, H]` into `slot`, in place of what was there; the
        logits `[V]` (float32) of the token behind it."""

    def step(self, slots: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
        """Put one token behind each of `slots` (each at most once); the logits
        `[len(slots), V]` (float32) of the next ones. They are valid until the next step."""

    def free(self, slot: int) -> None:
        """Let go of what `slot` holds."""


class PlainDecoder:
    """A `Decoder` over the library's class and its growing cache: what faster ones must equal."""

    def __init__(self, network: Network, slots: int = 1) -> None:
        self.slots = slots
        self.context: int = network.config.text_config.max_position_embeddings
        self._network = network
        self._caches: dict[int, Cache] = {}

    @torch.inference_mode()
    def prefill(self, slot: int, embeddings: torch.Tensor) -> torch.Tensor:
        """See `Decoder.prefill`."""
        self._caches[slot] = DynamicCache(config=self._network.config.text_config)
        return next_logits(self._network, embeddings, self._caches[slot])

    @torch.inference_mode()
    def step(self, slots: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
        """See `Decoder.step`; one slot after the other."""
        embed = self._network.get_input_embeddings()
        rows = []
        for slot, token in zip(slots, ids, strict=True):
            id_ = torch.tensor([[token]], device=embed.weight.device)
            rows.append(next_logits(self._network, embed(id_), self._caches[slot]))
        return torch.stack(rows)

    def free(self, slot: int) -> None:
        """See `Decoder.free`."""
        self._caches.pop(slot, None)


_CACHE_ARGUMENT = (
    "cache"
    if "cache" in inspect.signature(UnlimitedOcrTextModel.forward).parameters
    else "past_key_values"
)
"""What the class calls the cache that it is given: `past_key_values` before transformers 5.24."""


def next_logits(network: Network, embeddings: torch.Tensor, cache: Cache) -> torch.Tensor:
    """Read `embeddings [1, L, H]` behind what `cache` holds, by the library's class; the logits
    `[V]` (float32) of the token behind them."""
    output = network.model.language_model(
        inputs_embeds=embeddings, use_cache=True, **{_CACHE_ARGUMENT: cache}
    )
    logits: torch.Tensor = network.lm_head(output.last_hidden_state[:, -1])
    return logits[0].float()
