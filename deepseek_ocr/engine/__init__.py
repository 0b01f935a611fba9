"""Pages in, readings out, several at once; `ocr_engine` is what programs use."""
