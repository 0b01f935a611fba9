"""A random model that never chooses its end token: a page takes it many seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tests.conftest import GOLDEN


def endless_model(folder: Path) -> Path:
    """Its checkpoint, written to `folder`."""
    shutil.copytree(GOLDEN / "checkpoint", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": 511}))
    (weights,) = folder.glob("*.safetensors")
    tensors = load_file(weights)
    tensors["lm_head.weight"][511] = 0  # the others are greater than zero
    save_file(tensors, weights)
    vocabulary = {chr(97 + i // 26) + chr(97 + i % 26) + " ": i for i in range(512) if i != 5}
    tokenizer = Tokenizer(models.WordLevel({**vocabulary, "<image>": 5}, unk_token="aa "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken("<image>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
