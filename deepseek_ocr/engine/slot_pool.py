"""The slots of one decoder: which page is in each, and fewer of them if memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable

from deepseek_ocr.decoding.decoder import Decoder
from deepseek_ocr.devices import memory, selection
from deepseek_ocr.engine.page_state import PageState
from deepseek_ocr.engine.request import Request
from deepseek_ocr.errors import GenerationError
from deepseek_ocr.kernels import float32_fallback
from deepseek_ocr.model.network import Network

log = logging.getLogger(__name__)


class SlotPool:
    """A decoder and the pages in its slots; for one thread.

    `make` makes a decoder with so many slots, and is called again, with fewer, if memory runs out.

    - `slots`: how many there are now; `context`: how many tokens each holds
    - `active`: the pages in slots

    Raises `GenerationError` if there is no memory for a single slot.
    """

    def __init__(self, network: Network, make: Callable[[int], Decoder], slots: int) -> None:
        self._network, self._make = network, make
        self.active: dict[int, Request] = {}
        self._decoder: Decoder | None = None
        self.slots = slots
        self.ensure_decoder()
        self._most, self.context = self.slots, self.decoder.context

    @property
    def decoder(self) -> Decoder:
        """The decoder, which is there while pages are active."""
        assert self._decoder is not None
        return self._decoder

    @property
    def has_free_slot(self) -> bool:
        """True if another page can be taken in."""
        return len(self.active) < self.slots

    def state(self, slot: int) -> PageState:
        """The page in `slot`, prepared."""
        work = self.active[slot].work
        assert work is not None
        return work

    def take(self, job: Request) -> int:
        """Put a page into a free slot; the slot's number."""
        slot = min(set(range(self.slots)) - self.active.keys())
        self.active[slot] = job
        return slot

    def release(self, job: Request) -> None:
        """Free the slot that a page has; does nothing to a page that has none."""
        for slot, active in list(self.active.items()):
            if active is job:
                del self.active[slot]
                if self._decoder is not None:
                    self._decoder.free(slot)
                selection.release(self._network.device)

    def clear(self) -> None:
        """Forget every page and the decoder; asks nothing of the device, which may have failed."""
        self.active.clear()
        self._decoder = None

    def shrink(self, problem: Exception) -> list[Request]:
        """Go on with half the slots; the pages that were in them, which are to be begun again."""
        had = self.slots
        log.warning("%s; going on with %d instead of %d pages at once", problem, had // 2, had)
        return self._drop(had // 2)

    def restore(self) -> list[Request]:
        """Go on with as many slots as at first; the pages that were in those there are."""
        return self._drop(self._most)

    def _drop(self, slots: int) -> list[Request]:
        """Let the decoder go; there will be another with `slots` slots when a page needs it."""
        in_flight = [self.active[slot] for slot in sorted(self.active)]
        self.clear()
        self.slots = slots
        memory.give_back(self._network.device)
        return in_flight

    def ensure_decoder(self) -> None:
        """Make a decoder if there is none, with as many of `slots` slots as there is memory for.
        Raises `GenerationError` if there is none for a single slot."""
        slots = self.slots
        while self._decoder is None:
            try:
                self._decoder = float32_fallback.widening(self._network, self._make(slots))
                self.slots = self._decoder.slots
                return
            except Exception as error:
                if not memory.is_out_of_memory(error):
                    raise
                if slots == 1:
                    raise GenerationError(
                        "There is not enough memory to read even one page; free memory, or use "
                        f"another device or a smaller type ({error})."
                    ) from error
                log.warning("no memory for %d pages at once; trying half of them", slots)
            memory.give_back(self._network.device)
            slots //= 2
