"""Token by token: prefill, choose, step. Free functions over the library's network and cache.

`decode` reads one page alone, the plain way; many pages at once go through `choose`.

The loop guard on text lives in `loops.py` and is offered here as `LoopDetector` and `is_loop`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers.cache_utils import Cache, DynamicCache

from deepseek_ocr.decoding.loop_detector import LoopDetector, is_loop
from deepseek_ocr.errors import GenerationError, PromptError
from deepseek_ocr.model.network import Network, next_token_logits
from deepseek_ocr.settings import DecodeSettings

__all__ = [
    "Chooser",
    "LoopDetector",
    "NgramGuard",
    "Prefilled",
    "TextStream",
    "Token",
    "choose",
    "decode",
    "is_loop",
    "prefill",
    "room",
]


@dataclass(frozen=True)
class Token:
    """One decoded token and its natural log-probability under the raw logits."""

    id: int
    logprob: float


@dataclass(frozen=True)
class Prefilled:
    """A prompt that the decoder has read: its cache and the logits `[V]` of the next token."""

    cache: Cache
    logits: torch.Tensor


def room(context: int, prompt_tokens: int, wanted: int) -> int:
    """How many of the `wanted` new tokens fit into a context of so many tokens behind a prompt.

    Raises `PromptError` where the prompt alone fills it.
    """
    if prompt_tokens >= context:
        raise PromptError(
            f"The prompt has {prompt_tokens} tokens and the model's context {context}; "
            "shorten the prompt or choose a smaller preset."
        )
    return min(wanted, context - prompt_tokens)


@torch.inference_mode()
def prefill(network: Network, embeddings: torch.Tensor) -> Prefilled:
    """Run the decoder over a prompt's embeddings `[1, L, H]`."""
    cache = DynamicCache(config=network.config.text_config)
    return Prefilled(cache, next_token_logits(network, embeddings, cache))


@torch.inference_mode()
def decode(
    network: Network,
    prefilled: Prefilled,
    prompt_ids: list[int],
    settings: DecodeSettings,
    end_ids: frozenset[int],
    exempt_ids: frozenset[int] = frozenset(),
) -> Iterator[Token]:
    """Tokens one at a time, the end token included, until it comes or there is no more room.

    Each step is a plain Python step, so closing the iterator stops at once. `prompt_ids` is what
    the whole-sequence guard looks back on. Raises `GenerationError` where the logits are not
    finite.
    """
    chooser = Chooser(settings, prompt_ids, exempt_ids)
    embed = network.get_input_embeddings()
    logits = prefilled.logits
    context = network.config.text_config.max_position_embeddings
    most = room(context, len(prompt_ids), settings.max_new_tokens)
    for count in range(1, most + 1):
        token = chooser.choose(logits)
        yield token
        if token.id in end_ids or count == most:
            return
        step = torch.tensor([[token.id]], device=embed.weight.device)
        logits = next_token_logits(network, embed(step), prefilled.cache)


@torch.inference_mode()
def choose(choosers: Sequence[Chooser], logits: torch.Tensor) -> list[Token | Exception]:
    """The next token of every page, from the rows of `logits` `[n, V]`, or why there is none.

    Pages that take the likeliest token are chosen for together, with one transfer from the device
    for all of them; the others one after the other. The logits are left as they are.
    """
    plain = [row for row, chooser in enumerate(choosers) if chooser.is_plain]
    together = logits if len(plain) == len(choosers) else logits[plain]
    found = dict(zip(plain, _likeliest([choosers[row] for row in plain], together), strict=True))
    tokens: list[Token | Exception] = []
    for row, chooser in enumerate(choosers):
        try:
            token = found[row] if row in found else chooser.pick(logits[row])
            tokens.append(chooser.accept(token))
        except Exception as error:  # of one page; the others must not suffer from it
            tokens.append(error)
    return tokens


