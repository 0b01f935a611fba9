"""The fast vision paths give what the library's own code gives, and never build the bias."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deepseek_ocr.devices import cpu as processors
from deepseek_ocr.images.views import Views
from deepseek_ocr.kernels import compiled_attention, compiling, sam_attention, vision
from deepseek_ocr.kernels.rehearsal import prepare
from deepseek_ocr.kernels.sam_attention import Heads, Positions
from deepseek_ocr.model.loader import load_network
from deepseek_ocr.model.network import Network, vision_tokens
from tests.conftest import GOLDEN, POCKET
from tests.goldens import golden_views
from tests.recorder import compute_as_a_card

ALL = frozenset(["vision", "compiled"])

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Greatest distance to the plain path, relative to its length. In bfloat16 both round in other
places, one part in 256 each time; the plain path itself is that far from float32 (tested)."""

VIEWS = ["tiny", "small", "base", "large", "gundam_1x2"]


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


NETWORKS = {
    "float32": (GOLDEN / "checkpoint", torch.float32),
    "bfloat16": (GOLDEN / "checkpoint", torch.bfloat16),  # heads too small for the compiled kernel
    "compiled": (POCKET, torch.bfloat16),
}


@pytest.fixture(scope="module", params=NETWORKS)
def both(request: pytest.FixtureRequest) -> tuple[Network, Network]:
    """A plain network and the same with all fast paths."""
    folder, dtype = NETWORKS[request.param]
    plain, fast = (load_network(folder, "cpu", dtype) for _ in range(2))
    prepare(fast, ALL)
    return plain, fast


@pytest.mark.parametrize("name", VIEWS)
def test_fast_equals_plain(
    both: tuple[Network, Network], golden: dict[str, torch.Tensor], name: str
) -> None:
    views = golden_views(golden, name)
    rows, ours = (vision_tokens(network, views) for network in both)
    assert distance(ours, rows) < TOLERANCES[rows.dtype]


