"""What a full-size network of random weights costs on a device: starting, decoding, whole pages,
vision and prompts, memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial

import torch
from PIL import Image

from benchmarks import decode_speed, machine, page_stages, random_checkpoint
from benchmarks.command import EXAMPLES
from benchmarks.decode_speed import DecodeTask, Limits
from benchmarks.page_stages import NetworkPair, StageTime, prompt_length, prompt_of, views_of
from benchmarks.part_rows import Figures, ReportRows
from benchmarks.part_runner import ReportSettings
from benchmarks.timing import in_turn, medians
from deepseek_ocr import presets
from deepseek_ocr.decoding.decoder import Decoder, PlainDecoder
from deepseek_ocr.devices import memory, selection
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.engine.results import Failure, Page
from deepseek_ocr.images.views import MAX_TILES
from deepseek_ocr.kernels.slot_decoder import GRAPHS, SlotDecoder
from deepseek_ocr.model import footprint
from deepseek_ocr.model.checkpoint import read_config
from deepseek_ocr.model.footprint import Footprint, MemoryEstimate, MemoryLoad, cache_bytes
from deepseek_ocr.model.network import Network
from deepseek_ocr.settings import CropSettings, DecodeSettings

STEPS = 32
"""Tokens that are decoded each time the clock runs, at most."""

WORKSPACE = 256 * 10**6
"""Bytes that the encoders may take beyond the estimate: cuDNN takes memory of its own for
convolutions, as much as the algorithm that it chooses wants. Not measured on a card."""

PRESETS = tuple(presets.PRESETS)

A4 = (1240, 1754)
"""Pixels of an A4 page at 150 dpi."""

A4_VIEWS = (1024, 6)
"""What it becomes at Gundam: the side of its global view, and tiles."""


def write_checkpoint(settings: ReportSettings, rows: ReportRows) -> None:
    """The part: write the random checkpoint if there is none."""

    def written() -> Figures:
        here = (settings.checkpoint / random_checkpoint.FILE).is_file()
        if not here:
            random_checkpoint.write(settings.checkpoint)
        random_checkpoint.provide(settings.checkpoint)  # older ones have no tokenizer
        return {"checkpoint": str(settings.checkpoint), "was_there": here}

    rows.add("checkpoint", written)


def fits(settings: ReportSettings, rows: ReportRows, pages: bool = True) -> bool:
    """Whether the checkpoint, and one page of it at Gundam if there are `pages`, fits into what the
    device has free; if not, the row `network` says so."""
    device = selection.choose_device(settings.device)
    load = footprint.load_for(device, settings.dtype)
    estimate = Footprint(read_config(settings.checkpoint)).estimate(
        presets.crop_for("gundam"), load
    )
    needed = estimate.total if pages else replace(estimate, vision=0).total
    return _has_room(rows, "network", device, needed)


def _has_room(rows: ReportRows, name: str, device: torch.device, needed: int) -> bool:
    """Whether `needed` bytes are free on the device; if not, the row `name` says so."""
    memory.give_back(device)  # what earlier rows held counts as free
    free = memory.free_bytes(device)
    if free is None or needed < free:
        return True
    rows.leave_out(name, f"needs {footprint.in_gb(needed)}, {footprint.in_gb(free)} free")
    return False


# --- starting -------------------------------------------------------------------------------------


def rehearsal(engine: OcrEngine) -> Figures:
    """By what the engine is run, as its rehearsal at load found; `wrong` if a CUDA card decodes
    without graphs."""
    assert engine.rehearsal is not None
    figures: Figures = asdict(engine.rehearsal)
    if engine.device.type == "cuda" and engine.rehearsal.decoder != GRAPHS.name:
        figures["wrong"] = f"decodes by {engine.rehearsal.decoder}, not by {GRAPHS.name}"
    return figures


def start(settings: ReportSettings, rows: ReportRows) -> None:
    """The part: from the folder to the first page's text."""
    if not fits(settings, rows):
        return
    began = time.perf_counter()
    engine = OcrEngine.load(settings.checkpoint, settings.device, settings.dtype)
    loaded = time.perf_counter() - began
    rows.add("load", lambda: {"seconds_to_load": loaded, "slots": engine.slots})
    rows.add("rehearsal", partial(rehearsal, engine))

    def first(crop: CropSettings) -> Figures:
        began = time.perf_counter()
        reading = engine.read(*_page(0, crop, 8))
        return {"seconds_to_read": time.perf_counter() - began, **asdict(reading.timings)}

    for name in ("tiny", "gundam"):
        rows.add(f"first page, {name}", partial(first, presets.crop_for(name)))
    rows.add("second page, gundam", partial(first, presets.crop_for("gundam")))
    engine.close()


# --- decoding -------------------------------------------------------------------------------------


