"""Many pages at once: slots of one decoder, filled again as soon as a page is done.

One thread, the worker, owns the decoder and everything that is counted here; other threads send it
messages, which are functions for it to call. A few helpers open pictures and cut them ahead of it,
so that it does not wait. Nothing here is locked but the door.
"""

from __future__ import annotations

import atexit
import functools
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue

import torch

from deepseek_ocr.decoding import sampler
from deepseek_ocr.decoding.decoder import Decoder
from deepseek_ocr.devices import memory, selection
from deepseek_ocr.engine.page_state import PageState
from deepseek_ocr.engine.preprocess_pool import Prepared, PreprocessPool, helpers_for
from deepseek_ocr.engine.request import OnEvent, Request, portable
from deepseek_ocr.engine.results import Page, Reading
from deepseek_ocr.errors import CancelledError, DeviceError, GenerationError, OcrError
from deepseek_ocr.kernels import float32_fallback
from deepseek_ocr.model import footprint
from deepseek_ocr.model.network import Network

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineStatus:
    """How many pages can be read at once, how many are, and how many wait for it."""

    slots: int
    active: int
    waiting: int


class Scheduler:
    """Reads pages with one decoder, as many at once as it has slots.

    `open_page(page, context=…)` begins the work on a page, for a decoder with room for `context`
    tokens; `make` makes a decoder with so many slots, and is called again, with fewer, where
    memory runs out. `within` is entered by the worker for as long as it computes.
    """

    def __init__(
        self,
        network: Network,
        open_page: Callable[..., PageState],
        make: Callable[[int], Decoder],
        slots: int,
        within: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._network, self._open_page = network, open_page
        self._make, self._within = make, within
        decoder = self._made(slots)
        self._context = decoder.context
        self._most = decoder.slots
        self._helpers = PreprocessPool(
            helpers_for(network.device.type), self._prepare, self._prepared
        )

        self._door = threading.RLock()  # a finalizer may run anywhere
        self._worker: threading.Thread | None = None
        self._closed = False  # under the door's lock: nothing comes in behind the last message
        self._failure: DeviceError | None = None  # of the device, for good; set with `_closed`
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()

        # The worker's own.
        self._running = True
        self._decoder: Decoder | None = decoder
        self._slots = decoder.slots
        self._free = set(range(decoder.slots))
        self._jobs: set[Request] = set()
        self._waiting: deque[Request] = deque()
        self._preparing = 0
        self._ready: deque[Request] = deque()
        self._active: dict[int, Request] = {}

    # --- for any thread -------------------------------------------------------------------------

    @property
    def status(self) -> EngineStatus:
        """How much there is to do."""
        active = len(self._active)
        return EngineStatus(self._slots, active, max(0, len(self._jobs) - active))

    @property
    def is_running(self) -> bool:
        """False when no page can be read any more: it was closed, its thread ended, or the device
        failed."""
        ended = self._worker is not None and not self._worker.is_alive()
        return not (self._closed or ended)

    @property
    def ahead(self) -> int:
        """How many pages in flight keep every slot busy: those in slots and those prepared."""
        return self._slots + self._helpers.count

    def submit(self, page: Page, on_event: OnEvent | None) -> Request:
        """Take a page in. Raises `CancelledError` when closed, `DeviceError` when the device
        failed."""
        job = Request(page, on_event)
        with self._door:
            if self._failure is not None:
                raise DeviceError(str(self._failure))
            if self._closed:
                raise CancelledError("This engine is closed; load another one.")
            if self._worker is None:
                self._start()
            self._jobs.add(job)
            self._inbox.put(partial(self._take_in, job))
        return job

    def cancel(self, job: Request) -> None:
        """Give a page up."""
        job.given_up = True
        self._inbox.put(partial(self._end, job, CancelledError("The page was cancelled.")))

    def close(self) -> None:
        """Give everything up and end the threads; does not wait for it."""
        with self._door:
            if not self._closed:
                self._closed = True
                self._inbox.put(self._give_up)

    def join(self) -> None:
        """Wait for the worker to end, except in the worker itself."""
        if self._worker is not None and self._worker is not threading.current_thread():
            self._worker.join()

    def join_helpers(self) -> None:
        """Wait for the threads that prepare pages to end what they are at."""
        self._helpers.join()

    def _start(self) -> None:
        """Start the worker. Where Ctrl-C comes in between, nobody can tell whether the thread
        began, and it could not be joined: it is told to leave, and the next page starts another.
        """
        _end_with_the_program(self)
        stay: SimpleQueue[bool] = SimpleQueue()
        worker = threading.Thread(target=self._run, args=(stay,), name="ocr-worker", daemon=True)
        try:
            worker.start()
            self._worker = worker
        finally:
            stay.put(self._worker is worker)

    def _prepare(self, page: Page) -> PageState:
        return self._open_page(page, context=self._context)

    def _prepared(self, job: Request, outcome: Prepared) -> None:
        self._inbox.put(partial(self._take_prepared, job, outcome))

    # --- the worker: messages -------------------------------------------------------------------

    def _run(self, stay: SimpleQueue[bool]) -> None:
        if not stay.get():
            return
        try:
            with ExitStack() as stack:
                stack.enter_context(self._within())
                stack.enter_context(selection.current(self._network.device))
                while self._running:
                    self._listen_and_turn()
        except BaseException:  # the thread ends, and nothing may wait for it
            self.close()
            self._give_up()
            if self._failure is None:  # else the log says it already
                raise

    def _listen_and_turn(self) -> None:
        try:
            self._listen()
            self._turn()
        except Exception as error:  # a fault of this file must not leave callers waiting
            self._check_device(error)
            self._end_all(error)

    def _listen(self) -> None:
        """Do what the messages say; wait for one where there is nothing else to do."""
        try:
            while self._running:
                self._inbox.get(block=not (self._active or self._ready))()
        except Empty:
            pass

    def _take_in(self, job: Request) -> None:
        self._helpers.start()
        self._waiting.append(job)
        self._prepare_more()

    def _take_prepared(self, job: Request, outcome: Prepared) -> None:
        self._preparing -= 1
        if isinstance(outcome, Exception):
            self._end(job, outcome)
        elif not job.future.done():
            job.page, job.work = None, outcome
            self._ready.append(job)
        self._prepare_more()

    def _prepare_more(self) -> None:
        """Hand pages to the helpers, no more than they are: views are large."""
        while self._waiting and self._preparing + len(self._ready) < self._helpers.count:
            self._preparing += 1
            self._helpers.prepare(self._waiting.popleft())

    def _end(self, job: Request, outcome: Reading | Exception) -> None:
        """End a page wherever it is."""
        if isinstance(outcome, Exception) and not isinstance(outcome, OcrError):
            self._check_device(outcome)
        for line in (self._waiting, self._ready):
            if job in line:
                line.remove(job)
        self._jobs.discard(job)
        try:
            for slot, active in list(self._active.items()):
                if active is job:
                    self._release(slot)
        finally:  # also on a device that does not even take memory back
            job.end(outcome)
        self._prepare_more()

    def _release(self, slot: int) -> None:
        del self._active[slot]
        self._free.add(slot)
        if self._decoder is not None:
            self._decoder.free(slot)
        selection.release(self._network.device)

    def _check_device(self, problem: Exception) -> None:
        """Find out whether a device failed for good with `problem`; if so, nothing more is read.

        Raises `DeviceError` then, which ends the worker, and with it every page.
        """
        if self._failure is None:
            failure = next(filter(None, map(selection.failure, self._devices())), None)
            if failure is None:
                return
            log.error("%s", failure)
            failure.__cause__ = portable(problem)
            with self._door:
                self._failure, self._closed = failure, True
        raise self._failure

    def _devices(self) -> set[torch.device]:
        """Where the network is; its encoders may have a device of their own."""
        return {parameter.device for parameter in self._network.parameters()}

    def _end_all(self, error: Exception) -> None:
        for job in list(self._jobs):
            self._end(job, error)

    def _give_up(self) -> None:
        self._running = False
        self._active.clear()  # a device that failed does not even take memory back
        self._decoder = None
        self._end_all(
            self._failure or CancelledError("The engine was closed before the page was read.")
        )
        self._helpers.stop()

    # --- the worker: reading --------------------------------------------------------------------

    def _turn(self) -> None:
        """Begin one page, if one is ready and a slot is free; then one step of all pages."""
        if self._ready and self._free:
            self._begin(self._ready.popleft())
            self._prepare_more()
        if self._active:
            self._advance()

    def _begin(self, job: Request) -> None:
        problem = self._attempt(self._make_again)
        if problem is not None:
            self._end(job, problem)
            return
        slot = min(self._free)
        self._free.discard(slot)
        self._active[slot] = job
        problem = self._attempt(partial(self._read_in, slot))
        if problem is not None:
            self._fail(slot, problem)

    def _read_in(self, slot: int) -> None:
        """Look at a page, read its prompt and what was written of it before; its next token."""
        work = self._work(slot)
        device = self._network.device
        with work.stage("vision", device):
            work.see(self._network)
        if self._closed or self._active[slot].given_up:  # the message waits until this is done
            raise CancelledError("The page was cancelled.")
        with work.stage("prefill", device):
            logits = self._there.prefill(slot, work.embeddings(self._network))
        self._write([slot], logits[None])

    def _advance(self) -> None:
        slots = sorted(self._active)
        problem = self._attempt(partial(self._step, slots))
        if problem is None:
            return
        if len(slots) == 1 or memory.is_out_of_memory(problem):
            self._fail(slots[0], problem)
        else:
            self._step_one_by_one(slots, problem)

    def _step(self, slots: list[int]) -> None:
        ids = [self._work(slot).last_id for slot in slots]
        self._write(slots, self._there.step(slots, ids))

    def _write(self, slots: list[int], logits: torch.Tensor) -> None:
        """Choose the next token of every page in `slots`; end those that are done or go wrong."""
        tokens = sampler.choose([self._work(slot).chooser for slot in slots], logits)
        for slot, token in zip(slots, tokens, strict=True):
            job = self._active[slot]
            try:
                if isinstance(token, Exception):
                    self._widen(slot, token)
                else:
                    self._write_down(job, token)
            except Exception as error:  # of this page alone
                self._end(job, error)

    def _write_down(self, job: Request, token: sampler.Token) -> None:
        work = job.work
        assert work is not None
        job.tell(work.take(token))
        if work.ended:
            job.tell(work.output.flush())
            self._end(job, work.reading())

    def _widen(self, slot: int, problem: Exception) -> None:
        """Go on with the page in float32 where float16 ran over; else raise `problem`."""
        if not (isinstance(problem, GenerationError) and float32_fallback.widen(self._there, slot)):
            raise problem
        log.warning("a page ran over in float16; reading on in float32, which is slower")
        logits = self._there.prefill(slot, self._work(slot).embeddings(self._network))
        self._write([slot], logits[None])

    @property
    def _there(self) -> Decoder:
        """The decoder, which is there while pages are active."""
        assert self._decoder is not None
        return self._decoder

    def _work(self, slot: int) -> PageState:
        work = self._active[slot].work
        assert work is not None
        return work

    # --- the worker: when something goes wrong --------------------------------------------------

    def _attempt(self, action: Callable[[], None]) -> Exception | None:
        """What `action` raises, without the tensors that its frames hold.

        Raises `DeviceError` if a device failed for good.
        """
        try:
            action()
        except Exception as error:
            if not isinstance(error, OcrError) or error is self._failure:
                self._check_device(error)
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
            self._shrink(problem)

    def _step_again(self, slot: int) -> None:
        embeddings = self._work(slot).embeddings(self._network, without_last=True)
        self._there.prefill(slot, embeddings)
        self._step([slot])

    def _fail(self, slot: int, problem: Exception) -> None:
        """End the page in `slot`; where memory ran out, go on with fewer slots instead."""
        if not memory.is_out_of_memory(problem):
            self._end(self._active[slot], problem)
        elif self._slots > 1:
            self._shrink(problem)
        else:
            crop = self._work(slot).crop
            failure = footprint.explained(problem, self._network.device, crop)
            failure.__cause__ = problem
            self._end(self._active[slot], failure)
            self._drop(self._most)  # it was this page: the next ones get their slots back

    def _shrink(self, problem: Exception) -> None:
        """Go on with half the slots; pages in flight stand in line again, with what they have."""
        had = self._slots
        self._drop(had // 2)
        log.warning("%s; going on with %d instead of %d pages at once", problem, had // 2, had)

    def _drop(self, slots: int) -> None:
        """Let the decoder go; there will be another with `slots` slots when a page needs it."""
        in_flight = [self._active[slot] for slot in sorted(self._active)]
        self._ready.extendleft(reversed(in_flight))
        self._active.clear()
        self._decoder = None
        self._slots, self._free = slots, set(range(slots))
        memory.give_back(self._network.device)

    def _make_again(self) -> None:
        if self._decoder is None:
            self._decoder = self._made(self._slots)
            self._slots, self._free = self._decoder.slots, set(range(self._decoder.slots))

    def _made(self, slots: int) -> Decoder:
        """A decoder with as many of `slots` slots as there is memory for."""
        while True:
            try:
                return float32_fallback.widening(self._network, self._make(slots))
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


_LIVE: weakref.WeakSet[Scheduler] = weakref.WeakSet()


def _end_with_the_program(scheduler: Scheduler) -> None:
    """A thread that computes while the interpreter goes down would crash it."""
    _LIVE.add(scheduler)
    _register_once()


@functools.cache
def _register_once() -> None:
    atexit.register(_end_all)


def _end_all() -> None:
    for scheduler in list(_LIVE):
        scheduler.close()
        scheduler.join()
        scheduler.join_helpers()
