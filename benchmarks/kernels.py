"""Every fast way of decoding on this machine: is it right, and how fast is it?

    python -m benchmarks.kernels [--device cuda] [--pages 1,8,64] [--json FILE]

Against the library's plain class, in one run, over one set of full-size random weights. Prints
what the device's memory and arithmetic can do, what is reached as a share of it, and, on a
processor, what the table in `deepseek_ocr/kernels/decoder.py` should say here. A few minutes.
Exits with 1 where a way does not agree with the plain class.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks import random_checkpoint
from deepseek_ocr import devices, model
from deepseek_ocr.decoding import Decoder, PlainDecoder
from deepseek_ocr.images import Views
from deepseek_ocr.kernels import compiling, decoder, quantized, weights
from deepseek_ocr.kernels.decoder import FastDecoder

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.01}
"""Of the norm of all logits, median over steps: a rounding can tip the choice of an expert."""
CONTEXT = 2048


@dataclass(frozen=True)
class Row:
    """Decoding by one way: tokens a second over all pages, and their share of what reading the
    weights once a step allows. `agreement` is the median relative difference of the logits from
    the plain class over the same weights; `top1` how often the likeliest token is that of the
    plain class before anything was quantised."""

    way: str
    quant: str
    pages: int
    tokens_per_s: float
    share_of_memory: float
    agreement: float | None
    top1: float


def main() -> None:
    """Command line."""
    flags = _flags()
    if not (flags.checkpoint / random_checkpoint.FILE).is_file():
        print(f"writing a random checkpoint to {flags.checkpoint} …", flush=True)
        random_checkpoint.write(flags.checkpoint)
    network = model.load_network(flags.checkpoint, flags.device, flags.dtype)
    limits = {"memory_gb_s": _bandwidth(network.device), "bf16_tflop_s": _arithmetic(network)}
    print(" ".join(f"{name} {value:.1f}" for name, value in limits.items()), flush=True)
    stages = _stages(network, flags)
    told = _told(network, flags.tokens)
    best = _follow(PlainDecoder(network), _prompt(network, flags.prompt), told).argmax(1)
    rows = []
    for quant in flags.quant.split(","):
        if quant == "int8":
            quantized.quantize_decoder(network)
        rows += list(_decode(network, quant, flags, limits["memory_gb_s"], best))
    wrong = [row for row in rows if (row.agreement or 0) > TOLERANCE[network.dtype]]
    if network.device.type == "cpu":
        print(_proposal(rows))
    if flags.json:
        machine = {"processor": platform.processor(), "torch": torch.__version__,
                   "device": str(network.device), "threads": torch.get_num_threads()}  # fmt: skip
        found = {"machine": machine, "limits": limits, "stages": stages,
                 "rows": [asdict(row) for row in rows]}  # fmt: skip
        flags.json.write_text(json.dumps(found, indent=1))
    for row in wrong:
        print(f"WRONG: {row}")
    sys.exit(bool(wrong))


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "build" / "random-checkpoint")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--pages", default="1,2,4,8", help="pages in flight, as in 1,8,64")
    parser.add_argument("--quant", default="none,int8", help="none first: int8 replaces weights")
    parser.add_argument("--prompt", type=int, default=913, help="tokens of a page's prompt")
    parser.add_argument("--tokens", type=int, default=32, help="decoded per repetition")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions; the median counts")
    parser.add_argument("--view", type=int, default=1024, help="side of the global view, px")
    parser.add_argument("--tiles", type=int, default=6, help="tiles of 640 px beside it")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    return parser.parse_args()


def _stages(network: model.Network, flags: argparse.Namespace) -> dict[str, float]:
    """Median seconds of vision and of prefill, by the class and by the fast decoder's way."""
    tiles = torch.rand(flags.tiles, 3, 640, 640) if flags.tiles else torch.empty(0, 3, 640, 640)
    grid = (2, flags.tiles // 2) if flags.tiles else (1, 1)
    views = Views(torch.rand(3, flags.view, flags.view), tiles, grid)
    prompt = _prompt(network, flags.prompt)
    plain = PlainDecoder(network)
    found = {
        "vision_s": _median(network, lambda: model.vision_tokens(network, views), flags.repeat),
        "prefill_plain_s": _median(network, lambda: plain.prefill(0, prompt), flags.repeat),
    }
    plain.free(0)
    for name, way in _ways(network):
        fast = FastDecoder(network, 1, CONTEXT, way)
        found[f"prefill_{name}_s"] = _median(
            network, partial(fast.prefill, 0, prompt), flags.repeat
        )
    for name, seconds in found.items():
        print(f"{name:24}{seconds:10.4f}", flush=True)
    return found


def _ways(network: model.Network) -> Iterator[tuple[str, decoder.Path]]:
    """The fast ways that this machine has."""
    yield "torch", decoder.TORCH
    if network.device.type == "cuda":
        yield "graphs", decoder.GRAPHS
    elif compiling.library() is not None:
        yield "compiled", decoder.NATIVE


def _decode(
    network: model.Network,
    quant: str,
    flags: argparse.Namespace,
    bandwidth: float,
    best: torch.Tensor,
) -> Iterator[Row]:
    """All ways at all numbers of pages; the plain class for one page, as it takes them in turn."""
    prompt = _prompt(network, flags.prompt)
    told = _told(network, flags.tokens)
    plain_logits = _follow(PlainDecoder(network), prompt, told)
    counts = [int(count) for count in flags.pages.split(",")]
    made: list[tuple[str, int, Callable[[], Decoder]]] = [
        ("plain", 1, partial(PlainDecoder, network)),
        *[
            (name, count, partial(FastDecoder, network, count, CONTEXT, way))
            for name, way in _ways(network)
            for count in counts
        ],
    ]
    for name, count, make in made:
        one = make()
        logits = _follow(one, prompt, told)
        errors = (logits - plain_logits).norm(dim=1) / plain_logits.norm(dim=1)
        same = (logits.argmax(1) == best).float().mean()
        for slot in range(count):
            one.prefill(slot, prompt)
        speed = statistics.median(
            _speed(network, one, count, flags.tokens) for _ in range(flags.repeat)
        )
        limit = bandwidth * 1e9 / _bytes(network, count) * count
        agreement = None if name == "plain" else float(errors.median())
        row = Row(name, quant, count, speed, speed / limit, agreement, float(same))
        print(
            f"{name:10}{quant:6}{count:4} pages{speed:10.1f} tok/s, {row.share_of_memory:4.0%} of "
            f"the memory's limit, difference {agreement or 0:.1e}, top-1 {row.top1:.0%}",
            flush=True,
        )
        yield row


def _prompt(network: model.Network, tokens: int) -> torch.Tensor:
    hidden = network.config.text_config.hidden_size
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1, tokens, hidden, generator=generator) * 0.02
    return values.to(network.device, network.dtype)