def decode(settings: ReportSettings, rows: ReportRows) -> None:
    """The part: tokens a second by every way at every number of pages in flight, against the plain
    class; both over one set of weights."""
    if not fits(settings, rows, pages=False):
        return
    pair = page_stages.load_pair(settings.checkpoint, settings.device, settings.dtype)
    limits = decode_speed.limits(pair.ours.device, pair.ours.dtype, settings.earlier)
    length = prompt_length(pair.ours)
    tokens, span = decode_speed.within_one_span(length, STEPS, settings.repeat)
    rows.add("task", lambda: {"prompt": length, "tokens": tokens, "span": span, **asdict(limits)})
    task = decode_speed.task_of(pair.plain, length, tokens, settings.repeat)
    every_way(rows, pair, task, limits, settings.pages)


def every_way(
    rows: ReportRows,
    pair: NetworkPair,
    task: DecodeTask,
    limits: Limits,
    pages: Sequence[int],
    quant: str = "none",
) -> None:
    """Rows of `decode_speed.measure`: the plain class with one page, as it takes them in turn, and
    every way of ours with each number of `pages` for which there is memory. `quant` is that of both
    networks of `pair`."""
    network, config = pair.ours, pair.ours.config
    before = "" if quant == "none" else f"{quant}, "

    def measured(way: str, make: Callable[[], Decoder], of: Network) -> Figures:
        return {"quant": quant} | decode_speed.measure(way, make(), task, of, limits)

    one_page = partial(measured, "plain", partial(PlainDecoder, pair.plain), pair.plain)
    plain = rows.add(f"{before}plain, 1 page", one_page)

    def beside_plain(way: str, make: Callable[[], Decoder]) -> Figures:
        figures = {"attention": pair.selection.attention} | measured(way, make, network)
        return figures | (
            {"times_plain": figures["tokens_per_s"] / plain["tokens_per_s"]} if plain else {}
        )

    # What ships first: if time runs out, it is the slower ways that are left out.
    for way, path in reversed(list(decode_speed.paths(network))):
        for count in pages:
            cache = count * cache_bytes(config, network.dtype.itemsize)
            needed = cache * task.context // config.text_config.max_position_embeddings
            make = partial(SlotDecoder, network, count, task.context, path)
            row = f"{before}{way}, {_counted(count, 'page')}"
            if _has_room(rows, row, network.device, needed):
                rows.add(row, partial(beside_plain, way, make), needs=5)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


# --- whole pages ----------------------------------------------------------------------------------


def pages(settings: ReportSettings, rows: ReportRows) -> None:
    """The part: pages a second from picture to text through `OcrEngine.read_many`, twice: the first
    time pays for first-time work."""
    if not fits(settings, rows):
        return
    engine = OcrEngine.load(settings.checkpoint, settings.device, settings.dtype)
    crop = presets.crop_for("gundam")
    asked = [Page(*_page(number, crop, settings.tokens)) for number in range(settings.read)]
    alone = asked[:4]
    for name, some in (("first time", asked), ("second time", asked)):
        at_once = f"{_counted(len(some), 'page')} at once, {name}"
        rows.add(at_once, partial(_read_many, engine, some), needs=5)
    one_by_one = f"{_counted(len(alone), 'page')} one by one"
    rows.add(one_by_one, partial(_read_in_turn, engine, alone), needs=5)
    engine.close()


def _page(
    number: int, crop: CropSettings, tokens: int
) -> tuple[Image.Image, str, CropSettings, DecodeSettings]:
    """An A4 picture that differs from the others, and how it is read: to so many tokens."""
    with Image.open(EXAMPLES / "letter.png") as letter:
        noise = Image.effect_noise(A4, 32 + number)
        picture = Image.blend(letter.convert("L"), noise, 0.3).convert("RGB")
    decode = DecodeSettings(max_new_tokens=tokens, stop_on_loop=False)
    return picture, presets.prompt_for("markdown"), crop, decode


def _read_many(engine: OcrEngine, asked: list[Page]) -> Figures:
    began = time.perf_counter()
    outcomes = list(engine.read_many(asked))
    seconds = time.perf_counter() - began
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            raise outcome.error
    tokens = sum(outcome.counts.output for outcome in outcomes if not isinstance(outcome, Failure))
    return {
        "pages_per_s": len(asked) / seconds,
        "tokens_per_s": tokens / seconds,
        "tokens_per_page": tokens / len(asked),
        "slots": engine.slots,
    }


def _read_in_turn(engine: OcrEngine, asked: list[Page]) -> Figures:
    began = time.perf_counter()
    readings = [engine.read(one.image, one.prompt, one.crop, one.decode) for one in asked]
    seconds = time.perf_counter() - began
    last = asdict(readings[-1].timings)
    return {"pages_per_s": len(asked) / seconds, "last": last}


