"""Numbers for Prometheus, kept by the server itself: no global registry."""

from __future__ import annotations

from functools import partial

import prometheus_client as prometheus
from prometheus_client.registry import Collector

from deepseek_ocr.engine.results import Reading

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters that routes feed, and the gauges of others."""

    def __init__(self) -> None:
        registry = self._registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        prometheus.PlatformCollector(registry=registry)
        prometheus.GCCollector(registry=registry)
        counter = partial(prometheus.Counter, namespace="deepseek_ocr", registry=registry)
        histogram = partial(
            prometheus.Histogram, namespace="deepseek_ocr", registry=registry, buckets=_SECONDS
        )
        self._requests = counter("requests", "Requests answered", ("route", "status"))
        self._request_seconds = histogram(
            "request_seconds", "Seconds from a request to the end of its answer", ("route",)
        )
        self._pages = counter("pages", "Pages by how they ended", ("model", "finish_reason"))
        of_tokens = "Tokens in (vision included), of vision, out"
        self._tokens = counter("tokens", of_tokens, ("model", "kind"))
        of_stages = "Seconds of a page in each stage"
        self._stages = histogram("stage_seconds", of_stages, ("model", "stage"))
        self._waits = histogram("wait_seconds", "Seconds a page waited for its turn", ("model",))

    def watch(self, gauges: Collector) -> None:
        """Report `gauges` too, which are read when somebody asks."""
        self._registry.register(gauges)

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request to `route` (its pattern, never what was asked for) is answered."""
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def waited(self, model: str, seconds: float) -> None:
        """A page was given its turn."""
        self._waits.labels(model).observe(seconds)

    def page(self, model: str, reading: Reading) -> None:
        """A page was read."""
        self.page_ended(model, reading.finish_reason)
        for kind in ("prompt", "vision", "output"):
            self._tokens.labels(model, kind).inc(getattr(reading.counts, kind))
        for stage in ("preprocess", "vision", "prefill", "decode"):
            self._stages.labels(model, stage).observe(getattr(reading.timings, stage))

    def page_ended(self, model: str, how: str) -> None:
        """A page ended without a reading: "failed" or "cancelled"."""
        self._pages.labels(model, how).inc()

    def text(self) -> bytes:
        """All of it, in Prometheus's text format."""
        return prometheus.generate_latest(self._registry)
