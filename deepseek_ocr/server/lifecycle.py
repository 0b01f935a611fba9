"""Start the server, and end it without losing pages."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import uvicorn

from deepseek_ocr.configuration import ServerSettings, Settings
from deepseek_ocr.console import complain
from deepseek_ocr.devices.selection import available
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.errors import OcrError
from deepseek_ocr.server.app import create_app
from deepseek_ocr.server.observability import logs
from deepseek_ocr.server.queueing.model_pools import Engines
from deepseek_ocr.server.security.api_keys import Keys
from deepseek_ocr.server.security.request_heads import BoundedHeads
from deepseek_ocr.server.security.url_fetcher import Fetcher
from deepseek_ocr.server.server_state import ServerState
from deepseek_ocr.weights import registry

ENDED, FAILED, COULD_NOT_START = 0, 1, 2
"""Exit statuses."""

_NUMBERED = ("cuda", "npu")
"""Kinds of device of which a machine may have several."""

_LEAVING_SECONDS = 5
"""For answers to reach their clients after the last page is read or given up."""


def main(settings: Settings, server: ServerSettings, keys: tuple[str, ...]) -> int:
    """Serve until told to stop; the exit status is in the help text. `keys` are all there are,
    those of the file included."""
    try:
        state = make_state(settings, server, keys)
        listener = listen(server.host, server.port)
    except (OcrError, OSError) as error:
        complain(str(error), "deepseek-ocr")
        return COULD_NOT_START
    logs.set_up()
    return run(state, listener)


def make_state(settings: Settings, server: ServerSettings, keys: tuple[str, ...]) -> ServerState:
    """The server's state before anything is loaded. Raises `CheckpointError` where a model is not
    there, so that it is said before the port opens."""
    names = {name_of(model): model for model in (settings.model, *server.models)}
    folders = {
        name: registry.ensure(model, Path(settings.checkpoints), fetch=False)
        for name, model in names.items()
    }

    def load() -> Engines:
        options = replace(settings.load_options(), limits=state.limits)
        return {
            name: tuple(
                OcrEngine.from_options(folder, replace(options, device=device))
                for device in devices_of(settings, server)
            )
            for name, folder in folders.items()
        }

    fetcher = Fetcher(server.max_body_mb * 2**20) if server.allow_urls else None
    state = ServerState(settings, server, Keys(keys), names, load, fetcher)
    return state


def name_of(model: str) -> str:
    """What clients call `model`: a checkpoint's name, or the last part of a folder's path."""
    return Path(model).expanduser().resolve().name.replace(":", "-") or "model"


def devices_of(settings: Settings, server: ServerSettings) -> tuple[str, ...]:
    """Where to load: the devices named, else `--workers` of the kind that is configured, or of the
    kind that this machine has where that is left to it."""
    device = settings.device.strip().lower()
    if server.devices:
        return server.devices
    if server.workers > 1 and device == "auto":
        device = available()[0]
    if server.workers > 1 and device in _NUMBERED:
        return tuple(f"{device}:{number}" for number in range(server.workers))
    return (device,) * server.workers


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to `host` and `port`. Raises `OSError`."""
    family, kind, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    return listener


class _Server(uvicorn.Server):
    """uvicorn's server, without its signal handlers."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """`_serve` has its own."""
        yield


def run(state: ServerState, listener: socket.socket) -> int:
    """Serve on `listener` until SIGTERM or SIGINT, or until a model cannot be loaded or an engine
    fails; the exit status."""
    config = uvicorn.Config(
        create_app(state, lambda: _leave(server, state)),
        http=BoundedHeads, ws="none", log_config=None, access_log=False, server_header=False,
        proxy_headers=False,  # anybody could claim any address
        timeout_keep_alive=30,
        timeout_graceful_shutdown=round(state.server.shutdown_seconds) + _LEAVING_SECONDS,
    )  # fmt: skip
    server = _Server(config)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve(server, state, listener))
    status = FAILED if state.failed else ENDED
    still_loading = not (state.pools or state.failed)
    if still_loading or (state.pools and state.failed):  # a thread, or memory of a device that
        # failed, with which Python's own end could crash
        logging.shutdown()
        os._exit(status)
    return status


def _leave(server: _Server, state: ServerState) -> None:
    """Refuse what waits and let pages being read end, for so long; then the server ends."""
    state.close_queues()
    server.should_exit = True
    loop = asyncio.get_running_loop()
    loop.call_later(state.server.shutdown_seconds, state.give_up)


async def _serve(server: _Server, state: ServerState, listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        """Once: refuse what waits, let pages being read end. Twice: end at once."""
        if server.should_exit:
            server.force_exit = True
            return
        logs.event("stopping", seconds=state.server.shutdown_seconds)
        _leave(server, state)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    logs.event("listening", url=f"http://{shown}:{port}")
    await server.serve(sockets=[listener])
