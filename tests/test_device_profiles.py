"""What a device lacks is never called: the whole path, image to text, under modes that refuse.

None of the devices is here. Each profile lists operators that its device refuses or is known to
compute badly, and where the knowledge comes from.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.integrations import moe
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from deepseek_ocr.decoding.decoder import PlainDecoder
from deepseek_ocr.devices import selection
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.engine.results import Page, Reading
from deepseek_ocr.errors import DeviceError, GenerationError
from deepseek_ocr.images.views import make_views
from deepseek_ocr.kernels import convolutions, float32_fallback
from deepseek_ocr.kernels import op_fallbacks as operators
from deepseek_ocr.model import network as model
from deepseek_ocr.model.checkpoint import read_config
from deepseek_ocr.model.loader import load_network
from deepseek_ocr.settings import CropSettings, DecodeSettings
from tests.conftest import GOLDEN, POCKET, ROOT
from tests.goldens import golden_views, relative_error

PROFILES = {
    # CANN 8.3 has no working Conv2D and no masked_scatter (the users' existing port).
    "npu": ("convolution", "conv2d", "masked_scatter"),
    # MPS got the antialiased resize after torch 2.6. Every profile refuses float64 as well.
    "mps": ("_upsample_bicubic2d_aa", "masked_scatter"),
}


class Refuses(TorchDispatchMode):
    """Raises where one of `names` is called, or anything in float64; composites are taken apart
    first, so that what they are made of counts."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self._names = names
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        self.seen.add(name)
        if name in self._names:
            raise NotImplementedError(f"{name} is refused")
        if func._can_decompose() and not func.name().startswith("aten::scaled_dot"):
            with self:
                parts = func.decompose(*args, **(kwargs or {}))
            if parts is not NotImplemented:
                return parts
        result = func(*args, **(kwargs or {}))
        if any(
            isinstance(value, torch.Tensor) and value.dtype == torch.float64
            for value in torch.utils._pytree.tree_leaves(result)
        ):
            raise NotImplementedError(f"{name} gives float64")
        return result


def page(width: int = 900, height: int = 1300) -> Image.Image:
    """A picture that gives tiles, without any two equal."""
    ramp = Image.radial_gradient("L").resize((width, height))
    return Image.merge("RGB", (ramp, ramp.rotate(90), ramp.rotate(180)))


SMALL = CropSettings(base_size=512, image_size=512, crop_mode=True)
TINY = CropSettings(512, 512, False)

FLOAT16_TOLERANCE = 0.02
"""Relative error of features and logits in float16 against the official implementation's float32. A
rounding is 0.0005; the logits have 0.014, vision less than 0.01."""


def read(network: model.Network, steps: int = 4, crop: CropSettings = SMALL) -> list[torch.Tensor]:
    """The path of a page: views, vision tokens, prompt, a few greedy tokens; all logits."""
    rows = model.vision_tokens(network, make_views(page(), crop))
    ids = [0, *[network.config.image_token_id] * len(rows), 17, 18]
    decoder = PlainDecoder(network)
    logits = [decoder.prefill(0, model.embed(network, ids, rows, 1))]
    for _ in range(steps):
        logits.append(decoder.step([0], [int(logits[-1].argmax())])[0])
    decoder.free(0)
    return logits


@pytest.fixture(scope="module")
def plain(tiny: model.Network) -> list[torch.Tensor]:
    """What the plain path gives; afterwards the position tables for these sizes are kept."""
    return read(tiny)


@pytest.fixture
def unfolded() -> model.Network:
    network = load_network(GOLDEN / "checkpoint", "cpu", "float32")
    operators.fit(network, unfold=True)
    return network


