"""Data, training, synthetic pages and evaluation. See `deepseek_ocr/training/README.md`."""
