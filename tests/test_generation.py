"""Guards, sampling, streaming of characters, loops."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
import torch

from deepseek_ocr.decoding import sampler
from deepseek_ocr.decoding.detokenizer import TextStream
from deepseek_ocr.decoding.loop_detector import LoopDetector, is_loop
from deepseek_ocr.decoding.ngram_guard import NgramGuard
from deepseek_ocr.decoding.sampler import Token
from deepseek_ocr.errors import GenerationError, PromptError
from deepseek_ocr.model.network import Network
from deepseek_ocr.model.prompts import Codec
from deepseek_ocr.settings import DecodeSettings
from tests.conftest import TOKENIZERS, byte_tokenizer, reference, tokenizer_called
from tests.tiny_engine import decode

END = frozenset[int]()


def ids_of(network: Network, settings: DecodeSettings, prompt: list[int]) -> list[int]:
    with torch.inference_mode():
        embeddings = network.get_input_embeddings()(torch.tensor([prompt]))
    return [token.id for token in decode(network, embeddings, prompt, settings, END)]


# --- guards -------------------------------------------------------------------------------------


def banned_by_definition(
    ids: list[int], size: int, window: int, exempt: frozenset[int]
) -> set[int]:
    """The rule of the official code, written out."""
    if len(ids) < size:
        return set()
    prefix = ids[len(ids) - size + 1 :]
    first = max(0, len(ids) - window) if window else 0
    grams = [ids[at : at + size] for at in range(first, len(ids) - size + 1)]
    return {gram[-1] for gram in grams if gram[:-1] == prefix} - exempt


@pytest.mark.parametrize(("size", "window"), [(1, 0), (2, 0), (3, 0), (3, 7), (4, 4), (2, 20)])
def test_the_guard_bans_what_the_rule_says(size: int, window: int) -> None:
    chance = random.Random(size * 100 + window)
    guard, ids, exempt = NgramGuard(size, window, frozenset({0})), [], frozenset({0})
    bans = 0
    for _ in range(400):
        expected = banned_by_definition(ids, size, window, exempt)
        assert set(guard.banned()) == expected
        bans += bool(expected)
        token = chance.randrange(4)
        ids.append(token)
        guard.extend([token])
    assert bans


def test_a_guard_of_size_nought_is_off() -> None:
    guard = NgramGuard(0)
    guard.extend([1, 1, 1, 1])
    assert guard.banned() == []


CELL = "<td></td>"

TABLES = {
    "20x20": "<table>" + ("<tr>" + CELL * 20 + "</tr>") * 20 + "</table>",
    "400x1": "<table>" + ("<tr>" + CELL + "</tr>") * 400 + "</table>",
    "1x400": "<table><tr>" + CELL * 400 + "</tr></table>",
    "50x8": "<table>" + ("<tr>" + CELL * 8 + "</tr>") * 50 + "</table>",
    "a row a line": "<table>\n" + ("<tr>" + CELL * 8 + "</tr>\n") * 50 + "</table>",
    "a cell a line": "<table>\n" + "<tr>" + CELL + "</tr>\n" * 400 + "</table>",
    "blanks in them": "<table>" + ("<tr>" + "<td> </td>" * 8 + "</tr>") * 50 + "</table>",
    "wide ones": "<table>" + '<tr><td colspan="2"></td></tr>' * 400 + "</table>",
    "noughts": "<table>" + ("<tr>" + "<td>0</td>" * 8 + "</tr>") * 50 + "</table>",
    "words": "<table>" + ("<tr>" + "<td>Yes</td>" * 8 + "</tr>") * 50 + "</table>",
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_the_default_lets_tables_of_400_equal_cells_pass(name: str, tokenizer: str) -> None:
    codec = Codec(tokenizer_called(tokenizer), 0, frozenset(), 0)
    default = DecodeSettings()
    guard = NgramGuard(
        default.no_repeat_ngram_size,
        default.no_repeat_window,
        codec.token_ids(default.exempt_tokens),
        default.exempt_ngrams,
    )
    for token in codec.encode_text(TABLES[name]):
        assert token not in guard.banned()
        guard.extend([token])
    assert not is_loop(TABLES[name])


def test_the_default_forbids_text_to_repeat_at_once() -> None:
    codec = Codec(byte_tokenizer(), 0, frozenset(), 0)
    default = DecodeSettings()
    guard = NgramGuard(default.no_repeat_ngram_size, default.no_repeat_window,
                       codec.token_ids(default.exempt_tokens), default.exempt_ngrams)  # fmt: skip
    ids = codec.encode_text("over and over again ")
    guard.extend(ids * 3)
    assert guard.banned() == [ids[0]]


# --- sampling -----------------------------------------------------------------------------------


def test_a_seed_gives_the_same_text_and_another_seed_another(tiny: Network) -> None:
    warm = {"max_new_tokens": 24, "temperature": 1.0, "no_repeat_ngram_size": 0}
    first = ids_of(tiny, DecodeSettings(**warm, seed=1), [0, 9, 9])  # type: ignore[arg-type]
    again = ids_of(tiny, DecodeSettings(**warm, seed=1), [0, 9, 9])  # type: ignore[arg-type]
    other = ids_of(tiny, DecodeSettings(**warm, seed=2), [0, 9, 9])  # type: ignore[arg-type]
    assert first == again != other


def draws(settings: DecodeSettings, logits: list[float], times: int = 400) -> Counter[int]:
    chooser = sampler.Chooser(settings, [], frozenset())
    return Counter(chooser.accept(chooser.pick(torch.tensor(logits))).id for _ in range(times))


def test_sampling_follows_the_probabilities() -> None:
    off = {"no_repeat_ngram_size": 0}
    logits = [math.log(0.6), math.log(0.3), math.log(0.1)]
    counts = draws(DecodeSettings(temperature=1.0, **off), logits, 3000)  # type: ignore[arg-type]
    assert [round(counts[i] / 3000, 1) for i in range(3)] == [0.6, 0.3, 0.1]


def test_top_k_and_top_p_cut_the_tail() -> None:
    logits = [math.log(0.6), math.log(0.3), math.log(0.1)]
    base = {"temperature": 1.0, "no_repeat_ngram_size": 0}
    assert set(draws(DecodeSettings(top_k=2, **base), logits)) == {0, 1}  # type: ignore[arg-type]
    assert set(draws(DecodeSettings(top_p=0.7, **base), logits)) == {0, 1}  # type: ignore[arg-type]
    assert set(draws(DecodeSettings(top_p=0.01, **base), logits)) == {0}  # type: ignore[arg-type]


def test_repetition_penalty_turns_to_other_tokens() -> None:
    settings = DecodeSettings(repetition_penalty=2.0, no_repeat_ngram_size=0)
    chooser = sampler.Chooser(settings, [], frozenset())
    logits = torch.tensor([2.0, 1.5, -1.0])
    assert [chooser.accept(chooser.pick(logits)).id for _ in range(3)] == [0, 1, 0]


def test_logprobs_are_of_the_raw_logits() -> None:
    settings = DecodeSettings(repetition_penalty=2.0, temperature=0.0, no_repeat_ngram_size=0)
    chooser = sampler.Chooser(settings, [], frozenset())
    logits = torch.tensor([2.0, 1.5, -1.0])
    expected = logits.log_softmax(0)
    for _ in range(3):
        token = chooser.accept(chooser.pick(logits))
        assert token.logprob == pytest.approx(expected[token.id].item(), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_an_error(bad: float, temperature: float) -> None:
    settings = DecodeSettings(temperature=temperature)
    chooser = sampler.Chooser(settings, [], frozenset())
    with pytest.raises(GenerationError, match="float32"):
        chooser.accept(chooser.pick(torch.tensor([0.0, bad])))


OFTEN_BANNED = {"no_repeat_ngram_size": 2, "no_repeat_window": 0}

MIXED: list[dict[str, Any]] = [
    {},
    OFTEN_BANNED,
    {"no_repeat_ngram_size": 1, "no_repeat_window": 0},  # soon nothing is left
    {**OFTEN_BANNED, "temperature": 0.8, "seed": 3},
    {"no_repeat_ngram_size": 0, "repetition_penalty": 1.7},
    {"no_repeat_ngram_size": 1, "no_repeat_window": 5, "exempt_ngrams": False},
    {"temperature": 1.5, "top_k": 4, "top_p": 0.8, "repetition_penalty": 1.2, "seed": 9},
]


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_pages_are_chosen_for_together_as_they_are_alone(rows: int) -> None:
    def choosers() -> list[sampler.Chooser]:
        return [
            sampler.Chooser(DecodeSettings(**settings), [3, 1, 4], frozenset({2}))
            for settings in MIXED[:rows]
        ]

    together, alone = choosers(), choosers()
    chance = torch.Generator().manual_seed(rows)
    for _ in range(30):
        logits = torch.randn(rows, 12, generator=chance) * 3
        logits[:, 5] = -math.inf
        given = logits.clone()
        tokens = sampler.choose(together, logits)
        assert torch.equal(logits, given)
        for token, chooser, row in zip(tokens, alone, logits, strict=True):
            expected = chooser.accept(chooser.pick(row))
            assert isinstance(token, Token)
            assert token.id == expected.id
            assert token.logprob == pytest.approx(expected.logprob, abs=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_an_error_of_their_own_page(bad: float) -> None:
    choosers = [sampler.Chooser(DecodeSettings(**one), [], frozenset()) for one in MIXED]
    logits = torch.arange(12.0).repeat(len(MIXED), 1)
    logits[[1, 3, 4], 7] = bad
    tokens = sampler.choose(choosers, logits)
    assert [isinstance(token, GenerationError) for token in tokens] == [
        row in (1, 3, 4) for row in range(len(MIXED))
    ]


def test_a_temperature_next_to_nothing_is_greedy() -> None:
    counts = draws(DecodeSettings(temperature=1e-40, no_repeat_ngram_size=0), [0.5, 2.0, 1.0], 20)
    assert set(counts) == {1}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_guard_that_leaves_nothing_gives_way(temperature: float) -> None:
    settings = DecodeSettings(temperature=temperature, no_repeat_ngram_size=1)
    chooser = sampler.Chooser(settings, [0, 1, 2], frozenset())
    assert chooser.accept(chooser.pick(torch.tensor([0.0, 50.0, 0.0]))).id == 1


def test_the_context_bounds_prompt_and_answer(tiny: Network) -> None:
    context = tiny.config.text_config.max_position_embeddings
    assert sampler.room(context, context - 3, 100) == 3
    with pytest.raises(PromptError, match="context"):
        sampler.room(context, context, 1)


# --- characters ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_delta_splits_a_character(name: str) -> None:
    tokenizer = tokenizer_called(name)
    text = "Größe 你好 𝔘𝔫𝔦 👩‍👩‍👧 ﷽ naïve\n<|ref|>x<|/ref|>ꙮ\u0301𐍈"
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) for token in tokenizer.encode(text, add_special_tokens=False).ids]
    assert "".join(pieces) == text == stream.text
    assert not any("\ufffd" in piece for piece in pieces)
    assert "" in pieces  # some characters take several tokens
    assert stream.flush() == ""


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_character_cut_off_at_the_end_is_not_lost_in_silence(name: str) -> None:
    tokenizer = tokenizer_called(name)
    ids = tokenizer.encode("a𐍈", add_special_tokens=False).ids
    stream = TextStream(tokenizer)
    for token in ids[:-1]:
        stream.add(token)
    assert stream.text == "a"
    assert set(stream.flush()) == {"\ufffd"}


# --- loops --------------------------------------------------------------------------------------

REAL = ("commons_example_receipt", "commons_test_ocr_document", "german_official_print",
        "receipt_historical", "simple_form")  # fmt: skip


@pytest.mark.parametrize("page", REAL)
@pytest.mark.parametrize("task", ["free_ocr", "grounding_markdown"])
def test_the_real_loop_is_found_and_the_real_pages_are_not(page: str, task: str) -> None:
    text = reference("real", f"{page}.{task}.txt").read_text()
    assert is_loop(text) == ((page, task) == ("simple_form", "grounding_markdown"))


def first_found(text: str, step: int) -> int | None:
    detector = LoopDetector()
    for at in range(0, len(text), step):
        if detector.feed(text[at : at + step]):
            return at + step
    return None


def block(letter: str, x: int) -> str:
    return f"<|ref|>text<|/ref|><|det|>[[{x}, 844, 20, 860]]<|/det|>\n{letter}\n\n"


LOOPS = {
    "reversed boxes in a row": "".join(block("FRE"[n % 3], 20 + n) for n in range(90)),
    "a word": "the " * 400,
    "a line": "Total amount due: 12.50\n" * 60,
    "counting": "".join(f"{number}. item\n" for number in range(300)),
    "blocks that move": "".join(block("FRE"[n % 3], n) for n in range(150)),
    "empty cells without end": "<table>" + "<tr><td></td><td></td></tr>" * 2000,
    "equal rows without end": "<table>" + "<tr><td>Yes</td><td>No</td></tr>" * 900,
    "a paragraph": "".join(f"word{chr(97 + n % 26)}{chr(97 + n // 26)} " for n in range(100)) * 20,
    "half a page": "".join(f"w{chr(97 + n % 26)}{chr(97 + n // 26)} " for n in range(300)) * 12,
    "a whole page": "".join(f"w{chr(97 + n % 26)}{chr(97 + n // 26)} " for n in range(600)) * 8,
    "a footer": "Page three | Company Confidential, not for circulation outside.\n" * 60,
    "a formula": r"\left| x_n - y \right| + " * 200,
    "rows of sentences": "<tr><td>goods sent back to us</td><td>paid in full by them</td></tr>"
    * 700,
    "rows of numbered words": "".join(
        f"<tr><td>Item number {n}</td><td>{n}.00 EUR</td></tr>" for n in range(700)
    ),
    "dots": "." * 20_000,
    "numbers": " ".join(str(number) for number in range(8000)),
    "Chinese": "你好世界" * 500,
    "no spaces": "haha" * 3000,
    "boxes without end": "<|ref|>a<|/ref|><|det|>[" + "[1, 2, 3, 4], " * 2000,
}

HONEST = {
    "nothing": "",
    "address labels": "Acme Ltd\n12 High Street\nLondon\n\n" * 18,
    "a form": "".join(f"Question {n}\n[ ] yes [ ] no [ ] don't know\n" for n in range(30)),
    "numbers in cells": "<table>" + ("<tr>" + "<td>12</td>" * 20 + "</tr>") * 40 + "</table>",
    "equal cells": "<table>" + ("<tr>" + "<td>Yes</td>" * 10 + "</tr>") * 25 + "</table>",
    "many equal cells": "<table>" + ("<tr>" + "<td>Yes</td>" * 10 + "</tr>") * 55 + "</table>",
    "many equal sums": "<table>" + ("<tr>" + "<td>0.00</td>" * 10 + "</tr>") * 60 + "</table>",
    "many noughts": "<table>" + ("<tr>" + "<td>0</td>" * 15 + "</tr>") * 80 + "</table>",
    "a register": "".join(f"{n}. Seite\n" for n in range(150)),
    "three copies": "".join(f"w{chr(97 + n % 26)}{chr(97 + n // 26)} " for n in range(300)) * 3,
    "an empty Markdown table": ("|" + "   |" * 10 + "\n") * 40,
    "a dotted line": "Introduction " + "." * 900 + " 7\n",
    "a contents page": "".join(f"Chapter {n} {'.' * 60} {n * 7}\n" for n in range(60)),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_are_found_however_the_text_arrives(name: str) -> None:
    before = "A page may begin as honestly as this one does, and then go wrong.\n"
    text = before + LOOPS[name]
    for step in (1, 7, 256):
        found = first_found(text, step)
        assert found is not None
        assert found < len(text)


@pytest.mark.parametrize("name", HONEST)
def test_honest_repetition_is_left_alone(name: str) -> None:
    assert not is_loop(HONEST[name])
    assert first_found(HONEST[name], 3) is None
