"""What a full-size network of random weights costs on a device: starting, decoding, whole pages,
vision and prompts, memory."""

from __future__ import annotations

import gc
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks import decode_speed, machine, page_stages, random_checkpoint
from benchmarks.decode_speed import Limits
from benchmarks.part_runner import Figures, Rows, Settings
from deepseek_ocr import presets
from deepseek_ocr.decoding.decoder import PlainDecoder
from deepseek_ocr.devices import memory
from deepseek_ocr.devices import selection as devices
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.engine.results import Failure, Page
from deepseek_ocr.images.views import MAX_TILES, Views
from deepseek_ocr.kernels import choice
from deepseek_ocr.kernels.decoder_factory import DecoderFactory
from deepseek_ocr.kernels.rehearsal import TOLERANCES, prepare
from deepseek_ocr.kernels.slot_decoder import GRAPHS, SlotDecoder
from deepseek_ocr.model import footprint
from deepseek_ocr.model import network as model
from deepseek_ocr.model.checkpoint import read_config
from deepseek_ocr.model.footprint import Footprint, MemoryEstimate, MemoryLoad, cache_bytes
from deepseek_ocr.model.loader import load_network
from deepseek_ocr.settings import CropSettings, DecodeSettings

ROOT = Path(__file__).resolve().parent.parent

PROMPT = 913
"""Tokens of an A4 page at Gundam with the Markdown prompt."""

STEPS = 32
"""Tokens that are decoded each time the clock runs, at most."""

WORKSPACE = 256 * 10**6
"""Bytes that the encoders may take beyond the estimate: cuDNN takes memory of its own for
convolutions, as much as the algorithm that it chooses wants. Not measured on a card."""

PRESETS = tuple(presets.RESOLUTION_SHORT_NAMES)

A4 = (1240, 1754)
"""Pixels of an A4 page at 150 dpi: a global view and six tiles at Gundam."""


def write_checkpoint(settings: Settings, rows: Rows) -> None:
    """The part: write the random checkpoint if there is none."""

    def written() -> Figures:
        here = (settings.checkpoint / random_checkpoint.FILE).is_file()
        if not here:
            random_checkpoint.write(settings.checkpoint)
        if not (settings.checkpoint / "tokenizer.json").is_file():  # older ones have none
            random_checkpoint.write_tokenizer(settings.checkpoint)
        return {"checkpoint": str(settings.checkpoint), "was_there": here}

    rows.add("checkpoint", written)


def fits(settings: Settings, rows: Rows, pages: bool = True) -> bool:
    """Whether the checkpoint, and one page of it at Gundam if there are `pages`, fits into what the
    device has free; if not, the row `network` says so."""
    device = devices.choose_device(settings.device)
    load = footprint.load_for(device, settings.dtype)
    sizes = Footprint(read_config(settings.checkpoint))
    estimate = sizes.estimate(presets.crop_for("gundam"), load)
    needed = estimate.total if pages else replace(estimate, vision=0).total
    lacking = _lacking(device, needed)
    if lacking:
        rows.leave_out("network", lacking)
    return lacking is None


# --- starting -------------------------------------------------------------------------------------


def rehearsal(engine: OcrEngine) -> Figures:
    """By what the engine is run, as its rehearsal at load found; `wrong` if a CUDA card decodes
    without graphs."""
    assert engine.rehearsal is not None
    figures: Figures = asdict(engine.rehearsal)
    if engine.device.type == "cuda" and engine.rehearsal.decoder != GRAPHS.name:
        figures["wrong"] = f"decodes by {engine.rehearsal.decoder}, not by {GRAPHS.name}"
    return figures


def start(settings: Settings, rows: Rows) -> None:
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


