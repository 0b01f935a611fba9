"""A device that fails for good, as a graphics card does after some errors of CUDA: from then on
whatever is asked of it raises, also to give memory back. Faked on the CPU, for its contract only.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from deepseek_ocr.devices import memory, selection
from deepseek_ocr.model.network import Network
from tests.tiny_engine import Held

ILLEGAL = (
    "CUDA error: an illegal memory access was encountered\n"
    "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace "
    "below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
)

FAILED = (
    "Device 'cpu' failed (CUDA error: an illegal memory access was encountered); restart the "
    "program."
)
"""What the project says of it."""


def error(text: str = ILLEGAL) -> RuntimeError:
    """As torch raises it: from 2.8 on it has a type of its own."""
    kind: type[RuntimeError] = getattr(torch, "AcceleratorError", RuntimeError)
    return kind(text)


class Card:
    """What has become of the device; `fail` ends it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.failed = False

    def fail(self) -> None:
        """Nothing works any more. Raises what CUDA raises then."""
        self.failed = True
        for where, name in (
            (selection, "synchronize"),
            (selection, "release"),
            (memory, "give_back"),
        ):
            self._patch.setattr(where, name, self.check)
        raise error()

    def check(self, *_: object) -> None:
        """Raises if the device has failed."""
        if self.failed:
            raise error()


class OnCard(Held):
    """A decoder on such a device."""

    def __init__(self, network: Network, slots: int, card: Card) -> None:
        super().__init__(network, slots, free=True)
        self._card = card

    def prefill(self, slot: int, embeddings: torch.Tensor) -> torch.Tensor:
        self._card.check()
        return super().prefill(slot, embeddings)

    def step(self, slots: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
        self._card.check()
        return super().step(slots, ids)

    def free(self, slot: int) -> None:
        self._card.check()
        super().free(slot)
