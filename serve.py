#!/usr/bin/env python3
"""Serve pages over HTTP: `python serve.py`. The work is in `serving/`."""

if __name__ == "__main__":
    from serving.main import main

    raise SystemExit(main())
