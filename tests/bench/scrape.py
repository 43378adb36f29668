"""A scrape of 10,000 series: the gateway's, which renders once a window, and prometheus_client's `generate_latest`."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp
import numpy as np
import prometheus_client
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from bench.frames import Fleet, series_keys
from bench.measure import Figure, best, seconds

from fleetmeter.aggregator.fold import AggregatorFold
from fleetmeter.gateway.exposition import TextExposition, own_metrics
from fleetmeter.gateway.http import Gateway
from fleetmeter.gateway.state import GatewayFold
from fleetmeter.proto.bus import LogMessage
from fleetmeter.proto.catalogue import PREFIX, get
from fleetmeter.proto.clock import SystemClock
from fleetmeter.proto.keys import decode_key
from fleetmeter.proto.wire import LogPosition, Settings

#: 4,000 counters and 316 histograms are 10,000 series of Prometheus: a histogram has 19, one a bucket, sum and count.
COUNTERS = 4000
SERIES = 10_000
ROUNDS = 15
#: Scrapes that are timed together; one alone is too short for the clock.
SCRAPES = 200


def histogram_bounds() -> tuple[float, ...]:
    metric = get("request_duration_seconds")
    assert metric is not None
    return metric.bounds


def filled_gateway(histograms: int) -> GatewayFold:
    """A gateway's fold after two windows of one node."""
    settings = Settings(max_series_per_metric=SERIES)
    fleet = Fleet("bench", 1, COUNTERS, histograms, settings.interval_ms)
    aggregator, gateway = AggregatorFold("bench", 0, settings), GatewayFold()
    sequence = 0
    for message in [*fleet.hellos(), *fleet.window(0), *fleet.window(1)]:
        for output in aggregator.apply(message, LogPosition(1, message.sequence)):
            for publication in (one for stage in output.stages for one in stage):
                sequence += 1
                stored = LogMessage(publication.subject, publication.payload, sequence, message.time_ms, 0, {})
                gateway.apply(stored, LogPosition(1, sequence))
    return gateway


def filled_registry(histograms: int) -> prometheus_client.CollectorRegistry:
    """A registry with the same series."""
    prometheus_client.disable_created_metrics()  # a line more for each counter and histogram, which we do not have
    registry = prometheus_client.CollectorRegistry()
    labels = ("provider", "model", "operation")
    counter = prometheus_client.Counter(f"{PREFIX}requests", "Requests.", labels, registry=registry)
    histogram = prometheus_client.Histogram(
        f"{PREFIX}request_duration_seconds", "Latency.", labels, buckets=histogram_bounds(), registry=registry
    )
    draw = np.random.default_rng(1)
    for key in series_keys("requests_total", COUNTERS):
        counter.labels(**decode_key(key)[1]).inc(draw.integers(1, 1000) + 0.25)
    for key in series_keys("request_duration_seconds", histograms):
        child = histogram.labels(**decode_key(key)[1])
        for value in draw.lognormal(0, 0.6, 60).tolist():
            child.observe(value)
    return registry


def lines(body: bytes) -> int:
    return sum(not line.startswith(b"#") for line in body.splitlines())


def run() -> list[Figure]:
    return asyncio.run(_measure())


async def _measure() -> list[Figure]:
    histograms = round((SERIES - COUNTERS) / (len(histogram_bounds()) + 3))
    fold, registry = filled_gateway(histograms), filled_registry(histograms)
    exposition = TextExposition(own_metrics("bench"))
    body = exposition.render(fold)
    generated = prometheus_client.generate_latest(registry)
    assert abs(lines(body) - lines(generated)) < 0.01 * SERIES, "both have the same series, but for the pipeline's own"

    gateway = Gateway(fold, clock=SystemClock(), version="bench", connected=lambda: True, not_ready=lambda: "")
    app = gateway.application()
    request = make_mocked_request("GET", "/metrics/prometheus", headers={"Accept-Encoding": "gzip"})
    handler = (await app.router.resolve(request)).handler
    answer = await handler(request)
    assert isinstance(answer, web.Response)
    assert answer.headers["Content-Encoding"] == "gzip"

    def serve() -> None:
        coroutine: Any = handler(request)
        try:
            coroutine.send(None)  # it never waits, so a loop would only add its own time
        except StopIteration:
            return
        raise AssertionError("a scrape waits for something")

    s = best(
        ROUNDS,
        generate=lambda: seconds(lambda: prometheus_client.generate_latest(registry)),
        render=lambda: seconds(lambda: exposition.render(fold)),
        serve=lambda: seconds(lambda: [serve() for _ in range(SCRAPES)]) / SCRAPES,
    )
    loopback = await _loopback(app)
    return [
        Figure("scrape.ratio_generate_latest", s["generate"] / loopback, "×", 100.0,
               peer=f"generate_latest: {s['generate'] * 1e3:.1f} ms; ours over HTTP, rendered before: "
               f"{loopback * 1e3:.2f} ms for {len(body) / 1e6:.2f} MB, server and client"),
        Figure("scrape.us_per_line", s["render"] / lines(body) * 1e6, "µs", 1.0, at_most=True,
               peer=f"generate_latest: {s['generate'] / lines(generated) * 1e6:.1f} µs"),
        Figure("scrape, the handler alone", s["serve"] * 1e6, "µs"),
        Figure("scrape, the first of a window", s["generate"] / (s["render"] + loopback), "×",
               peer=f"ours with its rendering: {(s['render'] + loopback) * 1e3:.1f} ms"),
    ]  # fmt: skip


async def _loopback(app: web.Application) -> float:
    """Seconds for a scrape over HTTP, the client's part included."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/metrics/prometheus"
    took = []
    async with aiohttp.ClientSession(headers={"Accept-Encoding": "identity"}) as session:
        for _ in range(30):
            start = time.perf_counter()
            async with session.get(url) as answer:
                await answer.read()
            took.append(time.perf_counter() - start)
    await runner.cleanup()
    return min(took)
