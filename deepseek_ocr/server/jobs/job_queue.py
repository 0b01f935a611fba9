"""Jobs that are being read: what is left of each, who listens, and whose page comes next."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

from deepseek_ocr.server.jobs.job_store import OcrJob, counts_of

JobEvent = dict[str, Any]

_MOST_UNHEARD = 20_000
"""Events that wait for a listener that takes none; then it is cut off, and may come again."""

_FIRST_PAGE_S, _LAST_PAGES = 10.0, 8
"""Seconds that a page is thought to take before any was read; pages over which it is averaged."""

_LONGEST_WAIT_S = 3600
"""Most seconds after which a client is told to try again."""


@dataclass(eq=False)
class PageTask:
    """A page that is being read, and what was told of it since its last try began."""

    task: asyncio.Task[None]
    events: list[JobEvent] = field(default_factory=list)


@dataclass(eq=False)
class LiveJob:
    """A job of which pages are still to be read; `settled` are those that came to their end, and
    whether each failed."""

    job: OcrJob
    todo: deque[int]
    settled: dict[int, bool]
    reading: dict[int, PageTask] = field(default_factory=dict)
    listeners: set[asyncio.Queue[JobEvent | None]] = field(default_factory=set)

    def tell(self, event: JobEvent | None) -> None:
        """Send an event to every listener; None is the end."""
        for listener in list(self.listeners):
            if event is not None and listener.qsize() >= _MOST_UNHEARD:
                self.listeners.discard(listener)
                event = None
            listener.put_nowait(event)

    def tell_of_page(self, event: JobEvent) -> None:
        """Send an event to every listener, and to those that come while the page is being read."""
        page = self.reading[event["page"]]
        if event["type"] == "page.retried":
            del page.events[1:]
        page.events.append(event)
        self.tell(event)

    def counts(self) -> dict[str, int]:
        """How far it is, as `counts_of`."""
        return counts_of(self.job, len(self.settled), sum(self.settled.values()))

    def cancel(self) -> list[asyncio.Task[None]]:
        """Have nothing more of it be read; the tasks that end now."""
        self.todo.clear()
        tasks = [page.task for page in self.reading.values()]
        others = [task for task in tasks if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        self.reading.clear()
        return others


class JobQueue:
    """The jobs that are being read, in the order of their turns. Pages go round the clients that
    have jobs here, then round each client's jobs."""

    def __init__(self) -> None:
        self.jobs: dict[str, LiveJob] = {}
        self._clients: OrderedDict[str, deque[str]] = OrderedDict()
        self._page_seconds = _FIRST_PAGE_S

    def add(self, live: LiveJob) -> None:
        """Let a job wait for its turn."""
        self.jobs[live.job.id] = live
        self._clients.setdefault(live.job.client, deque()).append(live.job.id)

    def next_page(self) -> tuple[LiveJob, int] | None:
        """The page whose turn it is; its client, and its job among theirs, come last then."""
        while self._clients:
            client, jobs = self._clients.popitem(last=False)
            while jobs:
                live = self.jobs.get(jobs.popleft())
                if live is None or not live.todo:
                    continue
                number = live.todo.popleft()
                if live.todo:
                    jobs.append(live.job.id)
                if jobs:
                    self._clients[client] = jobs
                return live, number
        return None

    def end_listening(self) -> None:
        """Send every listener of a job the end of its events."""
        for live in self.jobs.values():
            live.tell(None)

    def count_page(self, seconds: float) -> None:
        """A page took so long."""
        self._page_seconds += (seconds - self._page_seconds) / _LAST_PAGES

    def seconds_to_room(self, client: str | None, at_once: int) -> int:
        """About how long until a job (of `client`, unless that is None) has been read: its pages
        and those whose turns come between, `at_once` together, at the pace of the last ones."""
        left = [(len(live.todo), live.job.client) for live in self.jobs.values()]
        least = min((pages for pages, owner in left if client in (None, owner)), default=None)
        if least is None:  # they wait for a model
            return _LONGEST_WAIT_S
        before = sum(min(pages, least) for pages, _ in left)
        seconds = self._page_seconds * (1 + before / max(1, at_once))
        return min(max(1, math.ceil(seconds)), _LONGEST_WAIT_S)
