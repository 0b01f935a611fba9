"""Write a checkpoint of full size, official format and random weights (6.7 GB).

    python -m benchmarks.random_checkpoint FOLDER

It stands for the real one wherever only shapes and speed matter. What it writes as text means
nothing: its tokenizer has a made-up word for every token.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from benchmarks.command import ROOT
from deepseek_ocr.files import atomic_write
from deepseek_ocr.model.checkpoint import official_pieces, read_config
from deepseek_ocr.model.network import empty_network
from deepseek_ocr.model.prompts import IMAGE

FULL_SIZE: dict[str, Any] = {
    "model_type": "DeepseekOCR", "architectures": ["DeepseekOCRForCausalLM"],
    "bos_token_id": 0, "eos_token_id": 1, "vocab_size": 129280,
    "hidden_size": 1280, "intermediate_size": 6848, "moe_intermediate_size": 896,
    "num_hidden_layers": 12, "num_attention_heads": 10, "num_key_value_heads": 10,
    "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6,
    "first_k_dense_replace": 1, "topk_method": "greedy", "scoring_func": "softmax",
    "routed_scaling_factor": 1.0, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
    "max_position_embeddings": 8192, "use_mla": False, "torch_dtype": "bfloat16",
    "vision_config": {"width": {
        "sam_vit_b": {"width": 768, "layers": 12, "heads": 12,
                      "global_attn_indexes": [2, 5, 8, 11], "downsample_channels": [512, 1024]},
        "clip-l-14-224": {"width": 1024, "layers": 24, "heads": 16, "image_size": 224,
                          "patch_size": 14},
    }},
}  # fmt: skip
"""The sizes of deepseek-ai/DeepSeek-OCR in the official config's words."""

FILE = "model-00001-of-000001.safetensors"

_POSITION_IDS = "model.vision_model.embeddings.position_ids"
"""A table that the official file holds and nothing uses; vLLM and llama.cpp refuse it."""


def official_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of the official file for the config in `folder`.

    CLIP's own patch embedding and position ids are among them, although nothing uses them.
    """
    network = empty_network(read_config(folder))
    shapes = {
        piece.tensor: piece.shape
        for name, parameter in network.named_parameters()
        for piece in official_pieces(name, tuple(parameter.shape))
    }
    clip = network.config.vision_config.encoder_config
    positions = (clip.image_size // clip.patch_size) ** 2 + 1
    embeddings = "model.vision_model.embeddings"
    shapes[f"{embeddings}.patch_embedding.weight"] = (
        clip.hidden_size, 3, clip.patch_size, clip.patch_size,
    )  # fmt: skip
    shapes[_POSITION_IDS] = (1, positions)
    return shapes


def write(folder: Path, config: dict[str, Any] | None = None, seed: int = 0) -> None:
    """Write `config`, random bfloat16 weights for it and a tokenizer into `folder`; replaces what
    is there. CLIP's position ids, which nothing uses, are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or FULL_SIZE, indent=1))
    shapes = official_shapes(folder)
    del shapes[_POSITION_IDS]
    torch.manual_seed(seed)
    tensors = {name: _random(name, shape) for name, shape in shapes.items()}
    with atomic_write(folder / FILE) as stream:  # a file that is there is whole
        save_file(tensors, stream.name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, FILE)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_tokenizer(folder)


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer for the config in `folder`: w0, w1, w2 … for the ids, and the image
    placeholder where the config has it. Of a prompt it knows nothing else: each word is w2."""
    config = read_config(folder)
    words = {f"w{id_}": id_ for id_ in range(config.text_config.vocab_size)}
    del words[f"w{config.image_token_id}"]
    words[IMAGE] = config.image_token_id
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(IMAGE, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))


def _random(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Values of the size that trained weights have, so that nothing overflows."""
    if name.endswith("bias"):
        return torch.zeros(shape, dtype=torch.bfloat16)
    if "norm" in name or ".neck.1." in name or ".neck.3." in name:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02)


def provide(folder: Path) -> None:
    """Write the checkpoint, and a tokenizer, to `folder` if it has none yet."""
    if not (folder / FILE).is_file():
        print(f"writing a random checkpoint to {folder} (6.7 GB) …", flush=True)
        # In a process of its own, so that its memory does not count as ours.
        command = [sys.executable, "-m", "benchmarks.random_checkpoint", str(folder.resolve())]
        subprocess.run(command, check=True, cwd=ROOT)
    elif not (folder / "tokenizer.json").is_file():  # older ones have none
        write_tokenizer(folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="written to; needs 7 GB")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    write(flags.folder, seed=flags.seed)
    print(f"wrote {flags.folder}")


if __name__ == "__main__":
    main()
