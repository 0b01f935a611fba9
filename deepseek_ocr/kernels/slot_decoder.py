"""The fast `Decoder`: the library's class reads prompts, steps run in buffers that stay."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from deepseek_ocr.decoding.decoder import next_logits
from deepseek_ocr.errors import PromptError
from deepseek_ocr.kernels import compiled_steps, cuda_graphs, decoder_weights, torch_steps
from deepseek_ocr.kernels.compiled_steps import CompiledSteps
from deepseek_ocr.kernels.decoder_weights import DecoderWeights
from deepseek_ocr.kernels.slot_cache import SlotCache
from deepseek_ocr.model import experts
from deepseek_ocr.model.network import Network

_LOG = logging.getLogger(__name__)

Steps = Callable[[Sequence[int], Sequence[int]], torch.Tensor]
"""`(slots, ids)` to logits `[n, V]` (float32), over a cache with room for one more token each."""


@dataclass(frozen=True)
class DecodePath:
    """A way of computing steps, by name ("decoding by …"), and the cache it needs (`SlotCache`)."""

    name: str
    make_steps: Callable[[DecoderWeights, SlotCache], Steps]
    zeroed: bool
    whole: bool = False


class SlotDecoder:
    """A `Decoder` over the library's own weights and a cache with slots."""

    def __init__(self, network: Network, slots: int, context: int, path: DecodePath) -> None:
        self.slots, self.context = slots, context
        self._network = network
        experts.use_in_class(network)
        read = decoder_weights.read(network, context)
        self._cache = SlotCache(read, slots, context, zeroed=path.zeroed, whole=path.whole)
        self.steps = path.make_steps(read, self._cache)

    @torch.inference_mode()
    def prefill(self, slot: int, embeddings: torch.Tensor) -> torch.Tensor:
        """See `Decoder.prefill`. Raises `PromptError` where the prompt exceeds the context."""
        tokens = embeddings.shape[1]
        if tokens > self.context:
            raise PromptError(
                f"The prompt has {tokens} tokens and the decoder's context {self.context}; "
                "shorten the prompt or choose a smaller preset."
            )
        return next_logits(self._network, embeddings, self._cache.for_prompt(slot, tokens))

    @torch.inference_mode()
    def step(self, slots: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
        """See `Decoder.step`. Raises `PromptError` for a slot that is full."""
        lengths = self._cache.lengths
        if max(lengths[slot] for slot in slots) >= self.context:
            raise PromptError(f"A page has filled the decoder's context of {self.context} tokens.")
        self._cache.reserve(min(max(lengths) + 1, self.context))
        logits = self.steps(slots, ids)
        for slot in slots:
            lengths[slot] += 1
        return logits

    @torch.inference_mode()
    def free(self, slot: int) -> None:
        """See `Decoder.free`."""
        self._cache.free(slot)


NATIVE = DecodePath("the compiled kernel", CompiledSteps, zeroed=False)
TORCH = DecodePath("torch's operations", torch_steps.TorchSteps, zeroed=True)
GRAPHS = DecodePath("CUDA graphs", cuda_graphs.GraphSteps, zeroed=True, whole=True)

COMPILED = {"AVX512": True, "AVX2": True, "DEFAULT": True}
"""Whether the compiled kernel is used, by the processor features that torch names; others: no.
AVX512 and AVX2 were measured (benchmarks/README.md), the others only tested to be right."""


def paths_for(network: Network, chosen: frozenset[str]) -> tuple[DecodePath, ...]:
    """How `network` can be stepped where it is, by the fast paths in `chosen`; the fastest first.

    The plain class comes behind them. There are none on devices on which they were never tried,
    nor for a network of which they do not know a part; the log names it.
    """
    paths = _paths_on(network.device, network.dtype, chosen)
    if paths and (unknown := decoder_weights.missing(network)):
        _LOG.warning("Decoding by the plain class: the fast path does not know its %s.", unknown)
        return ()
    return paths


def _paths_on(
    device: torch.device, dtype: torch.dtype, chosen: frozenset[str]
) -> tuple[DecodePath, ...]:
    if "decoder" not in chosen or device.type not in ("cpu", "cuda"):
        return ()
    if device.type == "cuda":
        return (GRAPHS, TORCH) if "graphs" in chosen else (TORCH,)
    features = torch.backends.cpu.get_cpu_capability()
    wanted = "compiled" in chosen and COMPILED.get(features, False)
    return (NATIVE,) if wanted and compiled_steps.can_run(device, dtype) else (TORCH,)
