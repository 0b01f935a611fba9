"""Time a full-size random model: the library's plain class and this project, in one run.

    python -m benchmarks.page_speed [--device cpu] [--dtype bfloat16] [--quant int8] [--json FILE]

Both share one set of weights in memory and take turns. Medians are printed; a ratio above 1 means
this project is faster. What the stages and shares are is in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

from PIL import Image

from benchmarks import command, decode_speed, machine, page_stages
from benchmarks.decode_speed import Limits
from benchmarks.page_stages import NetworkPair, StageTime, our_times, plain_times, views_of
from benchmarks.random_checkpoint import provide
from benchmarks.timing import in_turn, medians
from deepseek_ocr import presets
from deepseek_ocr.devices import selection
from deepseek_ocr.images.views import Views, make_views
from deepseek_ocr.kernels import choice
from deepseek_ocr.model import prompts
from deepseek_ocr.model.checkpoint import read_config
from deepseek_ocr.model.loader import load_network
from deepseek_ocr.model.network import Network
from deepseek_ocr.settings import QUANTS, CropSettings

A4_AT_300_DPI = (2480, 3508)

PAGE_TOKENS = 500
"""Output of the page that is put together from the stages."""

TEXT_TOKENS = 10
"""What the prompt adds to the page's tokens: 913 in all with an A4 page at Gundam."""


def main() -> None:
    """Command line."""
    flags = _parser().parse_args()
    provide(flags.checkpoint)
    table, peaks = [], None
    if not flags.skip_load:
        load, peaks = _loading(flags)
        table.append(load)
    pair = page_stages.load_pair(
        flags.checkpoint, flags.device, flags.dtype, flags.kernels, flags.quant
    )
    limits = decode_speed.limits(pair.ours.device, pair.ours.dtype)
    table += measure(pair, flags, limits)
    networks = {"plain": pair.plain, "ours": pair.ours}
    memory = {name: machine.vision_peak(one, views_of(1280)) for name, one in networks.items()}
    show(table, limits, memory, peaks)
    figures = {
        "machine": machine.describe(pair.ours.device),
        "device": str(pair.ours.device),
        "dtype": str(pair.ours.dtype),
        "quant": flags.quant,
        "kernels": sorted(choice.parse(flags.kernels)),
        "limits": asdict(limits),
        "rows": [{**asdict(row), "ratio": row.ratio} for row in table],
        "vision_peak_bytes": memory,
        "load_peak_gb": peaks,
    }
    command.write_json(flags.json, figures)


def _parser() -> argparse.ArgumentParser:
    made = command.full_size_parser("page_speed", __doc__)
    made.add_argument("--quant", default="none", choices=QUANTS)
    made.add_argument("--kernels", default="auto", help="fast paths, as for deepseek-ocr read")
    made.add_argument("--tokens", type=int, default=48, help="decoded per repetition")
    made.add_argument("--pages", type=int, default=4, help="pages in flight at most")
    made.add_argument("--skip-load", action="store_true", help="do not measure loading")
    return made


def _loading(flags: argparse.Namespace) -> tuple[StageTime, dict[str, float]]:
    """Median seconds of the plain class and of ours, in turn and each time in a process of its own,
    and the medians of their peaks in GB: of anonymous memory, not the file's own pages, which the
    system takes back at will."""
    for path in flags.checkpoint.glob("*.safetensors"):
        with path.open("rb") as file:  # so that the first turn does not pay for the disk
            while file.read(1 << 24):
                pass
    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    peaks: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(flags.repeat):
        for way in ("plain", "ours"):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                asked = alone.submit(_load, way, flags.checkpoint, flags.device, flags.dtype)
                took, peak = asked.result()
            seconds[way].append(took)
            peaks[way].append(peak)
    return StageTime("load", **medians(seconds)), medians(peaks)


def _load(way: str, folder: Path, device: str, dtype: str) -> tuple[float, float]:
    with machine.highest(partial(machine.resident, "RssAnon"), 0.02) as peak:
        began = time.perf_counter()
        if way == "ours":
            network = load_network(folder, device, dtype)
        else:
            target = selection.choose_device(device)
            kind = selection.choose_dtype(dtype, target)
            network = Network.from_pretrained(folder, config=read_config(folder), dtype=kind)
            network.to(target)
        seconds = time.perf_counter() - began
    return seconds, peak[0] / 1e9


