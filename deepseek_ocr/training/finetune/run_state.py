"""What a run needs to go on as if it had never stopped: weights, averages, counters. No pickle."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from deepseek_ocr.errors import CheckpointError
from deepseek_ocr.files import replace_folder
from deepseek_ocr.training.finetune.saved_checkpoints import save_tensors
from deepseek_ocr.training.finetune.train_options import STATE

COUNTERS, TENSORS = "state.json", "state.safetensors"


@dataclass
class TrainingProgress:
    """Where a run is: finished epochs, steps, what was measured on the way. `settings` is what must
    not change when it is resumed, `scaler` the state of float16's loss scaling."""

    settings: dict[str, object]
    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    best: int | None = None
    scaler: dict[str, float] = field(default_factory=dict)


def save_state(
    folder: Path, progress: TrainingProgress, network: nn.Module, optimiser: torch.optim.Optimizer
) -> None:
    """Write counters, trainable weights (exactly) and the optimiser's averages. Raises
    `FileWriteError`."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in _trainable(network):
        tensors[f"weight:{name}"] = parameter.detach()
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"{key}:{name}"] = value
    tensors = {name: value.to("cpu").contiguous() for name, value in tensors.items()}
    with replace_folder(folder / STATE) as staging:
        save_tensors(tensors, staging / TENSORS)
        text = json.dumps(asdict(progress), indent=1)
        (staging / COUNTERS).write_text(text + "\n", encoding="utf-8")


def read_progress(folder: Path) -> TrainingProgress:
    """The counters of a run that stopped. Raises `CheckpointError` if there are none."""
    path = folder / STATE / COUNTERS
    try:
        return TrainingProgress(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} holds no finished epoch to go on from; leave out --resume."
        ) from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); start anew elsewhere.") from error


@torch.no_grad()
def restore(folder: Path, network: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Put weights and averages back where `save_state` found them. Raises `CheckpointError` if they
    do not fit."""
    path = folder / STATE / TENSORS
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); start anew elsewhere.") from error
    for name, parameter in _trainable(network):
        stored = tensors.get(f"weight:{name}")
        if stored is None or stored.shape != parameter.shape:
            raise CheckpointError(f"{path} does not hold {name}; the run trained other weights.")
        parameter.copy_(stored)
        device = parameter.device
        counter = device if device.type == "cuda" else "cpu"  # where the fused optimiser counts
        state = {
            key: tensors[f"{key}:{name}"].to(counter if key == "step" else device)
            for key in ("step", "exp_avg", "exp_avg_sq")
            if f"{key}:{name}" in tensors
        }
        if state:
            optimiser.state[parameter] = state


def _trainable(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in network.named_parameters() if p.requires_grad]
