"""What Prometheus scrapes: the sweeps as they are at that moment, and the requests since the start."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sweeps.store import Store

BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 30)
METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})
SEEN_SECONDS = 60.0
"""A worker that was heard of so lately counts as there."""


class SweepsCollector(Collector):
    """One look at the database a scrape."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def describe(self) -> list[Metric]:
        return []  # what there is depends on the sweeps; asked at registration, no database is needed

    def collect(self) -> Iterator[Metric]:
        trials = GaugeMetricFamily("sweeps_trials", "Trials of a sweep by state", labels=["sweep", "state"])
        epochs = GaugeMetricFamily("sweeps_epochs", "Epochs recorded, over all trials of a sweep", labels=["sweep"])
        best = GaugeMetricFamily("sweeps_best_wer", "Lowest dev WER of a sweep, a fraction", labels=["sweep"])
        state = GaugeMetricFamily("sweeps_state", "1 for the state that a sweep is in", labels=["sweep", "state"])
        for status in self._store.statuses():
            name = status.sweep.name
            state.add_metric([name, status.sweep.state.value], 1)
            epochs.add_metric([name], status.epochs)
            for kind, number in status.counts.items():
                trials.add_metric([name, kind.value], number)
            if status.best is not None and status.best.best_wer is not None:
                best.add_metric([name], status.best.best_wer)
        now = self._store.now()
        there = sum(now - (worker.seen_at or 0.0) < SEEN_SECONDS for worker in self._store.workers())
        yield from (trials, epochs, best, state)
        yield GaugeMetricFamily("sweeps_workers", f"Workers heard of in the last {SEEN_SECONDS:.0f} s", value=there)


class Requests:
    """ASGI middleware: counts and times requests by their route."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        labels = ("method", "route", "status")
        self._seconds = Histogram(
            "sweeps_request_seconds", "Time to the end of an answer", ("route",), buckets=BUCKETS, registry=registry
        )
        self._requests = Counter("sweeps_requests", "Requests answered", labels, registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_look)
        finally:
            # A label for each path or method asked for would never end.
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._requests.labels(method, route, status).inc()
            if not route.endswith("/live"):
                self._seconds.labels(route).observe(time.perf_counter() - begun)
