"""Weights in 8 bits: what they are, that everything still agrees, and what they cost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepseek_ocr.decoding.decoder import PlainDecoder
from deepseek_ocr.errors import DeviceError
from deepseek_ocr.kernels import choice, compiling, slot_decoder
from deepseek_ocr.kernels.decoder_factory import DecoderFactory
from deepseek_ocr.kernels.slot_decoder import SlotDecoder, paths_for
from deepseek_ocr.model import int8_layers, weight_matrix
from deepseek_ocr.model.loader import load_network
from deepseek_ocr.model.network import Network, vision_tokens
from deepseek_ocr.model.weight_matrix import Matrix
from tests.conftest import GOLDEN, POCKET
from tests.goldens import Golden, golden_views, relative_error

INPUTS_OF_16_BITS = 5e-4
"""The compiled kernel takes inputs in steps of 1/32767 of the largest."""


BFLOAT16 = 0.02
"""Of the norm of all logits: both round every product to 8 bits, each in its own places."""


def loaded(kind: str = "float32", quant: str = "none") -> Network:
    return load_network(GOLDEN / "checkpoint", "cpu", kind, quant=quant)


def by_hand(weight: torch.Tensor) -> torch.Tensor:
    """What a matrix becomes: the largest of a row is 127 steps, steps are bfloat16 numbers."""
    result = torch.empty_like(weight)
    for at, row in enumerate(weight):
        step = float(row.abs().max()) / 127
        short = torch.tensor(step).bfloat16()
        if float(short) < step:  # the next bfloat16 number
            short = (short.view(torch.int16) + 1).view(torch.bfloat16)
        result[at] = torch.tensor([round(float(v) / float(short)) for v in row]) * float(short)
    return result


def test_rows_against_a_reference_made_by_hand() -> None:
    torch.manual_seed(0)
    weight = torch.randn(7, 40) * torch.logspace(-6, 3, 7)[:, None]
    packed = weight_matrix.quantize(weight)
    assert packed.values.dtype == torch.int8
    assert packed.scales is not None
    assert torch.equal(packed.values * packed.scales[:, None], by_hand(weight))
    assert int(packed.values.abs().amax()) == 127
    x = torch.randn(3, 40)
    assert relative_error(weight_matrix.linear(x, packed), x @ by_hand(weight).T) < 1e-5


def test_rows_of_zeros_and_of_halves_of_a_step() -> None:
    packed = weight_matrix.quantize(torch.tensor([[0.0, 0.0], [127.0, 0.4]]))
    assert packed.values.tolist() == [[0, 0], [127, 0]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_says_so(value: float) -> None:
    packed = weight_matrix.quantize(torch.tensor([[1.0, value], [127.0, 1.0]]))
    assert packed.scales is not None
    assert packed.scales.isfinite().tolist() == [False, True]


@pytest.mark.parametrize("block", [1, 3, 1000])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    weight = torch.randn(4, 6, 32)
    whole = weight_matrix.quantize(weight)
    monkeypatch.setattr(weight_matrix, "_BLOCK", block)
    parts = weight_matrix.quantize(weight)
    assert torch.equal(parts.values, whole.values)
    assert parts.values.shape == weight.shape
    assert whole.scales is not None
    assert parts.scales is not None
    assert torch.equal(parts.scales, whole.scales)


@pytest.mark.parametrize("many", [1, 8, 9, 40])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
def test_products_of_few_and_many_inputs(many: int, kind: torch.dtype) -> None:
    weight, x = torch.randn(24, 64), torch.randn(many, 64).to(kind)
    packed = weight_matrix.quantize(weight)
    expected = x.float() @ by_hand(weight).T
    tolerance = 1e-5 if kind == torch.float32 else 0.01
    assert relative_error(weight_matrix.linear(x, packed).float(), expected) < tolerance


@pytest.mark.parametrize("path", ["native", "torch"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_every_way_of_decoding_agrees_with_the_class_over_the_same_weights(
    path: str, kind: str
) -> None:
    """The reference is the plain class with every quantised weight made by hand."""
    plain_network, network = loaded(kind), loaded(kind)
    int8_layers.quantize_decoder(network)
    write_back(plain_network, network)
    if path == "native" and compiling.library() is None:
        pytest.skip("needs a C++ compiler")
    way = {"native": slot_decoder.NATIVE, "torch": slot_decoder.TORCH}[path]
    found = []
    for _ in range(6):
        plain, ours = PlainDecoder(plain_network, 2), SlotDecoder(network, 2, 256, way)
        for slot, length in enumerate((30, 4)):
            prompt = torch.randn(1, length, 160).to(network.dtype)
            found.append(relative_error(ours.prefill(slot, prompt), plain.prefill(slot, prompt)))
        for token in range(5, 10):
            expected = plain.step([0, 1], [token, token + 1])
            got = ours.step([0, 1], [token, token + 1])
            found.append(relative_error(got, expected))
            assert torch.equal(got.argmax(-1), expected.argmax(-1)) or kind == "bfloat16"
    if kind == "float32":
        assert max(found) < INPUTS_OF_16_BITS
    else:
        # In one token of twenty a rounding tips the choice of an expert, which changes more than a
        # rounding, and all tokens behind it (0.09 at most in 560 steps and prompts).
        assert sorted(found)[len(found) // 2] < BFLOAT16
        assert max(found) < 8 * BFLOAT16


@torch.no_grad()
def write_back(plain: Network, network: Network) -> None:
    """Give the library's class the weights that `network` has in 8 bits."""
    parts = dict(network.named_modules())
    for name, module in plain.named_modules():
        match = parts.get(name)
        if isinstance(match, int8_layers.Int8Linear):
            assert match.rows.scales is not None
            module.weight.copy_(match.rows.values * match.rows.scales[:, None])
        elif isinstance(match, int8_layers.Int8Experts):
            for ours, theirs in (
                (match.inner, module.gate_up_proj),
                (match.outer, module.down_proj),
            ):
                assert ours.scales is not None
                theirs.copy_(ours.values * ours.scales[..., None])


