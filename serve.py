#!/usr/bin/env python3
"""The server of earlier releases, for one more: `deepseek-ocr serve` has taken its place."""

from deepseek_ocr.cli.legacy import run_script

if __name__ == "__main__":
    raise SystemExit(run_script("serve.py", "serve"))
