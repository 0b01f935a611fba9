"""The loss curve of a run as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure

from deepseek_ocr.files import write_bytes


def write_curve(
    path: Path, losses: Sequence[float], validation: Sequence[Mapping[str, float]]
) -> None:
    """Loss by step (nats a token), smoothed beside raw, and CER by epoch, as PNG. Raises
    `FileWriteError`."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    steps = range(1, len(losses) + 1)
    axes.plot(steps, losses, color="#9db7d5", linewidth=0.8, label="loss of a step")
    axes.plot(steps, smoothed(losses), color="#1f5a99", label="smoothed")
    axes.set(xlabel="step", ylabel="loss (nats a token)")
    rated = [entry for entry in validation if "cer" in entry]
    if rated:
        right = axes.twinx()
        points = [entry["step"] for entry in rated], [100 * entry["cer"] for entry in rated]
        right.plot(*points, "o-", color="#b5442e", label="validation CER")
        right.set_ylabel("CER (%)")
        right.set_ylim(bottom=0)
    figure.legend(loc="outside upper right", ncols=3, frameon=False)
    packed = BytesIO()
    figure.savefig(packed, format="png", dpi=120)
    write_bytes(path, packed.getvalue())


def smoothed(values: Sequence[float]) -> list[float]:
    """Exponential moving average, corrected for its start."""
    weight, average, total, result = 0.95, 0.0, 0.0, []
    for value in values:
        average = weight * average + (1 - weight) * value
        total = weight * total + (1 - weight)
        result.append(average / total)
    return result
