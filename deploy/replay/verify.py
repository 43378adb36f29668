"""What a cluster must show after a replay, computed from the file and the rule alone, and how that differs from what it
does show.

No code of the pipeline is used here: sums are Python integers and fractions, quantiles are read off sorted values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeAlias

import numpy as np

from ...proto.exact import F64
from .rule import ERRORS, NUSD, Request

#: Percentiles that are compared, by rank ``ceil(p / 100 * n)``, at least 1.
PERCENTS = (50, 95, 99)
#: Largest relative error of a percentile: what the product promises, plainly.
MAX_QUANTILE_ERROR = 0.0109
#: Largest relative error of a cost: each of n costs is a double, off by at most 2^-53.
MAX_COST_ERROR = Fraction(1, 10**9)

#: A metric's name, and its labels in ascending order of name.
Series: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]
#: A series in the window that starts then (ms).
Cell: TypeAlias = tuple[int, Series]


def series(metric: str, **labels: str) -> Series:
    return metric, tuple(sorted(labels.items()))


@dataclass(frozen=True, slots=True)
class Spread:
    """A histogram of one window: count, extremes, and the percentiles `PERCENTS`; seconds."""

    count: int
    minimum: float
    maximum: float
    percentiles: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a replay's windows say, or must say.

    `windows` are the starts (ms) of the sealed ones. `counters` are increments, those that are 0 left out. `strays` are
    increments outside all windows: of frames that came after their window was closed for good.
    """

    windows: list[int]
    counters: Mapping[Cell, Fraction]
    histograms: Mapping[Cell, Spread]
    strays: Mapping[Series, Fraction] = field(default_factory=dict)

    def total(self, metric: str, **labels: str) -> Fraction:
        """The sum of a metric over all windows, strays, and series that have these labels."""
        wanted = set(labels.items())
        amounts = [(key, n) for (_, key), n in self.counters.items()] + list(self.strays.items())
        return sum((n for (name, pairs), n in amounts if name == metric and wanted <= set(pairs)), Fraction(0))


@dataclass(frozen=True, slots=True)
class Difference:
    """One number that is not what it must be. `where` is a window's start, or empty for the whole replay."""

    what: str
    where: str
    expected: str
    got: str


def expected(requests: Iterable[Request], interval_ms: int) -> Result:
    """What the windows must say when each of at least one request counts once, in the window that its time lies in."""
    counters: dict[Cell, int] = defaultdict(int)
    latencies: dict[Cell, list[float]] = defaultdict(list)
    starts: set[int] = set()
    for r in requests:
        start = r.at_ms - r.at_ms % interval_ms
        starts.add(start)
        model = {"provider": r.model.provider, "model": r.model.name}
        call = {**model, "operation": r.operation}
        outcome = {"outcome": "error" if r.failure else "success", "stream": "true" if r.stream else "false"}
        counters[start, series("requests_total", **call, **outcome)] += 1
        if r.failure:
            counters[start, series("request_errors_total", **call, error_type=r.failure.error_type)] += 1
        counters[start, series("tokens_total", **model, type="input")] += r.input_tokens
        counters[start, series("tokens_total", **model, type="output")] += r.output_tokens
        counters[start, series("cost_usd_total", **model)] += r.cost_nusd
        latencies[start, series("request_duration_seconds", **call)].append(r.latency)
        if r.first_token is not None:
            latencies[start, series("time_to_first_token_seconds", **call)].append(r.first_token)
    return Result(
        windows=list(range(min(starts), max(starts) + interval_ms, interval_ms)),
        counters={
            cell: Fraction(n, NUSD if cell[1][0] == "cost_usd_total" else 1) for cell, n in counters.items() if n
        },
        histograms={cell: _spread(np.sort(np.array(values))) for cell, values in latencies.items()},
    )


