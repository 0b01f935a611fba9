"""Numbers for Prometheus, kept by the server itself: no global registry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from deepseek_ocr.engine.results import Reading
    from deepseek_ocr.server.server_state import Pool

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters that routes feed, and gauges read off the pools when somebody asks."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        prefix, registry = "deepseek_ocr", self._registry
        self._requests = Counter(
            f"{prefix}_requests", "Requests answered", ("route", "status"), registry=registry
        )
        self._request_seconds = Histogram(
            f"{prefix}_request_seconds", "Seconds from a request to the end of its answer",
            ("route",), registry=registry, buckets=_SECONDS,
        )  # fmt: skip
        self._pages = Counter(
            f"{prefix}_pages", "Pages by how they ended", ("model", "finish_reason"),
            registry=registry,
        )  # fmt: skip
        self._tokens = Counter(
            f"{prefix}_tokens", "Tokens in (vision included), of vision, out", ("model", "kind"),
            registry=registry,
        )  # fmt: skip
        self._stages = Histogram(
            f"{prefix}_stage_seconds", "Seconds of a page in each stage", ("model", "stage"),
            registry=registry, buckets=_SECONDS,
        )  # fmt: skip
        self._waits = Histogram(
            f"{prefix}_wait_seconds", "Seconds a page waited for its turn", ("model",),
            registry=registry, buckets=_SECONDS,
        )  # fmt: skip

    def watch(self, pools: Mapping[str, Pool]) -> None:
        """Report the queues and slots of `pools`, which may grow later."""
        self._registry.register(_Pools(pools))

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request to `route` (its pattern, never what was asked for) is answered."""
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def waited(self, model: str, seconds: float) -> None:
        """A page was given its turn."""
        self._waits.labels(model).observe(seconds)

    def page(self, model: str, reading: Reading) -> None:
        """A page was read."""
        self._pages.labels(model, reading.finish_reason).inc()
        for kind in ("prompt", "vision", "output"):
            self._tokens.labels(model, kind).inc(getattr(reading.counts, kind))
        for stage in ("preprocess", "vision", "prefill", "decode"):
            self._stages.labels(model, stage).observe(getattr(reading.timings, stage))

    def page_ended(self, model: str, how: str) -> None:
        """A page ended without a reading: "failed" or "cancelled"."""
        self._pages.labels(model, how).inc()

    def text(self) -> bytes:
        """All of it, in Prometheus's text format."""
        return generate_latest(self._registry)


class _Pools:
    """Gauges of the queues, made when they are asked for."""

    def __init__(self, pools: Mapping[str, Pool]) -> None:
        self._pools = pools

    def collect(self) -> Iterator[GaugeMetricFamily]:
        waiting = GaugeMetricFamily("deepseek_ocr_queue_waiting", "Pages waiting", labels=["model"])
        active = GaugeMetricFamily("deepseek_ocr_active", "Pages handed on", labels=["model"])
        slots = GaugeMetricFamily(
            "deepseek_ocr_slots", "Pages that can be read at once", labels=["model", "device"]
        )
        busy = GaugeMetricFamily(
            "deepseek_ocr_slots_active", "Slots in use", labels=["model", "device"]
        )
        memory = GaugeMetricFamily(
            "deepseek_ocr_device_memory_bytes", "Taken by tensors", labels=["device"]
        )
        for pool in list(self._pools.values()):
            waiting.add_metric([pool.name], pool.admission.waiting)
            active.add_metric([pool.name], pool.admission.active)
            for number, engine in enumerate(pool.engines):
                place = f"{engine.device}#{number}"
                status = engine.status()
                slots.add_metric([pool.name, place], status.slots)
                busy.add_metric([pool.name, place], status.active)
                if engine.device.type == "cuda":
                    memory.add_metric([place], _cuda_memory(engine.device))
        yield from (waiting, active, slots, busy, memory)


def _cuda_memory(device: object) -> int:
    import torch

    return torch.cuda.memory_allocated(device)  # type: ignore[arg-type]
