"""A document that is being read: what is left of it, who listens, and what they are told."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deepseek_ocr.formats.json_document import page_data
from deepseek_ocr.formats.records import PageRecord
from deepseek_ocr.server.api_errors import ApiError, api_error
from deepseek_ocr.server.jobs.job_store import Job, counts_of
from deepseek_ocr.server.jobs.page_runner import Told
from deepseek_ocr.server.jobs.region_splitter import RegionFound, RegionText

Event = dict[str, Any]

_MOST_UNHEARD = 20_000
"""Events that wait for somebody who does not listen; then they are cut off, and may come again."""


@dataclass(eq=False)
class Flight:
    """A page that is being read, and what was told of it since its last try began."""

    task: asyncio.Task[None] | None = None
    events: list[Event] = field(default_factory=list)


@dataclass(eq=False)
class LiveJob:
    """A job of which pages are still to be read; `settled` are those that came to their end, and
    whether each failed."""

    job: Job
    todo: deque[int]
    settled: dict[int, bool]
    flights: dict[int, Flight] = field(default_factory=dict)
    listeners: set[asyncio.Queue[Event | None]] = field(default_factory=set)

    def tell(self, event: Event | None) -> None:
        """Tell everybody who listens; None is the end."""
        for listener in list(self.listeners):
            if event is not None and listener.qsize() >= _MOST_UNHEARD:
                self.listeners.discard(listener)
                event = None
            listener.put_nowait(event)

    def counts(self) -> dict[str, int]:
        """How far it is, as `counts_of`."""
        return counts_of(self.job, len(self.settled), sum(self.settled.values()))

    def cancel(self) -> list[asyncio.Task[None]]:
        """Have nothing more of it be read; the tasks that end now."""
        self.todo.clear()
        flights = [flight.task for flight in self.flights.values() if flight.task]
        others = [task for task in flights if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        self.flights.clear()
        return others


def reason_of(error: BaseException) -> str:
    """Why a job failed, as its client may see it."""
    if isinstance(error, (OSError, sqlite3.Error)):
        return (
            "What was read could not be kept; the server's disk may be full. Hand the document in "
            "again when there is room."
        )
    return str(api_error(error))


def not_served(job: Job) -> ApiError:
    """Why nothing more is told of a job whose model is not there."""
    return ApiError(
        503,
        f"The model {job.model} is not served now; the document waits until it is. DELETE it, or "
        "hand it in for another model.",
        "model_not_served",
    )


def ended(status: str, pages: Mapping[str, int], error: str | None = None) -> Event:
    """The last event of a job, with its counts of pages."""
    return {"type": "document.done", "status": status, "pages": dict(pages), "error": error}


def opened(job: Job) -> Event:
    """The first event of a job."""
    return {
        "type": "document.opened", "id": job.id, "name": job.file, "kind": job.kind,
        "pages": list(job.numbers),
    }  # fmt: skip


def done(record: PageRecord) -> Event:
    """A page has been read, or never will be."""
    return {"type": "page.done", "page": record.number, "result": page_data(record)}


def told(number: int, event: Told) -> Event:
    """What was found on page `number` while it is read."""
    if isinstance(event, RegionFound):
        boxes = [list(box) for box in event.boxes]
        return {
            "type": "page.region", "page": number, "order": event.order, "label": event.label,
            "boxes": boxes,
        }  # fmt: skip
    if isinstance(event, RegionText):
        return {"type": "page.delta", "page": number, "order": event.order, "text": event.text}
    return {"type": "page.retried", "page": number, "try": event}
