"""What training minimises: cross-entropy of the answers, and by choice the routers' balance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from deepseek_ocr.model.network import Network
from deepseek_ocr.training.data.batches import IGNORED, Batch


def route_in_float32(network: Network) -> None:
    """Let the routers compute in float32 under autocast too, as they do when pages are read: an
    expert chosen by rounded scores may be another one."""
    for module in network.modules():
        if type(module).__name__.endswith("TopkRouter"):
            module.forward = _without_autocast(module.forward)


def _without_autocast(forward: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
    def outside(states: torch.Tensor) -> Any:
        with torch.autocast(states.device.type, enabled=False):
            return forward(states)

    return outside


class Objective(nn.Module):
    """The network with its loss as one module, so that it can be wrapped for several processes.
    `balance` adds the routers' auxiliary loss (see `balance_loss`) to what is returned."""

    def __init__(self, network: Network, balance: bool = False) -> None:
        super().__init__()
        self.network = network
        self._routers: list[torch.Tensor] = []
        self._listens = False
        if balance:
            for module in network.modules():
                if type(module).__name__.endswith("TopkRouter"):
                    module.register_forward_hook(self._keep_router)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of the tokens' losses (nats), and the mean balance loss of the routers (0 if
        it was not asked for)."""
        # Only here: routers run again when activations are computed twice, and when pages are read
        # between epochs.
        self._listens = True
        try:
            hidden = hidden_states(self.network, batch)
            balance = self._balance(batch)
        finally:
            self._listens = False
            self._routers.clear()
        # Only positions that teach meet the output head: with 129,280 tokens its scores would
        # otherwise be the largest tensor of all.
        targets = batch.labels[:, 1:]
        taught = targets != IGNORED
        scores = self.network.lm_head(hidden[:, :-1][taught])
        loss = nn.functional.cross_entropy(scores.float(), targets[taught], reduction="sum")
        return loss, balance

    def _keep_router(
        self, module: nn.Module, inputs: object, outputs: tuple[torch.Tensor, ...]
    ) -> None:
        if self._listens:
            self._routers.append(outputs[0])

    def _balance(self, batch: Batch) -> torch.Tensor:
        seen = (batch.labels != IGNORED).flatten()
        if not self._routers or not bool(seen.any()):
            return torch.zeros((), device=batch.ids.device)
        most = self.network.config.text_config.num_experts_per_tok
        losses = [balance_loss(logits[seen], most) for logits in self._routers]
        return torch.stack(losses).mean()


def hidden_states(network: Network, batch: Batch) -> torch.Tensor:
    """The decoder's last hidden states `[B, T, hidden]` for a batch, with gradients."""
    embeddings = embedded(network, batch.ids, torch.cat(vision_tokens(network, batch)))
    output = network.model.language_model(inputs_embeds=embeddings, use_cache=False)
    hidden: torch.Tensor = output.last_hidden_state
    return hidden


def vision_tokens(network: Network, batch: Batch) -> list[torch.Tensor]:
    """The vision tokens of each page of a batch `[tokens, hidden]`, with gradients."""
    features = network.get_image_features(
        pixel_values=batch.global_views,
        pixel_values_local=batch.tiles,
        num_local_patches=list(batch.tile_counts),
        patches_grid=[list(grid) for grid in batch.grids],
    )
    return list(features.pooler_output)


def embedded(network: Network, ids: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """The embeddings `[B, T, hidden]` of token ids, with `seen` `[N, hidden]` where the vision
    tokens are."""
    embeddings = network.get_input_embeddings()(ids)
    places = (ids == network.config.image_token_id).nonzero(as_tuple=True)
    filled: torch.Tensor = embeddings.index_put(places, seen.to(embeddings.dtype))
    return filled


def balance_loss(router_logits: torch.Tensor, experts_per_token: int) -> torch.Tensor:
    """How unevenly a router spreads tokens: 1 when even, up to the number of experts.

    `router_logits` is `[tokens, experts]`. The product of each expert's share of the choices and
    its mean probability, summed, times the number of experts (Switch Transformer, equation 4,
    with `experts_per_token` choices a token).
    """
    experts = router_logits.shape[-1]
    scores = router_logits.softmax(dim=-1)
    chosen = scores.topk(experts_per_token, dim=-1).indices
    counts = torch.zeros_like(scores).scatter_(1, chosen, 1.0)
    shares = counts.mean(dim=0) / experts_per_token
    return experts * (shares * scores.mean(dim=0)).sum()
