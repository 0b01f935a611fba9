"""How much device memory a page takes, told before it runs out, and what to do when it does.

The numbers are computed from the config, by the formulas below. They describe the plain path, which
takes the most: fast paths that never build SAM's position bias take less in vision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from deepseek_ocr import memory, model
from deepseek_ocr.errors import GenerationError
from deepseek_ocr.settings import CropSettings

CONTEXT_BYTES = 600 * 10**6
"""What a CUDA context with torch's and cuBLAS's own buffers takes beside the tensors (0.4 to 0.6 GB
by NVIDIA's and torch's documentation; not measured here)."""

MOST_TILES = 9
"""Tiles of the largest crop grid."""

_BIAS_COPIES = 2
"""Copies of the position bias that are alive at once: the sum, and what the attention takes."""

_ROW_COPIES = 16
"""Rows of SAM's width per patch alive at once: pixels, positions, residual, norm, query, key, value
and their sum with weights, and the hidden layer of the MLP (4) before and after its activation."""


@dataclass(frozen=True)
class Estimate:
    """Bytes by what they are for; `cache` is of all slots, `vision` of the largest batch of
    views."""

    weights: int
    vision: int
    cache: int
    context: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.vision + self.cache + self.context


@dataclass(frozen=True)
class Load:
    """What is put on a device.

    - `dtype`: of weights and cache; `quant`: of the decoder's matrices
    - `slots`: pages at once, each with room for the whole context
    - `parts`: "vision", "decoder", or both
    - `context`: what the device's libraries take for themselves
    """

    dtype: torch.dtype = torch.bfloat16
    slots: int = 1
    quant: str = "none"
    parts: tuple[str, ...] = ("vision", "decoder")
    context: int = CONTEXT_BYTES


class Footprint:
    """How much memory a network takes: weights, its largest batch of views, its cache.

    `config` is the network's (see `checkpoint.read_config`); parameters are counted on a network
    without memory.
    """

    def __init__(self, config: Any) -> None:
        self._config = config
        self.vision = self.matrices = self.rest = 0
        for name, parameter in model.empty_network(config).named_parameters():
            count = parameter.numel()
            if not name.startswith(("model.language_model.", "lm_head.")):
                self.vision += count
            elif ".layers." in name and parameter.dim() > 1 and ".gate.weight" not in name:
                self.matrices += count
            else:
                self.rest += count

    def estimate(self, crop: CropSettings, load: Load = Load()) -> Estimate:
        """Most memory that reading pages cut by `crop` takes."""
        size, weights, vision, cache = load.dtype.itemsize, 0, 0, 0
        if "vision" in load.parts:
            weights += size * self.vision
            vision = self._vision_peak(crop, size)
        if "decoder" in load.parts:
            weights += self.matrices * (1 if load.quant == "int8" else size) + self.rest * size
            cache = load.slots * self.cache_per_page(size)
        return Estimate(weights, vision, cache, load.context)

    def cache_per_page(self, size: int) -> int:
        """Bytes of keys and values of a page that fills the context, `size` bytes a number."""
        text = self._config.text_config
        head = text.hidden_size // text.num_attention_heads
        per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * head * size
        return int(per_token * text.max_position_embeddings)

    def _vision_peak(self, crop: CropSettings, size: int) -> int:
        """The most that SAM's global attention takes: the global view alone, then all tiles."""
        sam = self._config.vision_config.sam_config
        batches = [(1, crop.image_size)]
        if crop.crop_mode:
            batches = [(1, crop.base_size), (MOST_TILES, crop.image_size)]
        peaks = []
        for views, side in batches:
            patches = (side // sam.patch_size) ** 2
            bias = _BIAS_COPIES * sam.num_attention_heads * patches**2
            peaks.append(views * size * (bias + _ROW_COPIES * patches * sam.hidden_size))
        return int(max(peaks))


# --- before it fails -----------------------------------------------------------------------------


def too_little(
    footprint: Footprint,
    crop: CropSettings,
    load: Load,
    presets: Mapping[str, CropSettings],
    free: int,
) -> str | None:
    """What to tell somebody whose pages, cut by `crop`, may not fit into `free` bytes: how much
    they take and what would fit; None where they fit.

    `presets` are the names that a user may choose, with what they mean.
    """

    def total(crop: CropSettings, **changes: Any) -> int:
        return footprint.estimate(crop, replace(load, **changes)).total

    needed = total(crop)
    if needed <= free:
        return None
    ways = [(f"--size {name}", total(preset)) for name, preset in presets.items()]
    if load.slots > 1:
        ways.append(("--slots 1", total(crop, slots=1)))
    if load.quant == "none":
        ways.append(("--quant int8", total(crop, quant="int8")))
    ways.append(("--vision-device cpu", total(crop, parts=("decoder",))))
    ways.append(("--quant int8 --vision-device cpu", total(crop, quant="int8", parts=("decoder",))))
    fitting = [f"{way} ({in_gb(size)})" for way, size in ways if size <= free]
    what = f"What fits: {', '.join(fitting)}." if fitting else "Use --device cpu."
    return f"This takes up to {in_gb(needed)} and there are {in_gb(free)} free. {what}"


def table(
    footprint: Footprint, presets: Mapping[str, CropSettings], slots: tuple[int, ...] = (1, 4, 16)
) -> list[tuple[str, ...]]:
    """Rows of the table of memory: preset, then GB for each type and number of slots; the first
    row is the heading."""
    kinds = {
        "16 bits": Load(torch.bfloat16),
        "int8": Load(torch.bfloat16, quant="int8"),
        "float32": Load(torch.float32),
    }
    columns = [(name, load, count) for name, load in kinds.items() for count in slots]
    rows = [("preset", *(f"{name}, {count}" for name, _, count in columns))]
    for preset, crop in presets.items():
        sizes = [
            footprint.estimate(crop, replace(load, slots=count)).total for _, load, count in columns
        ]
        rows.append((preset, *(in_gb(size) for size in sizes)))
    return rows


def in_gb(count: int) -> str:
    """Bytes for people, in units of 10^9."""
    return f"{count / 1e9:.1f} GB"


# --- when it runs out ----------------------------------------------------------------------------


def explained(error: Exception, device: torch.device, crop: CropSettings) -> Exception:
    """What to raise in place of `error` for a page cut by `crop`: where memory ran out, a
    `GenerationError` that names the preset to try; else `error` itself."""
    if not memory.is_out_of_memory(error):
        return error
    preset = _smaller_preset(crop)
    what = (
        f"try the preset {preset}, which takes less"
        if preset
        else "set quant to int8 or vision_device to cpu, or use a device with more memory"
    )
    first = str(error).split("\n", 1)[0].split(" If ", 1)[0].rstrip(". ")
    first = first or type(error).__name__
    return GenerationError(
        f"Device {str(device)!r} has no memory left for this page ({first}); {what}."
    )


def _smaller_preset(crop: CropSettings) -> str | None:
    """The largest preset that takes less memory than `crop` does; None where there is none."""
    side = max(crop.base_size, crop.image_size) if crop.crop_mode else crop.image_size
    if crop.crop_mode:
        side += 1  # tiles take more than the global view alone
    presets = {"Base": 1024, "Small": 640, "Tiny": 512}
    return next((name for name, size in presets.items() if size < side), None)
