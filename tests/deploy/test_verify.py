"""Verification: a right result has no differences, and each way of being wrong has its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from fleetmeter.deploy.replay.rule import MODELS, Request
from fleetmeter.deploy.replay.rule import requests as complete
from fleetmeter.deploy.replay.trace import Trace
from fleetmeter.deploy.replay.verify import Result, Spread, differences, expected, quantile_error, series

T0 = 1_700_000_000_000
INTERVAL = 5000
CALL = {"provider": "openai", "model": "gpt-4o", "operation": "chat"}


def request(at_ms: int, latency: float = 1.0) -> Request:
    """A success of gpt-4o, so long after `T0`."""
    return Request(
        at_ms=T0 + at_ms,
        input_tokens=10,
        output_tokens=4,
        model=MODELS[0],
        operation="chat",
        stream=False,
        failure=None,
        latency=latency,
        first_token=None,
        cost_nusd=7,
    )


@pytest.fixture(scope="module")
def right() -> Result:
    rows = np.arange(400)
    trace = Trace(rows, T0 + rows * 50, 1 + rows % 300, rows % 70)
    return expected(complete(trace, 3), INTERVAL)


def test_counts_requests_in_their_windows():
    """A request counts in the window that its time lies in, the first ms of a window included and its end not."""
    want = expected([request(0), request(4999), request(5000)], INTERVAL)

    requests = series("requests_total", **CALL, outcome="success", stream="false")
    assert want.counters[T0, requests] == 2
    assert want.counters[T0 + 5000, requests] == 1
    assert want.counters[T0, series("tokens_total", provider="openai", model="gpt-4o", type="input")] == 20
    assert want.counters[T0, series("cost_usd_total", provider="openai", model="gpt-4o")] == Fraction(14, 10**9)


def test_empty_windows_are_windows():
    """From the first request's window to the last one's there is a window for every interval."""
    want = expected([request(0), request(20_000)], INTERVAL)

    assert want.windows == [T0, T0 + 5000, T0 + 10_000, T0 + 15_000, T0 + 20_000]


def test_nearest_rank():
    """Percentiles are the values of rank ceil(p/100 n), computed without a float's error."""
    want = expected([request(i, latency=float(i + 1)) for i in range(20)], INTERVAL)

    spread = want.histograms[T0, series("request_duration_seconds", **CALL)]
    assert spread == Spread(20, 1.0, 20.0, (10.0, 19.0, 20.0))


def test_one_value_is_every_percentile():
    """Rank 1 is the least there is."""
    want = expected([request(0, latency=0.25)], INTERVAL)

    assert want.histograms[T0, series("request_duration_seconds", **CALL)] == Spread(1, 0.25, 0.25, (0.25,) * 3)


def test_right_result_matches(right):
    """The same numbers, with percentiles and costs within their bounds, make no difference."""
    got = replace(
        right,
        histograms={
            cell: replace(spread, percentiles=tuple(p * 1.0108 for p in spread.percentiles))
            for cell, spread in right.histograms.items()
        },
        counters={
            cell: n * (1 + Fraction(1, 10**10)) if cell[1][0] == "cost_usd_total" else n
            for cell, n in right.counters.items()
        },
    )

    assert list(differences(right, got)) == []
    assert quantile_error(right, got) == pytest.approx(0.0108)


def first(result: Result, metric: str):
    return next(cell for cell in sorted(result.counters.keys() | result.histograms.keys()) if cell[1][0] == metric)


def counted(metric: str, change: Callable[[Fraction], Fraction]) -> Callable[[Result], Result]:
    def tamper(right: Result) -> Result:
        cell = first(right, metric)
        return replace(right, counters={**right.counters, cell: change(right.counters[cell])})

    return tamper


def spread(change: Callable[[Spread], Spread], metric: str = "request_duration_seconds") -> Callable[[Result], Result]:
    def tamper(right: Result) -> Result:
        cell = first(right, metric)
        return replace(right, histograms={**right.histograms, cell: change(right.histograms[cell])})

    return tamper


def without_cell(right: Result) -> Result:
    cell = first(right, "request_duration_seconds")
    return replace(right, histograms={other: s for other, s in right.histograms.items() if other != cell})


def moved_to_next_window(right: Result) -> Result:
    """The totals stay; only the windows tell."""
    start, key = first(right, "requests_total")
    counters = dict(right.counters)
    counters[start, key] -= 1
    counters[start + INTERVAL, key] = counters.get((start + INTERVAL, key), Fraction(0)) + 1
    return replace(right, counters=counters)


def percentile(i: int, factor: float) -> Callable[[Spread], Spread]:
    return lambda s: replace(s, percentiles=tuple(p * factor if j == i else p for j, p in enumerate(s.percentiles)))


TAMPERED = {
    "a request too many": (counted("requests_total", lambda n: n + 1), "requests"),
    "a request too few": (counted("requests_total", lambda n: n - 1), "requests"),
    "errors of a type": (counted("request_errors_total", lambda n: n + 1), "errors, "),
    "a token": (counted("tokens_total", lambda n: n + 1), "input tokens"),
    "cost beyond rounding": (counted("cost_usd_total", lambda n: n * (1 + Fraction(1, 10**7))), "cost_usd_total{"),
    "a request in another window": (moved_to_next_window, "requests_total{"),
    "a series that was not recorded": (
        lambda r: replace(r, counters={**r.counters, (T0, series("requests_total", model="x")): Fraction(1)}),
        "requests",
    ),
    "a window missing": (lambda r: replace(r, windows=r.windows[:-1]), "number of windows"),
    "a window too many": (lambda r: replace(r, windows=[*r.windows, r.windows[-1] + INTERVAL]), "number of windows"),
    "a window instead of another": (
        lambda r: replace(r, windows=[*r.windows[:-1], r.windows[-1] + INTERVAL]),
        "window",
    ),
    "a histogram's count": (spread(lambda s: replace(s, count=s.count + 1)), "request_duration_seconds{"),
    "a histogram's minimum": (spread(lambda s: replace(s, minimum=s.minimum - 1e-9)), "request_duration_seconds{"),
    "a histogram's maximum": (spread(lambda s: replace(s, maximum=s.maximum + 1e-9)), "request_duration_seconds{"),
    "p50 out of bounds": (spread(percentile(0, 1.0111)), "request_duration_seconds{"),
    "p95 out of bounds": (spread(percentile(1, 0.9889)), "request_duration_seconds{"),
    "p99 not a number": (spread(percentile(2, float("nan"))), "request_duration_seconds{"),
    "another histogram": (spread(percentile(0, 1.02), "time_to_first_token_seconds"), "time_to_first_token_seconds{"),
    "a histogram missing": (without_cell, "request_duration_seconds{"),
    "requests outside all windows": (
        lambda r: replace(r, strays={series("requests_total", **CALL, outcome="success", stream="true"): Fraction(1)}),
        "requests",
    ),
}


@pytest.mark.parametrize(("tamper", "what"), TAMPERED.values(), ids=TAMPERED.keys())
def test_tampered_result_is_told(right, tamper, what):
    """Each kind of wrong number is found, and named."""
    found = list(differences(right, tamper(right)))

    assert found
    assert any(difference.what.startswith(what) for difference in found)


def test_nothing_at_all_is_told(right):
    """An empty result differs in everything."""
    found = list(differences(right, Result(windows=[], counters={}, histograms={})))

    assert {"requests", "input tokens", "cost in USD", "number of windows"} <= {difference.what for difference in found}
