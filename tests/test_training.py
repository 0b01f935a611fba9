"""Training: what teaches, what moves, and that a run can be trusted to the last digit."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from deepseek_ocr import model
from deepseek_ocr.adapters import merge_adapter
from deepseek_ocr.engine import OcrEngine
from deepseek_ocr.errors import CheckpointError, GenerationError
from deepseek_ocr.images import Views
from deepseek_ocr.model import Network, load_network
from deepseek_ocr.prompts import Codec
from deepseek_ocr.settings import CropSettings
from tests.conftest import GOLDEN, POCKET, ROOT, byte_tokenizer, golden_views
from tests.test_golden import CASES
from training import dataset, lora, train
from training.batches import IGNORED, Batch, ExampleError, collate, encode_example
from training.checkpoints import official_tensors, save_checkpoint
from training.files import OutputError
from training.objective import Objective, balance_loss, hidden_states
from training.optimisation import OptimiserSettings, Stepper, cosine
from training.samples import Example
from training.untrained import write_untrained

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


@pytest.fixture
def network() -> Network:
    """A fresh copy of the bundled model in float32, every weight trainable."""
    return load_network(POCKET, "cpu", "float32").train().requires_grad_(True)


@pytest.fixture(scope="module")
def codec(pocket: OcrEngine) -> Codec:
    return pocket.codec


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


def test_an_example_that_is_too_long_or_empty_is_refused() -> None:
    codec = small_codec()
    with pytest.raises(ExampleError, match="more than 20"):
        encode_example(codec, view(0), PROMPT, "a long answer", 20)
    with pytest.raises(ExampleError, match="empty"):
        encode_example(codec, view(0), PROMPT, "", 100)


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


# --- what moves -----------------------------------------------------------------------------------


def test_eight_pages_are_learnt_by_heart_in_two_hundred_steps(
    network: Network, codec: Codec
) -> None:
    texts = [f"page {at} says {at * 37 % 101}" for at in range(8)]
    batch = pocket_batch(codec, texts)
    settings = OptimiserSettings(weight_decay=0.0)
    stepper = Stepper(Objective(network), settings, Accelerator(cpu=True))
    for step in range(200):
        result = stepper.step([batch], 1e-3 * min(1.0, (step + 1) / 20))
        if result.loss < 0.05:
            return
    pytest.fail(f"the loss is still {result.loss:.3f}")


def test_a_loss_that_is_no_number_stops_training(network: Network, codec: Codec) -> None:
    with torch.no_grad():
        network.lm_head.weight.fill_(float("nan"))
    stepper = Stepper(Objective(network), OptimiserSettings(), Accelerator(cpu=True))
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
        stepper = Stepper(Objective(network), OptimiserSettings(), Accelerator(cpu=True))
        views = {text: at for at, text in enumerate(texts)}
        batches = [
            collate([encode_example(codec, view(views[t]), PROMPT, t, 500) for t in part], 2)
            for part in parts
        ]
        stepper.step(batches, 1e-3)
        grown.append(dict(network.named_parameters()))
    for name, value in grown[0].items():
        torch.testing.assert_close(value, grown[1][name], rtol=1e-4, atol=2e-4)


def test_the_rate_rises_and_falls() -> None:
    share = cosine(warmup=10, total=110, floor=0.1)
    assert [share(0), share(9), share(10)] == pytest.approx([0.1, 1.0, 1.0])
    assert share(60) == pytest.approx(0.55)
    assert share(110) == share(10_000) == pytest.approx(0.1)


# --- LoRA -----------------------------------------------------------------------------------------


def test_lora_touches_the_decoder_and_nothing_else(network: Network) -> None:
    adapted = lora.add_lora(network, lora.LoraSettings(rank=4))
    moved = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert moved
    assert all("lora_" in name and ".language_model.layers." in name for name in moved)
    targets = {name.split(".lora_")[0].rpartition(".")[2] for name in moved}
    assert targets == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
    assert not any("experts" in n and "shared" not in n for n in moved)
    assert not any("vision" in name or ".gate." in name for name in moved)


def test_lora_reaches_the_experts_by_choice(network: Network) -> None:
    adapted = lora.add_lora(network, lora.LoraSettings(rank=4, experts=True))
    moved = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert any(".mlp.experts." in name for name in moved)


def test_the_vision_encoder_learns_by_choice(network: Network, codec: Codec) -> None:
    lora.add_lora(network, lora.LoraSettings(rank=4))
    batch = pocket_batch(codec, ["one"])
    patches = network.model.vision_tower.sam_encoder.patch_embed.projection.weight
    Objective(network)(batch)[0].backward()
    assert patches.grad is None
    lora.train_vision(network)
    Objective(network)(batch)[0].backward()
    assert patches.grad is not None
    assert patches.grad.abs().sum() > 0


@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize("vision", [False, True])
def test_a_merged_adapter_is_the_adapter(
    network: Network, codec: Codec, tmp_path: Path, experts: bool, vision: bool
) -> None:
    file = POCKET / "model.safetensors"
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    adapted = lora.add_lora(network, lora.LoraSettings(rank=4, experts=experts))
    if vision:
        lora.train_vision(network)
    batch = pocket_batch(codec, ["one", "another"])
    stepper = Stepper(Objective(network), OptimiserSettings(), Accelerator(cpu=True))
    for _ in range(3):
        stepper.step([batch], 1e-2)
    lora.save_adapter(adapted, tmp_path / "adapter")
    merged = merge_adapter(load_network(POCKET, "cpu", "float32"), tmp_path / "adapter")
    plain = load_network(POCKET, "cpu", "float32")
    with torch.no_grad():
        expected = hidden_states(network.eval(), batch)
        result = hidden_states(merged, batch)
        untouched = hidden_states(plain, batch)
    largest = float(expected.abs().max())
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5 * largest)
    assert (untouched - expected).abs().max() > 1e-3 * largest
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "no adapter_config.json"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "not JSON"),
        (
            lambda folder: (folder / "adapter_config.json").write_text('{"peft_type": "IA3"}'),
            "does not describe a LoRA",
        ),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x"), "damaged"),
        (
            lambda folder: (folder / "adapter_config.json").write_text(
                '{"peft_type": "LORA", "r": 4, "modules_to_save": ["lm_head"]}'
            ),
            "not read from adapters",
        ),
        (
            lambda folder: (folder / "adapter_config.json").write_text(
                '{"peft_type": "LORA", "r": 4, "target_modules": ["nothing"]}'
            ),
            "does not fit",
        ),
        (
            lambda folder: (folder / "adapter_config.json").write_text(
                '{"peft_type": "LORA", "r": 99999999}'
            ),
            "rank",
        ),
    ],
)
def test_a_damaged_adapter_is_refused_in_words(
    network: Network, tmp_path: Path, damage: object, words: str
) -> None:
    folder = tmp_path / "adapter"
    lora.save_adapter(lora.add_lora(network, lora.LoraSettings(rank=4)), folder)
    damage(folder)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=words):
        merge_adapter(load_network(POCKET, "cpu", "float32"), folder)


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
        with pytest.raises(OutputError, match="cannot be written"):
            save_checkpoint(network, POCKET, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert (target / "old").read_text() == "kept"


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


# --- whole runs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small pages with annotations, four to train on."""
    from training.synth import Recipe, write_pages

    folder = tmp_path_factory.mktemp("pages")
    recipe = Recipe(
        size=(256, 256), smallest=24, largest=40, longest=8, most_lines=2, font_set="all"
    )
    list(write_pages(folder, recipe, range(1, 7), seed=5, processes=1))
    entries = [
        {"image": f"{n:06d}.png", **json.loads((folder / f"{n:06d}.json").read_text())}
        for n in range(1, 7)
    ]
    (folder / "train.json").write_text(json.dumps(entries[:4]))
    (folder / "test.json").write_text(json.dumps(entries[4:]))
    return folder


