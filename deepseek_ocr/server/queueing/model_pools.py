"""Models that are loaded: the engines of each, the queue in front of them, their gauges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.server.observability.metrics import Metrics
from deepseek_ocr.server.queueing.admission import Admission
from deepseek_ocr.weights.catalog import Checkpoint

Engines = Mapping[str, tuple[OcrEngine, ...]]
"""Name of a model → its engines, one a device."""

AHEAD = 2
"""Pages handed to an engine beyond its slots, so that a free slot finds the next one prepared."""

_GAUGES = (
    ("queue_waiting", "Pages waiting", ("model",)),
    ("active", "Pages handed on", ("model",)),
    ("slots", "Pages that can be read at once", ("model", "device")),
    ("slots_active", "Slots in use", ("model", "device")),
    ("device_memory_bytes", "Taken by tensors", ("device",)),
)


@dataclass(frozen=True)
class ModelPool:
    """One checkpoint, loaded on one device or several, and the queue in front of it.

    - `name`: as clients say it; `known`: the task and preset it is best at
    - `engines`: one a device; a turn of `admission` says which of them
    - `metrics`: are told of its pages
    """

    name: str
    known: Checkpoint
    engines: tuple[OcrEngine, ...]
    admission: Admission
    metrics: Metrics


@dataclass(frozen=True, eq=False)
class PoolGauges(Collector):
    """Gauges of the queues and slots of `pools`, which may grow; read when they are asked for."""

    pools: Mapping[str, ModelPool]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges as they stand, for Prometheus."""
        waiting, active, slots, busy, memory = gauges = [
            GaugeMetricFamily(f"deepseek_ocr_{name}", meaning, labels=labels)
            for name, meaning, labels in _GAUGES
        ]
        for pool in list(self.pools.values()):
            waiting.add_metric([pool.name], pool.admission.waiting)
            active.add_metric([pool.name], pool.admission.active)
            for number, engine in enumerate(pool.engines):
                place = f"{engine.device}#{number}"
                status = engine.status()
                slots.add_metric([pool.name, place], status.slots)
                busy.add_metric([pool.name, place], status.active)
                if engine.device.type == "cuda":
                    memory.add_metric([place], torch.cuda.memory_allocated(engine.device))
        yield from gauges
