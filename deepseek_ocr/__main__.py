"""`python -m deepseek_ocr` is the command `deepseek-ocr`."""

from deepseek_ocr.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
