"""Checkpoints load strictly: what does not fit is an error that names it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.random_checkpoint import FULL_SIZE, official_shapes, write
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.errors import CheckpointError
from deepseek_ocr.model.loader import load_network
from deepseek_ocr.model.network import Network
from tests.conftest import GOLDEN, POCKET, reference

WEIGHTS = "model-00001-of-000001.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the golden checkpoint to spoil."""
    return Path(shutil.copytree(GOLDEN / "checkpoint", tmp_path / "checkpoint"))


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_network(folder, "cpu", "float32")
    for word in words:
        assert word in str(caught.value)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    edit_tensors(folder, lambda t: t.pop("model.layers.1.mlp.experts.3.up_proj.weight"))
    refused(folder, "missing: model.layers.1.mlp.experts.3.up_proj.weight")


def test_an_unexpected_tensor_is_named(folder: Path) -> None:
    edit_tensors(folder, lambda t: t.update({"model.extra": torch.zeros(1)}))
    refused(folder, "unexpected: model.extra")


def test_a_tensor_of_the_wrong_shape_is_named(folder: Path) -> None:
    edit_tensors(folder, lambda t: t.update({"model.norm.weight": torch.zeros(3)}))
    refused(folder, "model.norm.weight (is [3], should be [160])")


def test_a_tensor_of_whole_numbers_is_named(folder: Path) -> None:
    edit_tensors(
        folder, lambda t: t.update({"model.norm.weight": torch.zeros(160, dtype=torch.int64)})
    )
    refused(folder, "model.norm.weight", "int64")


def test_what_only_some_copies_carry_is_no_error(folder: Path) -> None:
    ids = {"model.vision_model.embeddings.position_ids": torch.arange(257)[None]}
    edit_tensors(folder, lambda t: t.update(ids))
    load_network(folder, "cpu", "float32")
    for name in ("position_ids", "patch_embedding.weight"):
        edit_tensors(folder, lambda t, n=name: t.pop(f"model.vision_model.embeddings.{n}", None))
    load_network(folder, "cpu", "float32")


@pytest.mark.parametrize("kept", [0, 4, 100, 20_000, -1])
def test_a_truncated_file_is_named(folder: Path, kept: int) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:kept])
    refused(folder, WEIGHTS, "damaged or incomplete")