@pytest.mark.parametrize("folder", [GOLDEN / "checkpoint", POCKET], ids=["golden", "pocket"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
def test_quantised_while_it_is_read_is_what_quantising_the_loaded_network_gives(
    folder: Path, kind: str
) -> None:
    expected = load_network(folder, "cpu", kind)
    int8_layers.quantize_decoder(expected)
    assert_same(load_network(folder, "cpu", kind, quant="int8"), expected)


def assert_same(network: Network, expected: Network) -> None:
    """Bit by bit, what has 8 bits and what has not."""
    ours, theirs = (held(one) for one in (network, expected))
    assert ours.keys() == theirs.keys()
    assert any(values.dtype == torch.int8 for values in ours.values())
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]


def held(network: Network) -> dict[str, torch.Tensor]:
    """All that `network` holds by name: parameters, buffers, values and scales."""
    found = dict(network.named_parameters()) | dict(network.named_buffers())
    for name, module in network.named_modules():
        for leaf, part in vars(module).items():
            if isinstance(part, Matrix):
                assert part.scales is not None
                found |= {f"{name}.{leaf}": part.values, f"{name}.{leaf}.scales": part.scales}
    return found


@pytest.mark.parametrize("quant", ["none", "int8"])
@pytest.mark.parametrize(
    ("tensor", "parameter"),
    [
        ("model.layers.2.mlp.experts.7.up_proj.weight", "layers.2.mlp.experts.gate_up_proj"),
        ("lm_head.weight", "lm_head.weight"),
        ("model.embed_tokens.weight", "embed_tokens.weight"),
    ],
)
@pytest.mark.parametrize("value", [7e4, float("nan")])
def test_weights_that_do_not_fit_float16_are_refused(
    tmp_path: Path, quant: str, tensor: str, parameter: str, value: float
) -> None:
    folder = Path(shutil.copytree(GOLDEN / "checkpoint", tmp_path / "checkpoint"))
    file = next(folder.glob("*.safetensors"))
    tensors = load_file(file)
    tensors[tensor][3, 5] = value
    save_file(tensors, file)
    with pytest.raises(DeviceError, match=f"{parameter} does not fit float16; use"):
        load_network(folder, "cpu", "float16", quant=quant)


def test_what_is_quantised_and_what_stays(golden: Golden) -> None:
    network, before = loaded(quant="int8"), loaded()
    kept = {name for name, _ in network.named_parameters()}
    gone = {name for name, _ in before.named_parameters()} - kept
    assert all(
        "norm" not in name and "embed" not in name and "gate.weight" not in name for name in gone
    )
    assert not any("vision" in name for name in gone)
    assert {name.split(".")[-2] for name in gone} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "experts",
        "lm_head",
    }  # fmt: skip
    views = golden_views(golden, "tiny")
    assert torch.equal(vision_tokens(network, views), vision_tokens(before, views))


def test_the_decoder_takes_little_more_than_half_the_memory() -> None:
    network, before = loaded("bfloat16"), loaded("bfloat16")
    int8_layers.quantize_decoder(network)
    assert decoder_bytes(network) < 0.6 * decoder_bytes(before)


def decoder_bytes(network: Network) -> int:
    """Bytes of all weights that a step reads."""
    from deepseek_ocr.kernels import decoder_weights

    def total(part: object) -> int:
        if isinstance(part, torch.Tensor):
            return part.numel() * part.element_size()
        if isinstance(part, tuple):
            return sum(map(total, part))
        return sum(map(total, vars(part).values())) if hasattr(part, "__dict__") else 0

    return total(decoder_weights.read(network, 1).layers) + total(
        decoder_weights.read(network, 1).head
    )


def test_a_second_decoder_over_a_quantised_network() -> None:
    network = loaded(quant="int8")
    decoders = DecoderFactory(network, paths_for(network, choice.parse("auto")), 64)
    for slots in (4, 2):
        made = decoders.make(slots)
        assert made.slots == slots
        made.prefill(0, torch.randn(1, 3, 160))
        assert made.step([0], [4]).isfinite().all()


def test_the_plain_class_decodes_8_bits_too() -> None:
    network = loaded(quant="int8")
    made = DecoderFactory(network, (), 64).make(1)
    assert isinstance(made, PlainDecoder)
    assert made.prefill(0, torch.randn(1, 3, 160)).isfinite().all()
