"""What a span of time adds up to: the fold of recorded values, before it is cut into frames.

A `Tally` is exact and mergeable: sums are integers in units of 2^-64 (`proto.exact`), distributions are bucket counts
(`proto.sketch`). Pure logic; nothing here knows a clock or a network.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..proto import exact
from ..proto.columns import (
    MAX_COUNT,
    NO_COUNTERS,
    NO_GAUGES,
    NO_SKETCHES,
    CounterColumns,
    GaugeColumns,
    SketchColumns,
    join_keys,
)
from ..proto.exact import F64, I64
from ..proto.keys import partition_of
from ..proto.sketch import SMALLEST_NORMAL, index_of

# Up to so many cells, and some for each value, are counted in an array of all of them; more by sorting the values.
_DENSE = 4096
_LOW, _HALF = np.uint64(0xFFFF_FFFF), np.uint64(32)


@dataclass(slots=True)
class Distribution:
    """One series' values: `zero` and `counts` at ascending `indices`, exact sum `units`, `minimum`, `maximum`."""

    zero: int
    units: int
    minimum: float
    maximum: float
    indices: I64
    counts: I64

    def merge(self, other: Distribution) -> Distribution:
        """Both together."""
        indices = np.union1d(self.indices, other.indices)
        counts = np.zeros(len(indices), np.int64)
        for one in (self, other):
            counts[np.searchsorted(indices, one.indices)] += one.counts
        return Distribution(
            self.zero + other.zero,
            self.units + other.units,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
            indices,
            counts,
        )


def distribution(values: F64) -> Distribution:
    """The distribution of at least one value, all within 0…`exact.MAX_VALUE`."""
    return distributions(values, np.array([len(values)]))[0]


def distributions(values: F64, lengths: I64) -> list[Distribution]:
    """The distribution of each run of `values`; `lengths` gives the runs' lengths, each at least 1.

    All runs at once, because at a window's edge there are hundreds, mostly short, and the proxy waits meanwhile.
    """
    n = len(lengths)
    if not n:
        return []
    values = values + 0.0  # makes 0.0 of -0.0, which frames refuse
    units = totals(values, lengths)
    starts = np.cumsum(lengths) - lengths
    minimum = np.minimum.reduceat(values, starts).tolist()
    maximum = np.maximum.reduceat(values, starts).tolist()
    run = np.repeat(np.arange(n), lengths)
    normal = values >= SMALLEST_NORMAL
    if not normal.all():
        values, run = values[normal], run[normal]
    zero = (lengths - np.bincount(run, minlength=n)).tolist()
    index = index_of(values)
    low = int(index.min(initial=0))
    width = int(index.max(initial=low)) - low + 1
    cells = run * width + (index - low)  # one number for run and index
    if n * width <= _DENSE + 4 * len(cells):
        dense = np.bincount(cells)
        used = np.flatnonzero(dense != 0)
        counts = dense[used]
    else:
        used, counts = np.unique(cells, return_counts=True)
    run = used // width
    indices = used - run * width + low
    ends = np.searchsorted(run, np.arange(n), side="right").tolist()
    slices = [slice(start, end) for start, end in itertools.pairwise([0, *ends])]
    return [
        Distribution(zero[i], units[i], minimum[i], maximum[i], indices[at], counts[at]) for i, at in enumerate(slices)
    ]


def totals(values: F64, lengths: I64) -> list[int]:
    """`exact.total` of each run of `values`; `lengths` gives the runs' lengths, each at least 1."""
    if not len(lengths):
        return []
    starts = np.cumsum(lengths) - lengths
    whole = values.astype(np.int64)
    wholes = np.add.reduceat(whole, starts).tolist()
    rest = values - whole
    if not rest.any():
        return [w << 64 for w in wholes]
    rest *= float(exact.ONE)
    fraction = rest.astype(np.uint64)
    # Halves, because a sum of 64-bit fractions would wrap.
    high = np.add.reduceat(fraction >> _HALF, starts).tolist()
    low = np.add.reduceat(fraction & _LOW, starts).tolist()
    return [(w << 64) + (h << 32) + f for w, h, f in zip(wholes, high, low, strict=True)]


def all_valid(values: F64) -> bool:
    """Whether all values may be recorded. `valid` takes three times as long, and is rarely needed then."""
    return not len(values) or bool(values.min() >= 0.0 and values.max() <= exact.MAX_VALUE)


def valid(values: F64) -> npt.NDArray[np.bool_]:
    """Which values may be recorded: 0 or more, finite, at most `exact.MAX_VALUE`. NaN fails both comparisons."""
    return (values >= 0.0) & (values <= exact.MAX_VALUE)