def _spread(ordered: F64) -> Spread:
    n = len(ordered)
    ranks = (max(1, -(-percent * n // 100)) for percent in PERCENTS)
    return Spread(n, float(ordered[0]), float(ordered[-1]), tuple(float(ordered[rank - 1]) for rank in ranks))


#: What is compared over the whole replay: a name for it, its metric, and the labels that select it.
_TOTALS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("requests", "requests_total", {}),
    *((f"requests, {outcome}", "requests_total", {"outcome": outcome}) for outcome in ("success", "error")),
    *((f"errors, {e.error_type}", "request_errors_total", {"error_type": e.error_type}) for e in ERRORS),
    ("input tokens", "tokens_total", {"type": "input"}),
    ("output tokens", "tokens_total", {"type": "output"}),
    ("cost in USD", "cost_usd_total", {}),
)


def differences(want: Result, got: Result) -> Iterator[Difference]:
    """Everything in which `got` is not `want`: first over the whole replay, then window by window."""
    for what, metric, labels in _TOTALS:
        yield from _compare(what, "", metric, want.total(metric, **labels), got.total(metric, **labels))
    yield from _windows(want, got)
    for cell in sorted(want.counters.keys() | got.counters.keys()):
        zero = Fraction(0)
        start, key = cell
        yield from _compare(
            _name(key), _time(start), key[0], want.counters.get(cell, zero), got.counters.get(cell, zero)
        )
    for cell in sorted(want.histograms.keys() | got.histograms.keys()):
        yield from _histogram(cell, want.histograms.get(cell), got.histograms.get(cell))
    for key, n in got.strays.items():
        if n:
            yield Difference(_name(key), "no window", "0", _show(n))


def quantile_error(want: Result, got: Result) -> float:
    """The largest relative error of any percentile that both have; 0.0 without any."""
    worst = 0.0
    for cell in want.histograms.keys() & got.histograms.keys():
        for exact, seen in zip(want.histograms[cell].percentiles, got.histograms[cell].percentiles, strict=True):
            worst = max(worst, _relative(exact, seen))
    return worst


def _windows(want: Result, got: Result) -> Iterator[Difference]:
    if len(want.windows) != len(got.windows):
        yield Difference("number of windows", "", str(len(want.windows)), str(len(got.windows)))
    for start in sorted(set(want.windows) ^ set(got.windows)):
        yield Difference(
            "window", _time(start), *(("sealed", "none") if start in set(want.windows) else ("none", "sealed"))
        )


def _compare(what: str, where: str, metric: str, want: Fraction, got: Fraction) -> Iterator[Difference]:
    allowed = MAX_COST_ERROR * want if metric == "cost_usd_total" else 0
    if abs(got - want) > allowed:
        yield Difference(what, where, _show(want), _show(got))


def _histogram(cell: Cell, want: Spread | None, got: Spread | None) -> Iterator[Difference]:
    what, where = _name(cell[1]), _time(cell[0])
    if want is None or got is None:
        counts = (str(spread.count if spread else 0) for spread in (want, got))
        yield Difference(f"{what} count", where, *counts)
        return
    for name in ("count", "minimum", "maximum"):
        one, other = getattr(want, name), getattr(got, name)
        if one != other:
            yield Difference(f"{what} {name}", where, repr(one), repr(other))
    for percent, exact, seen in zip(PERCENTS, want.percentiles, got.percentiles, strict=True):
        if not _relative(exact, seen) <= MAX_QUANTILE_ERROR:
            yield Difference(f"{what} p{percent}", where, f"{exact!r} ± {MAX_QUANTILE_ERROR:.2%}", repr(seen))


def _relative(exact: float, seen: float) -> float:
    if seen == exact:
        return 0.0
    return abs(seen - exact) / exact if exact else float("inf")


def _name(key: Series) -> str:
    return f"{key[0]}{{{', '.join(f'{name}={value}' for name, value in key[1])}}}"


def _time(start_ms: int) -> str:
    return str(np.datetime64(start_ms, "ms")) + "Z"


def _show(n: Fraction) -> str:
    return str(n.numerator) if n.denominator == 1 else f"{float(n):.12g}"
