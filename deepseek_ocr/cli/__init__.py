"""The command line: `deepseek-ocr`, one module for each sub-command."""
