"""Training: what teaches, what moves, and that a run can be trusted to the last digit."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from deepseek_ocr.devices import cpu
from deepseek_ocr.errors import FileWriteError, GenerationError
from deepseek_ocr.images.views import Views
from deepseek_ocr.model import network as model
from deepseek_ocr.model.loader import load_network
from deepseek_ocr.model.network import Network
from deepseek_ocr.model.prompts import Codec
from deepseek_ocr.training.data import dataset
from deepseek_ocr.training.data.batches import IGNORED, Batch, ExampleError, collate, encode_example
from deepseek_ocr.training.finetune.objective import (
    Objective,
    balance_loss,
    hidden_states,
    route_in_float32,
)
from deepseek_ocr.training.finetune.optimizer import Stepper, cosine
from deepseek_ocr.training.finetune.saved_checkpoints import (
    official_tensors,
    save_checkpoint,
    stored_dtype,
)
from deepseek_ocr.training.pocket.untrained import write_untrained
from tests.conftest import GOLDEN, POCKET, byte_tokenizer
from tests.goldens import CASES, golden_views, relative_error

PROMPT = "<image>\nFree OCR."


def small_codec() -> Codec:
    """The byte tokenizer with ids for begin and end that no byte has."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(["<begin>", "<end>"])
    ids = [tokenizer.token_to_id(name) for name in ("<begin>", "<end>", "<image>")]
    return Codec(tokenizer, ids[0], frozenset([ids[1]]), ids[2])


def view(seed: int, side: int = 128) -> Views:
    generator = torch.Generator().manual_seed(seed)
    picture = torch.rand(3, side, side, generator=generator) * 2 - 1
    return Views(picture, torch.empty(0, 3, side, side), (1, 1))


def pocket_batch(codec: Codec, texts: Sequence[str], side: int = 128) -> Batch:
    encoded = [
        encode_example(codec, view(at, side), PROMPT, text, 500) for at, text in enumerate(texts)
    ]
    return collate(encoded, pad_id=2)


# --- what teaches ---------------------------------------------------------------------------------


def test_only_the_answer_and_its_end_teach_position_by_position() -> None:
    codec = small_codec()
    example = encode_example(codec, view(0), "<image>\nAB", "cd", 100)
    vision = 2 * 3 + 1  # two by two cells, a newline a row, the separator
    before = [codec.begin_id] + [codec.image_id] * vision + codec.encode_text("\nAB")
    taught = [*codec.encode_text("cd"), min(codec.end_ids)]
    assert example.ids.tolist() == before + taught
    assert example.labels.tolist() == [IGNORED] * len(before) + taught


def test_padding_teaches_nothing_and_changes_nothing(network: Network, codec: Codec) -> None:
    short = encode_example(codec, view(0), PROMPT, "ab", 500)
    long = encode_example(codec, view(1), PROMPT, "a much longer line of text", 500)
    both = collate([short, long], pad_id=2)
    length = len(short.ids)
    assert both.labels[0, length:].unique().tolist() == [IGNORED]
    assert both.ids[0, length:].unique().tolist() == [2]
    objective = Objective(network)
    with torch.no_grad():
        apart = [objective(collate([example], 2))[0] for example in (short, long)]
        together, _ = objective(both)
    torch.testing.assert_close(together, sum(apart))


def test_an_example_that_is_too_long_is_refused() -> None:
    codec = small_codec()
    with pytest.raises(ExampleError, match="more than 20"):
        encode_example(codec, view(0), PROMPT, "a long answer", 20)


@pytest.mark.parametrize("case", list(CASES))
def test_the_loss_is_the_official_one(
    tiny: Network, golden: dict[str, torch.Tensor], case: str
) -> None:
    ids = golden[f"{case}.input_ids"][0]
    labels = torch.full_like(ids, IGNORED)
    labels[-9:] = ids[-9:]
    views = golden_views(golden, CASES[case])
    tiles = views.tiles if len(views.tiles) else None
    batch = Batch(
        ids[None], labels[None], views.global_view[None], tiles, (len(views.tiles),), (views.grid,)
    )
    with torch.no_grad():
        loss, _ = Objective(tiny)(batch)
    expected = golden[f"{case}.loss_labels_last9"].item()
    assert loss.item() / batch.taught == pytest.approx(expected, rel=1e-5)


def test_balance_of_even_and_of_lopsided_routers() -> None:
    even = torch.eye(4).repeat(8, 1) * 50  # each expert is the only choice of a quarter
    assert balance_loss(even, 1).item() == pytest.approx(1.0, abs=1e-4)
    lopsided = torch.tensor([[50.0, 0, 0, 0]]).repeat(8, 1)
    assert balance_loss(lopsided, 1).item() == pytest.approx(4.0, abs=1e-4)


def test_the_balance_loss_reaches_the_routers_by_choice(network: Network, codec: Codec) -> None:
    batch = pocket_batch(codec, ["one", "two"])
    _, none = Objective(network)(batch)
    _, balance = Objective(network, balance=True)(batch)
    assert none.item() == 0.0
    balance.backward()
    router = network.model.language_model.layers[-1].mlp.gate.weight
    assert router.grad is not None
    assert router.grad.abs().sum() > 0


