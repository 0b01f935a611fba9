"""Time a full-size random model: the library's plain class and this project, in one run.

    python -m benchmarks.run [--device cpu] [--dtype bfloat16] [--json FILE]

Both share one set of weights in memory and take turns, so that the ratios hold on a machine whose
speed drifts. Medians are printed; a ratio above 1 means this project is faster.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from benchmarks import loading, random_checkpoint
from deepseek_ocr import devices, generation, images, model, prompts
from deepseek_ocr.checkpoint import read_config
from deepseek_ocr.settings import CropSettings, DecodeSettings

ROOT = Path(__file__).resolve().parent.parent
A4_AT_300_DPI = (2480, 3508)
PROMPT_TAIL = 9
"""Text tokens behind the page in the Markdown prompt: 913 in all with an A4 page at Gundam."""


@dataclass(frozen=True)
class Row:
    """One line of the table: median seconds of both, None where the plain class has no such
    stage."""

    stage: str
    plain: float | None
    ours: float

    @property
    def ratio(self) -> float | None:
        """How many times faster than the plain class."""
        return None if self.plain is None else self.plain / self.ours


def main() -> None:
    """Command line."""
    flags = _flags()
    if not (flags.checkpoint / random_checkpoint.FILE).is_file():
        print(f"writing a random checkpoint to {flags.checkpoint} (6.7 GB) …", flush=True)
        # In a process of its own, so that its memory does not count as ours.
        command = [sys.executable, "-m", "benchmarks.random_checkpoint", str(flags.checkpoint)]
        subprocess.run(command, check=True, cwd=ROOT)
    rows, peaks = loading.measure(flags.checkpoint, flags.device, flags.dtype, flags.repeat)
    ours = model.load_network(flags.checkpoint, flags.device, flags.dtype)
    plain = _plain_twin(ours, flags.checkpoint)
    table = [Row("load", *rows)]
    table += _stages(plain, ours, flags)
    _print(table, peaks)
    if flags.json:
        _write_json(flags.json, table, peaks, ours)


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "build" / "random-checkpoint")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, default=48, help="decoded per repetition")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions; the median counts")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    return parser.parse_args()


def _plain_twin(network: model.Network, folder: Path) -> model.Network:
    """The library's class with nothing of this project on it, over the same weights."""
    twin = model.empty_network(read_config(folder))
    for name, parameter in network.named_parameters():
        owner, _, leaf = name.rpartition(".")
        setattr(twin.get_submodule(owner), leaf, nn.Parameter(parameter, requires_grad=False))
    model.rebuild_buffers(twin, network.device)
    return twin.eval()


def _stages(plain: model.Network, ours: model.Network, flags: argparse.Namespace) -> list[Row]:
    page = Image.effect_noise(A4_AT_300_DPI, 64).convert("RGB")
    crop = CropSettings()
    views = images.make_views(page, crop)
    preprocess = _median([lambda: images.make_views(page, crop)], flags.repeat)[0]
    encoded = _prompt(views, ours)
    # The bundled tokenizer; the random checkpoint has none.
    codec = prompts.load_codec(ROOT / "checkpoints" / "pocket", 0, frozenset([1]), 3)
    text = "<image>\n<|grounding|>Convert the document to markdown."
    assemble = _median([lambda: prompts.encode(codec, text, views.token_count)], 200)[0]

    global_only = images.Views(views.global_view, views.tiles[:0], (1, 1))
    rows = [Row("preprocess A4 at 300 dpi", None, preprocess), Row("prompt", None, assemble)]
    for stage, some in (("vision, global view", global_only), ("vision, Gundam A4", views)):
        plain_s, ours_s = _median(
            [
                _synced(ours, _plain_vision, plain, some),
                _synced(ours, model.vision_tokens, ours, some),
            ],
            flags.repeat,
        )
        rows.append(Row(stage, plain_s, ours_s))

    vision = model.vision_tokens(ours, views)
    embeddings = model.embed(ours, encoded, vision, 1)
    ways = {
        "plain": lambda: _plain_token_times(plain, embeddings, flags.tokens + 1),
        "ours": lambda: _our_token_times(ours, embeddings, encoded, flags.tokens + 1),
    }
    first, rest = _decode_medians(ways, flags.repeat)
    rows.append(Row(f"prefill, {len(encoded)} tokens", first["plain"], first["ours"]))
    rows.append(Row(f"decode, {flags.tokens} tokens", rest["plain"], rest["ours"]))
    return rows


