"""Recording one request: how often it was, its latency, tokens and cost; labels given as strings at each call."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from bench.measure import Figure, best, seconds
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, Counter, Histogram

from fleetmeter.emitter.recorder import Recorder

#: Requests of one window: a proxy with 1,000 requests a second and windows of five seconds.
REQUESTS = 5000
ROUNDS = 20
MODELS = (("openai", "gpt-4o"), ("openai", "gpt-4o-mini"), ("anthropic", "claude-sonnet-4"), ("google", "gemini-2.5"))


class Request(NamedTuple):
    """What a proxy knows when a request has ended; times in seconds, cost in USD."""

    provider: str
    model: str
    success: bool
    error_type: str | None
    took: float
    tokens_in: int
    tokens_out: int
    cost: float


def requests(seed: int = 1) -> list[Request]:
    """One window's requests; one in twenty fails."""
    draw = random.Random(seed)
    made = []
    for _ in range(REQUESTS):
        success = draw.random() >= 0.05
        tokens = draw.randrange(50, 4000), draw.randrange(1, 1500)
        took = draw.lognormvariate(-0.5, 0.6)
        made.append(
            Request(*draw.choice(MODELS), success, None if success else "server", took, *tokens, draw.random() / 50)
        )
    return made


class Fleetmeter:
    """A window's requests by `record`, and what the emitter does at its edge by `fold`."""

    def __init__(self, work: list[Request]) -> None:
        self._work = work
        self._recorder = Recorder("bench", 1000, lambda: 0)
        self.fold = self._recorder.fold

    def record(self) -> None:
        record = self._recorder.record_request
        for provider, model, success, error, took, tokens_in, tokens_out, cost in self._work:
            record(
                provider, model, success=success, error_type=error, response_time=took, input_tokens=tokens_in,
                output_tokens=tokens_out, cost=cost,
            )  # fmt: skip

    def window(self) -> float:
        return seconds(self.record) + seconds(self.fold)

    def window_unfolded(self) -> float:
        took = seconds(self.record)
        self.fold()
        return took


def prometheus(work: list[Request]) -> Callable[[], None]:
    """The same with prometheus_client, which keeps everything until a scrape: there is nothing at the edge."""
    registry = CollectorRegistry()
    model_labels = ("provider", "model")
    count = Counter("requests", "Requests.", (*model_labels, "outcome"), registry=registry)
    duration = Histogram("duration_seconds", "Latency.", model_labels, registry=registry)
    tokens_in_total = Counter("input_tokens", "Tokens in.", model_labels, registry=registry)
    tokens_out_total = Counter("output_tokens", "Tokens out.", model_labels, registry=registry)
    cost_total = Counter("cost_usd", "Cost.", model_labels, registry=registry)

    def run() -> None:
        for provider, model, success, _, took, tokens_in, tokens_out, cost in work:
            count.labels(provider, model, "success" if success else "error").inc()
            duration.labels(provider, model).observe(took)
            tokens_in_total.labels(provider, model).inc(tokens_in)
            tokens_out_total.labels(provider, model).inc(tokens_out)
            cost_total.labels(provider, model).inc(cost)

    return run


def prometheus_kept(work: list[Request]) -> Callable[[], None]:
    """prometheus_client with its children looked up by a dictionary of the program's own, as a careful user would."""
    registry = CollectorRegistry()
    model_labels = ("provider", "model")
    count = Counter("requests", "Requests.", (*model_labels, "outcome"), registry=registry)
    duration = Histogram("duration_seconds", "Latency.", model_labels, registry=registry)
    others = [Counter(name, name, model_labels, registry=registry) for name in ("tokens_in", "tokens_out", "cost_usd")]
    children: dict[tuple[str, str, bool], Any] = {
        (*model, success): (
            count.labels(*model, "success" if success else "error").inc,
            duration.labels(*model).observe,
            *(counter.labels(*model).inc for counter in others),
        )
        for model in MODELS
        for success in (True, False)
    }

    def run() -> None:
        for provider, model, success, _, took, tokens_in, tokens_out, cost in work:
            inc, observe, add_in, add_out, add_cost = children[provider, model, success]
            inc()
            observe(took)
            add_in(tokens_in)
            add_out(tokens_out)
            add_cost(cost)

    return run


def opentelemetry(work: list[Request]) -> Callable[[], None]:
    """The same with the OpenTelemetry SDK and its default views; nothing is exported."""
    meter = MeterProvider(metric_readers=[InMemoryMetricReader()]).get_meter("bench")
    count = meter.create_counter("requests")
    duration = meter.create_histogram("duration", "s")
    tokens_in_total = meter.create_counter("input_tokens")
    tokens_out_total = meter.create_counter("output_tokens")
    cost_total = meter.create_counter("cost")

    def run() -> None:
        for provider, model, success, _, took, tokens_in, tokens_out, cost in work:
            labels = {"provider": provider, "model": model}
            count.add(1, {**labels, "outcome": "success" if success else "error"})
            duration.record(took, labels)
            tokens_in_total.add(tokens_in, labels)
            tokens_out_total.add(tokens_out, labels)
            cost_total.add(cost, labels)

    return run


def run() -> list[Figure]:
    work = requests()
    ours = Fleetmeter(work)
    peers = {"prometheus": prometheus(work), "kept": prometheus_kept(work), "opentelemetry": opentelemetry(work)}
    contestants = {name: functools.partial(seconds, window) for name, window in peers.items()}
    took = best(ROUNDS, ours=ours.window, unfolded=ours.window_unfolded, **contestants)
    ns = {name: s / REQUESTS * 1e9 for name, s in took.items()}
    return [
        Figure(
            "record.ratio_prometheus", ns["prometheus"] / ns["ours"], "×", 12.0,
            peer=f"prometheus_client, labels(): {ns['prometheus']:.0f} ns",
        ),
        Figure(
            "record.ratio_opentelemetry", ns["opentelemetry"] / ns["ours"], "×", 50.0,
            peer=f"opentelemetry-sdk: {ns['opentelemetry']:.0f} ns",
        ),
        Figure("record.ns", ns["ours"], "ns a request"),
        Figure("record, without the fold", ns["unfolded"], "ns a request"),
        Figure(
            "record, against kept children", ns["kept"] / ns["ours"], "×",
            peer=f"prometheus_client, children kept: {ns['kept']:.0f} ns",
        ),
    ]  # fmt: skip