# --- vision and prompts ---------------------------------------------------------------------------


def stages_of_a_page(settings: ReportSettings, rows: ReportRows) -> None:
    """The part: vision and prefill of an A4 page at Gundam, the plain class and this project in
    turn."""
    if not fits(settings, rows):
        return
    pair = page_stages.load_pair(settings.checkpoint, settings.device, settings.dtype)
    repeat = settings.repeat
    limits = decode_speed.limits(pair.ours.device, pair.ours.dtype, settings.earlier)

    def vision() -> Figures:
        views = views_of(*A4_VIEWS)
        found = page_stages.vision(pair, "vision", views, repeat, limits.operations_per_second)
        return _compared(found) | decode_speed.too_low(found.share or 0)

    def prefill() -> Figures:
        length = prompt_length(pair.ours)
        decoders = {"plain": PlainDecoder(pair.plain), "ours": pair.decoder(1, length)}
        prompt = prompt_of(pair.ours, length)
        calls = {name: partial(one.prefill, 0, prompt) for name, one in decoders.items()}
        found = StageTime("prefill", **medians(in_turn(calls, repeat, pair.ours.device)))
        return {"tokens": length, **_compared(found)}

    rows.add("vision, A4 at Gundam", vision, needs=5)
    rows.add("prefill", prefill, needs=5)


def _compared(found: StageTime) -> Figures:
    share = {} if found.share is None else {"share_of_peak": found.share}
    return {"plain_s": found.plain, "ours_s": found.ours, "ratio": found.ratio, **share}


# --- memory ---------------------------------------------------------------------------------------


def memory_use(settings: ReportSettings, rows: ReportRows) -> None:
    """The part: bytes by preset and by number of pages at once, against `footprint`'s estimate."""
    if not fits(settings, rows, pages=False):
        return
    pair = page_stages.load_pair(settings.checkpoint, settings.device, settings.dtype)
    network, sizes = pair.ours, Footprint(pair.ours.config)
    for name in PRESETS:
        crop = presets.crop_for(name)
        expected = sizes.estimate(crop, MemoryLoad(network.dtype)).vision
        row = f"vision, {name}"
        if _has_room(rows, row, network.device, expected):
            rows.add(row, partial(_vision_peak, network, crop, expected), needs=2)
    for slots in settings.pages:
        load = MemoryLoad(network.dtype, slots, context=0)
        estimate = replace(sizes.estimate(presets.crop_for("gundam"), load), vision=0)
        row = _counted(slots, "slot")
        if _has_room(rows, row, network.device, estimate.cache):
            rows.add(row, partial(_slots, pair, slots, estimate), needs=3)


def _vision_peak(network: Network, crop: CropSettings, expected: int) -> Figures:
    """The most that the views of a page take beside the weights: of Gundam with nine tiles."""
    side = crop.base_size if crop.crop_mode else crop.image_size
    views = views_of(side, MAX_TILES if crop.crop_mode else 0, crop.image_size)
    peak = machine.vision_peak(network, views)
    figures: Figures = {"bytes": peak or None, "estimated_bytes": expected}
    if network.device.type == "cuda" and peak > expected + WORKSPACE:
        figures["wrong"] = f"more than footprint.py says and {footprint.in_gb(WORKSPACE)}"
    return figures


def _slots(pair: NetworkPair, slots: int, estimate: MemoryEstimate) -> Figures:
    """What a decoder with `slots` slots takes, and all tensors that the device holds with it while
    prompts are read; None: unknown. `device_bytes` has what the driver keeps of graphs too."""
    device = pair.ours.device
    before, free = _allocated(device), memory.free_and_total(device)
    began = time.perf_counter()
    one = pair.decoder(slots, pair.ours.config.text_config.max_position_embeddings)
    seconds = time.perf_counter() - began
    made, left = _allocated(device), memory.free_and_total(device)
    prompt = prompt_of(pair.ours, prompt_length(pair.ours))

    def read() -> None:
        for slot in range(slots):
            one.prefill(slot, prompt)
        one.step(range(slots), range(3, 3 + slots))

    peak = machine.peak_memory(device, read)
    return {
        "seconds_to_make": seconds,
        "device_bytes": free[0] - left[0] if free and left else None,
        "cache_bytes_per_slot": None if made is None or before is None else (made - before) / slots,
        "estimated_cache_bytes_per_slot": estimate.cache / slots,
        "weights_bytes": before,
        "estimated_weights_bytes": estimate.weights,
        "prefill_and_step_bytes": peak or None,
        "total_bytes": None if made is None else made + peak,
        "estimated_total_bytes": estimate.total,
    }


def _allocated(device: torch.device) -> int | None:
    """Bytes that tensors hold on an NVIDIA card; None on other devices."""
    gc.collect()
    selection.synchronize(device)
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else None
