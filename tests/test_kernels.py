"""Every way of decoding gives what the library's class gives, and the choice between them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch

from deepseek_ocr.decoding.decoder import Decoder, PlainDecoder
from deepseek_ocr.errors import PromptError
from deepseek_ocr.kernels import (
    choice,
    compiling,
    cuda_graphs,
    decoder_weights,
    slot_decoder,
    torch_steps,
)
from deepseek_ocr.kernels.compiled_steps import MOST
from deepseek_ocr.kernels.decoder_factory import DecoderFactory
from deepseek_ocr.kernels.slot_cache import BLOCK
from deepseek_ocr.kernels.slot_decoder import DecodePath, SlotDecoder
from deepseek_ocr.model import experts, prompts
from deepseek_ocr.model.int8_layers import quantize_decoder
from deepseek_ocr.model.loader import load_network
from deepseek_ocr.model.network import Network
from deepseek_ocr.model.weight_matrix import Matrix, quantize
from tests.conftest import GOLDEN, ROOT
from tests.goldens import CASES, Golden, embedded, relative_error
from tests.recorder import Recorder, compute_as_a_card

FLOAT32 = 1e-5
BFLOAT16 = 0.02
"""Of the norm of all logits: both round every product to 8 bits, each in its own places."""

LENGTHS = (70, 5, 133, 1, 40)


PATHS = {
    "native": slot_decoder.NATIVE,
    "torch": slot_decoder.TORCH,
    "graphs": slot_decoder.GRAPHS,
    "card": slot_decoder.GRAPHS,  # with a card's ways through the experts
}


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Graphs without a card, and its choices for the path "card"."""
    monkeypatch.setattr(cuda_graphs, "GraphRecorder", Recorder)
    if getattr(request.node, "callspec", None) and "card" in request.node.callspec.params.values():
        compute_as_a_card(monkeypatch)


@pytest.fixture(scope="module")
def networks() -> Callable[[torch.dtype], tuple[Network, Network]]:
    """Two networks of one checkpoint: one that stays the library's own, one to put paths into."""
    loaded: dict[torch.dtype, tuple[Network, Network]] = {}

    def get(kind: torch.dtype) -> tuple[Network, Network]:
        if kind not in loaded:
            folder = GOLDEN / "checkpoint"
            loaded[kind] = (load_network(folder, "cpu", kind), load_network(folder, "cpu", kind))
        return loaded[kind]

    return get


def need_compiled(path: str) -> None:
    """Skip the test if its path cannot be compiled here."""
    if path == "native" and compiling.library() is None:
        pytest.skip("needs a C++ compiler")


def fast(network: Network, path: str, slots: int = 5, context: int = 512) -> SlotDecoder:
    need_compiled(path)
    return SlotDecoder(network, slots, context, PATHS[path])


def prompt(network: Network, length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + length)
    hidden = network.config.text_config.hidden_size
    return torch.randn(1, length, hidden, generator=generator).to(network.dtype)


