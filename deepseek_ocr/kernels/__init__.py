"""Fast paths beside the plain ones they must equal; which are used is chosen in `choice.py`.

What needs torch is imported when it is called: `choice` must stay light.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepseek_ocr.decoding import Decoder
    from deepseek_ocr.model import Network

_LOG = logging.getLogger(__name__)


def prepare(network: Network, chosen: frozenset[str]) -> None:
    """Put the fast paths of `chosen` that belong to a loaded network into it, and stand-ins for
    operators that its devices lack."""
    from deepseek_ocr import operators
    from deepseek_ocr.kernels import vision

    vision.prepare(network, chosen)
    operators.fit(network, "unfold" in chosen)


def make_decoder(network: Network, chosen: frozenset[str], slots: int, context: int) -> Decoder:
    """A decoder of `network` with `slots` slots of `context` tokens, by the paths in `chosen`.

    Called again, with fewer slots, where memory ran out; the decoder before is gone by then.
    """
    from deepseek_ocr.decoding import PlainDecoder
    from deepseek_ocr.kernels import decoder, weights

    path = decoder.path_for(network, chosen)
    unknown = weights.missing(network)
    if path is None:
        return PlainDecoder(network, slots)
    if unknown:
        _LOG.warning("Decoding by the plain class: the fast path does not know its %s.", unknown)
        return PlainDecoder(network, slots)
    return decoder.FastDecoder(network, slots, context, path)
