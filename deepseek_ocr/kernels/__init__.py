"""Fast paths beside the plain ones they must equal; which are used is chosen in `choice.py`.

What needs torch is imported when it is called: `choice` must stay light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepseek_ocr.decoding import Decoder
    from deepseek_ocr.model import Network


def prepare(network: Network, chosen: frozenset[str]) -> None:
    """Put the fast paths of `chosen` that belong to a loaded network into it."""


def make_decoder(
    network: Network, chosen: frozenset[str], quant: str, slots: int, context: int
) -> Decoder:
    """A decoder of `network` with `slots` slots of `context` tokens, by the paths in `chosen`.

    Called again, with fewer slots, where memory ran out; the decoder before is gone by then.
    """
    from deepseek_ocr.decoding import PlainDecoder

    return PlainDecoder(network, slots)