def test_a_file_of_noise_is_named(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\xff" * 4096)
    refused(folder, WEIGHTS, "damaged or incomplete")


def test_missing_weights_say_that_pickles_are_not_read(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    refused(folder, "lacks", WEIGHTS)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    refused(folder, "no model*.safetensors", "run code")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/b.safetensors", 7])
def test_an_index_cannot_point_outside_its_folder(folder: Path, name: object) -> None:
    index = {"weight_map": {"model.norm.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "outside its folder")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"weight_map": 3}'])
def test_a_damaged_index_is_named(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)
    refused(folder, "model.safetensors.index.json", "damaged")


@pytest.mark.parametrize("kind", ["llama", "deepseek_ocr2", None, 5])
def test_another_kind_of_model_is_named(folder: Path, kind: object) -> None:
    edit_config(folder, lambda config: config.update(model_type=kind))
    refused(folder, "config.json", f"model_type {kind!r}")


@pytest.mark.parametrize(
    "text", ["", "null", "[1]", "{", "\xff\xfe", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"]
)
def test_a_config_that_is_no_json_object_is_named(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="latin-1")
    refused(folder, "config.json")


@pytest.mark.parametrize("key", ["hidden_size", "vision_config", "rope_theta", "eos_token_id"])
def test_a_missing_key_is_named(folder: Path, key: str) -> None:
    edit_config(folder, lambda config: config.pop(key))
    refused(folder, "config.json", key)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "many"),
        ("hidden_size", 10**12),
        ("hidden_size", -1),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 0),
        ("vocab_size", None),
        ("n_routed_experts", 20_000),
        ("num_experts_per_tok", 1000),
        ("eos_token_id", None),
        ("eos_token_id", []),
        ("bos_token_id", -1),
        ("image_token_id", 512),
        ("use_mla", True),
        ("scoring_func", "sigmoid"),
    ],
)
def test_an_absurd_value_is_named_before_memory_is_taken(
    folder: Path, key: str, value: object
) -> None:
    edit_config(folder, lambda config: config.update({key: value}))
    refused(folder, "config.json", key)


def test_sizes_that_contradict_each_other_are_refused(folder: Path) -> None:
    def spoil(config: dict[str, Any]) -> None:
        config["vision_config"]["width"]["sam_vit_b"]["downsample_channels"] = [1]

    edit_config(folder, spoil)
    refused(folder, "does not describe this network")


@pytest.mark.parametrize(
    "rope", [{"rope_type": "yarn", "factor": 4.0}, {"type": "yarn", "factor": 4.0}]
)
def test_other_rotary_embeddings_are_refused(
    tiny: Network, tmp_path: Path, rope: dict[str, object]
) -> None:
    tiny.config.save_pretrained(tmp_path)
    edit_config(
        tmp_path, lambda c: c["text_config"].update(rope_parameters={**rope, "rope_theta": 1e4})
    )
    refused(tmp_path, "config.json")


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_config_cannot_name_code_to_fetch_and_run(
    tiny: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """The library would fetch such a kernel from a hub and import it."""
    import transformers.integrations.hub_kernels as hub

    asked: list[object] = []
    for name in [name for name in dir(hub) if "kernel" in name and callable(getattr(hub, name))]:
        monkeypatch.setattr(hub, name, lambda *a, n=name, **k: asked.append(n))
    tiny.config.save_pretrained(tmp_path)
    save_file(dict(tiny.named_parameters()), tmp_path / "model.safetensors")
    hostile = {
        key: "kernels-community/flash-attn2",
        "experts_implementation": "kernels-community/moe",
        "auto_map": {"AutoModel": "evil.Model"},
        "quantization_config": {"quant_method": "evil"},
    }

    def spoil(config: dict[str, Any]) -> None:
        for part in (config, config["text_config"], config["vision_config"]["sam_config"]):
            part.update(hostile)

    edit_config(tmp_path, spoil)
    network = load_network(tmp_path, "cpu", "float32")
    assert network.config.text_config._attn_implementation == "sdpa"
    assert "kernels" not in json.dumps(network.config.to_dict())
    assert asked == []


def test_an_absurd_vision_size_is_refused(folder: Path) -> None:
    edit_config(
        folder, lambda config: config["vision_config"]["width"]["sam_vit_b"].update(layers=10**9)
    )
    refused(folder, "num_hidden_layers")


def test_no_folder_and_no_checkpoint(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no folder")
    refused(tmp_path, "no config.json")


def test_a_missing_or_broken_tokenizer_is_named(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        OcrEngine.load(folder, "cpu", "float32")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is not a tokenizer"):
        OcrEngine.load(folder, "cpu", "float32")
    shutil.copy(POCKET / "tokenizer.json", folder)
    with pytest.raises(CheckpointError, match="not of one checkpoint"):
        OcrEngine.load(folder, "cpu", "float32")


@pytest.mark.filterwarnings("ignore")  # the library's progress bar
def test_what_save_pretrained_writes_loads_again(tiny: Network, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "unlimited_ocr"
    again = load_network(tmp_path, "cpu", "float32")
    for (name, ours), theirs in zip(again.named_parameters(), tiny.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_the_librarys_own_names_load_too(tiny: Network, tmp_path: Path) -> None:
    tiny.config.save_pretrained(tmp_path)
    save_file(dict(tiny.named_parameters()), tmp_path / "model.safetensors")
    again = load_network(tmp_path, "cpu", "float32")
    assert torch.equal(again.lm_head.weight, tiny.lm_head.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_types_are_converted_and_rotary_frequencies_are_not(dtype: torch.dtype) -> None:
    network = load_network(GOLDEN / "checkpoint", "cpu", dtype)
    assert {parameter.dtype for parameter in network.parameters()} == {dtype}
    assert network.model.language_model.rotary_emb.inv_freq.dtype == torch.float32


def test_full_size_names_and_shapes_are_the_official_ones(tmp_path: Path) -> None:
    official = json.loads(reference("upstream", "weight_shapes.json").read_text())
    for config in (FULL_SIZE, json.loads(reference("upstream", "config.json").read_text())):
        (tmp_path / "config.json").write_text(json.dumps(config))
        ours = {name: list(shape) for name, shape in official_shapes(tmp_path).items()}
        assert ours == official


def test_the_random_checkpoint_script_writes_what_loads(tmp_path: Path) -> None:
    small = json.loads((GOLDEN / "checkpoint" / "config.json").read_text())
    write(tmp_path, small)
    engine = OcrEngine.load(tmp_path, "cpu", "bfloat16")
    assert sum(p.numel() for p in engine.network.parameters()) > 1_000_000
    assert engine.codec.decode([7, 9]) == "w7 w9"
    with safe_open(tmp_path / WEIGHTS, "pt") as file:
        assert not [name for name in file.keys() if "position_ids" in name]  # noqa: SIM118
