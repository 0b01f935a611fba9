"""Decoders of a loaded network, by the fastest path that works."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deepseek_ocr.decoding.decoder import Decoder, PlainDecoder
from deepseek_ocr.devices import memory, selection
from deepseek_ocr.kernels.cuda_graphs import GraphSteps
from deepseek_ocr.kernels.rehearsal import OutputRow, difference, disagreement, give_up, reason
from deepseek_ocr.kernels.slot_decoder import DecodePath, SlotDecoder
from deepseek_ocr.model.network import Network

FIRST_TOKENS = (3, 17, 101, 58)
"""Ids that every captured graph is given as first tokens of pages."""


class DecoderFactory:
    """Makes decoders of one network, by the first of `paths` that can be had, else by its class."""

    def __init__(self, network: Network, paths: Sequence[DecodePath], context: int) -> None:
        """`context` is how many tokens a slot holds."""
        self._network, self._context, self._paths = network, context, list(paths)

    @property
    def path(self) -> DecodePath | None:
        """How they decode; None: by the class."""
        return self._paths[0] if self._paths else None

    def make(self, slots: int) -> Decoder:
        """A decoder with `slots` slots; again, with fewer, if memory ran out and the one before is
        gone. A path that fails, or whose graphs are wrong, is given up for good, with a line in the
        log.

        Raises `DeviceError` if the device fails for good, and what one without memory raises.
        """
        while self._paths:
            try:
                return self._made(slots)
            except Exception as error:
                if memory.is_out_of_memory(error):
                    raise
                give_up(self._network.device, self._paths.pop(0).name, reason(error))
        return PlainDecoder(self._network, slots)

    def _made(self, slots: int) -> Decoder:
        with selection.current(self._network.device):
            made = SlotDecoder(self._network, slots, self._context, self._paths[0])
            if isinstance(made.steps, GraphSteps):
                check_graphs(made.steps, self._network)
        return made


def check_graphs(steps: GraphSteps, network: Network) -> None:
    """Give every graph a few first tokens of pages, others than the graph before; what comes out
    must be the plain class's. The rehearsal has few slots and short pages, so it sees few shapes.
    Raises `RuntimeError` for a graph that disagrees."""
    table = network.get_input_embeddings()
    ids = torch.tensor(FIRST_TOKENS, device=table.weight.device) % len(table.weight)
    plain = PlainDecoder(network)
    expected = [plain.prefill(0, table(id_.view(1, 1))).cpu() for id_ in ids]
    for turn, (rows, span) in enumerate(steps.shapes()):
        at = [(turn + row) % len(ids) for row in range(rows)]
        logits = steps.first_tokens(ids[at], span).cpu()
        far, _ = difference(
            [OutputRow(0, rows, row) for row in logits],
            [OutputRow(0, rows, expected[i]) for i in at],
        )
        if disagreement(far, table.weight.dtype):
            graph = f"the graph of {rows} rows and {span} tokens"
            raise RuntimeError(f"{graph} differs by {far:.2g} from the plain class")
