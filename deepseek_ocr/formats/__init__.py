"""What each output format is made of; `deepseek_ocr.exports` is the door to all of them."""