@pytest.mark.parametrize("card", [False, True], ids=["cpu", "card"])
@pytest.mark.parametrize("name", ["tiny", "gundam_2x1"])
def test_fast_equals_the_official_code(
    golden: dict[str, torch.Tensor], name: str, card: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if card:
        compute_as_a_card(monkeypatch)
    network = load_network(GOLDEN / "checkpoint", "cpu", "float32")
    prepare(network, ALL)
    rows = vision_tokens(network, golden_views(golden, name))
    assert distance(rows, golden[f"{name}.vision_tokens"]) < 1e-5


def test_bfloat16_is_no_further_from_the_official_code_than_the_plain_path(
    golden: dict[str, torch.Tensor],
) -> None:
    theirs = golden["base.vision_tokens"]
    far = {}
    for chosen in (frozenset[str](), frozenset(["vision"]), ALL):
        network = load_network(GOLDEN / "checkpoint", "cpu", "bfloat16")
        prepare(network, chosen)
        far[chosen] = distance(vision_tokens(network, golden_views(golden, "base")), theirs)
    assert max(far.values()) < 1.2 * far[frozenset()]


def test_nothing_is_put_on_without_the_name(golden: dict[str, torch.Tensor]) -> None:
    network = load_network(GOLDEN / "checkpoint", "cpu", "float32")
    for chosen in (frozenset[str](), frozenset(["decoder", "compiled"])):
        prepare(network, chosen)
        modules = network.model.vision_tower.modules()
        assert not any("forward" in vars(module) for module in modules)


def test_attention_is_chosen_by_device_type_and_window() -> None:
    choose = vision.torch_attention
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose(cuda, torch.bfloat16, 14) is choose(cuda, torch.float16, 0)
    assert choose(cuda, torch.bfloat16, 0) is sam_attention.fused
    assert choose(cpu, torch.bfloat16, 0) is sam_attention.blocked
    assert choose(cpu, torch.float32, 0) is sam_attention.by_rows
    assert choose(cpu, torch.bfloat16, 14) is None
    assert not compiled_attention.can_run(cuda, torch.bfloat16, 64)
    assert not compiled_attention.can_run(cpu, torch.float32, 64)
    assert not compiled_attention.can_run(cpu, torch.bfloat16, 24)


def test_without_a_compiler_the_torch_path_is_taken(
    golden: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "library", lambda name: None)
    networks = [load_network(POCKET, "cpu", "bfloat16") for _ in range(2)]
    prepare(networks[1], ALL)
    rows, ours = (vision_tokens(n, golden_views(golden, "tiny")) for n in networks)
    assert distance(ours, rows) < TOLERANCES[torch.bfloat16]


# --- attention by itself --------------------------------------------------------------------------


def exact(heads: Heads, positions: Positions) -> torch.Tensor:
    """Attention with the bias built, in float64: the definition."""
    query, key, value = (x.double() for x in (heads.query, heads.key, heads.value))
    (height, width), dim = heads.size, heads.query.shape[-1]
    rows, columns = (table.double() for table in positions.tables(heads.size))
    cells = torch.arange(height * width)
    down = cells[:, None] // width - cells // width + height - 1
    right = cells[:, None] % width - cells % width + width - 1
    bias = torch.einsum("nqd,qkd->nqk", query, rows[down] + columns[right])
    scores = query @ key.transpose(1, 2) * dim**-0.5 + bias
    return scores.softmax(-1) @ value


class Layer(torch.nn.Module):
    """The part of a SAM attention that holds the tables of positions."""

    def __init__(self, side: int, dim: int) -> None:
        super().__init__()
        tables = (torch.nn.Parameter(torch.randn(2 * side - 1, dim) * 0.3) for _ in range(2))
        self.rel_pos_h, self.rel_pos_w = tables
        self.requires_grad_(False)


def heads_of(count: int, size: tuple[int, int], dim: int, dtype: torch.dtype) -> Heads:
    parts = (torch.randn(count, size[0] * size[1], dim).to(dtype) for _ in range(3))
    return Heads(*parts, size)


@pytest.mark.parametrize("way", [sam_attention.fused, sam_attention.blocked, sam_attention.by_rows])
@pytest.mark.parametrize("size", [(5, 5), (3, 8), (13, 1), (14, 14)])
def test_each_way_is_the_definition(way: vision.Attention, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer, heads = Layer(max(size), 12), heads_of(3, size, 12, torch.float32)
    assert distance(way(heads, Positions(layer)), exact(heads, Positions(layer))) < 1e-5


needs_kernel = pytest.mark.skipif(
    "AVX-512 BF16" not in processors.instructions(),
    reason="needs a processor with AVX-512 BF16",
)


@needs_kernel
@pytest.mark.parametrize(
    ("batch", "height", "width", "window", "heads", "dim"),
    [
        (1, 16, 16, 0, 2, 64),  # whole vectors of keys
        (3, 24, 24, 0, 1, 32),  # rows joined in pairs
        (1, 7, 24, 0, 2, 64),  # an odd number of rows, filled up
        (1, 5, 3, 0, 1, 16),
        (2, 20, 20, 14, 2, 64),  # windows that reach beyond the map
        (1, 14, 28, 14, 2, 32),
    ],
)
def test_compiled_attention_is_the_definition(
    batch: int, height: int, width: int, window: int, heads: int, dim: int
) -> None:
    if not compiled_attention.can_run(torch.device("cpu"), torch.bfloat16, dim):
        pytest.skip("needs a C++ compiler")
    torch.manual_seed(0)
    layer = Layer(window or max(height, width), dim).bfloat16()
    qkv = torch.randn(batch, height, width, 3 * heads * dim).bfloat16()
    padding = torch.randn(3 * heads * dim).bfloat16()
    ours = compiled_attention.attend(qkv, padding, Positions(layer), window, heads)
    theirs = by_definition(qkv, padding, layer, (window or height, window or width), heads)
    assert distance(ours, theirs) < 4e-3  # of one rounding each of probabilities and result


def by_definition(
    qkv: torch.Tensor, padding: torch.Tensor, layer: Layer, side: tuple[int, int], heads: int
) -> torch.Tensor:
    """Windows cut, padded, attended to and laid back, one by one."""
    batch, height, width, _ = qkv.shape
    out = qkv.new_empty(batch, height, width, qkv.shape[-1] // 3)
    for image in range(batch):
        for top in range(0, height, side[0]):
            for left in range(0, width, side[1]):
                inside = qkv[image, top : top + side[0], left : left + side[1]]
                filled = padding.repeat(*side, 1)
                filled[: inside.shape[0], : inside.shape[1]] = inside
                parts = filled.flatten(0, 1).unflatten(1, (3, heads, -1)).permute(1, 2, 0, 3)
                mixed = exact(Heads(*parts, side), Positions(layer)).to(out.dtype)
                laid = mixed.transpose(0, 1).flatten(1).unflatten(0, side)
                rows, columns = inside.shape[:2]
                out[image, top : top + rows, left : left + columns] = laid[:rows, :columns]
    return out


# --- what must not happen -------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Notes the most numbers any operation gives out."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(results):
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes())
        return results


def largest(network: Network, views: Views) -> int:
    with Largest() as watch:
        vision_tokens(network, views)
    return watch.numbers


def test_no_tensor_as_large_as_the_bias_is_made(
    both: tuple[Network, Network], golden: dict[str, torch.Tensor]
) -> None:
    plain, fast = both
    views = golden_views(golden, "base")
    heads = fast.config.vision_config.sam_config.num_attention_heads
    bias = heads * (1024 // 16) ** 4 * fast.dtype.itemsize
    sam = plain.model.vision_tower.sam_encoder
    if any(layer.window_size == 0 for layer in sam.layers):  # a small model may have windows only
        assert largest(plain, views) >= bias
    assert largest(fast, views) < bias / 6


def test_gradients_are_the_plain_ones(golden: dict[str, torch.Tensor]) -> None:
    """Training with the fast paths on is training without them."""
    image = golden_views(golden, "tiny").global_view[None]
    gradients = []
    for chosen in (frozenset[str](), ALL):
        network = load_network(GOLDEN / "checkpoint", "cpu", "float32")
        prepare(network, chosen)
        tower = network.model.vision_tower.requires_grad_(True)
        tower.sam_encoder(image).last_hidden_state.square().sum().backward()
        gradients.append({n: p.grad for n, p in tower.sam_encoder.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert torch.equal(gradient, gradients[1][name]), name


def test_new_weights_are_seen(golden: dict[str, torch.Tensor]) -> None:
    """Nothing derived from the old ones is kept: packed weights, resized tables."""
    views = golden_views(golden, "tiny")
    networks = [load_network(GOLDEN / "checkpoint", "cpu", "bfloat16") for _ in range(2)]
    prepare(networks[1], ALL)
    before = vision_tokens(networks[1], views)
    with torch.no_grad():
        for network in networks:
            for name, parameter in network.model.vision_tower.named_parameters():
                if "rel_pos" in name or name.endswith("proj.weight"):
                    parameter.mul_(1.5)
    rows, ours = (vision_tokens(network, views) for network in networks)
    assert distance(ours, rows) < TOLERANCES[torch.bfloat16]
    assert distance(ours, before) > 5 * TOLERANCES[torch.bfloat16]
