"""The process that opens documents and makes pictures of their pages: what is hostile stays in it.

It reads one request a line (JSON) and answers each with one line of JSON, behind which the pixels
of a page follow as bytes, RGB, row by row. Nothing else crosses: no pickle, no objects. It may
crash, hang or be killed at any time; `renderer.py` starts another.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from deepseek_ocr.documents.document_files import DocumentFile, open_document
from deepseek_ocr.errors import OcrError
from deepseek_ocr.settings import RenderSettings


class _RequestHandler:
    """Answers requests, holding the last document open."""

    def __init__(self) -> None:
        self._document: DocumentFile | None = None
        self._is: tuple[object, ...] | None = None

    def answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """A reply and the pixels behind it; an error is a reply too."""
        try:
            document = self._opened(request["path"], request["name"], request["password"])
            if request["page"] is None:
                pages, left_out = document.count, document.left_out
                return {"kind": document.kind, "pages": pages, "left_out": left_out}, b""
            settings = RenderSettings(**request["settings"])
            picture, about = document.render(request["page"] - 1, settings)
        except OcrError as error:
            return {"error": str(error)}, b""
        except MemoryError:
            return {"error": "It takes more memory to open than is allowed; scale it down."}, b""
        except Exception as error:  # whatever a decoder trips over is said, not hidden
            reason = f"It is damaged ({type(error).__name__}: {error}); save it again."
            return {"error": reason}, b""
        return about | {"width": picture.width, "height": picture.height}, picture.tobytes()

    def _opened(self, path: str, name: str, password: str | None) -> DocumentFile:
        wanted = (path, password, *_version(path))
        if self._is != wanted or self._document is None:
            if self._document is not None:
                self._document.close()
            self._document, self._is = None, None
            self._document = open_document(Path(path), name, password)
            self._is = wanted
        return self._document


def _version(path: str) -> tuple[int, ...]:
    """What tells a file from another that comes to have its path later."""
    try:
        found = os.stat(path)
    except OSError:  # opening it will say why
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _limit_memory(more: int) -> None:
    """Let this process take at most `more` bytes of address space beyond what it has."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):  # a system that cannot be asked
        return
    most = pages * os.sysconf("SC_PAGE_SIZE") + more
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _leave_with(parent: int) -> None:
    """End when the parent has gone, also in the middle of a page that never ends."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _private_output() -> BinaryIO:
    """The pipe to the parent, out of reach of libraries that print."""
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return pipe


_GIVES_WAY = 10
"""Pages are rendered ahead, so this process takes the moments in which the model leaves a core
free, instead of a core that the model computes on."""


def main() -> None:
    """Serve requests from standard input until it ends; `memory` is the one argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    output = _private_output()
    threading.Thread(target=partial(_leave_with, os.getppid()), daemon=True).start()
    Image.init()
    _limit_memory(int(sys.argv[1]))
    if hasattr(os, "nice"):
        os.nice(_GIVES_WAY)
    handler = _RequestHandler()
    output.write(b"{}\n")
    output.flush()
    for line in sys.stdin.buffer:
        reply, pixels = handler.answer(json.loads(line))
        output.write(json.dumps(reply).encode() + b"\n")
        output.write(pixels)
        output.flush()


if __name__ == "__main__":
    main()