def test_balance_is_of_tokens_that_teach_alone(network: Network, codec: Codec) -> None:
    example = encode_example(codec, view(0), PROMPT, "ab", 500)
    padded = collate([example, encode_example(codec, view(0), PROMPT, "ab" * 40, 500)], 2)
    alone = collate([example], 2)
    silent = padded.labels.clone()
    silent[1] = IGNORED
    objective = Objective(network, balance=True)
    with torch.no_grad():
        _, expected = objective(alone)
        _, result = objective(replace(padded, labels=silent))
    torch.testing.assert_close(result, expected)


# --- what moves -----------------------------------------------------------------------------------


def test_eight_pages_are_learnt_by_heart_in_two_hundred_steps(
    network: Network, codec: Codec
) -> None:
    texts = [f"page {at} says {at * 37 % 101}" for at in range(8)]
    batch = pocket_batch(codec, texts)
    stepper = Stepper(Objective(network), Accelerator(cpu=True), weight_decay=0.0)
    for step in range(200):
        result = stepper.step([batch], 1e-3 * min(1.0, (step + 1) / 20))
        if result.loss < 0.05:
            return
    pytest.fail(f"the loss is still {result.loss:.3f}")


def test_a_loss_that_is_no_number_stops_training(network: Network, codec: Codec) -> None:
    with torch.no_grad():
        network.lm_head.weight.fill_(float("nan"))
    stepper = Stepper(Objective(network), Accelerator(cpu=True))
    with pytest.raises(GenerationError, match="not a number"):
        stepper.step([pocket_batch(codec, ["one"])], 1e-3)


def test_micro_batches_of_unlike_length_weigh_every_token_alike(
    codec: Codec, tmp_path: Path
) -> None:
    # First weights: where gradients are rounding errors AdamW makes whole steps of them.
    write_untrained(tmp_path, 1)
    texts = ["a", "a far longer line than the other one", "bc", "def"]
    grown: list[dict[str, torch.Tensor]] = []
    for parts in ([texts], [texts[:1], texts[1:3], texts[3:]]):
        network = load_network(tmp_path, "cpu", "float32").train().requires_grad_(True)
        stepper = Stepper(Objective(network), Accelerator(cpu=True))
        views = {text: at for at, text in enumerate(texts)}
        batches = [
            collate([encode_example(codec, view(views[t]), PROMPT, t, 500) for t in part], 2)
            for part in parts
        ]
        stepper.step(batches, 1e-3)
        grown.append(dict(network.named_parameters()))
    for name, value in grown[0].items():
        torch.testing.assert_close(value, grown[1][name], rtol=1e-4, atol=2e-4)


def test_what_only_keeps_step_moves_nothing(codec: Codec, tmp_path: Path) -> None:
    write_untrained(tmp_path, 1)
    batch = pocket_batch(codec, ["one", "another"])
    filler = replace(batch, labels=torch.full_like(batch.labels, IGNORED))
    grown: list[dict[str, torch.Tensor]] = []
    for batches in ([batch], [batch, filler]):
        network = load_network(tmp_path, "cpu", "float32").train().requires_grad_(True)
        objective = Objective(network, balance=True)
        stepper = Stepper(objective, Accelerator(cpu=True), balance=0.5)
        stepper.step(batches, 1e-3)
        grown.append(dict(network.named_parameters()))
    for name, value in grown[0].items():
        torch.testing.assert_close(value, grown[1][name], rtol=1e-4, atol=2e-4)


def test_routers_are_listened_to_while_training_alone(network: Network, codec: Codec) -> None:
    """Else their scores pile up, with all that was computed before them."""
    network.activation_checkpointing_enable({"use_reentrant": False})
    objective = Objective(network, balance=True)
    batch = pocket_batch(codec, ["one"])
    loss, balance = objective(batch)
    (loss + balance).backward()
    with torch.no_grad():
        hidden_states(network, batch)
    assert objective._routers == []


def test_a_checkpoint_is_written_in_the_type_it_came_in(network: Network, tmp_path: Path) -> None:
    save_checkpoint(network, POCKET, tmp_path / "wide", torch.float32)
    assert stored_dtype(tmp_path / "wide") == torch.float32
    assert stored_dtype(POCKET) == torch.bfloat16


def test_the_rate_rises_and_falls() -> None:
    share = cosine(warmup=10, total=110, floor=0.1)
    assert [share(0), share(9), share(10)] == pytest.approx([0.1, 1.0, 1.0])
    assert share(60) == pytest.approx(0.55)
    assert share(110) == share(10_000) == pytest.approx(0.1)


def test_activations_computed_twice_give_the_same_gradients(codec: Codec) -> None:
    batch = pocket_batch(codec, ["one", "another"])
    gradients: list[torch.Tensor] = []
    for twice in (False, True):
        network = load_network(POCKET, "cpu", "float32").train().requires_grad_(True)
        if twice:
            network.activation_checkpointing_enable({"use_reentrant": False})
            assert network.is_activation_checkpointing
        Objective(network)(batch)[0].backward()
        gradients.append(network.model.language_model.layers[0].self_attn.q_proj.weight.grad)
    torch.testing.assert_close(*gradients)


