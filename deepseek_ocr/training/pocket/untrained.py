"""The pocket model before it has learnt anything: its tokenizer, its config, its first weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import nn

from deepseek_ocr.files import write_json
from deepseek_ocr.model.checkpoint import read_config
from deepseek_ocr.model.network import Network
from deepseek_ocr.training.finetune.saved_checkpoints import save_checkpoint

BEGIN, END, PAD, IMAGE = (
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜▁pad▁｜>",
    "<image>",
)
MARKUP = (
    "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>", "<td>", "</td>", "<tr>", "</tr>",
)  # fmt: skip
JOINED = ("[[", "]]", ", ", "<table>", "</table>", "\n\n")
"""Byte pairs that become one token. Text is spelt letter by letter, as reading is learnt so."""

CONTEXT = 2048

CONFIG: dict[str, Any] = {
    "model_type": "DeepseekOCR",
    "architectures": ["DeepseekOCRForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "n_routed_experts": 6,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 5,
    "moe_layer_freq": 1,
    "norm_topk_prob": False,
    "scoring_func": "softmax",
    "topk_method": "greedy",
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "max_position_embeddings": CONTEXT,
    "hidden_act": "silu",
    "use_mla": False,
    "torch_dtype": "bfloat16",
    "projector_config": {
        "model_type": "mlp_projector",
        "projector_type": "linear",
        "input_dim": 512,
        "n_embed": 256,
    },
    "vision_config": {
        "image_size": 512,
        "model_name": "deeplip_b_l",
        "model_type": "vision",
        "width": {
            "sam_vit_b": {
                "width": 128,
                "layers": 4,
                "heads": 4,
                "global_attn_indexes": [],
                "downsample_channels": [128, 256],
                "neck_channels": 64,
                "window_size": 8,
                "image_size": 512,
            },
            "clip-l-14-224": {
                "width": 256,
                "layers": 3,
                "heads": 4,
                "image_size": 112,
                "patch_size": 14,
                "mlp_dim": 768,
            },
        },
    },
}
"""The pocket model in the official schema; ids and vocabulary come from its tokenizer."""


def tokenizer() -> Tokenizer:
    """Byte-level BPE with a handful of merges and the official special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: at + 4 for at, symbol in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in JOINED:
        symbols = byte_level.pre_tokenize_str(text)[0][0]
        grown = symbols[0]
        for symbol in symbols[1:]:
            if grown + symbol not in vocabulary:
                vocabulary[grown + symbol] = len(vocabulary) + 4
                merges.append((grown, symbol))
            grown += symbol
    for at, token in enumerate((BEGIN, END, PAD, IMAGE)):
        vocabulary[token] = at
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made.pre_tokenizer = byte_level
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in (BEGIN, END, PAD, IMAGE)]
    )
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in MARKUP])
    return made


def write_untrained(folder: Path, seed: int) -> None:
    """A checkpoint of random weights with its tokenizer and config."""
    folder.mkdir(parents=True, exist_ok=True)
    made = tokenizer()
    made.save(str(folder / "tokenizer.json"))
    ids = {
        "bos_token_id": made.token_to_id(BEGIN),
        "eos_token_id": made.token_to_id(END),
        "pad_token_id": made.token_to_id(PAD),
        "image_token_id": made.token_to_id(IMAGE),
        "vocab_size": made.get_vocab_size(),
    }
    write_json(folder / "config.json", CONFIG | ids)
    words = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
    }
    write_json(folder / "tokenizer_config.json", words)
    torch.manual_seed(seed)
    network = Network(read_config(folder))
    initialise(network)
    save_checkpoint(network, folder, folder)


def initialise(network: Network) -> None:
    """Random weights that keep the size of what passes through them.

    The library's class leaves SAM's weights at 1e-10, which suits a class that is only ever
    filled from a file: nothing of the picture would reach the decoder, and no gradient the eye.
    """
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


_INTO_RESIDUAL = (
    "o_proj.weight",
    "out_proj.weight",
    "down_proj",
    "down_proj.weight",
    "lin2.weight",
    "fc2.weight",
    "attn.proj.weight",
)
