"""The network gives what the official implementation gave."""

from __future__ import annotations

import pytest
import torch

from deepseek_ocr.model.loader import load_network
from deepseek_ocr.model.network import Network, vision_tokens
from deepseek_ocr.settings import DecodeSettings
from tests.goldens import CASES, GOLDEN, VIEWS, Golden, embedded, golden_views, relative_error
from tests.tiny_engine import decode

TOLERANCE = 1e-5

GUARDS = {
    "norepeat0": (0, 0, frozenset[int]()),
    "norepeat3": (3, 0, frozenset[int]()),
    "norepeat20": (20, 0, frozenset[int]()),
    "window6_24": (6, 24, frozenset({7, 8})),
}


@pytest.mark.parametrize("name", ["tiny", "base"])
def test_features_of_each_encoder(tiny: Network, golden: Golden, name: str) -> None:
    views = golden_views(golden, name)
    tower = tiny.model.vision_tower
    with torch.inference_mode():
        sam = tower.sam_encoder(views.global_view[None]).last_hidden_state
        clip = tower.vision_encoder(sam).last_hidden_state
    assert relative_error(sam, golden[f"{name}.sam"]) < TOLERANCE
    assert relative_error(clip, golden[f"{name}.clip"]) < TOLERANCE


@pytest.mark.parametrize("name", VIEWS)
def test_vision_tokens(tiny: Network, golden: Golden, name: str) -> None:
    views = golden_views(golden, name)
    rows = vision_tokens(tiny, views)
    assert len(rows) == views.token_count
    assert relative_error(rows, golden[f"{name}.vision_tokens"]) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_logits_and_loss(tiny: Network, golden: Golden, case: str) -> None:
    ids, embeddings = embedded(tiny, golden, case)
    with torch.inference_mode():
        hidden = tiny.model.language_model(inputs_embeds=embeddings).last_hidden_state
        logits = tiny.lm_head(hidden)[0]
    assert relative_error(logits[-16:], golden[f"{case}.logits_last16"]) < TOLERANCE
    loss = torch.nn.functional.cross_entropy(logits[-10:-1], torch.tensor(ids[-9:]))
    assert relative_error(loss[None], golden[f"{case}.loss_labels_last9"]) < TOLERANCE


def test_logits_of_text_alone(tiny: Network, golden: Golden) -> None:
    with torch.inference_mode():
        output = tiny.model.language_model(input_ids=golden["case_text.input_ids"])
        logits = tiny.lm_head(output.last_hidden_state)[0]
    assert relative_error(logits, golden["case_text.logits"]) < TOLERANCE


def test_one_expert_layer(tiny: Network, golden: Golden) -> None:
    layer = tiny.model.language_model.layers[1].mlp
    with torch.inference_mode():
        _, weights, chosen = layer.gate(golden["moe.input"])
        output = layer(golden["moe.input"])
    order, golden_order = chosen.argsort(), golden["moe.topk_ids"].argsort()
    assert torch.equal(chosen.gather(1, order), golden["moe.topk_ids"].gather(1, golden_order))
    theirs = golden["moe.topk_weight"].gather(1, golden_order)
    assert relative_error(weights.gather(1, order), theirs) < TOLERANCE
    assert relative_error(output, golden["moe.output"]) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("guard", GUARDS)
def test_greedy_ids(tiny: Network, golden: Golden, case: str, guard: str) -> None:
    size, window, exempt = GUARDS[guard]
    theirs = golden[f"{case}.greedy_{guard}"].tolist()
    ids, embeddings = embedded(tiny, golden, case)
    settings = DecodeSettings(
        max_new_tokens=len(theirs),
        no_repeat_ngram_size=size,
        no_repeat_window=window,
        exempt_ngrams=False,
    )
    tokens = decode(tiny, embeddings, ids, settings, frozenset({1}), exempt)
    assert [token.id for token in tokens] == theirs


def test_position_tables_are_kept_and_give_way_to_training(tiny: Network, golden: Golden) -> None:
    sam = tiny.model.vision_tower.sam_encoder
    first = sam.interpolate_pos_encoding(40, 40)
    assert sam.interpolate_pos_encoding(40, 40) is first
    sam.pos_embed.requires_grad_(True)
    try:
        trained = sam.interpolate_pos_encoding(40, 40)
        assert trained.requires_grad
        assert torch.equal(trained.detach(), first)
    finally:
        sam.pos_embed.requires_grad_(False)


def test_a_network_loaded_in_inference_mode_sees(golden: Golden) -> None:
    with torch.inference_mode():
        network = load_network(GOLDEN / "checkpoint", "cpu", "float32")
    rows = vision_tokens(network, golden_views(golden, "tiny"))
    assert relative_error(rows, golden["tiny.vision_tokens"]) < TOLERANCE


def test_position_tables_follow_new_weights() -> None:
    network = load_network(GOLDEN / "checkpoint", "cpu", "float32")
    sam = network.model.vision_tower.sam_encoder
    before = sam.interpolate_pos_encoding(40, 40)
    with torch.no_grad():
        sam.pos_embed.add_(1)
    assert torch.allclose(sam.interpolate_pos_encoding(40, 40), before + 1, atol=1e-5)
