"""Memory: estimated from the config, told before it runs out, explained when it does."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.random_checkpoint import FULL_SIZE
from deepseek_ocr import presets
from deepseek_ocr.errors import DeviceError, GenerationError
from deepseek_ocr.images.views import Views
from deepseek_ocr.model import loader
from deepseek_ocr.model.checkpoint import read_config
from deepseek_ocr.model.footprint import (
    Footprint,
    MemoryEstimate,
    MemoryLoad,
    cache_bytes,
    explained,
    in_gb,
    refused_at_load,
    too_little,
)
from deepseek_ocr.model.loader import load_network, rebuild_buffers
from deepseek_ocr.model.network import Network, empty_network
from deepseek_ocr.settings import CropSettings
from tests.conftest import GOLDEN

PRESETS = {name: preset.crop for name, preset in presets.PRESETS.items()}
GB = 10**9


def table(
    footprint: Footprint, presets: Mapping[str, CropSettings], slots: tuple[int, ...] = (1, 4, 16)
) -> list[tuple[str, ...]]:
    """Rows of the table of memory: preset, then GB for each type and number of slots; the first
    row is the heading."""
    kinds = {
        "16 bits": MemoryLoad(torch.bfloat16),
        "int8": MemoryLoad(torch.bfloat16, quant="int8"),
        "float32": MemoryLoad(torch.float32),
    }
    columns = [(name, load, count) for name, load in kinds.items() for count in slots]
    rows = [("preset", *(f"{name}, {count}" for name, _, count in columns))]
    for preset, crop in presets.items():
        sizes = [
            footprint.estimate(crop, replace(load, slots=count)).total for _, load, count in columns
        ]
        rows.append((preset, *(in_gb(size) for size in sizes)))
    return rows


class Peak(TorchDispatchMode):
    """Most bytes of tensors made within it, on devices of one kind, that were alive at once."""

    def __init__(self, kind: str = "cpu") -> None:
        super().__init__()
        self.alive = self.most = 0
        self._kind = kind
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.device.type == self._kind:
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.alive += size
        self.most = max(self.most, self.alive)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Footprint:
    """That of the real model's sizes."""
    folder = tmp_path_factory.mktemp("full")
    (folder / "config.json").write_text(json.dumps(FULL_SIZE))
    return Footprint(read_config(folder))


def test_weights_are_the_parameters(full: Footprint, tiny: Network) -> None:
    assert full.vision + full.matrices + full.rest == 3_335_504_128
    small = Footprint(read_config(GOLDEN / "checkpoint"))
    total = sum(parameter.numel() for parameter in tiny.parameters())
    assert small.estimate(CropSettings(), MemoryLoad(torch.float32)).weights == 4 * total


def test_the_cache_is_what_a_full_page_takes(tiny: Network) -> None:
    config = tiny.config.text_config
    head = config.hidden_size // config.num_attention_heads
    keys = torch.empty(config.num_key_value_heads, config.max_position_embeddings, head)
    layers = config.num_hidden_layers
    assert (
        cache_bytes(read_config(GOLDEN / "checkpoint"), 4)
        == 2 * layers * keys.numel() * keys.itemsize
    )


@pytest.mark.parametrize(
    ("crop", "tiles"),
    [(CropSettings(1024, 1024, False), 0), (CropSettings(512, 640, True), 2)],
)
def test_no_view_takes_more_than_the_estimate(
    tiny: Network, monkeypatch: pytest.MonkeyPatch, crop: CropSettings, tiles: int
) -> None:
    """The plain class's own peak: no less than half of the estimate and no more than all of it."""
    footprint = Footprint(read_config(GOLDEN / "checkpoint"))
    network = empty_network(tiny.config)  # the plain class: nothing replaced
    for name, value in tiny.named_parameters():
        owner, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(owner), leaf, value)
    rebuild_buffers(network, torch.device("cpu"))
    monkeypatch.setattr("deepseek_ocr.model.footprint.MAX_TILES", tiles)
    side = crop.base_size
    views = Views(torch.zeros(3, side, side), torch.zeros(tiles, 3, 640, 640), (2, 1))
    with torch.no_grad(), Peak() as peak:
        network.get_image_features(
            pixel_values=views.global_view[None],
            pixel_values_local=views.tiles if tiles else None,
            num_local_patches=[tiles],
            patches_grid=[[2, 1]],
        )
    estimate = footprint.estimate(crop, MemoryLoad(torch.float32)).vision
    assert 0.5 * estimate < peak.most < estimate


def test_what_does_not_fit_is_told_with_what_does(full: Footprint) -> None:
    def told(free: float, **load: Any) -> str | None:
        load = {"dtype": torch.float16, **load}
        return too_little(full, PRESETS["gundam"], MemoryLoad(**load), PRESETS, int(free * GB))

    assert told(16) is None
    eight = told(8)
    assert eight
    assert "This takes up to 9.2 GB and there are 8.0 GB free" in eight
    assert "--size small" in eight
    assert "--size large" not in eight
    assert "--quant int8" in eight
    assert "--vision-device cpu" in eight
    six = told(6)
    assert six
    assert "What fits: --quant int8 --vision-device cpu (4.8 GB)." in six
    assert "--device cpu" in str(told(2))
    many = told(16, slots=30)
    assert many
    assert "--slots 1 (9.2 GB)" in many


