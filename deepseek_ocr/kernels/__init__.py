"""Fast paths beside the plain ones they must equal; which are used is chosen in `choice.py`.

What is imported here is imported late, so that reading a name from `choice` does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepseek_ocr.model import Network


def prepare(network: Network, chosen: frozenset[str]) -> None:
    """Put the fast paths called `chosen` on a loaded `network` (see `vision.prepare`)."""
    from deepseek_ocr.kernels import vision

    vision.prepare(network, chosen)
