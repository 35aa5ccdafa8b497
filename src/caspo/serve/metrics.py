"""The figures of `/metrics`, in a registry of the application's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from caspo.serve.scheduler import Load

__all__ = ["Metrics"]

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 600)


class _Load(Collector):
    """What the scheduler tells when it is asked."""

    def __init__(self, load: Callable[[], Load]) -> None:
        self._load = load

    def collect(self) -> Iterator[Metric]:
        """Its load, as metrics."""
        load = self._load()
        yield GaugeMetricFamily("caspo_jobs_active", "Searches under way", load.active)
        yield GaugeMetricFamily("caspo_queue_depth", "Searches that wait for a place", load.waiting)
        yield GaugeMetricFamily("caspo_rows", "Continuations that the engine decodes", load.rows)
        yield GaugeMetricFamily("caspo_healthy", "1 while the engine answers", float(load.healthy))
        yield CounterMetricFamily("caspo_generated_tokens", "Tokens generated", load.generated_tokens)


class Metrics:
    """Counted by the application as it goes."""

    def __init__(self, load: Callable[[], Load]) -> None:
        self._registry = registry = CollectorRegistry()
        registry.register(_Load(load))
        self._requests = Counter("caspo_requests", "Requests answered", ["endpoint", "status"], registry=registry)
        self.in_flight = Gauge("caspo_requests_in_flight", "Requests under way", registry=registry)
        self._seconds = Histogram(
            "caspo_request_seconds", "Time to the end of an answer", ["endpoint"], registry=registry, buckets=_SECONDS
        )
        self.first_step_seconds = Histogram(
            "caspo_first_step_seconds", "Time to the first settled step", registry=registry, buckets=_SECONDS
        )
        self.abstained = Counter("caspo_abstained", "Answers withheld", registry=registry)
        self.failed = Counter("caspo_failed", "Searches that failed", ["reason"], registry=registry)
        self.hung_up = Counter("caspo_hung_up", "Clients that left before the end of their answer", registry=registry)

    def told(self, endpoint: str, status: int, seconds: float) -> None:
        """Note an answer."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)
