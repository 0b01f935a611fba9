"""Time a full-size random model: the library's plain class and this project, in one run.

    python -m benchmarks.page_speed [--device cpu] [--dtype bfloat16] [--quant int8] [--json FILE]

Both share one set of weights in memory and take turns, so that the ratios hold on a machine whose
speed drifts. Medians are printed; a ratio above 1 means this project is faster. "share" is of what
this machine was measured to do at most in the same run: matrix products for vision, reading of
memory for decoding.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from benchmarks import loading, machine, page_stages, random_checkpoint
from deepseek_ocr.images import views as images
from deepseek_ocr.kernels import choice
from deepseek_ocr.model import network, prompts
from deepseek_ocr.settings import QUANTS, CropSettings

ROOT = Path(__file__).resolve().parent.parent
A4_AT_300_DPI = (2480, 3508)
PAGE_TOKENS = 500
"""Output of the page that is put together from the stages."""


@dataclass(frozen=True)
class Row:
    """One line of the table: median seconds of both, None where the plain class has no such
    stage; `share` is ours, of the machine's limit."""

    stage: str
    plain: float | None
    ours: float
    share: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times faster than the plain class."""
        return None if self.plain is None else self.plain / self.ours


def main() -> None:
    """Command line."""
    flags = parser(__doc__).parse_args()
    provide(flags.checkpoint)
    table, peaks = [], None
    if not flags.skip_load:
        seconds, peaks = loading.measure(flags.checkpoint, flags.device, flags.dtype, flags.repeat)
        table.append(Row("load", *seconds))
    ways = page_stages.load(
        flags.checkpoint, flags.device, flags.dtype, choice.parse(flags.kernels), flags.quant
    )
    limits = {
        "bytes_per_second": machine.bandwidth(ways.ours.device),
        "operations_per_second": machine.matrix_peak(ways.ours.device, ways.ours.dtype),
    }
    table += measure(ways, flags, limits)
    memory = vision_memory(ways)
    show(table, limits, memory, peaks)
    if flags.json:
        figures = {
            "machine": machine.describe(ways.ours.device),
            "device": str(ways.ours.device),
            "dtype": str(ways.ours.dtype),
            "quant": flags.quant,
            "kernels": sorted(ways.chosen),
            "limits": limits,
            "rows": [{**asdict(row), "ratio": row.ratio} for row in table],
            "vision_peak_bytes": memory,
            "load_peak_gb": peaks and {"plain": peaks[0], "ours": peaks[1]},
        }
        flags.json.write_text(json.dumps(figures, indent=1))


def parser(description: str | None) -> argparse.ArgumentParser:
    """Flags that the benchmarks of the whole model share."""
    made = argparse.ArgumentParser(
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--checkpoint", type=Path, default=ROOT / "build" / "random-checkpoint")
    made.add_argument("--device", default="auto")
    made.add_argument("--dtype", default="auto")
    made.add_argument("--quant", default="none", choices=QUANTS)
    made.add_argument("--kernels", default="auto", help="fast paths, as for ocr.py")
    made.add_argument("--tokens", type=int, default=48, help="decoded per repetition")
    made.add_argument("--pages", type=int, default=4, help="pages in flight at most")
    made.add_argument("--repeat", type=int, default=3, help="repetitions; the median counts")
    made.add_argument("--skip-load", action="store_true", help="do not measure loading")
    made.add_argument("--json", type=Path, help="write the figures to this file too")
    return made


def provide(folder: Path) -> None:
    """Write the random checkpoint where there is none yet."""
    if not (folder / random_checkpoint.FILE).is_file():
        print(f"writing a random checkpoint to {folder} (6.7 GB) …", flush=True)
        # In a process of its own, so that its memory does not count as ours.
        command = [sys.executable, "-m", "benchmarks.random_checkpoint", str(folder)]
        subprocess.run(command, check=True, cwd=ROOT)


def measure(
    ways: page_stages.Ways, flags: argparse.Namespace, limits: dict[str, float]
) -> list[Row]:
    """All stages of a page, and the page they make."""
    rows, views = _before(ways, flags)
    vision, tokens = _vision(ways, views, flags, limits)
    decode = _decode(ways, views, tokens, flags, limits)
    first, rest = decode[0], decode[1]
    assert vision[-1].plain is not None
    assert first.plain is not None
    assert rest.plain is not None
    length = PAGE_TOKENS / flags.tokens
    preprocess = rows[0].ours
    page = Row(
        f"page with {PAGE_TOKENS} tokens (sum)",
        preprocess + vision[-1].plain + first.plain + length * rest.plain,
        preprocess + vision[-1].ours + first.ours + length * rest.ours,
    )
    return [*rows, *vision, *decode, page]


def _before(ways: page_stages.Ways, flags: argparse.Namespace) -> tuple[list[Row], images.Views]:
    page = Image.effect_noise(A4_AT_300_DPI, 64).convert("RGB")
    crop = CropSettings()
    views = images.make_views(page, crop)
    # The bundled tokenizer; the random checkpoint has none.
    codec = prompts.load_codec(ROOT / "checkpoints" / "pocket", 0, frozenset([1]), 3)
    text = "<image>\n<|grounding|>Convert the document to markdown."
    device = ways.ours.device
    preprocess = page_stages.in_turn([lambda: images.make_views(page, crop)], flags.repeat, device)[
        0
    ]
    encode = page_stages.in_turn(
        [lambda: prompts.encode(codec, text, views.token_count)], 200, device
    )
    return [
        Row("preprocess A4 at 300 dpi", None, preprocess),
        Row("prompt", None, encode[0]),
    ], views


def _vision(
    ways: page_stages.Ways, views: images.Views, flags: argparse.Namespace, limits: dict[str, float]
) -> tuple[list[Row], torch.Tensor]:
    rows = []
    for stage, some in (
        ("vision, global view", images.Views(views.global_view, views.tiles[:0], (1, 1))),
        ("vision, Gundam A4", views),
    ):
        plain, ours = page_stages.in_turn(
            [
                partial(page_stages.plain_vision, ways.plain, some),
                partial(network.vision_tokens, ways.ours, some),
            ],
            flags.repeat,
            ways.ours.device,
        )
        done = page_stages.operations(ways.plain, some)
        rows.append(Row(stage, plain, ours, done / ours / limits["operations_per_second"]))
    return rows, network.vision_tokens(ways.ours, views)


def _decode(
    ways: page_stages.Ways,
    views: images.Views,
    tokens: torch.Tensor,
    flags: argparse.Namespace,
    limits: dict[str, float],
) -> list[Row]:
    ids = page_stages.prompt(views, ways.ours)
    embeddings = network.embed(ways.ours, ids, tokens, 1)
    read = page_stages.bytes_per_token(ways.plain)  # before the weights are made smaller
    context = len(ids) + max(flags.tokens, PAGE_TOKENS) + 1
    decoder = ways.decoder(flags.pages, context)
    if flags.quant != "none":
        read = page_stages.bytes_per_token(ways.ours)
    (first, rest), (our_first, our_rest) = page_stages.first_and_rest(
        [
            lambda: page_stages.plain_times(ways.plain, embeddings, flags.tokens + 1),
            lambda: page_stages.our_times(decoder, embeddings, flags.tokens + 1, 1),
        ],
        flags.repeat,
    )
    share = read * flags.tokens / our_rest / limits["bytes_per_second"]
    rows = [
        Row(f"prefill, {len(ids)} tokens", first, our_first),
        Row(f"decode, {flags.tokens} tokens", rest, our_rest, share),
    ]
    if flags.pages > 1:

        def several() -> list[float]:
            return page_stages.our_times(decoder, embeddings, flags.tokens + 1, flags.pages)

        ((_, together),) = page_stages.first_and_rest([several], flags.repeat)
        name = f"decode, {flags.pages} pages, a page"
        rows.append(Row(name, rest, together / flags.pages))
    return rows


def vision_memory(ways: page_stages.Ways) -> dict[str, int]:
    """Bytes that vision of one view of 1280 px takes at most beside the weights."""
    large = images.Views(torch.zeros(3, 1280, 1280), torch.empty(0, 3, 640, 640), (1, 1))
    device = ways.ours.device
    network.vision_tokens(ways.ours, large)  # what is kept for good is not counted
    return {
        "plain": machine.peak_memory(device, lambda: page_stages.plain_vision(ways.plain, large)),
        "ours": machine.peak_memory(device, lambda: network.vision_tokens(ways.ours, large)),
    }


def show(
    table: list[Row],
    limits: dict[str, float],
    memory: dict[str, int],
    peaks: tuple[float, float] | None,
) -> None:
    """Print the table."""
    print(f"\n{'stage':30}{'plain s':>10}{'ours s':>10}{'ratio':>8}{'share':>8}")
    for row in table:
        plain = "–" if row.plain is None else f"{row.plain:.3f}"
        ratio = "–" if row.ratio is None else f"{row.ratio:.2f}"
        share = "–" if row.share is None else f"{row.share:.0%}"
        ours = f"{row.ours:.5f}" if row.ours < 0.01 else f"{row.ours:.3f}"
        print(f"{row.stage:30}{plain:>10}{ours:>10}{ratio:>8}{share:>8}")
    megabytes = {way: some / 1e6 for way, some in memory.items()}
    print(
        f"{'vision at 1280 px, MB at most':30}{megabytes['plain']:10.0f}{megabytes['ours']:10.0f}"
    )
    if peaks:
        print(f"{'loading, GB at most':30}{peaks[0]:>10.1f}{peaks[1]:>10.1f}")
    print(
        f"limits: {limits['bytes_per_second'] / 1e9:.0f} GB/s, "
        f"{limits['operations_per_second'] / 1e12:.2f} TFLOP/s"
    )


if __name__ == "__main__":
    main()
