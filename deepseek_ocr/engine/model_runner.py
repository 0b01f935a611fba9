"""The model at work on the pages in slots: prefill, decoding steps, and what goes wrong in them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch

from deepseek_ocr.decoding import sampler
from deepseek_ocr.devices import memory, selection
from deepseek_ocr.engine.request import Request, portable
from deepseek_ocr.engine.results import Reading
from deepseek_ocr.engine.slot_pool import SlotPool
from deepseek_ocr.errors import CancelledError, DeviceError, GenerationError, OcrError
from deepseek_ocr.kernels import float32_fallback
from deepseek_ocr.model import footprint
from deepseek_ocr.model.network import Network

log = logging.getLogger(__name__)


class ModelRunner:
    """Runs `network` over the pages of `pool`; for one thread.

    `end` is called with a page and its reading, or why there is none; `requeue` with pages that
    have lost their slots and are to be begun again; `is_cancelled` answers, of a page, whether it
    is still wanted. `failure` is set if a device failed for good.
    """

    def __init__(
        self,
        network: Network,
        pool: SlotPool,
        end: Callable[[Request, Reading | Exception], None],
        requeue: Callable[[Sequence[Request]], None],
        is_cancelled: Callable[[Request], bool],
    ) -> None:
        self._network, self._pool = network, pool
        self._end, self._requeue, self._is_cancelled = end, requeue, is_cancelled
        self.failure: DeviceError | None = None

    def begin(self, job: Request) -> None:
        """Put a prepared page into a free slot and read it up to its next token."""
        problem = self._attempt(self._pool.ensure_decoder)
        if problem is not None:
            self._end(job, problem)
            return
        slot = self._pool.take(job)
        problem = self._attempt(partial(self._prefill, slot))
        if problem is not None:
            self._fail(slot, problem)

    def advance(self) -> None:
        """One more token for every page in a slot."""
        slots = sorted(self._pool.active)
        problem = self._attempt(partial(self._step, slots))
        if problem is None:
            return
        if len(slots) == 1 or memory.is_out_of_memory(problem):
            self._fail(slots[0], problem)
        else:
            self._step_one_by_one(slots, problem)

    def check_device(self, problem: Exception) -> None:
        """Find out whether a device failed for good with `problem`. Raises `DeviceError` then,
        which ends the thread, and with it every page."""
        if self.failure is None:
            devices = {parameter.device for parameter in self._network.parameters()}
            failure = next(filter(None, map(selection.failure, devices)), None)
            if failure is None:
                return
            log.error("%s", failure)
            failure.__cause__ = portable(problem)
            self.failure = failure
        raise self.failure

    def _prefill(self, slot: int) -> None:
        """Look at a page, read its prompt and what was written of it before; its next token."""
        work = self._pool.state(slot)
        device = self._network.device
        with work.stage("vision", device):
            work.see(self._network)
        if self._is_cancelled(self._pool.active[slot]):  # the message waits until this is done
            raise CancelledError("The page was cancelled.")
        with work.stage("prefill", device):
            logits = self._pool.decoder.prefill(slot, work.embeddings(self._network))
        self._write([slot], logits[None])

    def _step(self, slots: list[int]) -> None:
        ids = [self._pool.state(slot).last_id for slot in slots]
        self._write(slots, self._pool.decoder.step(slots, ids))

    def _write(self, slots: list[int], logits: torch.Tensor) -> None:
        """Choose the next token of every page in `slots`; end those that are done or go wrong."""
        tokens = sampler.choose([self._pool.state(slot).chooser for slot in slots], logits)
        for slot, token in zip(slots, tokens, strict=True):
            job = self._pool.active[slot]
            try:
                if isinstance(token, Exception):
                    self._widen(slot, token)
                else:
                    self._write_down(slot, token)
            except Exception as error:  # of this page alone
                self._end(job, error)

    def _write_down(self, slot: int, token: sampler.Token) -> None:
        job, work = self._pool.active[slot], self._pool.state(slot)
        job.tell(work.take(token))
        if work.ended:
            job.tell(work.output.flush())
            self._end(job, work.reading())

    def _widen(self, slot: int, problem: Exception) -> None:
        """Go on with the page in float32 if float16 ran over; else raise `problem`."""
        decoder = self._pool.decoder
        if not (isinstance(problem, GenerationError) and float32_fallback.widen(decoder, slot)):
            raise problem
        log.warning("a page ran over in float16; reading on in float32, which is slower")
        logits = decoder.prefill(slot, self._pool.state(slot).embeddings(self._network))
        self._write([slot], logits[None])

    # --- when something goes wrong --------------------------------------------------------------

    def _attempt(self, action: Callable[[], None]) -> Exception | None:
        """What `action` raises, without the tensors that its frames hold. Raises `DeviceError` if a
        device failed for good."""
        try:
            action()
        except Exception as error:
            if not isinstance(error, OcrError) or error is self.failure:
                self.check_device(error)
            return portable(error)
        return None

    def _step_one_by_one(self, slots: list[int], problem: Exception) -> None:
        """After a step that failed: each page alone, so that a bad one does not take others down.

        The step may have reached some caches and not others, so each page is read in again first.
        """
        bad = 0
        for slot in slots:
            again = self._attempt(partial(self._step_again, slot))
            if again is not None:
                problem, bad = again, bad + 1
                self._fail(slot, again)
                if memory.is_out_of_memory(again):
                    return  # the others are in line again
        if not bad:  # no page is at fault, so it is their number
            self._requeue(self._pool.shrink(problem))

    def _step_again(self, slot: int) -> None:
        embeddings = self._pool.state(slot).embeddings(self._network, without_last=True)
        self._pool.decoder.prefill(slot, embeddings)
        self._step([slot])

    def _fail(self, slot: int, problem: Exception) -> None:
        """End the page in `slot`; if memory ran out, go on with fewer slots instead."""
        job = self._pool.active[slot]
        if not memory.is_out_of_memory(problem):
            self._end(job, problem)
        elif self._pool.slots > 1:
            self._requeue(self._pool.shrink(problem))
        else:
            crop = self._pool.state(slot).crop
            failure = footprint.explained(problem, self._network.device, crop)
            failure.__cause__ = problem
            self._end(job, failure)
            # It was this page: the next ones get their slots back.
            self._requeue(self._pool.restore())
