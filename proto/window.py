"""What a sealed window says of a metric: the columns of a `Part`, and a reader's view of them, row by row.

Per series (n): counters have the window's increment and the running total at publication; gauges have the aggregates
over nodes; sketches are as in frames, with int64 bucket counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import exact
from .columns import array, join_keys, pack_fraction, split_keys, unpack_fraction
from .errors import FrameError
from .exact import F64, I16, I64, U32, U64
from .keys import decode_key
from .sketch import RELATIVE_ERROR, Sketch
from .wire import Part


@dataclass(frozen=True, slots=True, eq=False)
class WindowCounters:
    """`whole`/`fraction`: increments of the window (n); `total_whole`/`total_fraction`: all increments ever, at
    publication (n).
    """

    keys: list[bytes]
    whole: I64
    fraction: U64
    total_whole: I64
    total_fraction: U64

    def pack(self) -> list[bytes]:
        return [
            join_keys(self.keys),
            self.whole.astype("<i8", copy=False).tobytes(),
            pack_fraction(self.fraction),
            self.total_whole.astype("<i8", copy=False).tobytes(),
            pack_fraction(self.total_fraction),
        ]


@dataclass(frozen=True, slots=True, eq=False)
class WindowGauges:
    """Over the nodes that reported in the window: exact sum, min, max, the value set last (`last`, at `last_ms`), and
    how many nodes.
    """

    keys: list[bytes]
    whole: I64
    fraction: U64
    minimum: F64
    maximum: F64
    last: F64
    last_ms: I64
    nodes: U32

    def pack(self) -> list[bytes]:
        return [
            join_keys(self.keys),
            self.whole.astype("<i8", copy=False).tobytes(),
            pack_fraction(self.fraction),
            self.minimum.astype("<f8", copy=False).tobytes(),
            self.maximum.astype("<f8", copy=False).tobytes(),
            self.last.astype("<f8", copy=False).tobytes(),
            self.last_ms.astype("<i8", copy=False).tobytes(),
            self.nodes.astype("<u4", copy=False).tobytes(),
        ]

    def average(self) -> F64:
        """Mean over nodes (n)."""
        return exact.to_float(self.whole, self.fraction) / self.nodes


@dataclass(frozen=True, slots=True, eq=False)
class WindowSketches:
    """Distributions merged over all nodes. `indices` and `counts` (b) belong to the series in turn, `lengths` each."""

    keys: list[bytes]
    zero: I64
    whole: I64
    fraction: U64
    minimum: F64
    maximum: F64
    lengths: U32
    indices: I16
    counts: I64

    def pack(self) -> list[bytes]:
        return [
            join_keys(self.keys),
            self.zero.astype("<i8", copy=False).tobytes(),
            self.whole.astype("<i8", copy=False).tobytes(),
            pack_fraction(self.fraction),
            self.minimum.astype("<f8", copy=False).tobytes(),
            self.maximum.astype("<f8", copy=False).tobytes(),
            self.lengths.astype("<u4", copy=False).tobytes(),
            self.indices.astype("<i2", copy=False).tobytes(),
            self.counts.astype("<i8", copy=False).tobytes(),
        ]

    def sketches(self) -> Iterator[Sketch]:
        """Each series' distribution, in the order of `keys`."""
        end = 0
        units = exact.to_units(self.whole, self.fraction)
        for i, length in enumerate(self.lengths.tolist()):
            start, end = end, end + length
            buckets = dict(zip(self.indices[start:end].tolist(), self.counts[start:end].tolist(), strict=True))
            zero = int(self.zero[i])
            yield Sketch(
                count=zero + sum(buckets.values()),
                units=units[i],
                minimum=float(self.minimum[i]),
                maximum=float(self.maximum[i]),
                zero=zero,
                buckets=buckets,
            )


def window_counters(part: Part) -> WindowCounters:
    """A part's counters. Raises FrameError when the part has none or its columns do not fit together."""
    keys, whole, fraction, total_whole, total_fraction = _columns(part, part.counters, 5, "counters")
    n = len(keys)
    return WindowCounters(
        keys,
        array(whole, "<i8", "counters.whole", n),
        _fraction(fraction, n, "counters.fraction"),
        array(total_whole, "<i8", "counters.total_whole", n),
        _fraction(total_fraction, n, "counters.total_fraction"),
    )


