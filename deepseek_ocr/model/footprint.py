"""How much memory a network and its pages take: how many fit at once, what to say before memory
runs out, and what to do when it does.

The numbers are computed from the config, by the formulas below. They describe the plain path, which
takes the most: fast paths that never build SAM's position bias take less in vision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from deepseek_ocr.devices import memory, selection
from deepseek_ocr.errors import DeviceError, GenerationError
from deepseek_ocr.images.views import MAX_TILES
from deepseek_ocr.model import int8_layers
from deepseek_ocr.model import weight_matrix as rows
from deepseek_ocr.model.network import Network, empty_network
from deepseek_ocr.settings import VIEW_SIDES, CropSettings

CONTEXT_BYTES = 600 * 10**6
"""What a CUDA context with torch's and cuBLAS's own buffers takes beside the tensors (0.4 to 0.6 GB
by NVIDIA's and torch's documentation; not measured here)."""

MOST_SLOTS = {"cuda": 64, "npu": 16, "mps": 4, "cpu": 4}
"""Pages at once where memory allows: a processor gains from reading each weight once for a few
tokens and is then busy computing; a graphics card goes on gaining."""

RESERVE = 4 * 2**30
"""Bytes on an accelerator left to vision and prefill: the plain attention of one 1280 px view
holds about 3 GB at its peak."""

CACHE_SHARE = {"cuda": 0.8, "npu": 0.8, "mps": 0.25, "cpu": 0.25}
"""Share of what is free (beyond the reserve) that caches may take; less where other programs live
in the same memory."""

_BIAS_COPIES = 2
"""Copies of the position bias that are alive at once: the sum, and what the attention takes."""

_ROW_COPIES = 16
"""Rows of SAM's width per patch alive at once: pixels, positions, residual, norm, query, key, value
and their sum with weights, and the hidden layer of the MLP (4) before and after its activation."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by what they are for.

    - `cache`: of all slots; `vision`: of the largest batch of views
    - `widened`: matrices held in 8 bits, in 16 (or 32) while they are multiplied: the largest of a
      layer and that of the output head. CUDA graphs keep the room for both
    - `loading`: beside the weights while they are read, a block of rows that is quantised; tensors
      that are not quantised go straight to their place
    - `context`: what the device's libraries take for themselves
    """

    weights: int
    vision: int
    cache: int
    widened: int
    loading: int
    context: int

    @property
    def total(self) -> int:
        """The most that is taken at once: loading, or reading pages. An adapter that is merged on
        the device (no quant) takes more for a moment."""
        running = self.cache + self.vision + self.widened
        return self.weights + max(running, self.loading) + self.context


@dataclass(frozen=True)
class MemoryLoad:
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


def load_for(
    device: torch.device,
    dtype: str | torch.dtype = "auto",
    quant: str = "none",
    slots: int = 0,
    vision_device: str | torch.device | None = None,
) -> MemoryLoad:
    """What these settings of `OcrEngine.load` put on `device`; 0 slots count as one. Raises
    `DeviceError`."""
    apart = vision_device is not None and selection.choose_device(vision_device) != device
    return MemoryLoad(
        selection.choose_dtype(dtype, device),
        max(1, slots),
        quant,
        ("decoder",) if apart else MemoryLoad().parts,
        context=0 if device.type == "cpu" else CONTEXT_BYTES,
    )


class Footprint:
    """How much memory a network takes: weights, its largest batch of views, its cache.

    `config` is the network's (see `checkpoint.read_config`); parameters are counted on a network
    without memory.
    """

    def __init__(self, config: Any) -> None:
        self._config = config
        self.vision = self.matrices = self.rest = 0
        self._scales = self._quantising = head = largest = 0
        network = empty_network(config)
        in_8_bits = tuple(f"{name}." for name in int8_layers.matrices(network))
        for name, parameter in network.named_parameters():
            count = parameter.numel()
            if name.startswith(in_8_bits):
                self.matrices += count
                self._scales += count // parameter.shape[-1]
                if name.startswith("lm_head."):
                    head = count
                else:
                    largest = max(largest, count)
                self._quantising = max(self._quantising, rows.working_bytes(parameter.shape))
            elif name.startswith("model.language_model."):
                self.rest += count
            else:
                self.vision += count
        self._widened = largest + head

    def estimate(self, crop: CropSettings, load: MemoryLoad = MemoryLoad()) -> MemoryEstimate:
        """Most memory that loading, or reading pages cut by `crop`, takes."""
        size, weights, vision, cache = load.dtype.itemsize, 0, 0, 0
        widened = loading = 0
        if "vision" in load.parts:
            weights += size * self.vision
            vision = self._vision_peak(crop, size)
        if "decoder" in load.parts:
            weights += self.rest * size
            cache = load.slots * cache_bytes(self._config, size)
            if load.quant == "int8":
                weights += self.matrices + self._scales * torch.float32.itemsize
                widened, loading = self._widened * size, self._quantising
            else:
                weights += self.matrices * size
        return MemoryEstimate(weights, vision, cache, widened, loading, load.context)

    def _vision_peak(self, crop: CropSettings, size: int) -> int:
        """The most that SAM's global attention takes: the global view alone, then all tiles."""
        sam = self._config.vision_config.sam_config
        batches = [(1, crop.image_size)]
        if crop.crop_mode:
            batches = [(1, crop.base_size), (MAX_TILES, crop.image_size)]
        peaks = []
        for views, side in batches:
            patches = (side // sam.patch_size) ** 2
            bias = _BIAS_COPIES * sam.num_attention_heads * patches**2
            peaks.append(views * size * (bias + _ROW_COPIES * patches * sam.hidden_size))
        return int(max(peaks))


def cache_bytes(config: Any, size: int) -> int:
    """Bytes that the cache of one page takes when its context is full: keys and values of every
    layer, `size` bytes a number. `config` is the network's."""
    text = config.text_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * head * size
    return int(per_token * text.max_position_embeddings)


# --- how many pages fit --------------------------------------------------------------------------


def slots_for(kind: str, free: int | None, per_slot: int) -> int:
    """How many pages to hold at once on a device of `kind` with `free` bytes (None: unknown), each
    with a cache of `per_slot` bytes.

    On an accelerator: as many full contexts as fit into four fifths of what is free beyond 4 GiB,
    64 at most. On a processor: into a quarter of what is free, 4 at most. Always at least one.
    """
    if free is None:
        return 1
    usable = (free - (RESERVE if kind in ("cuda", "npu") else 0)) * CACHE_SHARE[kind]
    return max(1, min(MOST_SLOTS[kind], int(usable // per_slot)))


def choose_slots(network: Network) -> int:
    """How many pages `network` may hold at once where it is; see `slots_for`."""
    device: torch.device = network.device
    per_page = cache_bytes(network.config, network.dtype.itemsize)
    return slots_for(device.type, memory.free_bytes(device), per_page)


# --- before it fails -----------------------------------------------------------------------------


def too_little(
    footprint: Footprint,
    crop: CropSettings,
    load: MemoryLoad,
    presets: Mapping[str, CropSettings],
    free: int,
) -> str | None:
    """What to tell somebody whose pages, cut by `crop`, may not fit into `free` bytes: how much
    they take and what would fit; None where they fit.

    `presets` are the names that a user may choose, with what they mean.
    """
    needed = footprint.estimate(crop, load).total
    if needed <= free:
        return None
    ways = [
        (f"--size {name}", footprint.estimate(preset, load).total)
        for name, preset in presets.items()
    ]
    for settings, smaller in _smaller_loads(load):
        flags = " ".join(f"--{setting.replace('_', '-')}" for setting in settings)
        ways.append((flags, footprint.estimate(crop, smaller).total))
    fitting = [f"{way} ({in_gb(size)})" for way, size in ways if size <= free]
    what = f"What fits: {', '.join(fitting)}." if fitting else "Use --device cpu."
    return f"This takes up to {in_gb(needed)} and there are {in_gb(free)} free. {what}"


_SMALLER: dict[tuple[str, ...], dict[str, Any]] = {
    ("slots 1",): {"slots": 1},
    ("quant int8",): {"quant": "int8"},
    ("vision_device cpu",): {"parts": ("decoder",)},
    ("quant int8", "vision_device cpu"): {"quant": "int8", "parts": ("decoder",)},
}
"""Settings that take less memory, and what each changes in a `MemoryLoad`."""


def _smaller_loads(load: MemoryLoad) -> Iterator[tuple[tuple[str, ...], MemoryLoad]]:
    """Settings under which less than `load` is put on the device, and what it is then."""
    seen = {load}
    for settings, changes in _SMALLER.items():
        smaller = replace(load, **changes)
        if smaller not in seen:
            seen.add(smaller)
            yield settings, smaller


def in_gb(count: int) -> str:
    """Bytes for people, in units of 10^9."""
    return f"{count / 1e9:.1f} GB"


# --- when it runs out ----------------------------------------------------------------------------


def refused_at_load(
    error: Exception, config: Any, device: torch.device, load: MemoryLoad, free: int | None
) -> DeviceError:
    """What to raise if memory ran out while the network of `config` was put on `device`: what it
    takes there, and what would fit.

    `free` is how many bytes there were before; None if unknown. What fits also reads pages
    of the default crop setting.
    """
    if device.type != "cpu" and memory.is_of_the_system(error):
        return DeviceError(
            f"The system ran out of memory while the model was loaded to {str(device)!r} "
            f"({_first_words(error)}). Free memory, or use a machine with more."
        )
    footprint, crop = Footprint(config), CropSettings()
    estimate = footprint.estimate(crop, load)
    ways = [
        f"{' with '.join(settings)} ({in_gb(size)})"
        for settings, smaller in _smaller_loads(load)
        if not (device.type == "cpu" and "vision_device cpu" in settings)
        if (size := footprint.estimate(crop, smaller).total)
        <= (estimate.total if free is None else free)
    ]
    what = f"What should fit: {', '.join(ways)}." if ways else "Free memory or use another device."
    room = "" if free is None else f"; {in_gb(free)} were free before"
    return DeviceError(
        f"Device {str(device)!r} ran out of memory while the model was loaded "
        f"({_first_words(error)}). Its weights take {in_gb(estimate.weights)} there, reading pages "
        f"up to {in_gb(estimate.total)} in all{room}. {what}"
    )


def explained(error: Exception, device: torch.device, crop: CropSettings) -> GenerationError:
    """What to raise in place of `error`, by which `device` refused memory for a page cut by `crop`:
    it names the preset to try."""
    # The largest preset that takes less; tiles take more than the global view alone.
    side = max(crop.base_size, crop.image_size) + 1 if crop.crop_mode else crop.image_size
    smaller = (title for title, size in reversed(VIEW_SIDES.items()) if size < side)
    preset = next(smaller, None)
    what = (
        f"try the preset {preset}, which takes less"
        if preset
        else "set quant to int8 or vision_device to cpu, or use a device with more memory"
    )
    return GenerationError(
        f"Device {str(device)!r} has no memory left for this page ({_first_words(error)}); {what}."
    )


def _first_words(error: Exception) -> str:
    """What an error says, without advice about the allocator."""
    first = str(error).split("\n", 1)[0].split(" If ", 1)[0].rstrip(". ")
    return first or type(error).__name__
