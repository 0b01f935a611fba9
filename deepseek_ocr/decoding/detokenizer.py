"""Token ids into text as they come, never splitting a character."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class TextStream:
    """Turns ids into text as they come; a character made of several tokens appears whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=False)
        self._ids: list[int] = []
        self.text = ""

    def add(self, token_id: int) -> str:
        """Text that `token_id` completes; empty in the middle of a character."""
        self._ids.append(token_id)
        piece = self._stream.step(self._tokenizer, token_id) or ""
        self.text += piece
        return piece

    def flush(self) -> str:
        """What is left when no more tokens come: a broken character, as U+FFFD."""
        whole = self._tokenizer.decode(self._ids, skip_special_tokens=False)
        rest = whole[len(self.text) :] if whole.startswith(self.text) else ""
        self.text += rest
        return rest