@dataclass(slots=True)
class Tally:
    """Counter increments in units of 2^-64, gauges as (value, set at ms), and distributions; all by series key."""

    counters: dict[bytes, int] = field(default_factory=dict)
    gauges: dict[bytes, tuple[float, int]] = field(default_factory=dict)
    sketches: dict[bytes, Distribution] = field(default_factory=dict)

    def count(self, key: bytes, units: int) -> None:
        """Add to a counter; adding 0 makes the series known."""
        self.counters[key] = self.counters.get(key, 0) + units

    def observe(self, key: bytes, values: Iterable[F64]) -> None:
        """Add valid values to a distribution; none is fine."""
        all_values = np.concatenate([np.zeros(0), *values])
        if not len(all_values):
            return
        self.add(key, distribution(all_values))

    def add(self, key: bytes, new: Distribution) -> None:
        """Add to a distribution."""
        old = self.sketches.get(key)
        self.sketches[key] = old.merge(new) if old is not None else new

    def merge(self, other: Tally) -> None:
        """Add a later tally: sums and counts add exactly, of two gauges the one set later stays."""
        for key, units in other.counters.items():
            self.count(key, units)
        for key, (value, at_ms) in other.gauges.items():
            mine = self.gauges.get(key)
            if mine is None or at_ms >= mine[1]:
                self.gauges[key] = (value, at_ms)
        for key, theirs in other.sketches.items():
            self.add(key, theirs)

    def split(self, partitions: int) -> list[Tally]:
        """One tally for each partition, by `partition_of` the key."""
        if partitions == 1:
            return [self]
        parts = [Tally() for _ in range(partitions)]
        for key, units in self.counters.items():
            parts[partition_of(key, partitions)].counters[key] = units
        for key, gauge in self.gauges.items():
            parts[partition_of(key, partitions)].gauges[key] = gauge
        for key, sketch in self.sketches.items():
            parts[partition_of(key, partitions)].sketches[key] = sketch
        return parts

    def halves(self) -> tuple[Tally, Tally]:
        """Two tallies that merge to this one, each with half of the series, of each kind about half."""
        halves = (Tally(), Tally())
        turn = itertools.cycle(halves)  # on from kind to kind, so that two series of two kinds part as well
        for key, units in self.counters.items():
            next(turn).counters[key] = units
        for key, gauge in self.gauges.items():
            next(turn).gauges[key] = gauge
        for key, sketch in self.sketches.items():
            next(turn).sketches[key] = sketch
        return halves

    @property
    def series(self) -> int:
        return len(self.counters) + len(self.gauges) + len(self.sketches)

    def size(self) -> int:
        """About how many bytes this takes in memory: for each series its key twice, in a frame and here, and its
        numbers.
        """
        keys = sum(map(len, self.counters)) + sum(map(len, self.gauges)) + sum(map(len, self.sketches))
        buckets = sum(len(s.indices) for s in self.sketches.values())
        return 256 + 2 * keys + 200 * self.series + 22 * buckets

    def counter_columns(self) -> CounterColumns:
        if not self.counters:
            return NO_COUNTERS
        whole, fraction = exact.columns(list(self.counters.values()))
        return CounterColumns(keys=join_keys(list(self.counters)), whole=whole, fraction=fraction)

    def gauge_columns(self) -> GaugeColumns:
        if not self.gauges:
            return NO_GAUGES
        values, at_ms = zip(*self.gauges.values(), strict=True)
        return GaugeColumns(keys=join_keys(list(self.gauges)), values=np.array(values), at_ms=np.array(at_ms, np.int64))

    def sketch_columns(self) -> SketchColumns:
        if not self.sketches:
            return NO_SKETCHES
        all_ = list(self.sketches.values())
        whole, fraction = exact.columns([s.units for s in all_])
        return SketchColumns(
            keys=join_keys(list(self.sketches)),
            zero=np.array([s.zero for s in all_], np.int64),
            whole=whole,
            fraction=fraction,
            minimum=np.array([s.minimum for s in all_]),
            maximum=np.array([s.maximum for s in all_]),
            lengths=np.array([len(s.indices) for s in all_], np.uint32),
            indices=np.concatenate([s.indices for s in all_]).astype(np.int16),
            counts=np.concatenate([s.counts for s in all_]).astype(np.uint32),
        )

    def fits_u32(self, other: Tally) -> bool:
        """Whether no bucket of the merge would pass a frame's limit, and no sum its own."""
        for key, mine in self.sketches.items():
            theirs = other.sketches.get(key)
            if (
                theirs is not None
                and max(mine.zero + theirs.zero, int(mine.counts.sum() + theirs.counts.sum())) > MAX_COUNT
            ):
                return False
            if theirs is not None and mine.units + theirs.units > exact.MAX_DELTA << 64:
                return False
        both = self.counters.keys() & other.counters.keys()
        return all(self.counters[key] + other.counters[key] <= exact.MAX_DELTA << 64 for key in both)


def is_number(value: object) -> bool:
    """Whether `value` is a finite real number that a gauge may hold."""
    return isinstance(value, int | float) and abs(value) <= exact.MAX_TOTAL  # NaN fails it, and so does infinity
