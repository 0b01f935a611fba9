"""Fast paths tried against the plain class when a network is loaded, on every device but the CPU.

The tests hold every path against the class on a CPU; what a card, its driver and this version of
torch make of it shows only there. A path that raises or disagrees gives way to the next one, and
the log says so in a line. Running out of memory is raised, not judged.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from deepseek_ocr.decoding.decoder import Decoder, PlainDecoder
from deepseek_ocr.devices import memory
from deepseek_ocr.devices import selection as devices
from deepseek_ocr.errors import DeviceError
from deepseek_ocr.images.views import Views
from deepseek_ocr.kernels import op_fallbacks, vision
from deepseek_ocr.kernels import slot_decoder as decoder
from deepseek_ocr.kernels.slot_decoder import DecodePath, SlotDecoder
from deepseek_ocr.model import network as model
from deepseek_ocr.model.experts import way_for
from deepseek_ocr.model.network import Network

_LOG = logging.getLogger(__name__)

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}
"""Relative difference from the class up to which a path agrees with it: of the median over the
steps of a slot, and of a number of rows, since a rounding can tip the choice of an expert."""

GROSS = 0.5
"""Relative difference that no single row may have: a tipped expert changes less."""

LENGTHS = (19, 3, 600, 1, 7, 40, 2, 30, 5)
"""Tokens of the prompts in the slots; one is beyond the first span of a graph."""

SHORTER = 5
"""Tokens of the prompt that takes the place of the longest one."""

CONTEXT = 640
"""Tokens that a slot holds."""

EVERY = tuple(range(len(LENGTHS)))
SOME, FOUR, TWO, ONE = tuple(range(4, 8)), (0, 1, 2, 3), (0, 1), (0,)
STEPS = (
    EVERY, EVERY, ONE, TWO, SOME, FOUR, ONE, (1, 3),
    TWO, ONE, SOME, (1, 0), ONE, FOUR, ONE, EVERY,
)  # fmt: skip
"""Slots of each step; the others are idle."""

VIEWS = ((1024, 640), (640, 0), (512, 0))
"""Sides of the global view and of two tiles (0: none) that go through the encoders, px; the next
ones if the plain class runs out of memory."""


@dataclass(frozen=True)
class PathSelection:
    """What a network is run by.

    - `vision`: the attention of the encoders; `attention`: of the decoder, for prompts
    - `paths`: of decoding, the fastest first; the plain class comes behind them
    - `difference`: the largest from the plain class, None if nothing was tried
    """

    vision: str
    attention: str
    paths: tuple[DecodePath, ...]
    difference: float | None = None


@dataclass(frozen=True)
class RehearsalOutcome:
    """By what a loaded network is run, in words; `difference` is that of `PathSelection`."""

    device: str
    dtype: str
    decoder: str
    experts: str
    attention: str
    vision: str
    slots: int
    difference: float | None

    def __str__(self) -> str:
        pages = f"{self.slots} page{'s' if self.slots > 1 else ''} at once"
        line = (
            f"{self.device} in {self.dtype}: decoding by {self.decoder}, {pages}, experts "
            f"{self.experts}, prompts by {self.attention}, encoders {self.vision}"
        )
        if self.difference is None:
            return line
        return f"{line}; within {self.difference:.1g} of the plain class"


def outcome_of(
    network: Network, selection: PathSelection, path: DecodePath | None, slots: int
) -> RehearsalOutcome:
    """What `network` is run by, with decoders of `slots` slots by `path`."""
    if path is None:
        way = "of the class"
    elif path is decoder.NATIVE:
        way = "in it too"
    else:
        way = way_for(network.device, slots).__name__
    return RehearsalOutcome(
        device=str(network.device),
        dtype=str(network.dtype).removeprefix("torch."),
        decoder="the plain class" if path is None else path.name,
        experts=way,
        attention=selection.attention,
        vision=selection.vision,
        slots=slots,
        difference=selection.difference,
    )


@dataclass(frozen=True)
class OutputRow:
    """What was computed for `slot`, with the slots before it and others, `rows` in all (0: a
    prompt): `values [V]` (float32, on the CPU)."""

    slot: int
    rows: int
    values: torch.Tensor


Run = Callable[[], list[OutputRow]]
"""What a path, or the plain class, computes."""


def prepare(network: Network, chosen: frozenset[str]) -> PathSelection:
    """Put stand-ins for operators that its devices lack into a loaded network, and those of the
    fast paths `chosen` that work there; which they are. `DecoderFactory` takes their `paths`.

    Raises `DeviceError` if the device cannot run the plain class, or fails for good, and what a
    device without memory raises.
    """
    op_fallbacks.fit(network, "unfold" in chosen)
    encoders, far = _select_vision(network, chosen)
    paths = decoder.paths_for(network, chosen)
    if network.device.type == "cpu":
        return PathSelection(encoders, "sdpa", paths, far)
    attentions = devices.prompt_attention(network.device, network.dtype)
    attentions = attentions if "flash" in chosen else attentions[-1:]
    attention, paths, farther = select_decoder(network, attentions, paths)
    memory.give_back(network.device)
    return PathSelection(encoders, attention, paths, _larger(far, farther))


# --- encoders ------------------------------------------------------------------------------------


def _select_vision(network: Network, chosen: frozenset[str]) -> tuple[str, float | None]:
    weight = network.model.vision_tower.sam_encoder.patch_embed.projection.weight
    if "vision" not in chosen:
        return "plain", None
    if weight.device.type == "cpu":
        vision.prepare(network, chosen)
        return "fast", None
    return select_vision(network, chosen)


def select_vision(network: Network, chosen: frozenset[str]) -> tuple[str, float | None]:
    """Which attention the encoders have afterwards, "folded" or "plain", and its difference from
    the class. Raises what `prepare` raises."""
    weight = network.model.vision_tower.sam_encoder.patch_embed.projection.weight

    def encode(views: Views) -> list[OutputRow]:
        return [OutputRow(0, 1, model.vision_tokens(network, views).flatten().float().cpu())]

    with devices.current(weight.device):
        views, expected = _largest(weight.device, encode)
        vision.prepare(network, chosen)
        folded = {"the folded attention of the encoders": partial(encode, views)}
        at, far = first_right(folded, expected, weight)
    if at is None:
        vision.remove_attention(network)
        return "plain", None
    return "folded", far


def _largest(
    device: torch.device, encode: Callable[[Views], list[OutputRow]]
) -> tuple[Views, list[OutputRow]]:
    """The first of `VIEWS` for which there is memory, and what the plain class makes of it."""
    for sides in VIEWS:
        views = views_of(*sides)
        try:
            return views, _by_class(device, partial(encode, views))
        except Exception as error:
            if not memory.is_out_of_memory(error) or sides == VIEWS[-1]:
                raise
        memory.give_back(device)
    raise AssertionError("there are views")


def views_of(side: int, tile: int = 0) -> Views:
    """A global view `[3, side, side]`, and two tiles unless their side is 0; no equal cells."""
    if not tile:
        return Views(_picture(side), torch.empty(0, 3, side, side), (1, 1))
    return Views(_picture(side), torch.stack([_picture(tile), -_picture(tile)]), (2, 1))


def _picture(side: int) -> torch.Tensor:
    across = torch.linspace(-1, 1, side).expand(side, side)
    return torch.stack([across, across.T, across * across.T])


# --- decoder -------------------------------------------------------------------------------------


def select_decoder(
    network: Network, attentions: Sequence[str], paths: tuple[DecodePath, ...]
) -> tuple[str, tuple[DecodePath, ...], float | None]:
    """The first of `attentions` that is right for prompts ("eager" if none is), those of `paths`
    from the first on that is right, and their difference from the class; None if nothing is right,
    or the class itself computes nothing finite, with which nothing can be compared.

    Raises what `prepare` raises.
    """
    weight = network.get_input_embeddings().weight
    text = network.model.language_model

    def by_class(attention: str) -> list[OutputRow]:
        text.set_attn_implementation(attention)
        return play(PlainDecoder(network, len(LENGTHS)), network)

    def decode(path: DecodePath) -> list[OutputRow]:
        return play(SlotDecoder(network, len(LENGTHS), CONTEXT, path), network)

    with devices.current(weight.device):
        expected = _reference(weight.device, by_class)
        if not any(map(_is_finite, expected)):
            _LOG.warning(
                "%s: fast paths cannot be compared: the plain class overflows in %s",
                weight.device, weight.dtype,
            )  # fmt: skip
            text.set_attn_implementation(attentions[-1])
            return attentions[-1], paths, None
        ways = {name: partial(by_class, name) for name in attentions}
        at, far = first_right(ways, expected, weight)
        attention = "eager" if at is None else attentions[at]
        text.set_attn_implementation(attention)
        ways = {path.name: partial(decode, path) for path in paths}
        at, farther = first_right(ways, expected, weight)
    return attention, () if at is None else paths[at:], _larger(far, farther)


def _reference(device: torch.device, by_class: Callable[[str], list[OutputRow]]) -> list[OutputRow]:
    """What the plain class computes in torch's simplest operations; in its own, if a device lacks
    one of those, or if they overflow, which float16 does in them sooner."""
    try:
        rows = by_class("eager")
        if any(map(_is_finite, rows)):
            return rows
    except Exception as error:
        if memory.is_out_of_memory(error):
            raise
    return _by_class(device, partial(by_class, "sdpa"))


def play(one: Decoder, network: Network) -> list[OutputRow]:
    """Prompts into all slots, then `STEPS`, with a shorter prompt in the longest slot in between;
    each step has ids of its own. Rows of a prompt have `rows` 0."""
    table, numbers = network.get_input_embeddings(), torch.Generator().manual_seed(0)
    found: list[OutputRow] = []

    def ids(count: int) -> torch.Tensor:
        return torch.randint(table.weight.shape[0], (count,), generator=numbers)

    def prefill(slot: int, length: int) -> None:
        embeddings = table(ids(length).to(table.weight.device))[None]
        found.append(OutputRow(slot, 0, one.prefill(slot, embeddings).to("cpu", copy=True)))

    for slot, length in enumerate(LENGTHS):
        prefill(slot, length)
    for at, slots in enumerate(STEPS):
        if at == len(STEPS) // 2:
            longest = LENGTHS.index(max(LENGTHS))
            one.free(longest)
            prefill(longest, SHORTER)
        logits = one.step(slots, ids(len(slots)).tolist()).to("cpu", copy=True)
        rows = max(slots) + 1
        found += [OutputRow(slot, rows, row) for slot, row in zip(slots, logits, strict=True)]
    for slot in EVERY:
        one.free(slot)
    return found


# --- comparing -----------------------------------------------------------------------------------


def first_right(
    candidates: Mapping[str, Run], expected: Sequence[OutputRow], weight: torch.Tensor
) -> tuple[int | None, float | None]:
    """Number of the first of `candidates` (by their names for people) that agrees with `expected`,
    and its difference; None twice if none does. `weight` has the device and the type. Raises
    `DeviceError` if the device fails for good, and what a device without memory raises."""
    for at, (name, run) in enumerate(candidates.items()):
        try:
            far, where = difference(run(), expected)
        except Exception as error:
            if memory.is_out_of_memory(error):
                raise
            give_up(weight.device, name, reason(error))
            continue
        if not disagreement(far, weight.dtype):
            return at, far
        give_up(weight.device, name, f"differs by {far:.2g} from the plain class ({where})")
    return None, None


def disagreement(far: float, dtype: torch.dtype) -> bool:
    """Whether a difference is more than roundings in `dtype` make."""
    return not far <= TOLERANCES[dtype]


def difference(rows: Sequence[OutputRow], expected: Sequence[OutputRow]) -> tuple[float, str]:
    """The largest median of the relative differences within a slot and a number of rows, and which
    that is; the largest of all differences if that is gross. Rows in which the class itself
    overflows are left out; 0 if none is left."""
    groups: dict[str, list[float]] = defaultdict(list)
    for row, right in zip(rows, expected, strict=True):
        if _is_finite(right):
            far = float((row.values - right.values).norm() / right.values.norm())
            far = far if math.isfinite(far) else math.inf
            groups[f"slot {row.slot}"].append(far)
            groups[f"{row.rows} rows" if row.rows else "prompts"].append(far)
    if not groups:
        return 0.0, "nothing to compare"
    gross = max(((max(group), f"once in {name}") for name, group in groups.items()))
    if gross[0] > GROSS:
        return gross
    return max((statistics.median(group), name) for name, group in groups.items())


def _is_finite(row: OutputRow) -> bool:
    return bool(torch.isfinite(row.values).all())


def _larger(one: float | None, other: float | None) -> float | None:
    return max((value for value in (one, other) if value is not None), default=None)


def _by_class(device: torch.device, run: Run) -> list[OutputRow]:
    """What the plain class computes. Raises `DeviceError` if it cannot."""
    try:
        return run()
    except Exception as error:
        if memory.is_out_of_memory(error):
            raise
        raise DeviceError(
            f"{device} cannot run this model ({reason(error)}); update its driver and torch, or "
            "use another device or type."
        ) from error


def give_up(device: torch.device, name: str, why: str) -> None:
    """Say that the path `name` is not used. Raises `DeviceError` if the device failed for good."""
    if (failure := devices.failure(device)) is not None:
        raise DeviceError(f"{failure} It failed when {name} was tried; leave it out then.")
    _LOG.warning("%s: going on without %s, more slowly: %s", device, name, why)


def reason(error: BaseException) -> str:
    """Kind and first line of an error; torch's texts go on for long."""
    first, _, _ = str(error).partition("\n")
    return f"{type(error).__name__}: {first}"
