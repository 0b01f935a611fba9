"""The guard against repetition: sequences of tokens that must not come twice."""

from __future__ import annotations


class NgramGuard:
    """Forbids tokens that would complete an n-gram already written.

    `size` is the n-gram's length (0 is off); `window` is how many tokens back the first token of
    the earlier n-gram may lie (0 is the whole sequence); `exempt` ids are never forbidden, and
    with `exempt_ngrams` an n-gram that holds one forbids nothing. Each token costs a dictionary
    look-up, however long the sequence.
    """

    def __init__(
        self,
        size: int,
        window: int = 0,
        exempt: frozenset[int] = frozenset(),
        exempt_ngrams: bool = False,
    ) -> None:
        self._size, self._window, self._exempt = size, window, exempt
        self._exempt_ngrams = exempt_ngrams
        self._last_exempt = -1
        self._ids: list[int] = []
        # First size-1 tokens of an n-gram → its last token → where it last began.
        self._followers: dict[tuple[int, ...], dict[int, int]] = {}

    def extend(self, ids: list[int]) -> None:
        """Add tokens of the prompt or of the text."""
        if not self._size:
            return
        for token in ids:
            self._ids.append(token)
            if token in self._exempt:
                self._last_exempt = len(self._ids) - 1
            start = len(self._ids) - self._size
            spared = self._exempt_ngrams and self._last_exempt >= start
            if start >= 0 and not spared:
                prefix = tuple(self._ids[start:-1])
                self._followers.setdefault(prefix, {})[token] = start

    def banned(self) -> list[int]:
        """Ids that must not come next."""
        if not self._size or len(self._ids) < self._size:
            return []
        prefix = tuple(self._ids[len(self._ids) - self._size + 1 :])
        earliest = len(self._ids) - self._window if self._window else 0
        return [
            token
            for token, start in self._followers.get(prefix, {}).items()
            if start >= earliest and token not in self._exempt
        ]