def assert_same_text(logits: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert [int(row.argmax()) for row in logits] == [int(row.argmax()) for row in expected]
    for row, other in zip(logits, expected, strict=True):
        assert relative_error(row, other.flatten()) < 1e-4


def test_without_convolution_and_masked_scatter(
    unfolded: model.Network, plain: list[torch.Tensor]
) -> None:
    with Refuses(*PROFILES["npu"]) as mode:
        assert_same_text(read(unfolded), plain)
    assert "linear" in mode.seen or "mm" in mode.seen or "addmm" in mode.seen


def test_the_plain_path_does_convolve(tiny: model.Network, plain: list[torch.Tensor]) -> None:
    with Refuses(*PROFILES["npu"]), pytest.raises(NotImplementedError, match="conv"):
        read(tiny)


def test_with_kept_tables_nothing_is_resized_with_antialias(
    tiny: model.Network, plain: list[torch.Tensor]
) -> None:
    with Refuses(*PROFILES["mps"]):
        assert_same_text(read(tiny), plain)


def test_position_tables_are_resized_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    network = load_network(GOLDEN / "checkpoint", "cpu", "float32")
    places = []
    real = nn.functional.interpolate

    def interpolate(table: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
        if more.get("antialias"):
            places.append((table.device.type, table.dtype))
        return real(table, *args, **more)

    monkeypatch.setattr(nn.functional, "interpolate", interpolate)
    read(network, steps=0)
    assert set(places) == {("cpu", torch.float32)}


# --- Apple: torch's own table of operators says what MPS has -------------------------------------


def supported_by_mps() -> Callable[[str], bool]:
    """Whether torch has a kernel of `operator` for MPS, or makes it of others."""
    yaml = pytest.importorskip("yaml")
    torchgen = pytest.importorskip("torchgen")
    table = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    entries = {
        entry["func"].split("(")[0]: entry for entry in yaml.safe_load(table.read_text("utf-8"))
    }

    def supported(operator: str) -> bool:
        entry = entries.get(operator)
        if entry is None:
            return False
        if delegate := entry.get("structured_delegate"):
            return supported(delegate)
        if "dispatch" not in entry:
            return True  # made of others, which the mode takes apart
        keys = {key.strip() for keys in entry["dispatch"] for key in keys.split(",")}
        return bool(
            keys
            & {
                "MPS", "CompositeImplicitAutograd", "CompositeExplicitAutograd",
                "CompositeExplicitAutogradNonFunctional",
            }
        )  # fmt: skip

    return supported


class Collects(Refuses):
    """Full names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators.add(func.name())
        return super().__torch_dispatch__(func, types, args, kwargs)


def test_every_operator_of_the_path_has_an_mps_kernel(
    tiny: model.Network, plain: list[torch.Tensor]
) -> None:
    supported = supported_by_mps()
    assert not supported("linalg_eig")  # the table does say no
    with Collects() as mode:
        read(tiny)
    # Before torch 2.9 the library has a grouped product of its own, made of torch's operators.
    operators = mode.operators - {"transformers::grouped_mm_fallback"}
    names = {name.removeprefix("aten::") for name in operators}
    assert "histc" in names or "topk" in names
    assert {name for name in names if not supported(name)} == set()


# --- the stand-ins -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inside", "out", "kernel", "stride", "padding", "bias"),
    [(3, 8, 16, 16, 0, True), (8, 4, 1, 1, 0, False), (4, 6, 3, 1, 1, False), (4, 6, 3, 2, 1, True),
     (2, 3, (2, 3), (2, 1), (0, 2), True)],
)  # fmt: skip
def test_windows_and_a_product_are_the_convolution(
    inside: int, out: int, kernel: Any, stride: Any, padding: Any, bias: bool
) -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(inside, out, kernel, stride, padding, bias=bias).requires_grad_(False)
    for height, width in ((64, 48), (33, 47)):
        pixels = torch.randn(2, inside, height, width)
        assert torch.allclose(convolutions.convolve(module, pixels), module(pixels), atol=1e-4)


def test_convolutions_the_network_has_not_are_refused() -> None:
    pixels = torch.zeros(1, 4, 8, 8)
    for module in (nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, dilation=2),
                   nn.Conv2d(4, 4, 3, padding="same")):  # fmt: skip
        with pytest.raises(ValueError, match="Conv2d"):
            convolutions.convolve(module, pixels)


def test_all_five_convolutions_are_replaced(golden: dict[str, torch.Tensor]) -> None:
    network = load_network(GOLDEN / "checkpoint", "cpu", "float32")
    names = dict(network.named_parameters()).keys()
    assert convolutions.replace(network) == 5
    assert dict(network.named_parameters()).keys() == names
    rows = model.vision_tokens(network, golden_views(golden, "gundam_2x1"))
    assert relative_error(rows, golden["gundam_2x1.vision_tokens"]) < 1e-5


def test_a_device_is_asked_what_it_lacks() -> None:
    real = operators._TRIALS
    cpu = torch.device("cpu")
    assert operators.lacking(cpu, torch.float32) == frozenset()
    for name, trial in real.items():
        assert operators._works(trial, cpu, torch.float32), name
        assert operators._works(trial, cpu, torch.bfloat16), name

    def broken(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        if dtype != torch.float32:
            raise RuntimeError("call aclnnConvolution failed, EZ9999")
        return real["convolution"](device, dtype)

    def wrong(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        return real["convolution"](device, dtype) * (1 if dtype == torch.float32 else 2)

    def full(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        if dtype != torch.float32:
            raise RuntimeError("NPU out of memory. Tried to allocate 2.00 MiB")
        return real["convolution"](device, dtype)

    assert not operators._works(broken, cpu, torch.float16)
    assert not operators._works(wrong, cpu, torch.float16)
    with pytest.raises(RuntimeError, match="out of memory"):
        operators._works(full, cpu, torch.float16)


def test_a_card_is_asked_for_the_grouped_product_of_its_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The CPU plays a Hopper under torch 2.8, whose product refuses all types but bfloat16."""
    product, works = moe._grouped_mm, operators._works

    def of_hopper(rows: torch.Tensor, weights: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        if rows.dtype == torch.float16:
            raise RuntimeError("Expected mat_a to be BFloat16 matrix got Half")
        result: torch.Tensor = product(rows, weights, offsets)
        return result

    monkeypatch.setattr(moe, "_grouped_mm", of_hopper)
    monkeypatch.setattr(
        operators, "_works", lambda trial, device, dtype: works(trial, torch.device("cpu"), dtype)
    )
    card = torch.device("cuda")
    assert operators.lacking(card, torch.float16) == {"grouped product"}
    assert operators.lacking(card, torch.bfloat16) == frozenset()


def test_the_experts_loop_stands_in_for_the_grouped_product(
    monkeypatch: pytest.MonkeyPatch, plain: list[torch.Tensor]
) -> None:
    network = load_network(GOLDEN / "checkpoint", "cpu", "float32")
    monkeypatch.setattr(
        operators, "lacking", lambda device, dtype: frozenset(["grouped product", "convolution"])
    )
    assert operators.fit(network) == {"grouped product", "convolution"}
    with Refuses("_grouped_mm", "histc", "convolution"):
        assert_same_text(read(network), plain)


def test_a_rehearsal_goes_through_the_whole_path(
    tiny: model.Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert operators.rehearse(tiny, strict=True) == {}  # the CPU hands nothing over
    monkeypatch.setattr(operators, "_DISPATCH_KEYS", {"cpu": "CPU"})
    assert operators.rehearse(tiny, strict=True) == {}
    monkeypatch.setattr(operators, "falls_back", lambda name, kind: name == "aten::topk")
    with pytest.warns(RuntimeWarning, match=r"4 calls of 1 operators .* aten::topk \(4\)"):
        assert operators.rehearse(tiny, strict=False) == {"aten::topk": 4}
    with pytest.raises(DeviceError, match="Operator aten::topk has no kernel on cpu"):
        operators.rehearse(tiny, strict=True)


# --- precision -----------------------------------------------------------------------------------


def test_float16_reads_what_float32_reads_within_its_precision(
    golden: dict[str, torch.Tensor],
) -> None:
    network = load_network(GOLDEN / "checkpoint", "cpu", "float16")
    rows = model.vision_tokens(network, golden_views(golden, "tiny"))
    assert rows.dtype == torch.float16
    assert relative_error(rows.float(), golden["tiny.vision_tokens"]) < FLOAT16_TOLERANCE
    text = golden["case_text.input_ids"]
    with torch.inference_mode():
        hidden = network.model.language_model(input_ids=text).last_hidden_state
        logits = network.lm_head(hidden)[0].float()
    assert relative_error(logits, golden["case_text.logits"]) < FLOAT16_TOLERANCE


def test_float32_arithmetic_over_weights_in_float16(plain: list[torch.Tensor]) -> None:
    network = load_network(GOLDEN / "checkpoint", "cpu", "float16")
    exact = load_network(GOLDEN / "checkpoint", "cpu", "float16").float()
    before = {name: value.clone() for name, value in network.named_parameters()}
    expected = read(exact)
    with float32_fallback.in_float32(network):
        inside = read(network)
    assert_same_text(inside, expected)
    after = dict(network.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert after["lm_head.weight"].dtype == torch.float16


def test_float32_arithmetic_leaves_flash_attn_alone() -> None:
    """flash-attn knows 16-bit types only; transformers would hand it the weights' type."""
    network = load_network(GOLDEN / "checkpoint", "cpu", "float16")
    text, plain = network.model.language_model, ALL_ATTENTION_FUNCTIONS["sdpa"]
    types: list[torch.dtype] = []

    def of_16_bits(module: nn.Module, query: torch.Tensor, *rest: Any, **options: Any) -> Any:
        types.append(query.dtype)
        return plain(module, query, *rest, **options)

    def logits() -> torch.Tensor:
        prompt = torch.randn(1, 12, 160, generator=torch.Generator().manual_seed(0)).half()
        return PlainDecoder(network).prefill(0, prompt)

    with float32_fallback.in_float32(network):
        expected = logits()
    ALL_ATTENTION_FUNCTIONS.register("stand_in", of_16_bits)
    try:
        text.set_attn_implementation("stand_in")
        with float32_fallback.in_float32(network):
            inside = logits()
        assert not types
        logits()
    finally:
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop("stand_in")
    assert types == [torch.float16] * len(text.layers)
    assert torch.equal(inside, expected)


def test_what_overflows_in_float16_is_finite_in_float32() -> None:
    network = load_network(GOLDEN / "checkpoint", "cpu", "float16")
    with torch.no_grad():  # an outlier, as trained weights have
        network.model.language_model.layers[0].mlp.down_proj.weight.mul_(3e4)
        network.model.language_model.layers[0].mlp.up_proj.weight.mul_(300)
    assert not all(torch.isfinite(row).all() for row in read(network, 0, TINY))
    with float32_fallback.in_float32(network):
        assert all(torch.isfinite(row).all() for row in read(network, 0, TINY))


# --- through the engine --------------------------------------------------------------------------

PAGE = str(ROOT / "examples" / "total.png")
SHORT = DecodeSettings(max_new_tokens=6, no_repeat_ngram_size=0)


def outlier(network: model.Network) -> None:
    """An outlier in one layer, as trained weights have, that float16 cannot hold."""
    with torch.no_grad():
        network.model.language_model.layers[0].mlp.up_proj.weight.mul_(2e4)


def test_a_page_that_overflows_in_float16_is_read_in_float32(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = OcrEngine.load(POCKET, "cpu", "float16", kernels="plain", slots=2)
    outlier(engine.network)
    exact = OcrEngine(copy.deepcopy(engine.network).float(), engine.codec, slots=1)
    try:
        expected = exact.read(PAGE, "Free OCR.", TINY, SHORT)
        outcomes = engine.read_many([Page(PAGE, "Free OCR.", TINY, SHORT)] * 3)
        for outcome in outcomes:
            assert isinstance(outcome, Reading), outcome
            assert [token.id for token in outcome.tokens] == [t.id for t in expected.tokens]
        assert "float32" in caplog.text
        monkeypatch.setattr(float32_fallback, "can_widen", lambda network: False)
        with pytest.raises(GenerationError, match="not a finite number"):
            engine.read(PAGE, "Free OCR.", TINY, SHORT)
    finally:
        engine.close()
        exact.close()


def test_memory_is_released_after_every_page(
    pocket: OcrEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = []
    monkeypatch.setattr(selection, "release", released.append)
    for outcome in pocket.read_many([Page(PAGE, "Free OCR.", TINY, SHORT)] * 2):
        assert isinstance(outcome, Reading)
    assert released == [pocket.device] * 2


def test_encoders_on_a_device_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two types stand for two devices, of which only one is here."""
    monkeypatch.setattr(selection, "vision_dtype", lambda kind, vision, text: torch.bfloat16)
    network = load_network(GOLDEN / "checkpoint", "cpu", "float32", vision_device="cpu")
    kinds = {name: value.dtype for name, value in network.named_parameters()}
    assert network.device == torch.device("cpu")
    assert network.dtype == torch.float32
    for name, kind in kinds.items():
        apart = name.startswith(("model.vision_tower.", "model.multi_modal_projector."))
        assert kind == (torch.bfloat16 if apart else torch.float32), name
    logits = read(network)
    assert all(torch.isfinite(row).all() for row in logits)


def test_nothing_of_the_path_is_made_on_another_device() -> None:
    """On the meta device, which computes nothing: tensors made on the CPU by accident would meet
    those of the network and fail, or stay behind."""
    network = model.empty_network(read_config(GOLDEN / "checkpoint")).to(torch.bfloat16)
    with torch.device("meta"):
        rotary = type(network.model.language_model.rotary_emb)
        network.model.language_model.rotary_emb = rotary(network.config.text_config)
    for layer in network.model.vision_tower.sam_encoder.layers:  # these tables are kept
        layer.attn.get_rel_pos = lambda q, k, table: table.new_empty(q, k, table.shape[-1])
    views = make_views(page(), SMALL)
    with OnlyOn("meta") as mode:
        rows = model.vision_tokens(network, views)
        ids = [0, *[network.config.image_token_id] * len(rows), 17]
        decoder = PlainDecoder(network)
        decoder.prefill(0, model.embed(network, ids, rows, 1))
        logits = decoder.step([0], [3])
    assert logits.device.type == "meta"
    assert mode.strays <= {"aten::unsqueeze"}, mode.strays  # the page, on its way there


class OnlyOn(TorchDispatchMode):
    """Notes operators whose results are not on the device."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device
        self.strays: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.device.type != self._device:
                self.strays.add(func.name())
        return result
