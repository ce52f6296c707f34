"""Every metric that the server shows under /metrics, in the text format of Prometheus."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Final

from aioprometheus.collectors import Counter, Gauge, Histogram, Registry
from aioprometheus.histogram import Histogram as Buckets
from aioprometheus.renderer import render

_FAST: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0)
_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_TEXT_FORMAT: Final = ("text/plain; version=0.0.4",)

Labels = Mapping[str, str]


class _Tally:
    """The requests of one method and route. Counting here costs a tenth of counting in the collectors."""

    __slots__ = ("seconds", "slots", "statuses")

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        self.slots = [0] * (len(_FAST) + 1)
        self.seconds = 0.0

    def buckets(self) -> Buckets:
        """The same as a histogram, whose buckets include all smaller ones."""
        buckets = Buckets(*_FAST)
        buckets.buckets.update(zip(buckets.buckets, accumulate(self.slots), strict=True))
        buckets.observations, buckets.sum = sum(self.slots), self.seconds
        return buckets


class Metrics:
    """The metrics of one server process. Built once by the application and handed to who measures."""

    def __init__(self) -> None:
        self.registry: Final = Registry()
        self.requests = self._counter("lair_http_requests_total", "Requests by method, route and status")
        self.request_seconds = self._histogram(
            "lair_http_request_seconds", "From a request's head to the end of its handler", _FAST
        )
        self.persist_batch_events = self._histogram(
            "lair_persist_batch_events", "Events stored by one commit", _SIZES
        )
        self.persist_batch_seconds = self._histogram(
            "lair_persist_batch_seconds", "Time from the start of a batch to its commit", _FAST
        )
        self.stream_position = self._gauge("lair_stream_position", "Newest position of each stream")
        self.queue_length = self._gauge("lair_queue_length", "Entries that wait in each queue")
        self.cache_entries = self._gauge("lair_cache_entries", "Entries in each cache")
        self.edus_dropped = self._counter(
            "lair_edus_dropped_total", "EDUs of other servers that were not understood"
        )
        self.pool_connections = self._gauge("lair_pool_connections", "Database connections by state")
        self._tallies: dict[tuple[str, str], _Tally] = {}
        self._watched: list[tuple[Gauge, dict[str, str], Callable[[], float]]] = []

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request. `route` is the path template: raw paths are without number."""
        tally = self._tallies.get((method, route))
        if tally is None:
            tally = self._tallies[method, route] = _Tally()
        tally.statuses[status] = tally.statuses.get(status, 0) + 1
        tally.slots[bisect_left(_FAST, seconds)] += 1
        tally.seconds += seconds

    def watch(self, gauge: Gauge, labels: Labels, value: Callable[[], float]) -> None:
        """Let a gauge show what a function returns at the time of each look."""
        self._watched.append((gauge, dict(labels), value))

    def text(self) -> bytes:
        """All metrics as Prometheus reads them."""
        for (method, route), tally in self._tallies.items():
            labels = {"method": method, "route": route}
            for status, number in tally.statuses.items():
                self.requests.set(labels | {"status": str(status)}, number)
            self.request_seconds.set_value(labels, tally.buckets())
        for gauge, gauge_labels, value in self._watched:
            gauge.set(gauge_labels, value())
        content: bytes = render(self.registry, _TEXT_FORMAT)[0]
        return content

    def _counter(self, name: str, meaning: str) -> Counter:
        return Counter(name, meaning, registry=self.registry)

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(name, meaning, registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, meaning, registry=self.registry, buckets=buckets)
