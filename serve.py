#!/usr/bin/env python3
"""Serve pages over HTTP: `python serve.py`. The work is in `serving/`."""

if __name__ == "__main__":
    from deepseek_ocr.cli.serve import parse

    start = parse()
    from deepseek_ocr.server.lifecycle import main  # imports torch: seconds

    raise SystemExit(main(start))