def _likeliest(choosers: Sequence[Chooser], logits: torch.Tensor) -> list[Token]:
    """The likeliest token of every row that its page's guard allows."""
    if not choosers:
        return []
    chosen = logits.argmax(-1)
    banned = [(row, token) for row, chooser in enumerate(choosers) for token in chooser.banned()]
    if banned:
        rows, ids = torch.tensor(banned, device=logits.device).unbind(-1)
        scores = logits.clone()
        scores[rows, ids] = -math.inf
        best = scores.max(-1)
        # The guard gives way where it leaves nothing.
        chosen = torch.where(best.values.isneginf(), chosen, best.indices)
    logprobs = logits.gather(-1, chosen[:, None])[:, 0] - logits.logsumexp(-1)
    # One transfer for both numbers; ids are below 2**24 and so exact in float32.
    values = torch.stack([chosen.float(), logprobs]).tolist()
    return [Token(int(id_), logprob) for id_, logprob in zip(*values, strict=True)]


class Chooser:
    """Picks the next token of one page from logits under the guards and the sampling settings."""

    def __init__(
        self, settings: DecodeSettings, prompt_ids: list[int], exempt_ids: frozenset[int]
    ) -> None:
        self._settings = settings
        self._guard = NgramGuard(
            settings.no_repeat_ngram_size,
            settings.no_repeat_window,
            exempt_ids,
            settings.exempt_ngrams,
        )
        self._guard.extend(prompt_ids)
        self._written: dict[int, None] = {}
        # Draws come from the CPU's generator, so that a seed means the same on every device.
        self._random = torch.Generator().manual_seed(settings.seed)

    @property
    def is_plain(self) -> bool:
        """True where the likeliest token that is not banned is taken."""
        return self._settings.temperature == 0 and self._settings.repetition_penalty == 1

    def banned(self) -> list[int]:
        """Ids that must not come next."""
        return self._guard.banned()

    def choose(self, logits: torch.Tensor) -> Token:
        """The next token from its logits `[V]`. Raises `GenerationError` where these are not
        finite."""
        return self.accept(self.pick(logits))

    def pick(self, logits: torch.Tensor) -> Token:
        """What `choose` returns, not yet taken for written nor looked at."""
        total = logits.logsumexp(0)
        scores = self._adjusted(logits)
        if self._settings.temperature > 0:
            chosen = self._sample(scores).to(logits.device)
        else:
            chosen = scores.argmax()
        logprob = logits[chosen] - total
        # One transfer for both numbers; ids are below 2**24 and so exact in float32.
        values = torch.stack([chosen.float(), logprob]).tolist()
        return Token(int(values[0]), values[1])

    def accept(self, token: Token) -> Token:
        """`token`, from now on one of those that were written.

        Raises `GenerationError` where its log-probability is not finite.
        """
        if not math.isfinite(token.logprob):
            raise GenerationError(
                "The network's output is not a finite number; try float32 (or bfloat16 instead of "
                "float16) as the dtype, and check the weights."
            )
        self._guard.extend([token.id])
        self._written[token.id] = None
        return token

    def _adjusted(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits after the repetition penalty and the n-gram guard; the argument is kept."""
        banned = self._guard.banned()
        penalty = self._settings.repetition_penalty
        if not banned and (penalty == 1 or not self._written):
            return logits
        scores = logits.clone()
        if penalty != 1 and self._written:
            written = torch.tensor(list(self._written), device=logits.device)
            values = scores[written]
            scores[written] = torch.where(values > 0, values / penalty, values * penalty)
        if banned:
            scores[torch.tensor(banned, device=logits.device)] = -math.inf
            if bool(scores.isneginf().all()):  # the guard gives way where it leaves nothing
                return logits
        return scores

    def _sample(self, scores: torch.Tensor) -> torch.Tensor:
        """Draw from the softmax of `scores` after temperature, top-k, then top-p."""
        settings = self._settings
        scores = scores.cpu()
        if not bool(torch.isfinite(scores.max())):
            return scores.argmax()  # `accept` refuses such logits
        ordered, ids = ((scores - scores.max()) / settings.temperature).sort(descending=True)
        if settings.top_k:
            ordered = ordered[: settings.top_k]
        shares = ordered.softmax(0)
        if settings.top_p < 1:
            # The most likely token stays whatever top_p is.
            shares[1:][shares.cumsum(0)[:-1] >= settings.top_p] = 0
        return ids[torch.multinomial(shares, 1, generator=self._random)[0]]


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
