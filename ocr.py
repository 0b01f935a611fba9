#!/usr/bin/env python3
"""Read pages from the command line: `python ocr.py page.jpg`. The work is in `cli/`."""

from cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