def _told(network: model.Network, count: int) -> list[int]:
    """Tokens that every way is given one after the other, so that all see the same."""
    vocabulary = network.config.text_config.vocab_size
    numbers = torch.Generator().manual_seed(1)
    return [int(id_) for id_ in torch.randint(vocabulary, (count,), generator=numbers)]


def _follow(one: Decoder, prompt: torch.Tensor, told: list[int]) -> torch.Tensor:
    """Logits `[len(told), V]` behind each of the tokens, on the CPU."""
    one.prefill(0, prompt)
    logits = [one.step([0], [token])[0].cpu().clone() for token in told]
    one.free(0)
    return torch.stack(logits)


def _speed(network: model.Network, one: Decoder, count: int, tokens: int) -> float:
    """Tokens a second over `count` pages, greedy, one transfer of ids a step."""
    slots, ids = list(range(count)), list(range(3, 3 + count))
    start = time.perf_counter()
    for _ in range(tokens):
        ids = one.step(slots, ids).argmax(-1).tolist()
    devices.synchronize(network.device)
    return count * tokens / (time.perf_counter() - start)


def _bytes(network: model.Network, pages: int) -> float:
    """Weights that a step of `pages` reads: of the experts, those that so many distinct random
    choices hit on average."""
    read = weights.read(network, 1)
    total: float = _size(read.head) + sum(_size(layer) for layer in read.layers)
    routed = [layer.experts for layer in read.layers if layer.experts]
    for each in routed:
        share = 1 - (1 - read.chosen / len(each.router)) ** pages
        total -= (1 - share) * (_size(each.inner) + _size(each.outer))
    return total


def _size(part: object) -> int:
    if isinstance(part, torch.Tensor):
        return part.numel() * part.element_size()
    return sum(_size(inner) for inner in getattr(part, "__dict__", {}).values())


def _bandwidth(device: torch.device) -> float:
    """GB/s that a plain reduction over 512 MB reads."""
    data = torch.zeros(2**27, device=device)
    seconds = _timed(device, data.sum)
    return data.numel() * 4 / seconds / 1e9


def _arithmetic(network: model.Network) -> float:
    """TFLOP/s of a matrix product of 2048 in the network's type."""
    square = torch.zeros(2048, 2048, device=network.device, dtype=network.dtype)
    return 2 * 2048**3 / _timed(network.device, lambda: square @ square) / 1e12


def _timed(device: torch.device, call: Callable[[], object]) -> float:
    times = []
    for _ in range(6):
        start = time.perf_counter()
        call()
        devices.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _median(network: model.Network, call: Callable[[], object], repeat: int) -> float:
    """Median seconds, after one call that does not count."""
    times = []
    for turn in range(repeat + 1):
        start = time.perf_counter()
        call()
        devices.synchronize(network.device)
        if turn:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def _proposal(rows: list[Row]) -> str:
    """What the table of processor features should say, going by one page in the file's type."""
    features = torch.backends.cpu.get_cpu_capability()
    speeds = {row.way: row.tokens_per_s for row in rows if row.pages == 1 and row.quant == "none"}
    better = speeds.get("compiled", 0) > speeds.get("torch", 0)
    now = decoder.COMPILED.get(features, False)
    verdict = "as it is" if better == now else f"not {now} as now"
    return f'decoder.COMPILED["{features}"] should be {better}, {verdict}'


if __name__ == "__main__":
    main()