def window_gauges(part: Part) -> WindowGauges:
    """A part's gauges. Raises FrameError when the part has none or its columns do not fit together."""
    keys, whole, fraction, minimum, maximum, last, last_ms, nodes = _columns(part, part.gauges, 8, "gauges")
    n = len(keys)
    return WindowGauges(
        keys,
        array(whole, "<i8", "gauges.whole", n),
        _fraction(fraction, n, "gauges.fraction"),
        array(minimum, "<f8", "gauges.minimum", n),
        array(maximum, "<f8", "gauges.maximum", n),
        array(last, "<f8", "gauges.last", n),
        array(last_ms, "<i8", "gauges.last_ms", n),
        array(nodes, "<u4", "gauges.nodes", n),
    )


def window_sketches(part: Part) -> WindowSketches:
    """A part's sketches. Raises FrameError when the part has none or its columns do not fit together."""
    keys, zero, whole, fraction, minimum, maximum, lengths_raw, indices, counts = _columns(
        part, part.sketches, 9, "sketches"
    )
    n = len(keys)
    lengths = array(lengths_raw, "<u4", "sketches.lengths", n)
    b = int(lengths.sum(dtype=np.int64))
    return WindowSketches(
        keys,
        array(zero, "<i8", "sketches.zero", n),
        array(whole, "<i8", "sketches.whole", n),
        _fraction(fraction, n, "sketches.fraction"),
        array(minimum, "<f8", "sketches.minimum", n),
        array(maximum, "<f8", "sketches.maximum", n),
        lengths,
        array(indices, "<i2", "sketches.indices", b),
        array(counts, "<i8", "sketches.counts", b),
    )


def _columns(part: Part, raw: Sequence[bytes], n: int, what: str) -> Any:
    """The list of keys, and the n - 1 raw columns after it."""
    if len(raw) != n:
        raise FrameError("length", f"part of {part.metric} has {len(raw)} columns of {what}, expected {n}")
    return (split_keys(raw[0]), *raw[1:])


def _fraction(raw: bytes, n: int, where: str) -> U64:
    fraction = unpack_fraction(raw, n, where)
    return np.zeros(n, np.uint64) if fraction is None else fraction


Row = dict[str, object]


def rows(part: Part, quantiles: Sequence[float] = (0.5, 0.95, 0.99)) -> Iterator[Row]:
    """A part as plain dictionaries, one a series: ``labels`` and, by kind, ``increment, rate, total`` (rate in 1/s),
    ``average, sum, min, max, last, nodes``, or ``count, sum, average, min, max, p50, p95, p99, relative_error``.
    """
    seconds = (part.end_ms - part.start_ms) / 1000
    if part.counters:
        c = window_counters(part)
        increments = exact.to_float(c.whole, c.fraction).tolist()
        totals = exact.to_float(c.total_whole, c.total_fraction).tolist()
        for key, increment, total in zip(c.keys, increments, totals, strict=True):
            rate = increment / seconds if seconds else 0.0
            yield {"labels": decode_key(key)[1], "increment": increment, "rate": rate, "total": total}
    if part.gauges:
        g = window_gauges(part)
        columns = (g.average(), exact.to_float(g.whole, g.fraction), g.minimum, g.maximum, g.last, g.nodes)
        names = ("average", "sum", "min", "max", "last", "nodes")
        for key, *values in zip(g.keys, *(c.tolist() for c in columns), strict=True):
            yield {"labels": decode_key(key)[1], **dict(zip(names, values, strict=True))}
    if part.sketches:
        s = window_sketches(part)
        for key, sketch in zip(s.keys, s.sketches(), strict=True):
            yield {
                "labels": decode_key(key)[1],
                "count": sketch.count,
                "sum": sketch.sum,
                "average": sketch.mean,
                "min": sketch.minimum,
                "max": sketch.maximum,
                **{f"p{q * 100:g}": sketch.quantile(q) for q in quantiles},
                "relative_error": RELATIVE_ERROR,
            }
