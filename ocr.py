#!/usr/bin/env python3
"""Read pages from the command line: `python ocr.py page.jpg`. The work is in `cli/`."""

import signal

if __name__ == "__main__":
    # Until pages are read there is nothing to keep, and imports do not take interruptions well.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    from deepseek_ocr.cli.read import main

    status = main()
    # All is written. Threads are waited for until they end what they are at; a second interruption
    # does not wait.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise SystemExit(status)