# --- checkpoints ----------------------------------------------------------------------------------


def test_saved_and_loaded_the_scores_are_the_same(tmp_path: Path, codec: Codec) -> None:
    source = GOLDEN / "checkpoint"
    network = load_network(source, "cpu", "float32")
    save_checkpoint(network, source, tmp_path / "saved", torch.float32)
    again = load_network(tmp_path / "saved", "cpu", "float32")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        scores = [
            n.lm_head(n.model.language_model(input_ids=ids).last_hidden_state)
            for n in (network, again)
        ]
        rows = [model.vision_tokens(n, view(0)) for n in (network, again)]
    assert torch.equal(*scores)
    assert torch.equal(*rows)


def test_tensors_have_the_official_names_and_shapes() -> None:
    source = GOLDEN / "checkpoint"
    network = load_network(source, "cpu", "float32")
    written = official_tensors(network.named_parameters(), torch.float32)
    (file,) = source.glob("*.safetensors")
    official = load_file(file)
    unused = ("position_ids", "vision_model.embeddings.patch_embedding.weight")
    known = {name for name in official if not name.endswith(unused)}
    assert {name for name in written if not name.endswith(unused)} == known
    for name in known:
        torch.testing.assert_close(written[name], official[name].float())


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    target.mkdir()
    (target / "old").write_text("kept")
    network = load_network(POCKET, "cpu", "float32")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(FileWriteError, match="cannot be written"):
            save_checkpoint(network, POCKET, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert (target / "old").read_text() == "kept"


class Pulled(torch.nn.Module):
    """A matrix that every step pulls away from `away`."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = torch.nn.Parameter(torch.randn(24, 16, generator=generator))
        self.away = torch.randn(24, 16, generator=generator)

    def forward(self, batch: Weight) -> tuple[torch.Tensor, torch.Tensor]:
        return (self.matrix * self.away).sum() * batch.taught, torch.zeros(())


class Weight(NamedTuple):
    """A batch that counts `taught` times."""

    taught: int


@pytest.mark.usefixtures("own_accelerator")
def test_a_processor_without_bfloat16_takes_the_same_orthogonal_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moved, momenta = [], []
    for has_bfloat16 in (True, False):
        monkeypatch.setattr(cpu, "has_bfloat16", lambda has=has_bfloat16: has)
        pulled = Pulled()
        stepper = Stepper(pulled, Accelerator(cpu=True), orthogonal=True)
        before = pulled.matrix.detach().clone()
        for number in range(3):
            stepper.step([Weight(number + 1)], 0.1)
        moved.append(pulled.matrix.detach() - before)
        (state,) = stepper.optimisers[0].state.values()
        momenta.append(state["momentum_buffer"])
    assert 0 < relative_error(moved[1], moved[0]) < 0.02
    assert torch.equal(momenta[0], momenta[1])


def test_a_gradient_that_runs_over_moves_nothing(codec: Codec) -> None:
    network = load_network(POCKET, "cpu", "float32").requires_grad_(True)
    stepper = Stepper(Objective(network), Accelerator(cpu=True))
    before = network.lm_head.weight.detach().clone()
    network.lm_head.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(GenerationError, match="not a number"):
        stepper.step([pocket_batch(codec, ["Invoice"])], 1e-3)
    assert torch.equal(network.lm_head.weight, before)


def test_routers_choose_by_exact_scores_under_autocast() -> None:
    network = load_network(POCKET, "cpu", "float32")
    (router,) = (m for m in network.modules() if type(m).__name__.endswith("TopkRouter"))
    states = torch.randn(1, 9, router.weight.shape[1], generator=torch.Generator().manual_seed(1))
    exact = router(states)[0]
    route_in_float32(network)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(router(states)[0], exact)


# --- the order of pages ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, 24, 25])
def test_every_page_once_an_epoch_however_it_is_spread(count: int) -> None:
    one = dataset.plan_epoch(count, seed=3, epoch=2, batch_size=4, grad_accum=2, processes=1)
    two = dataset.plan_epoch(count, seed=3, epoch=2, batch_size=4, grad_accum=1, processes=2)
    for plan in (one, two):
        seen = [n for step in plan for rank in step for m in rank if m.counts for n in m.numbers]
        assert sorted(seen) == list(range(count))
        assert all(rank for step in plan for rank in step), "a process would wait for ever"
    for left, right in zip(one, two, strict=True):
        numbers = [
            sorted(n for rank in step for m in rank if m.counts for n in m.numbers)
            for step in (left, right)
        ]
        assert numbers[0] == numbers[1]


def test_epochs_differ_and_seeds_do() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        plan = dataset.plan_epoch(20, seed, epoch, 20, 1, 1)
        return list(plan[0][0][0].numbers)

    assert order(1, 1) == order(1, 1)
    assert order(1, 1) != order(1, 2) != order(2, 2)
