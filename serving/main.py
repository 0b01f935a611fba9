"""Start the server, and end it without losing pages."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import uvicorn

import weights
from deepseek_ocr.engine import OcrEngine
from deepseek_ocr.errors import OcrError
from serving import logs
from serving.app import create_app
from serving.arguments import Start, parse
from serving.auth import Keys
from serving.fetcher import Fetcher
from serving.state import Engines, State

COULD_NOT_START = 2

STOPPING_SECONDS = 5
"""For answers to leave after the last page is read or given up."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; the exit status is 0, or 2 where serving could not start."""
    start = parse(arguments)
    try:
        state = make_state(start)
        listener = listen(start.server.host, start.server.port)
    except (OcrError, OSError) as error:
        sys.stderr.write(f"serve.py: {error}\n")
        return COULD_NOT_START
    logs.set_up()
    return run(state, listener)


def make_state(start: Start) -> State:
    """The server's state before anything is loaded.

    Raises `CheckpointError` where a model is not there, before the port is opened.
    """
    settings, server = start.settings, start.server
    named = {name_of(model): model for model in (settings.model, *server.models)}
    folders = {
        name: weights.ensure(model, Path(settings.checkpoints), fetch=False)
        for name, model in named.items()
    }
    devices = devices_of(start)

    def load() -> Engines:
        return {
            name: tuple(
                OcrEngine.load(folder, device, settings.dtype, state.limits) for device in devices
            )
            for name, folder in folders.items()
        }

    fetcher = Fetcher() if server.allow_urls else None
    state = State(settings, server, Keys(start.keys), named, load, fetcher)
    return state


def name_of(model: str) -> str:
    """What clients call `model`: a checkpoint's name, or the last part of a folder's path."""
    return Path(model).name.replace(":", "-") or model


def devices_of(start: Start) -> tuple[str, ...]:
    """The devices to load on: those named, else `--workers` of the one that is configured."""
    server, device = start.server, start.settings.device
    if server.devices:
        return server.devices
    if server.workers > 1 and device in ("auto", "cuda"):
        return tuple(f"cuda:{number}" for number in range(server.workers))
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
    """Tells the queues when it is told to stop, and gives pages being read their time."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._captured_signals.clear()
        super().handle_exit(sig, frame)
        self._on_stop()


def run(state: State, listener: socket.socket) -> int:
    """Serve on `listener` until a signal; the exit status."""
    raise NotImplementedError
