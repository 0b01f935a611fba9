"""The application: routes, and what surrounds them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from deepseek_ocr import __version__
from deepseek_ocr.server import api_errors
from deepseek_ocr.server.api_errors import ApiError, EngineFailedError
from deepseek_ocr.server.jobs.job_manager import running_jobs
from deepseek_ocr.server.middleware import Guard
from deepseek_ocr.server.observability import logs
from deepseek_ocr.server.queueing.model_pools import Engines, PoolGauges
from deepseek_ocr.server.routes import chat, health, models, ocr_documents, responses, web_page
from deepseek_ocr.server.server_state import ServerState

_LOOK_S = 0.2
"""Seconds between looks at whether the engines still read."""


def create_app(state: ServerState, on_failure: Callable[[], None] = lambda: None) -> FastAPI:
    """The server's application over `state`; its models are loaded once it runs. `on_failure` is
    called if they cannot be loaded, and if an engine reads no more pages."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(_load(state, on_failure))
        async with running_jobs(state) as jobs:
            app.state.documents = jobs
            yield
            loading.cancel()
            state.close_queues()
        for engine in state.engines:
            await asyncio.to_thread(engine.close)

    app = FastAPI(
        title="DeepSeek-OCR", version=__version__, lifespan=lifespan, redoc_url=None,
        exception_handlers=api_errors.HANDLERS,
        docs_url=None,  # its page would load scripts from elsewhere
    )  # fmt: skip
    app.state.server = state
    state.metrics.watch(PoolGauges(state.pools))
    for part in (health, models, chat, responses, ocr_documents, web_page):
        app.include_router(part.router)
    app.add_middleware(Guard, state=state)
    if state.server.cors:  # around the guard, whose errors web pages must be able to read too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(state.server.cors),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],  # clients send many of their own
            expose_headers=["retry-after", "x-request-id"],
        )
    return app


async def _load(state: ServerState, on_failure: Callable[[], None]) -> None:
    try:
        engines = await asyncio.wrap_future(_loading(state.load))
    except Exception as error:
        message = "The model could not be loaded; the server's log says why."
        state.failed = ApiError(503, message, "failed")
        logs.failure(f"the model could not be loaded: {error}", error)
        on_failure()
        return
    state.open_pools(engines)
    logs.event("ready", models=list(engines))
    await _watch(state, on_failure)


async def _watch(state: ServerState, on_failure: Callable[[], None]) -> None:
    """Wait until an engine reads no more pages although it was not closed."""
    while state.ready:
        await asyncio.sleep(_LOOK_S)
    if isinstance(state.problem, EngineFailedError):
        state.failed = state.problem
        stopped = [str(engine.device) for engine in state.engines if not engine.is_running]
        logs.event("an engine failed; the server ends", devices=stopped)
        on_failure()


def _loading(load: Callable[[], Engines]) -> Future[Engines]:
    """What `load` makes, in a thread for which the end of the server does not wait."""
    made: Future[Engines] = Future()
    made.set_running_or_notify_cancel()  # nobody can take it back any more

    def run() -> None:
        try:
            made.set_result(load())
        except BaseException as error:
            made.set_exception(error)

    threading.Thread(target=run, name="loading", daemon=True).start()
    return made