def measure(pair: NetworkPair, flags: argparse.Namespace, limits: Limits) -> list[StageTime]:
    """All stages of a page, and the page they make."""
    page = Image.effect_noise(A4_AT_300_DPI, 64).convert("RGB")
    views = make_views(page, CropSettings())
    before = _before(page, views, flags.repeat)
    alone = Views(views.global_view, views.tiles[:0], (1, 1))
    peak = limits.operations_per_second
    vision = [
        page_stages.vision(pair, "vision, global view", alone, flags.repeat, peak),
        page_stages.vision(pair, "vision, Gundam A4", views, flags.repeat, peak),
    ]
    first, rest, *several = _decode(pair, views.token_count + TEXT_TOKENS, flags, limits)
    length = PAGE_TOKENS / flags.tokens
    whole = StageTime(
        f"page with {PAGE_TOKENS} tokens (sum)",
        before[0].ours + sum(row.plain or 0 for row in (vision[1], first))
        + length * (rest.plain or 0),
        before[0].ours + vision[1].ours + first.ours + length * rest.ours,
    )  # fmt: skip
    return [*before, *vision, first, rest, *several, whole]


def _before(page: Image.Image, views: Views, repeat: int) -> list[StageTime]:
    """Preparing the page, and its prompt by the bundled tokenizer."""
    codec = prompts.codec_of(command.POCKET, read_config(command.POCKET))
    prepare = partial(make_views, page, CropSettings())
    encode = partial(prompts.encode, codec, presets.prompt_for("markdown"), views.token_count)
    return [
        StageTime("preprocess A4 at 300 dpi", None, **medians(in_turn({"ours": prepare}, repeat))),
        StageTime("prompt", None, **medians(in_turn({"ours": encode}, 200))),
    ]


def _decode(
    pair: NetworkPair, length: int, flags: argparse.Namespace, limits: Limits
) -> list[StageTime]:
    """Prefill of `length` tokens, decoding one page, and several at once if `--pages` says so."""
    embeddings = page_stages.prompt_of(pair.ours, length)
    tokens, pages = flags.tokens, flags.pages
    read, _ = decode_speed.needed_by_step(pair.ours, 1, length)
    decoder = pair.decoder(pages, length + max(tokens, PAGE_TOKENS) + 1)
    runs = [
        partial(plain_times, pair.plain, embeddings, tokens + 1),
        partial(our_times, decoder, embeddings, tokens + 1, 1),
        *([partial(our_times, decoder, embeddings, tokens + 1, pages)] if pages > 1 else []),
    ]
    (first, rest), (our_first, our_rest), *several = page_stages.first_and_rest(runs, flags.repeat)
    share = read * tokens / our_rest / limits.bytes_per_second
    return [
        StageTime(f"prefill, {length} tokens", first, our_first),
        StageTime(f"decode, {tokens} tokens", rest, our_rest, share),
        *(StageTime(f"decode, {pages} pages, a page", rest, s / pages) for _, s in several),
    ]


def show(
    table: list[StageTime], limits: Limits, memory: dict[str, int], peaks: dict[str, float] | None
) -> None:
    """Print the table."""
    print(f"\n{'stage':30}{'plain s':>10}{'ours s':>10}{'ratio':>8}{'share':>8}")
    for row in table:
        plain = "–" if row.plain is None else f"{row.plain:.3f}"
        ratio = "–" if row.ratio is None else f"{row.ratio:.2f}"
        share = "–" if row.share is None else f"{row.share:.0%}"
        ours = f"{row.ours:.5f}" if row.ours < 0.01 else f"{row.ours:.3f}"
        print(f"{row.stage:30}{plain:>10}{ours:>10}{ratio:>8}{share:>8}")
    for name, figures, unit in (
        ("vision at 1280 px, MB at most", memory, 1e6),
        ("loading, GB at most", peaks, 1),
    ):
        if figures:
            print(f"{name:30}{figures['plain'] / unit:10.1f}{figures['ours'] / unit:10.1f}")
    print(f"limits: {limits}")


if __name__ == "__main__":
    main()
