#!/usr/bin/env python3
"""Serve pages over HTTP: `python serve.py`. The work is in `serving/`."""

if __name__ == "__main__":
    from serving.arguments import parse

    start = parse()
    from serving.main import main  # imports torch: seconds

    raise SystemExit(main(start))
