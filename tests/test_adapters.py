"""LoRA: what is adapted, that merging gives the same, and adapters from outside."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.errors import CheckpointError, DeviceError
from deepseek_ocr.model import int8_layers
from deepseek_ocr.model.adapters import CONFIG, TENSORS, merge_adapter, quiet_peft
from deepseek_ocr.model.loader import load_network
from deepseek_ocr.model.network import Network
from deepseek_ocr.model.prompts import Codec
from deepseek_ocr.settings import CropSettings, DecodeSettings
from deepseek_ocr.training.finetune import lora
from deepseek_ocr.training.finetune.objective import Objective, hidden_states
from deepseek_ocr.training.finetune.optimizer import Stepper
from tests.conftest import POCKET
from tests.test_quantized import assert_same
from tests.test_training import pocket_batch


def test_lora_touches_the_decoder_and_nothing_else(network: Network) -> None:
    adapted = lora.add_lora(network, rank=4)
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
    adapted = lora.add_lora(network, rank=4, experts=True)
    moved = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert any(".mlp.experts." in name for name in moved)


def test_the_vision_encoder_learns_by_choice(network: Network, codec: Codec) -> None:
    lora.add_lora(network, rank=4)
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
    adapted = lora.add_lora(network, rank=4, experts=experts)
    if vision:
        lora.train_vision(network)
    batch = pocket_batch(codec, ["one", "another"])
    stepper = Stepper(Objective(network), Accelerator(cpu=True))
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


def one_row(folder: Path) -> None:
    """Cut a tensor to a row, which torch would spread over all of them."""
    tensors = load_file(folder / TENSORS)
    name = next(name for name in tensors if "lora_A" in name)
    save_file(tensors | {name: tensors[name][:1].contiguous()}, folder / TENSORS)


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
        (one_row, "does not fit"),
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
    lora.save_adapter(lora.add_lora(network, rank=4), folder)
    damage(folder)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=words):
        merge_adapter(load_network(POCKET, "cpu", "float32"), folder)


def write_config(folder: Path, **change: object) -> None:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]} | change
    (folder / CONFIG).write_text(json.dumps(config))
    (folder / TENSORS).write_bytes(b"")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", None),
        ("r", True),
        ("r", 0),
        ("r", 4097),
        ("lora_alpha", "32"),
        ("lora_alpha", True),
        ("lora_alpha", float("nan")),
        ("lora_alpha", 10**400),
        ("target_modules", r"(\w+)+-"),
        ("target_modules", "all-linear"),
        ("target_modules", ["q_proj", r"(\w+)+-"]),
        ("target_modules", ["q_proj", 1]),
        ("target_modules", ["q" * 257]),
        ("target_modules", ["q_proj"] * 1025),
        ("target_parameters", "experts.down_proj"),
        ("target_parameters", [r"(\w+)+-"]),
        ("rank_pattern", {"q_proj": 10_000_000}),
        ("rank_pattern", {"q_proj": 0}),
        ("rank_pattern", {"q_proj": 4.0}),
        ("rank_pattern", {r"(\w+)+-": 4}),
        ("rank_pattern", ["q_proj"]),
        ("rank_pattern", {f"q{at}": 4 for at in range(257)}),
        ("alpha_pattern", {"q_proj": float("inf")}),
        ("alpha_pattern", {"q_proj": 0}),
        ("alpha_pattern", {r"(\w+)+-": 4}),
        ("use_rslora", "yes"),
    ],
)
def test_a_config_is_checked_before_anything_is_made_of_it(
    tmp_path: Path, key: str, value: object
) -> None:
    write_config(tmp_path, **{key: value})
    with pytest.raises(CheckpointError, match=f"{key} must be .*; correct it"):
        merge_adapter(torch.nn.Module(), tmp_path)


def test_a_pattern_of_modules_is_to_be_written_as_a_list(tmp_path: Path) -> None:
    write_config(tmp_path, target_modules=".*q_proj")
    with pytest.raises(CheckpointError, match="write the list"):
        merge_adapter(torch.nn.Module(), tmp_path)


def test_a_rank_that_no_tensor_has_allocates_nothing(network: Network, tmp_path: Path) -> None:
    write_config(tmp_path, r=4096, target_parameters=["experts.down_proj"])
    save_file({"lora_A": torch.zeros(1)}, tmp_path / TENSORS)
    cpu = torch.profiler.ProfilerActivity.CPU
    with (
        torch.profiler.profile(activities=[cpu], profile_memory=True) as profile,
        pytest.raises(CheckpointError, match="does not fit"),
    ):
        merge_adapter(network, tmp_path)
    assert sum(max(0, event.self_cpu_memory_usage) for event in profile.events()) < 2**20


def random_adapter(network: Network, folder: Path, **settings: object) -> Network:
    """`network` with an adapter of random weights merged, which is saved into `folder`."""
    with quiet_peft():
        adapted = get_peft_model(network, LoraConfig(r=4, init_lora_weights=False, **settings))
    lora.save_adapter(adapted, folder)
    return adapted.merge_and_unload()


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"target_modules": ["self_attn.q_proj", "o_proj"], "lora_alpha": 2.5},
        {
            "rank_pattern": {"layers.0.self_attn.q_proj": 2, "o_proj": 3},
            "alpha_pattern": {"layers.0.self_attn.q_proj": 5.5},
        },
    ],
)
def test_adapters_of_other_ranks_and_scales_are_merged(
    network: Network, tmp_path: Path, settings: dict[str, object]
) -> None:
    chosen = {"target_modules": lora.target_modules(network)} | settings
    expected = dict(random_adapter(network, tmp_path / "adapter", **chosen).named_parameters())
    merged = merge_adapter(load_network(POCKET, "cpu", "float32"), tmp_path / "adapter")
    for name, value in merged.named_parameters():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_an_adapter_is_merged_before_8_bits_are_made_of_it(
    network: Network, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    random_adapter(
        network, adapter, target_modules=lora.target_modules(network),
        target_parameters=["experts.gate_up_proj", "experts.down_proj"],
    )  # fmt: skip
    expected = merge_adapter(load_network(POCKET, "cpu", "bfloat16"), adapter)
    int8_layers.quantize_decoder(expected)
    engine = OcrEngine.load(
        POCKET, "cpu", "bfloat16", adapter=adapter, quant="int8", kernels="plain"
    )
    assert_same(engine.network, expected)
    with pytest.raises(AssertionError):
        assert_same(load_network(POCKET, "cpu", "bfloat16", quant="int8"), expected)
    page = engine.read(POCKET.parent.parent / "examples/invoice.png", "Free OCR.",
                       CropSettings(512, 512, False), DecodeSettings(max_new_tokens=3))  # fmt: skip
    engine.close()
    assert page.finish_reason in ("length", "stop")


def test_running_out_of_memory_is_no_fault_of_the_adapter(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_adapter(network, tmp_path, target_modules=["q_proj"])

    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.")

    monkeypatch.setattr("deepseek_ocr.model.adapters._fill", refuse)
    with pytest.raises(DeviceError, match="'cpu' ran out of memory while the model was loaded"):
        OcrEngine.load(POCKET, "cpu", adapter=tmp_path)
