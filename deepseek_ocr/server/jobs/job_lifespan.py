"""Jobs from the start of the server to its stop."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from platformdirs import user_state_path

from deepseek_ocr.documents.renderer import Renderer
from deepseek_ocr.errors import SettingsError
from deepseek_ocr.server.jobs.job_manager import JobManager
from deepseek_ocr.server.jobs.job_store import JobStore
from deepseek_ocr.server.observability import logs
from deepseek_ocr.server.server_state import ServerState

_LEAVING_S = 5.0
"""Seconds for pages to end after the server has given them up."""


@asynccontextmanager
async def running_jobs(state: ServerState) -> AsyncIterator[JobManager | None]:
    """The jobs of a server, which are read until the block ends.

    None if their folder cannot be had: the server then runs without them, and its log says why.
    """
    folder = Path(state.server.jobs_folder or user_state_path("deepseek-ocr") / "jobs")
    try:
        store = await asyncio.to_thread(JobStore, folder.expanduser())
    except SettingsError as error:
        logs.event(f"no documents will be read: {error}")
        yield None
        return
    workers = max(1, min(4, (os.cpu_count() or 1) // 2))
    with Renderer(workers=workers) as renderer:
        jobs = JobManager(state, store, renderer)
        await jobs.take_over()
        running = asyncio.create_task(jobs.run())
        try:
            yield jobs
            await _end_pages(jobs, running)
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            await jobs.stop()
            store.close()


async def _end_pages(jobs: JobManager, running: asyncio.Task[None]) -> None:
    """Let the pages that are being read come to their end; a second signal drops them.

    The server gives them up after its `shutdown_seconds`.
    """
    if jobs.in_flight:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(NotImplementedError, RuntimeError, ValueError):  # no signals in a thread
                loop.add_signal_handler(number, running.cancel)
        logs.event("ending pages of documents", pages=jobs.in_flight)
    await asyncio.wait({running}, timeout=jobs.state.server.shutdown_seconds + _LEAVING_S)
