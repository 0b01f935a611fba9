"""The command line of `ocr.py`."""
