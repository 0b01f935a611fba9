"""The next token of every page, chosen from logits under the n-gram guard and the sampling
settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deepseek_ocr.decoding.ngram_guard import NgramGuard
from deepseek_ocr.errors import GenerationError, PromptError
from deepseek_ocr.settings import DecodeSettings


@dataclass(frozen=True)
class Token:
    """One decoded token and its natural log-probability under the raw logits."""

    id: int
    logprob: float


def room(context: int, prompt_tokens: int, wanted: int) -> int:
    """How many of the `wanted` new tokens fit into a context of so many tokens behind a prompt.
    Raises `PromptError` where the prompt alone fills it."""
    if prompt_tokens >= context:
        raise PromptError(
            f"The prompt has {prompt_tokens} tokens and the model's context {context}; "
            "shorten the prompt or choose a smaller preset."
        )
    return min(wanted, context - prompt_tokens)


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

    def pick(self, logits: torch.Tensor) -> Token:
        """The next token from its logits `[V]`; `accept` checks it and takes it for written."""
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
        """`token`, from now on one of those that were written. Raises `GenerationError` where its
        log-probability is not finite."""
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
