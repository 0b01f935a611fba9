"""Pages of documents as pictures, made by processes that may crash or hang without harm here.

    with Renderer(RenderSettings(dpi=200)) as renderer:
        document = renderer.open(Path("scan.pdf"))
        page = renderer.render(document, 1)

A page on which its process dies or takes too long raises, and the next page gets a new process.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast, get_args

from PIL import Image

from deepseek_ocr.documents.inputs import shown
from deepseek_ocr.errors import DocumentError
from deepseek_ocr.formats.records import OwnText, SourceKind
from deepseek_ocr.images.limits import ImageLimits
from deepseek_ocr.settings import RenderSettings

_START_S = 60.0
"""Seconds a rendering process may take to start on a busy machine."""

_LARGEST = 3 * ImageLimits().max_pixels
"""Bytes of the largest page taken from a rendering process."""

_PATIENCE_S = 2.0
"""Seconds that stopping waits for a document that is being opened."""

_START = (
    "import sys; sys.path.insert(0, {!r}); "
    "from deepseek_ocr.documents import render_worker as w; w.main()"
)


_Reply = tuple[dict[str, Any], bytes]
"""What a rendering process answers: JSON, and the pixels of a page behind it."""


@dataclass(frozen=True)
class OpenDocument:
    """A document that can be opened: its file, what it is, how many pages it has.

    `left_out` counts the files of an archive that are no pictures by their names; `name` is what
    messages call it, its path where it has none.
    """

    path: Path
    password: str | None
    kind: SourceKind
    pages: int
    left_out: int = 0
    name: str = ""


@dataclass(frozen=True)
class Rendered:
    """A page as a picture: RGB, upright; the others as in `records.PageRecord`.

    `image.info` has what a PDF page made of a picture file needs: `dpi` if the file names one, and
    `stored_jpeg`, the mode of the file's JPEG if it shows just this.
    """

    image: Image.Image
    points: tuple[float, float] | None
    rotation: int
    own_text: OwnText | None = None


class Renderer(contextlib.AbstractContextManager["Renderer"]):
    """Opens documents and renders their pages in up to `workers` processes; any thread may ask."""

    def __init__(self, settings: RenderSettings = RenderSettings(), workers: int = 1) -> None:
        self.settings = settings
        self.workers = workers
        self._all = [_Worker(settings.memory) for _ in range(workers)]
        self._free = list(self._all)
        self._freed = threading.Condition()

    def using(self, settings: RenderSettings) -> Renderer:
        """The same processes with other settings; `memory` and `workers` stay as they are."""
        other = copy.copy(self)
        other.settings = settings
        return other

    def open(
        self, path: Path, password: str | None = None, name: str = "", owner: object = None
    ) -> OpenDocument:
        """The document in the file `path`, called `name` in messages. Raises `DocumentError`.
        `owner` is what `give_up` knows this by, if it may be given up."""
        reply, _ = self._ask(path, name, password, None, owner)
        return OpenDocument(path, password, reply["kind"], reply["pages"], reply["left_out"], name)

    def render(self, document: OpenDocument, number: int, owner: object = None) -> Rendered:
        """The page `number`, from 1. Raises `DocumentError`. `owner` is as in `open`."""
        reply, pixels = self._ask(document.path, document.name, document.password, number, owner)
        image = Image.frombytes("RGB", (reply["width"], reply["height"]), pixels)
        if dpi := reply.get("dpi"):
            image.info["dpi"] = (float(dpi[0]), float(dpi[1]))
        if (mode := reply.get("stored_jpeg")) in ("RGB", "L"):
            image.info["stored_jpeg"] = mode
        points = reply["points"] and (float(reply["points"][0]), float(reply["points"][1]))
        text = reply.get("own_text")
        known = text if text in get_args(OwnText) else None
        return Rendered(image, points, reply["rotation"], known)

    def give_up(self, owner: object) -> None:
        """Stop what is being opened or rendered for `owner`; it raises `DocumentError` there."""
        for worker in self._all:
            worker.give_up(owner)

    def _ask(
        self, path: Path, name: str, password: str | None, page: int | None, owner: object
    ) -> _Reply:
        request = {
            "path": os.path.abspath(path), "name": name or shown(path), "password": password,
            "page": page, "settings": asdict(self.settings),
        }  # fmt: skip
        with self._taken((path, password)) as worker:
            reply, pixels = worker.ask(request, self.settings.timeout, owner)
        if "error" in reply:
            raise DocumentError(reply["error"])
        return reply, pixels

    @contextlib.contextmanager
    def _taken(self, document: object) -> Iterator[_Worker]:
        """A process that is free; if possible the one that had `document` open last."""
        with self._freed:
            while not self._free:
                self._freed.wait()
            last = self._free[-1]
            worker = next((one for one in self._free if one.document == document), last)
            self._free.remove(worker)
        worker.document = document
        try:
            yield worker
        finally:
            with self._freed:
                self._free.append(worker)
                self._freed.notify()

    def close(self) -> None:
        """End the processes."""
        for worker in self._all:
            worker.stop()

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Worker:
    """One rendering process, started when first asked and again after it died. `document` is what
    tells the document that it has open."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._process: subprocess.Popen[bytes] | None = None
        self.document: object = None
        self._lock = threading.Lock()  # of the two below
        self._owner: object = None
        self._given_up = False

    def ask(self, request: dict[str, Any], timeout: float, owner: object) -> _Reply:
        """The answer to a request. Raises `DocumentError` where none comes in time."""
        self._owner = owner
        try:
            return self._answer(request, timeout)
        except BaseException:  # what comes next would be taken for the answer to another request
            self.stop()
            raise
        finally:
            with self._lock:
                self._owner = None
            if self._given_up:
                self._given_up = False
                self.stop()

    def _answer(self, request: dict[str, Any], timeout: float) -> _Reply:
        process = self._process
        if process is None or process.poll() is not None:
            process = self._start()
            with self._lock:
                self._process = process
                if self._given_up:
                    process.kill()
        try:
            with _killed_after(timeout, process) as late:
                return _exchange(process, request)
        except (OSError, ValueError) as error:
            status = self.stop()
            what = f"brought its rendering process down (status {status})"
            if late.is_set():
                what = f"took longer than {timeout:g} seconds to open or render and was stopped"
            raise DocumentError(f"The page {what}; the file may be damaged, or hostile.") from error

    def give_up(self, owner: object) -> None:
        """Stop what is done for `owner`, if this process does it."""
        with self._lock:
            if owner is not None and self._owner is owner:
                self._given_up = True
                if self._process is not None:
                    self._process.kill()

    def _start(self) -> subprocess.Popen[bytes]:
        package = str(Path(__file__).resolve().parents[2])
        process = subprocess.Popen(
            [sys.executable, "-c", _START.format(package), str(self._memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        with _killed_after(_START_S, process):
            assert process.stdout is not None
            if not process.stdout.readline():
                advice = "check that pypdfium2 is installed: python -c 'import pypdfium2'"
                raise DocumentError(f"The rendering process does not start; {advice}")
        return process

    def stop(self) -> int | None:
        """End the process and return its status."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what was still in it for the dead process
                cast(Any, pipe).close()
        return process.wait()


def _exchange(process: subprocess.Popen[bytes], request: dict[str, Any]) -> _Reply:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()
    reply = json.loads(process.stdout.readline(1 << 20))
    size = reply.get("width", 0) * reply.get("height", 0) * 3
    if not 0 <= size <= _LARGEST:
        raise ValueError("the answer is no page")
    pixels = process.stdout.read(size)
    if len(pixels) != size:
        raise ValueError("the answer breaks off")
    return reply, pixels


@contextlib.contextmanager
def _killed_after(seconds: float, process: subprocess.Popen[bytes]) -> Iterator[threading.Event]:
    """Kill the process unless the block ends in time; the event says whether it was."""
    late = threading.Event()

    def kill() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


Wanted = TypeVar("Wanted")


class Ahead(Generic[Wanted]):
    """Renders what an iterator asks for a few pages ahead, in threads, and gives it in order.

    `requests` yields (what the page is for, document, number); the iterator runs in a thread of its
    own and an exception of it is raised here. At most `ahead` pages are held besides those being
    rendered.
    """

    def __init__(
        self, renderer: Renderer, requests: Iterable[tuple[Wanted, OpenDocument, int]], ahead: int
    ) -> None:
        self._renderer = renderer
        self._requests = requests
        self._ready: queue.Queue[tuple[Wanted, Future[Rendered]] | None] = queue.Queue(ahead)
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._pool = ThreadPoolExecutor(renderer.workers, "render")
        self._thread = threading.Thread(target=self._produce, name="documents", daemon=True)
        self._thread.start()

    def _produce(self) -> None:
        try:
            for wanted, document, number in self._requests:
                picture = self._pool.submit(self._renderer.render, document, number)
                if not self._put((wanted, picture)):
                    return
        except BaseException as error:  # raised where the pages are taken
            self._error = error
        self._put(None)

    def _put(self, item: tuple[Wanted, Future[Rendered]] | None) -> bool:
        """Wait for room; False where nobody takes pages any more."""
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=0.2)
                return True
        return False

    def __iter__(self) -> Iterator[tuple[Wanted, Rendered | DocumentError]]:
        """Each request with its picture, or why there is none."""
        while (item := self._ready.get()) is not None:
            wanted, future = item
            try:
                picture: Rendered | DocumentError = future.result()
            except DocumentError as error:
                picture = error
            yield wanted, picture
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop rendering; pages that were made and not taken are dropped."""
        self._stopped.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._thread.join(_PATIENCE_S)  # it may be at a document that takes long to open
