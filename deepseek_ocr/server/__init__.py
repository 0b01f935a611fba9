"""The server: an OpenAI-compatible API over the engine. `deepseek-ocr serve` starts it."""
