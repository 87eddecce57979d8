"""What ``/metrics`` tells: counts of clients, and of each pipeline what its statistics say, read when asked for.

Labels have few values: services and pipelines by name, stages by number, causes from fixed lists. Clients are counted,
never named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from partime_async.errors import MissingDependencyError, PipelineNotRunning
from partime_async.frame import Result
from partime_async.serve.client import Client, Left, Observed, Service
from partime_async.statistics import PipelineStatistics

try:
    import prometheus_client as prometheus
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
except ImportError as error:
    raise MissingDependencyError("prometheus-client", "serve") from error

from partime_async.serve.readings import of_pipelines

if TYPE_CHECKING:
    from prometheus_client.core import Metric

CONTENT_TYPE = prometheus.CONTENT_TYPE_LATEST


_LATENCIES_S = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)


class Meters:
    """The server's registry: what is counted as it happens, and what is read when somebody asks.

    Args:
        services: By name; those that are `Observed` show their pipelines.
    """

    def __init__(self, services: Mapping[str, Service]) -> None:
        self._services = services
        self._registry = prometheus.CollectorRegistry()
        labels = ("service", "kind")
        self._joined = prometheus.Counter(
            "partime_clients_joined", "Clients that joined.", labels, registry=self._registry
        )
        self._left = prometheus.Counter(
            "partime_clients_left", "Clients that left, by cause.", (*labels, "cause"), registry=self._registry
        )
        self._refused = prometheus.Counter(
            "partime_refused", "Requests refused, by cause.", ("cause",), registry=self._registry
        )
        self._latency = prometheus.Histogram(
            "partime_latency_seconds",
            "From a frame's capture to its result, of the frames whose results went to a client.",
            labels,
            buckets=_LATENCIES_S,
            registry=self._registry,
        )
        self._here: dict[str, Client] = {}
        self._ended: Counter[tuple[str, str, str]] = Counter()
        self._registry.register(_OnDemand(self._readings))

    def joined(self, client: Client) -> None:
        """Count a client in."""
        self._joined.labels(client.service, client.kind).inc()
        self._here[client.id] = client

    def left(self, client: Client) -> None:
        """Count a client out."""
        cause = (client.closed or "lost").partition(":")[0]
        self._left.labels(client.service, client.kind, cause if cause in tuple(Left) else "other").inc()
        del self._here[client.id]
        for what, count in client.statistics().items():
            self._ended[client.service, client.kind, what] += count

    def refused(self, cause: str) -> None:
        """Count a request that was refused."""
        self._refused.labels(cause).inc()

    def delivered(self, service: str, kind: str, result: Result) -> None:
        """Take the latency of a result that went to a client."""
        self._latency.labels(service, kind).observe(result.latency_s)

    def exposition(self) -> bytes:
        """Return everything in the text format of Prometheus; some milliseconds of work."""
        return prometheus.generate_latest(self._registry)

    # -- what is read when asked for ------------------------------------------------------------------------------

    def _readings(self) -> Iterator[Metric]:
        yield from self._of_clients()
        yield from of_pipelines(list(self._running()))

    def _of_clients(self) -> Iterator[Metric]:
        present = Counter((client.service, client.kind.value) for client in self._here.values())
        clients = GaugeMetricFamily("partime_clients", "Clients that are here.", labels=("service", "kind"))
        for names, count in present.items():
            clients.add_metric(names, count)
        yield clients
        totals = Counter(self._ended)
        for client in self._here.values():
            for what, count in client.statistics().items():
                totals[client.service, client.kind, what] += count
        traffic = CounterMetricFamily(
            "partime_connection", "What came and went on the connections.", labels=("service", "kind", "what")
        )
        for key, count in totals.items():
            traffic.add_metric(key, count)
        yield traffic

    def _running(self) -> Iterator[tuple[tuple[str, str], PipelineStatistics]]:
        for service, served in self._services.items():
            if isinstance(served, Observed):
                for name, pipeline in served.pipelines().items():
                    try:
                        yield (service, name), pipeline.statistics()
                    except PipelineNotRunning:  # between two of them, or at the end
                        continue


class _OnDemand:
    """A collector that reads when somebody asks."""

    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        """Return what is so now."""
        return self._read()

    def describe(self) -> Iterable[Metric]:
        """Return nothing: nothing can be read before the services run."""
        return ()
