"""Logs as JSON, a line an event, on standard error. No text of a document is ever logged."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import traceback
from typing import Any

LOGGER = logging.getLogger("deepseek_ocr.serving")

_CAREFUL = ("deepseek_ocr", "uvicorn")
"""Loggers that do not quote an exception they tell of."""


class _Json(logging.Formatter):
    """One JSON object a line; what a call gives as `extra={"fields": {…}}` stands beside it.

    Of an exception the type and the places in the code are kept, not its message, which may quote
    what was sent; nor what libraries say of one, in which that message stands again.
    """

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        error = record.exc_info[1] if record.exc_info else None
        careful = record.name.split(".")[0] in _CAREFUL
        line: dict[str, Any] = {
            "time": f"{when}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage() if careful or error is None else "an error was reported",
            **({} if careful else {"logger": record.name}),
            **getattr(record, "fields", {}),
        }
        if error is not None:
            line["error"] = type(error).__name__
            line["at"] = [
                f"{frame.filename}:{frame.lineno} {frame.name}"
                for frame in traceback.extract_tb(error.__traceback__)
            ]
        return json.dumps(line, default=str)


def set_up() -> None:
    """Send our log and uvicorn's, and what everything else warns of, to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json())
    for name in list(logging.root.manager.loggerDict):
        logger = logging.getLogger(name)
        for own in list(logger.handlers):  # what a library writes to the terminal by itself
            if getattr(own, "stream", None) in (sys.stdout, sys.stderr):
                logger.removeHandler(own)
                logger.propagate = True
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    threading.excepthook = _thread_failed
    for name in _CAREFUL:
        logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger("uvicorn.access").disabled = True  # ours says more, and less


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_value is not None:
        failure("a thread failed", failed.exc_value)


def event(message: str, **fields: object) -> None:
    """Log that something happened."""
    LOGGER.info(message, extra={"fields": fields})


def failure(message: str, error: BaseException, **fields: object) -> None:
    """Log something that should not have happened, with where in the code it did."""
    LOGGER.error(message, exc_info=error, extra={"fields": fields})