def command(data: Path, output: Path, *more: str) -> list[str]:
    return [
        "--data_root", str(data), "--train_file", str(data / "train.json"),
        "--model_path", str(POCKET), "--output_dir", str(output), "--resolution", "tiny",
        "--dtype", "float32", "--workers", "0", "--batch_size", "2", "--lr", "1e-3", *more,
    ]  # fmt: skip


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*.safetensors")
    return load_file(path)


def test_a_run_from_pages_to_an_adapter_that_reads(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    val = ("--val_file", str(data / "test.json"))
    assert train.main(command(data, output, "--epochs", "2", *val, "--merge")) == 0
    assert {path.name for path in output.iterdir()} == {
        "epoch-1", "epoch-2", "best", "merged", "state", "rejected.json", "loss.png",
        "experiment_logs.txt",
    }  # fmt: skip
    log = (output / "experiment_logs.txt").read_text()
    for words in ("setting lr = 0.001", "version torch", "4 examples, 0 rejected", "step 4 loss"):
        assert words in log
    assert log.count("CER on validation") == 2
    page, crop = data / "000001.png", CropSettings(512, 512, False)
    adapted = OcrEngine.load(POCKET, "cpu", "float32", adapter=output / "best")
    merged = OcrEngine.load(output / "merged", "cpu", "float32")
    assert adapted.read(page, PROMPT, crop).text == merged.read(page, PROMPT, crop).text
    result = subprocess.run(
        [sys.executable, "ocr.py", "--model", str(POCKET), "--adapter", str(output / "best"),
         "--size", "tiny", "--task", "ocr", str(page)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("how", ["--lora", "--full"])
def test_a_resumed_run_equals_one_that_never_stopped(
    data: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.run import Run

    straight = tmp_path / "straight"
    assert train.main(command(data, straight, "--epochs", "3", how)) == 0
    broken = tmp_path / "broken"
    finish = Run._finish_epoch

    def stop_after_one(self: Run, *arguments: object) -> None:
        finish(self, *arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_finish_epoch", stop_after_one)
        assert train.main(command(data, broken, "--epochs", "3", how)) == 130
    assert train.main(command(data, broken, "--epochs", "3", how, "--resume")) == 0
    expected, resumed = weights_of(straight / "epoch-3"), weights_of(broken / "epoch-3")
    for name, values in expected.items():
        assert torch.equal(values, resumed[name]), name
    state = json.loads((broken / "state" / "state.json").read_text())
    assert state["losses"] == json.loads((straight / "state" / "state.json").read_text())["losses"]


def test_two_processes_learn_what_one_learns(data: Path, tmp_path: Path) -> None:
    """Tolerance: a fiftieth of the two steps' rate of 1e-3 for all but a hundredth of the weights,
    whose gradients are so small that AdamW makes steps of rounding errors."""
    one, two = tmp_path / "one", tmp_path / "two"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DEEPSEEK_OCR_DEVICE": "cpu"}
    for output, launch, more in (
        (one, [sys.executable, "-m"], ["--grad_accum", "2"]),
        (two, [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc_per_node", "2", "-m"], []),
    ):  # fmt: skip
        arguments = command(data, output, "--epochs", "2", "--batch_size", "2", *more)
        result = subprocess.run(
            [*launch, "training.train", *arguments],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[-3000:]
    assert "2 processes" in (two / "experiment_logs.txt").read_text()
    expected, spread = weights_of(one / "epoch-2"), weights_of(two / "epoch-2")
    for name, values in expected.items():
        apart = (spread[name] - values).abs() > 2e-5
        assert apart.float().mean() < 0.01, name


def test_what_cannot_be_used_is_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = json.loads((data / "train.json").read_text())
    (data / "broken.png").write_bytes(b"no picture")
    mixed = [
        *entries,
        {"image": "broken.png", "text": "x"},
        {"image": "gone.png", "text": "x"},
        {"image": "000001.png", "regions": [{"label": "text", "box": [0, 0, 1, 1]}]},
        {"image": "000002.png", "text": "far too long " * 400},
    ]
    listed = data / "mixed.json"
    listed.write_text(json.dumps(mixed))
    arguments = command(data, tmp_path / "run", "--max_tokens", "600")
    arguments[arguments.index("--train_file") + 1] = str(listed)
    assert train.main(arguments) == 2
    assert "50% of the samples" in capsys.readouterr().err
    assert train.main([*arguments, "--max_rejected", "0.6"]) == 1
    rejected = json.loads((tmp_path / "run" / "rejected.json").read_text())
    reasons = {row["name"]: row["reason"] for row in rejected}
    assert set(reasons) == {"broken", "gone.png", "000001", "000002"}
    assert "nothing for ocr" in reasons["000001"]
    assert "more than 600" in reasons["000002"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--model_path": "/nowhere"}, "/nowhere"),
        ({"--train_file": "/nowhere.json"}, "nowhere.json"),
        ({"--lr": "fast"}, "no number"),
        ({"--epochs": "0"}, "no whole number"),
        ({"--resolution": "huge"}, "no preset 'huge'"),
        ({"--dtype": "float16"}, "float16 needs a GPU"),
        ({"--resume": None}, "no finished epoch"),
    ],
)
def test_what_cannot_start_says_why(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str | None],
    words: str,
) -> None:
    arguments = command(data, tmp_path / "run")
    for flag, value in change.items():
        if flag in arguments:
            arguments[arguments.index(flag) + 1] = str(value)
        else:
            arguments += [flag] if value is None else [flag, value]
    try:
        status = train.main(arguments)
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert status == 2
    assert words in capsys.readouterr().err


def test_a_second_run_never_writes_over_the_first(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(command(data, tmp_path / "run")) == 0
    assert train.main(command(data, tmp_path / "run")) == 2
    assert "add --resume" in capsys.readouterr().err
    assert train.main(command(data, tmp_path / "run", "--resume", "--lr", "1e-2")) == 2
    assert "lr was 0.001" in capsys.readouterr().err


def test_examples_are_checked_before_anything_is_trained(data: Path) -> None:
    encoding = dataset.Encoding(small_codec(), CropSettings(512, 512, False), 4096, 2)
    good = Example(data / "000001.png", "Free OCR", PROMPT, "text", "good")
    bad = Example(data / "none.png", "Free OCR", PROMPT, "text", "bad")
    outcomes = list(dataset.check([good, bad], encoding, workers=0))
    assert outcomes[0] is None
    assert outcomes[1] is not None
    assert outcomes[1].name == "bad"
