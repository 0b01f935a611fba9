"""The pocket model before it has learnt anything: config and tokenizer of the bundled one, random
weights.

Its tokenizer is byte-level BPE with the official special tokens, and a handful of merges for byte
pairs of markup (`[[`, `]]`, `, `, table tags, a blank line). Text is spelt letter by letter, as
reading is learnt so.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from deepseek_ocr.model.checkpoint import read_config
from deepseek_ocr.model.network import Network
from deepseek_ocr.training.finetune.saved_checkpoints import save_checkpoint
from deepseek_ocr.weights.places import bundled_folder

_INTO_RESIDUAL = (
    "o_proj.weight", "out_proj.weight", "down_proj", "down_proj.weight", "lin2.weight",
    "fc2.weight", "attn.proj.weight",
)  # fmt: skip


def write_untrained(folder: Path, seed: int) -> None:
    """A checkpoint of random weights with the bundled model's tokenizer and config. Raises
    `CheckpointError` if there is no bundled model, and `FileWriteError`."""
    bundled = bundled_folder("pocket")
    torch.manual_seed(seed)
    network = Network(read_config(bundled))
    initialise(network)
    save_checkpoint(network, bundled, folder)


def initialise(network: Network) -> None:
    """Random weights that keep the size of what passes through them. The library's class leaves
    SAM's weights at 1e-10, which suits a class that is only ever filled from a file: nothing of the
    picture would reach the decoder, and no gradient the eye."""
    for name, parameter in network.named_parameters():
        if parameter.ndim < 2:
            continue
        if "rel_pos" in name:
            nn.init.zeros_(parameter)
        elif "embed_tokens" in name:
            nn.init.normal_(parameter, std=0.5)
        elif "pos_embed" in name or "position_embedding" in name:
            nn.init.normal_(parameter, std=0.1)
        else:
            fan_in = parameter.shape[1:].numel() if parameter.ndim != 3 else parameter.shape[2]
            shrink = 0.4 if name.endswith(_INTO_RESIDUAL) else 1.0
            nn.init.trunc_normal_(parameter, std=shrink * fan_in**-0.5)
    for table in (network.model.image_newline, network.model.view_separator):
        nn.init.normal_(table, std=0.5)
