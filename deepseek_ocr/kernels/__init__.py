"""Fast paths beside the plain ones they must equal; which are used is chosen in `choice.py`.

What needs torch is imported when it is called: `choice` must stay light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepseek_ocr.kernels.rehearsal import PathSelection
    from deepseek_ocr.model.network import Network


def prepare(network: Network, chosen: frozenset[str]) -> PathSelection:
    """Put stand-ins for operators that its devices lack into a loaded network, and those of the
    fast paths `chosen` that work there; which they are. `decoder.Decoders` takes their `paths`.

    Raises what `rehearsal.select` raises.
    """
    from deepseek_ocr.kernels import op_fallbacks, rehearsal

    op_fallbacks.fit(network, "unfold" in chosen)
    return rehearsal.select(network, chosen)
