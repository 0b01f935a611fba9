"""`deepseek-ocr weights` as a process, with the sources of a test and, if asked, a sudden death.

    python -m tests.weights_process PORTS DIE_AT ARGUMENTS...

PORTS is the JSON of `World.ports`. Every change to files is an event; before event DIE_AT the
process kills itself as `kill -9` does. With DIE_AT 0 it lives, and the last line on standard error
is the number of events. The rest is what follows `deepseek-ocr weights`.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from deepseek_ocr.cli.main import main
from deepseek_ocr.weights import registry
from tests.weights_world import table

_CHANGES = {"os.mkdir", "os.rename", "os.rmdir", "os.remove", "os.link", "subprocess.Popen"}
_WRITING = os.O_WRONLY | os.O_RDWR


def run() -> int:
    ports, die_at, arguments = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    events = 0

    def count(event: str, details: tuple[object, ...]) -> None:
        nonlocal events
        opened = event == "open" and isinstance(details[2], int) and details[2] & _WRITING
        if event in _CHANGES or opened:
            events += 1
            if events == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.dont_write_bytecode = True
    sys.addaudithook(count)
    registry.CHECKPOINTS = table(ports)
    status = main(["weights", *arguments])
    sys.stderr.write(f"{events}\n")
    return status


if __name__ == "__main__":
    sys.exit(run())
