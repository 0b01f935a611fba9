"""Many pages at once: slots of one decoder, filled again as soon as a page is done.

One thread, the worker, owns the decoder and everything that is counted here; other threads send it
messages, which are functions for it to call. A few helpers open pictures and cut them ahead of it,
so that it does not wait. Only `submit` and `close` take a lock.

`slot_pool` holds the slots, `model_runner` does what is done in them.
"""

from __future__ import annotations

import atexit
import functools
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue

from deepseek_ocr.decoding.decoder import Decoder
from deepseek_ocr.devices import selection
from deepseek_ocr.engine.model_runner import ModelRunner
from deepseek_ocr.engine.page_state import PageState
from deepseek_ocr.engine.preprocess_pool import Prepared, PreprocessPool, helpers_for
from deepseek_ocr.engine.request import OnEvent, Request
from deepseek_ocr.engine.results import Page, Reading
from deepseek_ocr.engine.slot_pool import SlotPool
from deepseek_ocr.errors import CancelledError, DeviceError, OcrError
from deepseek_ocr.model.network import Network


@dataclass(frozen=True)
class EngineStatus:
    """How many pages can be read at once, how many are, and how many wait for it."""

    slots: int
    active: int
    waiting: int


class Scheduler:
    """Reads pages with one decoder, as many at once as it has slots.

    `open_page(page, context=…)` begins the work on a page, for a decoder with room for `context`
    tokens; `make` is what `SlotPool` takes. `within` is entered by the worker for as long as it
    computes.
    """

    def __init__(
        self,
        network: Network,
        open_page: Callable[..., PageState],
        make: Callable[[int], Decoder],
        slots: int,
        within: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._network, self._within = network, within
        self._pool = SlotPool(network, make, slots)
        self._runner = ModelRunner(
            network,
            self._pool,
            end=self._end,
            requeue=lambda jobs: self._ready.extendleft(reversed(jobs)),
            is_cancelled=lambda job: self._closed or job.given_up,
        )
        self._helpers = PreprocessPool(
            helpers_for(network.device.type),
            partial(open_page, context=self._pool.context),
            lambda job, outcome: self._inbox.put(partial(self._take_prepared, job, outcome)),
        )
        self._door = threading.RLock()  # a finalizer may run anywhere
        self._worker: threading.Thread | None = None
        self._closed = False  # under the door's lock: nothing comes in behind the last message
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()

        # The worker's own.
        self._running = True
        self._jobs: set[Request] = set()
        self._waiting: deque[Request] = deque()
        self._preparing = 0
        self._ready: deque[Request] = deque()

    # --- for any thread -------------------------------------------------------------------------

    @property
    def status(self) -> EngineStatus:
        """How much there is to do."""
        active = len(self._pool.active)
        return EngineStatus(self._pool.slots, active, max(0, len(self._jobs) - active))

    @property
    def is_running(self) -> bool:
        """False when no page can be read any more: it was closed, its thread ended, or the device
        failed."""
        ended = self._worker is not None and not self._worker.is_alive()
        return not (self._closed or ended)

    @property
    def ahead(self) -> int:
        """How many pages in flight keep every slot busy: those in slots and those prepared."""
        return self._pool.slots + self._helpers.count

    def submit(self, page: Page, on_event: OnEvent | None) -> Request:
        """Take a page in. Raises `CancelledError` when closed, `DeviceError` when the device
        failed."""
        job = Request(page, on_event)
        with self._door:
            if self._runner.failure is not None:
                raise DeviceError(str(self._runner.failure))
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

    def _start(self) -> None:
        """Start the worker. Where Ctrl-C comes in between, nobody can tell whether the thread
        began, and it could not be joined: it is told to leave, and the next page starts another.
        """
        _LIVE.add(self)
        _register_once()
        stay: SimpleQueue[bool] = SimpleQueue()
        worker = threading.Thread(target=self._run, args=(stay,), name="ocr-worker", daemon=True)
        try:
            worker.start()
            self._worker = worker
        finally:
            stay.put(self._worker is worker)

    # --- the worker: messages -------------------------------------------------------------------

    def _run(self, stay: SimpleQueue[bool]) -> None:
        if not stay.get():
            return
        try:
            with ExitStack() as stack:
                stack.enter_context(self._within())
                stack.enter_context(selection.current(self._network.device))
                while self._running:
                    try:
                        self._listen()
                        self._turn()
                    except Exception as error:  # a fault here must not leave callers waiting
                        self._runner.check_device(error)
                        self._end_all(error)
        except BaseException:  # the thread ends, and nothing may wait for it
            self.close()
            self._give_up()
            if self._runner.failure is None:  # else the log says it already
                raise

    def _listen(self) -> None:
        """Do what the messages say; wait for one where there is nothing else to do."""
        with suppress(Empty):
            while self._running:
                self._inbox.get(block=not (self._pool.active or self._ready))()

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
            self._runner.check_device(outcome)
        for line in (self._waiting, self._ready):
            if job in line:
                line.remove(job)
        self._jobs.discard(job)
        try:
            self._pool.release(job)
        finally:  # also on a device that does not even take memory back
            job.end(outcome)
        self._prepare_more()

    def _end_all(self, error: Exception) -> None:
        for job in list(self._jobs):
            self._end(job, error)

    def _give_up(self) -> None:
        self._running = False
        self._pool.clear()
        closed = CancelledError("The engine was closed before the page was read.")
        self._end_all(self._runner.failure or closed)
        self._helpers.stop()

    def _turn(self) -> None:
        """Begin one page, if one is ready and a slot is free; then one step of all pages."""
        if self._ready and self._pool.has_free_slot:
            self._runner.begin(self._ready.popleft())
            self._prepare_more()
        if self._pool.active:
            self._runner.advance()


_LIVE: weakref.WeakSet[Scheduler] = weakref.WeakSet()


@functools.cache
def _register_once() -> None:
    """A thread that computes while the interpreter goes down would crash it."""
    atexit.register(_end_all)


def _end_all() -> None:
    for scheduler in list(_LIVE):
        scheduler.close()
        scheduler.join()
        scheduler._helpers.join()