def differences(
    plain: Decoder, other: Decoder, slots: Sequence[int], steps: int
) -> tuple[list[float], list[list[int]]]:
    """Relative differences of the logits over `steps` greedy steps of all `slots`, and the ids
    that the plain decoder chose."""
    ids = [[7 + slot for slot in slots]]
    found = []
    for _ in range(steps):
        expected = plain.step(slots, ids[-1])
        got = other.step(slots, ids[-1])
        found.append(relative_error(got, expected))
        ids.append(expected.argmax(-1).tolist())
    return found, ids


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("slots", [[0], [0, 1], [0, 1, 2], [4, 1, 3, 0, 2]], ids=len)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
def test_steps_equal_the_class(networks: Callable[..., tuple[Network, Network]], path: str,
                               slots: list[int], kind: torch.dtype) -> None:  # fmt: skip
    plain_network, network = networks(kind)
    plain, ours = PlainDecoder(plain_network, 5), fast(network, path)
    tolerance = FLOAT32 if kind == torch.float32 else BFLOAT16
    for slot in slots:
        embeddings = prompt(network, LENGTHS[slot])
        expected = plain.prefill(slot, embeddings)
        assert relative_error(ours.prefill(slot, embeddings), expected) < tolerance
    found, _ = differences(plain, ours, slots, 6)
    # A rounding can tip the choice of an expert, which changes more than a rounding.
    assert sorted(found)[len(found) // 2] < tolerance
    assert kind == torch.bfloat16 or max(found) < tolerance


def test_the_compiled_kernel_takes_more_pages_than_fit_one_call(
    networks: Callable[..., tuple[Network, Network]],
) -> None:
    plain_network, network = networks(torch.float32)
    slots = list(range(MOST + 3))
    plain, ours = PlainDecoder(plain_network, len(slots)), fast(network, "native", len(slots), 64)
    for slot in slots:
        for one in (plain, ours):
            one.prefill(slot, prompt(network, 1 + slot % 7))
    found, _ = differences(plain, ours, slots, 1)
    assert max(found) < FLOAT32


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", CASES)
def test_greedy_ids_of_the_goldens(
    networks: Callable[..., tuple[Network, Network]], golden: Golden, path: str, case: str
) -> None:
    network = networks(torch.float32)[1]
    theirs = golden[f"{case}.greedy_norepeat0"].tolist()
    ours = fast(network, path, slots=1, context=2048)
    _, embeddings = embedded(network, golden, case)
    ids = [int(ours.prefill(0, embeddings).argmax())]
    while len(ids) < len(theirs):
        ids.append(int(ours.step([0], ids[-1:]).argmax()))
    assert ids == theirs


@pytest.mark.parametrize("again", ["free", "prefill"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("path", ["torch", "card"])
def test_a_page_that_ran_over_leaves_nothing_in_its_slot(
    networks: Callable[..., tuple[Network, Network]], path: str, kind: torch.dtype, again: str
) -> None:
    """Masked positions are multiplied by 0, which infinity and what is not a number survive."""
    plain_network, network = networks(kind)
    plain, ours = PlainDecoder(plain_network, 5), fast(network, path)
    ours.prefill(0, prompt(network, 9))  # another page, so that the cache stays
    ran_over = prompt(network, 30)
    ran_over[0, 25] = torch.inf
    assert not ours.prefill(1, ran_over).isfinite().all()
    assert not ours.step([1], [7]).isfinite().all()
    if again == "free":
        ours.free(1)
        ours.step([2], [9])  # the free slot is computed along
    good = prompt(network, 5)
    for one in (plain, ours):
        one.prefill(1, good)
    found, _ = differences(plain, ours, [1], 3)
    assert max(found) < (FLOAT32 if kind == torch.float32 else 5e-3)


@pytest.mark.parametrize("path", ["torch", "card"])
def test_what_was_written_behind_the_end_of_an_idle_page_is_cleared_too(path: str) -> None:
    plain_network, network = (load_network(GOLDEN / "checkpoint", "cpu", "float32") for _ in "12")
    for one in (plain_network, network):
        one.get_input_embeddings().weight.data[7] = torch.inf
    plain, ours = PlainDecoder(plain_network, 5), fast(network, path)
    for slot in (1, 2):
        ours.prefill(slot, prompt(network, 10))
    ours.step([1], [7])
    ours.step([2], [9])  # slot 1 is computed along, with its last token
    ours.free(1)
    for one in (plain, ours):
        one.prefill(1, prompt(network, 5))
    found, _ = differences(plain, ours, [1], 3)
    assert max(found) < FLOAT32


@pytest.mark.parametrize("path", PATHS)
def test_slots_are_freed_and_used_again_while_others_go_on(
    networks: Callable[..., tuple[Network, Network]], path: str
) -> None:
    plain_network, network = networks(torch.float32)
    plain, ours = PlainDecoder(plain_network, 3), fast(network, path, slots=3)
    for one in (plain, ours):
        for slot in (0, 1, 2):
            one.prefill(slot, prompt(network, 20 + slot))
    assert max(differences(plain, ours, [0, 1, 2], 3)[0]) < FLOAT32
    for one in (plain, ours):
        one.free(1)
    assert max(differences(plain, ours, [2, 0], 2)[0]) < FLOAT32
    for one in (plain, ours):
        one.prefill(1, prompt(network, 9))
    assert max(differences(plain, ours, [1, 2], 2)[0]) < FLOAT32  # slot 0 waits
    assert max(differences(plain, ours, [0, 1, 2], 2)[0]) < FLOAT32


@pytest.mark.parametrize("path", PATHS)
def test_a_page_runs_to_the_end_of_the_context(
    networks: Callable[..., tuple[Network, Network]], path: str
) -> None:
    plain_network, network = networks(torch.float32)
    plain, ours = PlainDecoder(plain_network, 2), fast(network, path, slots=2, context=32)
    for one in (plain, ours):
        one.prefill(0, prompt(network, 29))
        one.prefill(1, prompt(network, 4))
    assert max(differences(plain, ours, [0, 1], 3)[0]) < FLOAT32
    with pytest.raises(PromptError, match="32 tokens"):
        ours.step([0], [7])
    assert max(differences(plain, ours, [1], 3)[0]) < FLOAT32
    with pytest.raises(PromptError, match="33 tokens"):
        ours.prefill(0, prompt(network, 33))


@pytest.mark.parametrize("path", ["native", "torch"])
def test_the_cache_grows_under_pages_and_shrinks_when_all_are_gone(
    networks: Callable[..., tuple[Network, Network]], path: str
) -> None:
    plain_network, network = networks(torch.float32)
    plain, ours = PlainDecoder(plain_network, 2), fast(network, path, slots=2, context=4096)
    for one in (plain, ours):
        one.prefill(0, prompt(network, BLOCK - 2))
        one.prefill(1, prompt(network, BLOCK))  # full: slot 0's steps must not touch it
    assert ours._cache.capacity == BLOCK
    assert max(differences(plain, ours, [0], 4)[0]) < FLOAT32
    assert max(differences(plain, ours, [1, 0], 2)[0]) < FLOAT32
    assert ours._cache.capacity == 2 * BLOCK
    ours.free(0)
    ours.free(1)
    assert ours._cache.capacity == 0


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
def test_a_page_is_the_same_alone_and_in_company(
    networks: Callable[..., tuple[Network, Network]], kind: torch.dtype
) -> None:
    network = networks(kind)[1]
    alone, many = fast(network, "native", slots=1), fast(network, "native", slots=5)
    alone.prefill(0, prompt(network, 50))
    many.prefill(3, prompt(network, 50))
    for slot in (0, 1, 2, 4):
        many.prefill(slot, prompt(network, LENGTHS[slot]))
    for token in (3, 8, 200):
        expected = alone.step([0], [token])[0]
        assert torch.equal(many.step([1, 4, 3, 2, 0], [9, 9, token, 11, 12])[2], expected)


def test_threads_change_nothing(networks: Callable[..., tuple[Network, Network]]) -> None:
    network = networks(torch.float32)[1]
    ours, threads = fast(network, "native"), torch.get_num_threads()
    for slot in range(3):
        ours.prefill(slot, prompt(network, 5))
    results = []
    try:
        for slot in range(3):
            torch.set_num_threads(slot + 1)
            results.append(ours.step([slot], [4]).clone())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[1], results[0])
    assert torch.equal(results[2], results[0])


LIMITED = """
import torch
from deepseek_ocr.decoding.decoder import PlainDecoder
from deepseek_ocr.model.loader import load_network
from tests.conftest import GOLDEN
from tests.goldens import relative_error
from tests.test_kernels import fast, prompt

torch.set_num_threads(3)
network = load_network(GOLDEN / "checkpoint", "cpu", "float32")
plain, ours = PlainDecoder(network, 1), fast(network, "native", slots=1)
for one in (plain, ours):
    one.prefill(0, prompt(network, 20))
assert relative_error(ours.step([0], [7]), plain.step([0], [7])) < 1e-5
"""


def test_fewer_threads_than_were_asked_for_do_the_work() -> None:
    """A system may give a program fewer threads than it wants."""
    need_compiled("native")
    limited = {**os.environ, "OMP_THREAD_LIMIT": "1"}
    subprocess.run([sys.executable, "-c", LIMITED], cwd=ROOT, env=limited, check=True, timeout=120)


def test_numbers_that_are_none_stay_in_their_slot(
    networks: Callable[..., tuple[Network, Network]],
) -> None:
    network = networks(torch.float32)[1]
    ours, alone = fast(network, "native", slots=2), fast(network, "native", slots=1)
    ours.prefill(0, torch.full_like(prompt(network, 3), torch.nan))
    for one, slot in ((ours, 1), (alone, 0)):
        one.prefill(slot, prompt(network, 3))
    broken, whole = ours.step([0, 1], [5, 5])
    assert broken.isnan().all()
    assert torch.equal(whole, alone.step([0], [5])[0])


WAYS = {"looped": experts.looped, "gathered": experts.gathered, "dense": experts.dense}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [1, 2, 17])
@pytest.mark.parametrize("quant", [False, True], ids=["float32", "int8"])
def test_each_way_through_experts(tiny: Network, way: str, rows: int, quant: bool) -> None:
    layer = tiny.model.language_model.layers[1].mlp
    x = prompt(tiny, rows)[0]
    inner, outer = layer.experts.gate_up_proj, layer.experts.down_proj
    packed = (quantize(inner), quantize(outer)) if quant else (
        Matrix(inner), Matrix(outer)
    )  # fmt: skip
    _, shares, chosen = layer.gate(x)
    expected = torch.zeros_like(x)
    for row in range(rows):
        for share, expert in zip(shares[row], chosen[row], strict=True):
            first, second = (_dense(part[int(expert)]) for part in packed)
            gate, up = (first @ x[row]).chunk(2)
            expected[row] += share * (second @ (torch.nn.functional.silu(gate) * up))
    assert relative_error(WAYS[way](x, chosen, shares, *packed), expected) < FLOAT32


@pytest.mark.parametrize("way", WAYS)
def test_sums_in_8_bits_stay_within_float16(way: str) -> None:
    """What float16 cannot hold is the sum of whole numbers, not the result."""
    generator = torch.Generator().manual_seed(0)
    inner, outer = (
        quantize(torch.randn(shape, generator=generator) * 0.02)
        for shape in ((4, 96, 256), (4, 256, 48))
    )
    x = torch.randn(9, 256, generator=generator) * 60
    assert (x @ inner.values[0].float().T).abs().max() > torch.finfo(torch.float16).max
    chosen = torch.tensor([[0, 3]] * 9)
    shares = torch.full((9, 2), 0.5)
    expected = experts.looped(x, chosen, shares, inner, outer)
    got = WAYS[way](x.half(), chosen, shares, inner, outer).float()
    assert relative_error(got, expected) < 4e-3


@pytest.mark.parametrize(
    ("device", "rows", "way"),
    [
        ("cpu", 1, experts.looped),
        ("cpu", 64, experts.looped),
        ("cuda", 1, experts.gathered),
        ("cuda", 2, experts.gathered),
        ("cuda", 4, experts.dense),
        ("cuda", 64, experts.dense),
    ],
)
def test_the_choice_between_ways_through_experts(device: str, rows: int, way: experts.Way) -> None:
    assert experts.way_for(torch.device(device), rows) is way


@pytest.mark.parametrize("quant", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("rows", [1, 2, 4, 8])
def test_no_operation_of_a_step_waits_for_a_card(rows: int, quant: bool) -> None:
    """On tensors without values, what the host would have to wait for raises."""
    network = load_network(GOLDEN / "checkpoint", "cpu", "float32")
    if quant:
        quantize_decoder(network)
    read = without_values(decoder_weights.read(network, 64))
    heads, size = read.heads, read.cosines.shape[1]
    entries = torch.empty(len(read.layers), 2, rows, heads, 64, size, device="meta")
    ids, lengths = torch.zeros(2, rows, dtype=torch.long, device="meta")
    logits = torch_steps.step(read, entries, ids, lengths, 64)
    assert logits.shape == (rows, read.embedding.shape[0])
    with pytest.raises(RuntimeError, match="meta"):
        logits.argmax().item()


def without_values(part: Any) -> Any:
    """The weights as shapes alone."""
    if isinstance(part, torch.Tensor):
        return part.to("meta")
    if isinstance(part, tuple):
        return tuple(map(without_values, part))
    if not is_dataclass(part) or isinstance(part, type):
        return part
    return replace(part, **{f.name: without_values(getattr(part, f.name)) for f in fields(part)})


def test_an_expert_that_runs_over_touches_only_rows_that_chose_it() -> None:
    inner, outer = torch.ones(2, 4, 3), torch.ones(2, 3, 2)
    inner[1] = 1e30
    rows = Matrix(inner), Matrix(outer)
    chosen, shares = torch.tensor([[0], [1]]), torch.ones(2, 1)
    first, second = experts.dense(torch.ones(2, 3), chosen, shares, *rows)
    assert torch.equal(first, experts.looped(torch.ones(1, 3), chosen[:1], shares[:1], *rows)[0])
    assert not second.isfinite().any()


def _dense(rows: Matrix) -> torch.Tensor:
    return rows.values if rows.scales is None else rows.values * rows.scales[:, None]


def paths(network: Network, switches: str) -> tuple[DecodePath, ...]:
    return slot_decoder.paths_for(network, choice.parse(switches))


def make(network: Network, switches: str) -> Decoder:
    return DecoderFactory(network, paths(network, switches), 256).make(2)


def test_the_choice_by_switch(
    networks: Callable[..., tuple[Network, Network]], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = networks(torch.float32)[0]
    assert paths(network, "plain") == paths(network, "auto,-decoder") == ()
    assert paths(network, "auto,-compiled") == (slot_decoder.TORCH,)
    best = slot_decoder.NATIVE if compiling.library() else slot_decoder.TORCH
    assert paths(network, "auto") == (best,)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "VSX")
    assert paths(network, "auto") == (slot_decoder.TORCH,)
    assert isinstance(make(network, "plain"), PlainDecoder)


@pytest.mark.parametrize(
    ("device", "kind", "switches", "expected"),
    [
        ("cuda", torch.bfloat16, "auto", (slot_decoder.GRAPHS, slot_decoder.TORCH)),
        ("cuda", torch.float16, "auto", (slot_decoder.GRAPHS, slot_decoder.TORCH)),
        ("cuda", torch.bfloat16, "auto,-graphs", (slot_decoder.TORCH,)),
        ("cuda", torch.bfloat16, "auto,-decoder", ()),
        ("mps", torch.bfloat16, "auto", ()),
        ("xpu", torch.float16, "auto", ()),
        ("cpu", torch.float16, "auto", (slot_decoder.TORCH,)),
    ],
)
def test_the_choice_by_device_type_and_switch(
    networks: Callable[..., tuple[Network, Network]], device: str, kind: torch.dtype,
    switches: str, expected: tuple[DecodePath, ...],
) -> None:  # fmt: skip
    class Elsewhere:
        """Only says where it is: such devices are not here."""

        config = networks(torch.float32)[0].config

        def __init__(self) -> None:
            self.device, self.dtype = torch.device(device), kind

    assert paths(Elsewhere(), switches) == expected


def test_without_a_compiler_everything_works_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    networks: Callable[..., tuple[Network, Network]],
) -> None:
    plain_network, network = networks(torch.float32)
    monkeypatch.setenv("PATH", "")
    compiling.library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            ours = make(network, "auto")
            make(network, "auto")
    finally:
        compiling.library.cache_clear()
    assert [record.message.count("no C++ compiler") for record in caplog.records] == [1]
    plain = PlainDecoder(plain_network)
    for one in (plain, ours):
        one.prefill(0, prompt(network, 12))
    assert max(differences(plain, ours, [0], 3)[0]) < FLOAT32


def test_what_the_fast_paths_do_not_know_is_left_to_the_class(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = load_network(GOLDEN / "checkpoint", "cpu", "float32")
    text = network.config.text_config
    text.layer_types = ["reference_sliding_attention"] * text.num_hidden_layers
    assert isinstance(make(network, "auto"), PlainDecoder)
    assert "layer types" in caplog.text


def test_the_bundled_model_reads_the_same(golden: Golden) -> None:
    folder = GOLDEN.parent.parent / "checkpoints" / "pocket"
    plain_network, network = (load_network(folder, "cpu", "float32") for _ in range(2))
    codec = prompts.load_codec(folder, 0, frozenset([1]), network.config.image_token_id)
    ids = prompts.encode(codec, "<image>\nFree OCR.", 3).ids
    plain, ours = PlainDecoder(plain_network), make(network, "auto")
    for one in (plain, ours):
        one.prefill(0, network.get_input_embeddings()(torch.tensor([ids])))
    assert max(differences(plain, ours, [0], 20)[0]) < FLOAT32
