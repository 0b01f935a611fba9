"""A stand-in for what captures CUDA graphs, for where there is no card."""

from __future__ import annotations

import torch

from deepseek_ocr.kernels.graphs import Run


class Recorder:
    """Like a graph, what it gives knows only the buffers it was made with."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def capture(self, run: Run) -> Run:
        """`run` itself."""
        run()
        return run
