"""Logs as JSON, a line an event, on standard error. No text of a document is ever logged."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from typing import Any

LOGGER = logging.getLogger("deepseek_ocr.serving")


class _Json(logging.Formatter):
    """One JSON object a line; what a call gives as `extra={"fields": {…}}` stands beside it.

    Of an exception the type and the places in the code are kept, not its message, which may quote
    what was sent.
    """

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{when}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line["error"] = type(error).__name__
            line["at"] = [
                f"{frame.filename}:{frame.lineno} {frame.name}"
                for frame in traceback.extract_tb(error.__traceback__)
            ]
        return json.dumps(line, default=str)


def set_up(level: str = "INFO") -> None:
    """Send our log and uvicorn's to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json())
    for name in ("deepseek_ocr", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level)
    logging.getLogger("uvicorn.access").disabled = True  # ours says more, and less


def event(message: str, **fields: object) -> None:
    """Log that something happened."""
    LOGGER.info(message, extra={"fields": fields})


def failure(message: str, error: BaseException, **fields: object) -> None:
    """Log something that should not have happened, with where in the code it did."""
    LOGGER.error(message, exc_info=error, extra={"fields": fields})
