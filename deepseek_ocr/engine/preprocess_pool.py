"""Threads that open pages and cut them ahead of the model, so that it is not kept waiting."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

from deepseek_ocr.engine.page_state import PageState
from deepseek_ocr.engine.request import Request, portable
from deepseek_ocr.engine.results import Page

Prepared = PageState | Exception | None
"""A page's work, or why there is none; None where it was given up before."""


def helpers_for(kind: str) -> int:
    """How many threads prepare pages for a device of `kind`, and so the most pages that are
    prepared and not yet in a slot: more where the model is faster and the processor is free."""
    return 2 if kind == "cpu" else max(2, min(8, (os.cpu_count() or 2) // 2))


class PreprocessPool:
    """So many threads, which `prepare` pages and tell `done` of them."""

    def __init__(
        self,
        count: int,
        prepare: Callable[[Page], PageState],
        done: Callable[[Request, Prepared], None],
    ) -> None:
        self.count = count
        self._prepare, self._done = prepare, done
        self._line: SimpleQueue[Request | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads that do not run yet; not in the main thread, where Ctrl-C could come
        in between and leave one that cannot be joined."""
        for number in range(len(self._threads), self.count):
            name = f"ocr-helper-{number}"
            thread = threading.Thread(target=self._run, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def prepare(self, job: Request) -> None:
        """Let the next thread that is free prepare a page."""
        self._line.put(job)

    def stop(self) -> None:
        """Let every thread end when it has done what it was given."""
        for _ in range(self.count):
            self._line.put(None)

    def join(self) -> None:
        """Wait for the threads to end; one that computes while the interpreter goes down would
        crash it."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _run(self) -> None:
        while self._prepare_one():
            pass

    def _prepare_one(self) -> bool:
        """A function of its own, so that waiting for the next page holds on to none."""
        job = self._line.get()
        if job is None:
            return False
        outcome: Prepared = None
        try:
            if (page := job.page) is not None:
                outcome = self._prepare(page)
        except Exception as error:
            outcome = portable(error)
        self._done(job, outcome)
        return True
