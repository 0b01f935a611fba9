"""What each output format is made of; `deepseek_ocr.formats.export` is the door to all of them."""
