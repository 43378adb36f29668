"""Readers' view of the newest window: values by labels, decoded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TypeVar

from ..proto.exact import to_float
from ..proto.keys import decode_key
from ..proto.sketch import Sketch
from ..proto.window import window_counters, window_sketches
from ..proto.wire import Sealed
from .gauges import merged
from .state import GatewayFold

Labels = dict[str, str]
N = TypeVar("N", int, float)
_decoded: Callable[[bytes], tuple[str, Labels]] = lru_cache(maxsize=200_000)(decode_key)


class View:
    """A fold's totals, and its newest sealed window. `start_ms` and `end_ms` are None before the first."""

    def __init__(self, fold: GatewayFold) -> None:
        self._fold = fold
        self.markers: list[Sealed] = list(fold.sealed.values())
        newest = max(self.markers, key=lambda marker: marker.start_ms, default=None)
        self.start_ms = newest.start_ms if newest else None
        self.end_ms = newest.end_ms if newest else None

    @property
    def seconds(self) -> float:
        """Length of the window; 0 before the first."""
        return (self.end_ms - self.start_ms) / 1000 if self.start_ms is not None and self.end_ms is not None else 0.0

    @property
    def completeness(self) -> float | None:
        """Nodes heard of nodes expected, the least over partitions; None before the first window."""
        shares = [m.nodes_heard / m.nodes_expected if m.nodes_expected else 1.0 for m in self.markers]
        return min(shares, default=None)

    @property
    def missing(self) -> list[str]:
        """Nodes that the newest window lacks (up to 32 a partition)."""
        return sorted({node for marker in self.markers for node in marker.missing})

    def totals(self, metric: str) -> Iterator[tuple[Labels, int | float]]:
        """Each series' running total."""
        for key, value in self._fold.totals_of(metric).items():
            yield _decoded(key)[1], value

    def total(self, metric: str, **labels: str) -> int | float | None:
        """Sum of the running totals of the series with these labels; None when there is no such series."""
        return _sum(self.totals(metric), labels)

    def increments(self, metric: str) -> Iterator[tuple[Labels, float]]:
        """Each series' increment in the window."""
        for (name, _), parts in self._fold.current.items():
            for part in parts if name == metric else ():
                if part.counters:
                    c = window_counters(part)
                    for key, value in zip(c.keys, to_float(c.whole, c.fraction).tolist(), strict=True):
                        yield _decoded(key)[1], value

    def increment(self, metric: str, **labels: str) -> float | None:
        """Sum of the increments in the window of the series with these labels; None when there is none."""
        return _sum(self.increments(metric), labels)

    def gauges(self, metric: str) -> Iterator[tuple[Labels, float]]:
        """Each series' value in the window, merged over nodes by its rule."""
        for columns in self._fold.gauges_of(metric):
            for key, value in zip(columns.keys, merged(metric, columns).tolist(), strict=True):
                yield _decoded(key)[1], value

    def gauge(self, metric: str, **labels: str) -> float | None:
        """Average over the series with these labels (for a per-node metric: over nodes); None when there is none."""
        values = [value for own, value in self.gauges(metric) if _has(own, labels)]
        return sum(values) / len(values) if values else None

    def gauge_sum(self, metric: str, **labels: str) -> float | None:
        """Sum over the series with these labels; None when there is none."""
        return _sum(self.gauges(metric), labels)

    def sketches(self, metric: str) -> Iterator[tuple[Labels, Sketch]]:
        """Each series' distribution in the window."""
        for (name, _), parts in self._fold.current.items():
            for part in parts if name == metric else ():
                if part.sketches:
                    columns = window_sketches(part)
                    for key, sketch in zip(columns.keys, columns.sketches(), strict=True):
                        yield _decoded(key)[1], sketch


def _has(own: Labels, wanted: dict[str, str]) -> bool:
    return all(own.get(name) == value for name, value in wanted.items())


def _sum(values: Iterator[tuple[Labels, N]], wanted: dict[str, str]) -> N | None:
    found = [value for own, value in values if _has(own, wanted)]
    return sum(found) if found else None