def test_the_table_grows_with_preset_type_and_slots(full: Footprint) -> None:
    heading, *rows = table(full, PRESETS, slots=(1, 4))
    assert len(heading) == 7
    assert [row[0] for row in rows] == list(PRESETS)
    numbers = {row[0]: [float(cell.removesuffix(" GB")) for cell in row[1:]] for row in rows}
    for row in numbers.values():
        assert row[2] < row[0] < row[4]  # int8, 16 bits, float32
        assert row[0] < row[1]
    assert numbers["tiny"] < numbers["small"] < numbers["base"] < numbers["large"]


def test_what_int8_takes(full: Footprint) -> None:
    load = MemoryLoad(quant="int8", parts=("decoder",))
    estimate = full.estimate(PRESETS["gundam"], load)
    embeddings, head = 129280 * 1280, 129280 * 1280
    assert full.matrices > head
    assert full.rest - embeddings < 10**7  # norms and routers
    assert 0 < estimate.weights - full.matrices - 2 * full.rest < 0.01 * full.matrices  # scales
    inner = 64 * 2 * 896 * 1280  # the experts' first matrix, the largest of a layer
    assert estimate.widened == 2 * (inner + head)
    assert 0 < estimate.loading < estimate.widened
    assert estimate.total == (
        estimate.weights + estimate.cache + estimate.widened + estimate.context
    )


def test_a_load_larger_than_any_page_counts() -> None:
    estimate = MemoryEstimate(weights=10, vision=3, cache=2, widened=4, loading=10, context=1)
    assert estimate.total == 21
    assert replace(estimate, loading=5).total == 20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("quant", ["none", "int8"])
@pytest.mark.parametrize("adapted", [False, True], ids=["alone", "adapter"])
def test_loading_takes_what_the_estimate_says(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, quant: str, adapted: bool
) -> None:
    """On a device that only counts: the decoder is never there in 16 bits if 8 were wanted."""
    monkeypatch.setattr("deepseek_ocr.model.weight_matrix._BLOCK", 50)
    folder, target = GOLDEN / "checkpoint", torch.device("meta")
    footprint = Footprint(read_config(folder))
    estimate = footprint.estimate(CropSettings(), MemoryLoad(dtype, quant=quant, context=0))
    empty = empty_network(read_config(folder))
    monkeypatch.setattr(loader, "empty_network", lambda config: empty)
    monkeypatch.setattr(loader, "rebuild_buffers", lambda network, device: None)
    monkeypatch.setattr("deepseek_ocr.devices.selection.choose_device", lambda name: target)
    with Peak("meta") as peak:
        network = load_network(
            folder, dtype=dtype, quant=quant, adapt=(lambda network: network) if adapted else None
        )
    assert estimate.loading < footprint.matrices / 4
    last = 0 if adapted else estimate.loading / 2  # with an adapter what is quantised comes first
    assert estimate.weights + last <= peak.most
    assert peak.most <= estimate.weights + estimate.loading
    assert {parameter.device for parameter in network.parameters()} == {target}


OUT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 … If reserved"),
    RuntimeError("NPU out of memory. Tried to allocate 2.00 GiB (NPU 0; 60.96 GiB total capacity"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9 GB). Tried to allocate 1 GB."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to …"),
    MemoryError(),
]  # fmt: skip


@pytest.mark.parametrize("error", OUT, ids=lambda error: str(error)[:12])
def test_out_of_memory_names_the_preset_to_try(error: Exception) -> None:
    device = torch.device("cpu")
    for crop, preset in [
        (PRESETS["gundam"], "base"),
        (PRESETS["large"], "base"),
        (PRESETS["base"], "small"),
        (PRESETS["small"], "tiny"),
    ]:
        told = explained(error, device, crop)
        assert isinstance(told, GenerationError)
        assert f"try the preset {preset.capitalize()}," in str(told)
    assert "set quant to int8" in str(explained(error, device, PRESETS["tiny"]))


def test_running_out_at_load_says_what_is_taken_and_what_would_fit(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FULL_SIZE))
    config, cuda, cpu = read_config(tmp_path), torch.device("cuda:1"), torch.device("cpu")
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB. If reserved …")
    told = refused_at_load(error, config, cuda, MemoryLoad(), 8 * GB)
    assert isinstance(told, DeviceError)
    assert str(told) == (
        "Device 'cuda:1' ran out of memory while the model was loaded (CUDA out of memory. Tried "
        "to allocate 1 GiB). Its weights take 6.7 GB there, reading pages up to 9.2 GB in all; "
        "8.0 GB were free before. What should fit: quant int8 (7.1 GB), vision_device cpu (7.0 "
        "GB), quant int8 with vision_device cpu (4.8 GB)."
    )
    small = str(refused_at_load(error, config, cuda, MemoryLoad(quant="int8"), 2 * GB))
    assert small.endswith("2.0 GB were free before. Free memory or use another device.")
    of_cpu = str(refused_at_load(MemoryError(), config, cpu, MemoryLoad(context=0), None))
    assert of_cpu.endswith("in all. What should fit: quant int8 (6.5 GB).")
    apart = str(refused_at_load(MemoryError(), config, cuda, MemoryLoad(), 80 * GB))
    assert apart.startswith("The system ran out of memory while the model was loaded to 'cuda:1'")


def test_the_readme_of_devices_has_the_table(full: Footprint) -> None:
    page = (Path(__file__).parent.parent / "docs/devices.md").read_text(encoding="utf-8")
    for row in table(full, PRESETS):
        assert "| " + " | ".join(row) + " |" in page
