"""What a CUDA card computes otherwise, on the CPU: its ways through experts, its attention in the
encoders, and steps "captured" by a stand-in."""

from __future__ import annotations

import pytest
import torch

from deepseek_ocr.kernels import cuda_graphs, torch_steps, vision
from deepseek_ocr.kernels.cuda_graphs import Run
from deepseek_ocr.model import experts

CARD = torch.device("cuda")


class Recorder:
    """Like a graph, what it gives knows only the buffers it was made with."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def capture(self, run: Run) -> Run:
        """`run` itself."""
        run()
        return run


def compute_as_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose as on a card from now on; that it decodes by `decoder.GRAPHS` is the caller's part."""
    way_for, attention = experts.way_for, vision.torch_attention
    monkeypatch.setattr(cuda_graphs, "GraphRecorder", Recorder)
    monkeypatch.setattr(torch_steps, "way_for", lambda device, rows: way_for(CARD, rows))
    monkeypatch.setattr(
        vision, "torch_attention", lambda device, dtype, window: attention(CARD, dtype, window)
    )