def decode(settings: Settings, rows: Rows) -> None:
    """The part: tokens a second by every way at every number of pages in flight, against the plain
    class; both over one set of weights."""
    if not fits(settings, rows, pages=False):
        return
    ways = _ways(settings)
    network = ways.ours
    limits = decode_speed.limits(network.device, network.dtype, settings.earlier)
    length = min(PROMPT, network.config.text_config.max_position_embeddings // 2)
    tokens, span = decode_speed.within_one_span(length, STEPS, settings.repeat)
    rows.add("task", lambda: {"prompt": length, "tokens": tokens, "span": span, **asdict(limits)})
    task = decode_speed.task_of(ways.plain, length, tokens, settings.repeat)
    plain = PlainDecoder(ways.plain)
    row = rows.add("plain, 1 page", partial(_row, "plain", plain, task, ways.plain, limits))
    rate = row["tokens_per_s"] if row else None
    # What ships first: if time runs out, it is the slower ways that are left out.
    for name, path in reversed(list(decode_speed.ways(network))):
        for pages in settings.pages:

            def measured(name: str = name, path: Any = path, pages: int = pages) -> Figures:
                one = SlotDecoder(network, pages, task.context, path)
                figures = {"attention": ways.selection.attention}
                figures |= _row(name, one, task, network, limits)
                return figures | ({"times_plain": figures["tokens_per_s"] / rate} if rate else {})

            cache = pages * cache_bytes(network.config, network.dtype.itemsize)
            context = network.config.text_config.max_position_embeddings
            row_name = f"{name}, {_counted(pages, 'page')}"
            if lacking := _lacking(network.device, cache * task.context // context):
                rows.leave_out(row_name, lacking)
            else:
                rows.add(row_name, measured, needs=5)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _row(
    name: str, one: Any, task: decode_speed.Task, network: model.Network, limits: Limits
) -> Figures:
    row = decode_speed.measure(name, one, task, network, limits)
    figures = asdict(row) | decode_speed.too_low(row.share_of_memory, row.share_of_peak)
    if not row.agrees(network.dtype):
        tolerance = TOLERANCES[network.dtype]
        figures["wrong"] = f"logits differ by {row.agreement:.2g}, {tolerance} at most was expected"
    return figures


def _ways(settings: Settings) -> page_stages.Ways:
    chosen = choice.parse("auto")
    return page_stages.load(settings.checkpoint, settings.device, settings.dtype, chosen, "none")


# --- whole pages ----------------------------------------------------------------------------------


def pages(settings: Settings, rows: Rows) -> None:
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
    with Image.open(ROOT / "examples" / "letter.png") as letter:
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


def a4_views() -> Views:
    """What an A4 page becomes at Gundam: a global view and six tiles, here of noise."""
    return Views(torch.rand(3, 1024, 1024), torch.rand(6, 3, 640, 640), (2, 3))


def stages_of_a_page(settings: Settings, rows: Rows) -> None:
    """The part: vision and prefill of an A4 page, the plain class and this project in turn."""
    if not fits(settings, rows):
        return
    ways = _ways(settings)
    device, repeat = ways.ours.device, settings.repeat
    peak = decode_speed.limits(device, ways.ours.dtype, settings.earlier).operations_per_second
    views = a4_views()

    def vision() -> Figures:
        plain, ours = page_stages.in_turn(
            [
                partial(page_stages.plain_vision, ways.plain, views),
                partial(model.vision_tokens, ways.ours, views),
            ],
            repeat,
            device,
        )
        share = page_stages.operations(ways.plain, views) / ours / peak
        figures = {"plain_s": plain, "ours_s": ours, "ratio": plain / ours, "share_of_peak": share}
        return figures | decode_speed.too_low(share)

    def prefill() -> Figures:
        length = min(PROMPT, ways.ours.config.text_config.max_position_embeddings // 2)
        prompt = decode_speed.prompt_of(ways.ours, length)
        slower, faster = PlainDecoder(ways.plain), ways.decoder(1, length)
        plain, ours = page_stages.in_turn(
            [partial(slower.prefill, 0, prompt), partial(faster.prefill, 0, prompt)], repeat, device
        )
        return {"tokens": length, "plain_s": plain, "ours_s": ours, "ratio": plain / ours}

    rows.add("vision, A4 at Gundam", vision, needs=5)
    rows.add("prefill", prefill, needs=5)


# --- memory ---------------------------------------------------------------------------------------


def memory_use(settings: Settings, rows: Rows) -> None:
    """The part: bytes by preset and by number of pages at once, against `footprint`'s estimate."""
    if not fits(settings, rows, pages=False):
        return
    network = load_network(settings.checkpoint, settings.device, settings.dtype)
    selection = prepare(network, choice.parse("auto"))
    context = network.config.text_config.max_position_embeddings
    decoders = DecoderFactory(network, selection.paths, context)
    sizes = Footprint(network.config)
    for name in PRESETS:
        crop = presets.crop_for(name)
        expected = sizes.estimate(crop, MemoryLoad(network.dtype)).vision
        if lacking := _lacking(network.device, expected):
            rows.leave_out(f"vision, {name}", lacking)
            continue
        rows.add(f"vision, {name}", partial(_vision_peak, network, crop, expected), needs=2)
    for slots in settings.pages:
        load = MemoryLoad(network.dtype, slots, context=0)
        estimate = replace(sizes.estimate(presets.crop_for("gundam"), load), vision=0)
        name = _counted(slots, "slot")
        if lacking := _lacking(network.device, estimate.cache):
            rows.leave_out(name, lacking)
            continue
        rows.add(name, partial(_slots, decoders, network, slots, estimate), needs=3)


def _vision_peak(network: model.Network, crop: CropSettings, expected: int) -> Figures:
    """The most that the views of a page take beside the weights: of Gundam with nine tiles."""
    side = crop.base_size if crop.crop_mode else crop.image_size
    tiles = MAX_TILES if crop.crop_mode else 0
    views = Views(
        torch.zeros(3, side, side), torch.zeros(tiles, 3, crop.image_size, crop.image_size),
        (3, 3) if tiles else (1, 1),
    )  # fmt: skip
    model.vision_tokens(network, views)  # what is kept for good is not counted
    peak = machine.peak_memory(network.device, lambda: model.vision_tokens(network, views))
    figures: Figures = {"bytes": peak or None, "estimated_bytes": expected}
    if network.device.type == "cuda" and peak > expected + WORKSPACE:
        figures["wrong"] = f"more than footprint.py says and {footprint.in_gb(WORKSPACE)}"
    return figures


def _slots(
    decoders: DecoderFactory, network: model.Network, slots: int, estimate: MemoryEstimate
) -> Figures:
    """What a decoder with `slots` slots takes, and all tensors that the device holds with it while
    prompts are read; None: unknown. `device_bytes` has what the driver keeps of graphs too."""
    before, free = _allocated(network.device), memory.free_and_total(network.device)
    began = time.perf_counter()
    one = decoders.make(slots)
    seconds = time.perf_counter() - began
    made, left = _allocated(network.device), memory.free_and_total(network.device)
    prompt = decode_speed.prompt_of(network, min(PROMPT, one.context // 2))

    def read() -> None:
        for slot in range(slots):
            one.prefill(slot, prompt)
        one.step(range(slots), range(3, 3 + slots))

    peak = machine.peak_memory(network.device, read)
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


def _lacking(device: torch.device, needed: int) -> str | None:
    """The row that says what is left out if `needed` bytes are not free; None if they are."""
    memory.give_back(device)  # what earlier rows held counts as free
    free = memory.free_bytes(device)
    if free is None or needed < free:
        return None
    return f"needs {footprint.in_gb(needed)}, {footprint.in_gb(free)} free"


def _allocated(device: torch.device) -> int | None:
    """Bytes that tensors hold on an NVIDIA card; None on other devices."""
    gc.collect()
    devices.synchronize(device)
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else None