def _decode_medians(
    ways: dict[str, Callable[[], list[float]]], repeat: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds to the first token and from it to the last, of each way; they take turns."""
    first: dict[str, list[float]] = {way: [] for way in ways}
    rest: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(repeat + 1):
        for way, run in ways.items():
            start = time.perf_counter()
            times = run()
            if turn:
                first[way].append(times[0] - start)
                rest[way].append(times[-1] - times[0])
    return (
        {way: statistics.median(values) for way, values in first.items()},
        {way: statistics.median(values) for way, values in rest.items()},
    )


def _prompt(views: images.Views, network: model.Network) -> list[int]:
    return [
        0,
        *[network.config.image_token_id] * views.token_count,
        *range(1000, 1000 + PROMPT_TAIL),
    ]


@torch.inference_mode()
def _plain_vision(network: model.Network, views: images.Views) -> None:
    kind = network.dtype
    network.get_image_features(
        pixel_values=views.global_view[None].to(network.device, kind),
        pixel_values_local=views.tiles.to(network.device, kind) if len(views.tiles) else None,
        num_local_patches=[len(views.tiles)],
        patches_grid=[list(views.grid)],
    )


class _Times:
    """A streamer for the library's `generate` that notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, tokens: torch.Tensor) -> None:
        if tokens.numel():  # the first call holds the prompt's ids, here none
            self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def _plain_token_times(
    network: model.Network, embeddings: torch.Tensor, tokens: int
) -> list[float]:
    streamer = _Times()
    network.generate(
        inputs_embeds=embeddings,
        attention_mask=torch.ones(embeddings.shape[:2], device=network.device, dtype=torch.long),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
        streamer=streamer,
    )
    assert len(streamer.times) == tokens
    return streamer.times


def _our_token_times(
    network: model.Network, embeddings: torch.Tensor, ids: list[int], tokens: int
) -> list[float]:
    settings = DecodeSettings(max_new_tokens=tokens)
    prefilled = generation.prefill(network, embeddings)
    times = [
        time.perf_counter()
        for _ in generation.decode(network, prefilled, ids, settings, frozenset())
    ]
    assert len(times) == tokens
    return times


def _synced(
    network: model.Network, call: Callable[..., Any], *arguments: Any
) -> Callable[[], None]:
    def run() -> None:
        call(*arguments)
        devices.synchronize(network.device)

    return run


def _median(calls: list[Callable[[], Any]], repeat: int) -> list[float]:
    """Median seconds of each call; they take turns, after one turn that does not count."""
    seconds: list[list[float]] = [[] for _ in calls]
    for turn in range(repeat + 1):
        for call, kept in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            if turn:
                kept.append(time.perf_counter() - start)
    return [statistics.median(kept) for kept in seconds]


def _print(table: list[Row], peaks: tuple[float, float]) -> None:
    print(f"\n{'stage':28}{'plain s':>10}{'ours s':>10}{'ratio':>8}")
    for row in table:
        plain = "–" if row.plain is None else f"{row.plain:.3f}"
        ratio = "–" if row.ratio is None else f"{row.ratio:.2f}"
        ours = f"{row.ours:.5f}" if row.ours < 0.01 else f"{row.ours:.3f}"
        print(f"{row.stage:28}{plain:>10}{ours:>10}{ratio:>8}")
    print(f"{'peak memory of loading, GB':28}{peaks[0]:>10.1f}{peaks[1]:>10.1f}")


def _write_json(
    path: Path, table: list[Row], peaks: tuple[float, float], network: model.Network
) -> None:
    figures = {
        "machine": {"processor": platform.processor() or platform.machine(),
                    "python": platform.python_version(), "torch": torch.__version__,
                    "threads": torch.get_num_threads()},
        "device": str(network.device),
        "dtype": str(network.dtype),
        "rows": [{**asdict(row), "ratio": row.ratio} for row in table],
        "load_peak_gb": {"plain": peaks[0], "ours": peaks[1]},
    }  # fmt: skip
    path.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
