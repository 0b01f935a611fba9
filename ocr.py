#!/usr/bin/env python3
"""The command line of earlier releases, for one more: `deepseek-ocr read` has taken its place."""

from deepseek_ocr.cli.legacy import run_script

if __name__ == "__main__":
    raise SystemExit(run_script("ocr.py", "read"))
