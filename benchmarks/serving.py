"""What the server costs beside the engine: `python -m benchmarks.serving`.

The same engine (bundled model) reads the same page again and again, for 1, 8 and 64 callers that
each ask anew when they are answered: handed to the engine directly, and over HTTP as streams, in
turn. The clients are another process. Of both: the median time to the first token, from asking, and
pages a second. A request costs about the same whatever is read, so its share of the time is given
for a page of a few words and for one with lines and boxes.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import multiprocessing
import queue
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import uvicorn

from benchmarks import command
from deepseek_ocr import presets
from deepseek_ocr.configuration import ServerSettings, Settings
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.engine.results import Delta, Failure, Page, Reading
from deepseek_ocr.server.app import create_app
from deepseek_ocr.server.lifecycle import listen
from deepseek_ocr.server.security.api_keys import Keys
from deepseek_ocr.server.security.request_heads import BoundedHeads
from deepseek_ocr.server.server_state import ServerState

CALLERS = (1, 8, 64)

SUBJECTS = {"short": ("fruit.png", "ocr", "tiny"), "full": ("invoice.png", "markdown", "gundam")}
"""Pages of `examples/`, and how each is read: short names of task and preset."""

Turn = dict[str, Any]
"""Of one turn: `firsts`, seconds to the first token of each page, and `rate`, pages a second."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = command.parser("serving", __doc__)
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="of each turn")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="of each of the two")
    parser.add_argument("--slots", type=int, default=8, metavar="N", help="of the engine")
    parser.add_argument("--callers", type=int, nargs="+", default=CALLERS, metavar="N")
    parser.add_argument("--pages", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    flags = parser.parse_args(arguments)
    rows = []
    for row in _measure(flags):
        rows.append(row)
        print(
            f"{row['page']} page, {row['callers']:3d} callers: first token "
            f"{row['engine_first'] * 1000:7.1f} ms by the engine, "
            f"{row['server_first'] * 1000:7.1f} ms by the server; pages a second "
            f"{row['engine_rate']:6.2f} and {row['server_rate']:6.2f} ({row['cost']:+.1%})",
            flush=True,
        )
    command.write_json(flags.json, rows)


def _measure(flags: argparse.Namespace) -> Iterator[dict[str, Any]]:
    engine = OcrEngine.load(command.POCKET, "cpu", slots=flags.slots)
    with _served(engine) as port:
        for name in flags.pages:
            ways = {
                "engine": partial(_direct, engine, name),
                "server": partial(_over_http, port, name),
            }
            for way in ways.values():
                way(8, 1.0)  # does not count
            for callers in flags.callers:
                turns = [
                    {kind: way(callers, flags.seconds) for kind, way in ways.items()}
                    for _ in range(flags.turns)
                ]
                yield {"page": name, "callers": callers, **_row(turns)}
    engine.close()


def _row(turns: list[dict[str, Turn]]) -> dict[str, float]:
    """Medians over the turns, and the share of pages a second that the server costs."""
    row: dict[str, float] = {}
    for way in ("engine", "server"):
        row[f"{way}_first"] = statistics.median(at for one in turns for at in one[way]["firsts"])
        row[f"{way}_rate"] = statistics.median(one[way]["rate"] for one in turns)
    return row | {"cost": 1 - row["server_rate"] / row["engine_rate"]}


def _turn(firsts: list[float], ends: list[float], began: float) -> Turn:
    """The rate is over all pages, until the last of them ended."""
    return {"firsts": firsts, "rate": len(ends) / (max(ends) - began)}


# --- the engine by itself -----------------------------------------------------------------------


def _direct(engine: OcrEngine, name: str, callers: int, seconds: float) -> Turn:
    file, task, preset = SUBJECTS[name]
    picture = (command.EXAMPLES / file).read_bytes()
    page = Page(picture, presets.prompt_for(task), presets.crop_for(preset))
    began = time.perf_counter()
    firsts: list[float] = []
    ends: list[float] = []

    def call() -> None:
        arrived: queue.SimpleQueue[tuple[float, Delta | Reading | Failure]] = queue.SimpleQueue()
        while (asked := time.perf_counter()) < began + seconds:
            engine.submit(page, lambda event: arrived.put((time.perf_counter(), event)))
            at, event = arrived.get()
            firsts.append(at - asked)
            while isinstance(event, Delta):
                at, event = arrived.get()
            ends.append(at)

    with ThreadPoolExecutor(callers) as pool:
        for done in [pool.submit(call) for _ in range(callers)]:
            done.result()
    return _turn(firsts, ends, began)


# --- over HTTP ----------------------------------------------------------------------------------


@contextmanager
def _served(engine: OcrEngine) -> Iterator[int]:
    """The real application over `engine`, on a port of loopback."""
    settings = ServerSettings()
    state = ServerState(
        Settings(), settings, Keys(()), {"pocket": "pocket"}, lambda: {"pocket": (engine,)}
    )
    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(
        create_app(state), http=BoundedHeads, log_config=None, access_log=False, proxy_headers=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not state.ready:
        time.sleep(0.01)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def _over_http(port: int, name: str, callers: int, seconds: float) -> Turn:
    """What a process of clients found."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        return alone.submit(_clients, port, name, callers, seconds).result()


def _clients(port: int, name: str, callers: int, seconds: float) -> Turn:
    file, task, preset = SUBJECTS[name]
    picture = base64.b64encode((command.EXAMPLES / file).read_bytes()).decode()
    parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}]
    asked = {"model": "pocket", "stream": True, "messages": [{"role": "user", "content": parts}]}
    body = json.dumps({**asked, "task": task, "resolution": preset}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    firsts: list[float] = []
    ends: list[float] = []
    began = time.perf_counter()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < began + seconds:
            sent = time.perf_counter()
            writer.write(head.encode() + body)
            await reader.readuntil(b"data: ")
            firsts.append(time.perf_counter() - sent)
            await reader.readuntil(b"data: [DONE]")
            await reader.readuntil(b"\r\n0\r\n\r\n")
            ends.append(time.perf_counter())
        writer.close()

    async def every_client() -> None:
        await asyncio.gather(*(client() for _ in range(callers)))

    asyncio.run(every_client())
    return _turn(firsts, ends, began)


if __name__ == "__main__":
    main()
