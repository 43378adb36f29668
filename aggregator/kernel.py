"""The merge kernel: adding a frame's columns to a window's arrays, by numpy, without a Python step per series or
bucket.

An accumulator is indexed by series id and grows with the table. `cells()` gives what is in it in compact form, ids
ascending; adding cells to an empty accumulator gives it back. Every operation is integer addition, min or max, so the
order in which frames are added does not change a bit of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..proto.errors import FrameError
from ..proto.exact import F64, I16, I64, MAX_TOTAL, U32, U64, add_at, add_at_repeated, split, sum_by

#: Bucket slots that one window may use (int64 each): a bound on what hostile sketches, all of extreme range, can make
#: us allocate.
MAX_SLOTS = 1 << 25
#: Spare buckets on both sides of a row: a factor of eight, so that latencies that wander do not move the layout again
#: and again (all slots of all open windows are copied then). In a layout with many slots the spare is tight.
_SPARE, _TIGHT_SPARE = 96, 16
_MANY_SLOTS = MAX_SLOTS // 8

# The C library takes memory for arrays of over 128 KiB from the kernel each time and gives it back, at the price of a
# page fault every 4 KiB, until it has once seen a larger one freed. This one is never written to, so it costs nothing,
# and a merge takes a quarter less.
np.empty(24 << 20, np.uint8)


def grown(values: npt.NDArray[np.generic], n: int, fill: float = 0) -> npt.NDArray[np.generic]:
    """`values` with at least `n` items, the new ones `fill`."""
    if len(values) >= n:
        return values
    more = np.full(max(n, 2 * len(values), 64), fill, values.dtype)
    more[: len(values)] = values
    return more


@dataclass(frozen=True, slots=True, eq=False)
class CounterCells:
    """Increments of the series `ids` (n, ascending)."""

    ids: I64
    whole: I64
    fraction: U64


class CounterSums:
    """Exact sums by series id."""

    def __init__(self) -> None:
        self.whole: I64 = np.zeros(0, np.int64)
        self.fraction: U64 = np.zeros(0, np.uint64)
        self.touched: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)

    def reserve(self, series: int) -> None:
        """Make room for ids below `series`."""
        if len(self.whole) < series:
            self.whole = grown(self.whole, series)  # type: ignore[assignment]
            self.fraction = grown(self.fraction, series)  # type: ignore[assignment]
            self.touched = grown(self.touched, series)  # type: ignore[assignment]

    @property
    def most(self) -> int:
        """The greatest sum, rounded down."""
        return int(self.whole.max(initial=0))

    def add(self, ids: I64, whole: I64, fraction: U64 | None, distinct: bool) -> None:
        """Add increments; `distinct` says that no id is repeated."""
        (add_at if distinct else add_at_repeated)(self.whole, self.fraction, ids, whole, fraction)
        self.touched[ids] = True

    def cells(self) -> CounterCells:
        ids = np.flatnonzero(self.touched)
        return CounterCells(ids, self.whole[ids], self.fraction[ids])

    def at(self, ids: I64) -> CounterCells:
        """The sums of these ids."""
        return CounterCells(ids, self.whole[ids], self.fraction[ids])


@dataclass(frozen=True, slots=True, eq=False)
class SketchCells:
    """Sketches of the series `ids` (n, ascending): as in `SketchColumns`, with int64 counts (b)."""

    ids: I64
    zero: I64
    whole: I64
    fraction: U64
    minimum: F64
    maximum: F64
    lengths: U32
    indices: I16
    counts: I64


class SketchLayout:
    """Where each series' buckets lie in a window's flat array: row `id` has `width[id]` slots from `offset[id]` on, for
    the bucket indices from `low[id]` on. All windows of a partition share one layout.
    """

    def __init__(self) -> None:
        self.low: I64 = np.zeros(0, np.int64)
        self.width: I64 = np.zeros(0, np.int64)
        self.offset: I64 = np.zeros(0, np.int64)
        self.slots = 0

    def wider(self, series: int, ids: I64, first: I64, last: I64) -> SketchLayout | None:
        """A layout that also holds indices `first`…`last` of `ids` (which may repeat); None when this one does.

        Raises FrameError (``sketch_capacity``) if it would need more than MAX_SLOTS.
        """
        if len(self.low) >= series:
            low = self.low[ids]
            if bool(((first >= low) & (last < low + self.width[ids])).all()):
                return None
        old_low = grown(self.low, series)[:series]
        old_width = grown(self.width, series)[:series]
        new_low = np.where(old_width > 0, old_low, np.int64(1 << 40))  # type: ignore[operator]
        new_high = np.where(old_width > 0, old_low + old_width, np.int64(-(1 << 40)))  # type: ignore[operator]
        outside = (first < new_low[ids]) | (last >= new_high[ids])
        spare = _SPARE if self.slots < _MANY_SLOTS else _TIGHT_SPARE
        np.minimum.at(new_low, ids[outside], first[outside] - spare)
        np.maximum.at(new_high, ids[outside], last[outside] + 1 + spare)
        used = new_high > new_low
        wider = SketchLayout()
        wider.low = np.where(used, new_low, 0)
        wider.width = np.where(used, new_high - new_low, 0)
        ends = np.cumsum(wider.width)
        wider.slots = int(ends[-1]) if len(ends) else 0
        if wider.slots > MAX_SLOTS:
            raise FrameError(
                "sketch_capacity", f"sketches would take {wider.slots} bucket slots, the limit is {MAX_SLOTS}"
            )
        wider.offset = ends - wider.width
        return wider

    def moved(self, counts: I64, to: SketchLayout) -> I64:
        """A window's flat array, rearranged for the layout `to`."""
        new = np.zeros(to.slots, np.int64)
        if self.slots and len(counts):
            shift = to.offset[: len(self.width)] - to.low[: len(self.width)] - self.offset + self.low
            new[np.arange(self.slots) + np.repeat(shift, self.width)] = counts
        return new


class SketchSums:
    """Merged sketches by series id, in the layout given at each step."""

    def __init__(self) -> None:
        self.zero: I64 = np.zeros(0, np.int64)
        self.whole: I64 = np.zeros(0, np.int64)
        self.fraction: U64 = np.zeros(0, np.uint64)
        self.minimum: F64 = np.zeros(0)
        self.maximum: F64 = np.zeros(0)
        self.touched: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)
        self.counts: I64 = np.zeros(0, np.int64)

    def reserve(self, series: int, layout: SketchLayout) -> None:
        """Make room for ids below `series`, and for all slots of the layout."""
        if len(self.zero) < series:
            self.zero = grown(self.zero, series)  # type: ignore[assignment]
            self.whole = grown(self.whole, series)  # type: ignore[assignment]
            self.fraction = grown(self.fraction, series)  # type: ignore[assignment]
            self.minimum = grown(self.minimum, series, np.inf)  # type: ignore[assignment]
            self.maximum = grown(self.maximum, series, -np.inf)  # type: ignore[assignment]
            self.touched = grown(self.touched, series)  # type: ignore[assignment]
        if not len(self.counts):
            self.counts = np.zeros(layout.slots, np.int64)

    def check(self, ids: I64, whole: I64, distinct: bool) -> None:
        """Raise FrameError (``overflow``) if adding would take a sum past 2^62."""
        if not distinct:
            check_sums([self], ids, whole)
        elif len(ids) and int((self.whole[ids] + whole).max()) > MAX_TOTAL:
            raise FrameError("overflow", "the sum of a sketch would pass 2^62")

    def add(
        self,
        layout: SketchLayout,
        ids: I64,
        zero: I64,
        whole: I64,
        fraction: U64 | None,
        minimum: F64,
        maximum: F64,
        lengths: U32,
        indices: I16,
        counts: npt.NDArray[np.integer],
        distinct: bool,
    ) -> None:
        """Add sketches whose indices lie in the layout; `distinct` says that no id is repeated."""
        # Where index 0 of each row would lie, once a bucket: one scatter then reaches all buckets.
        slots = np.repeat((layout.offset - layout.low)[ids], lengths)
        slots += indices
        # `at` with all operands int64 runs in one C loop, which gathering, adding and scattering take three for. With
        # any other type it falls back to a path forty times slower.
        np.add.at(self.counts, slots, counts.astype(np.int64))
        np.add.at(self.zero, ids, zero)
        np.minimum.at(self.minimum, ids, minimum)
        np.maximum.at(self.maximum, ids, maximum)
        (add_at if distinct else add_at_repeated)(self.whole, self.fraction, ids, whole, fraction)
        self.touched[ids] = True

    def add_cells(self, layout: SketchLayout, cells: SketchCells) -> None:
        c = cells
        self.add(
            layout,
            c.ids,
            c.zero,
            c.whole,
            c.fraction,
            c.minimum,
            c.maximum,
            c.lengths,
            c.indices,
            c.counts,
            distinct=True,
        )

    def cells(self, layout: SketchLayout) -> SketchCells:
        ids = np.flatnonzero(self.touched)
        used = np.flatnonzero(self.counts != 0)  # flatnonzero is seven times as fast on booleans as on int64
        # Rows are looked up in buckets, not buckets in rows: there are fewer of them.
        ends = np.searchsorted(used, layout.offset + layout.width)
        lengths = np.diff(ends, prepend=0)
        indices = used + np.repeat(layout.low - layout.offset, lengths)
        return SketchCells(
            ids=ids,
            zero=self.zero[ids],
            whole=self.whole[ids],
            fraction=self.fraction[ids],
            minimum=self.minimum[ids],
            maximum=self.maximum[ids],
            lengths=lengths[ids].astype(np.uint32),
            indices=indices.astype(np.int16),
            counts=self.counts[used],
        )


def check_sums(sums: Sequence[CounterSums | SketchSums], ids: I64, whole: I64) -> None:
    """Raise FrameError (``overflow``) if `sums` together, with `whole` added at `ids` (which may repeat), pass 2^62."""
    used, at = np.unique(ids, return_inverse=True)
    # In floats, since repeated increments alone can pass int64; they are off by less than the room above the limit.
    total = np.bincount(at, whole, len(used))
    for one in sums:
        inside = used < len(one.whole)
        total[inside] += one.whole[used[inside]]
    if total.max(initial=0) > MAX_TOTAL:
        raise FrameError("overflow", f"a sum would be {total.max():g}, the limit is 2^62")


def bucket_ranges(lengths: U32, indices: I16) -> tuple[npt.NDArray[np.bool_], I64, I64]:
    """Which sketches have buckets, and for those the first and last index (they ascend within a sketch)."""
    used = lengths > 0
    ends = np.cumsum(lengths, dtype=np.int64)
    if not used.all():
        ends, lengths = ends[used], lengths[used]
    return used, indices[ends - lengths].astype(np.int64), indices[ends - 1].astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class GaugeReport:
    """What one frame of a node says of gauges: `values` of `ids`, set at `at_ms` (n each)."""

    incarnation: int
    sequence: int
    ids: I64
    values: F64
    at_ms: I64


@dataclass(frozen=True, slots=True, eq=False)
class GaugeCells:
    """Aggregates over nodes of the series `ids` (n, ascending): exact sum (within ±2^62), min, max, last set value with
    its time, number of nodes.
    """

    ids: I64
    whole: I64
    fraction: U64
    minimum: F64
    maximum: F64
    last: F64
    last_ms: I64
    nodes: U32


class GaugeReports:
    """The gauges of a window, by node: of several reports of a node the newest counts, for each series."""

    def __init__(self) -> None:
        self.by_node: dict[str, list[GaugeReport]] = {}

    def add(self, node: str, report: GaugeReport) -> None:
        reports = self.by_node.setdefault(node, [])
        reports.append(report)
        reports.sort(key=lambda r: (r.incarnation, r.sequence))

    def cells(self) -> GaugeCells:
        """All nodes together. The order of nodes does not matter: sums are exact, ties of `last` go to the greater
        value.
        """
        parts = [_newest(self.by_node[node]) for node in sorted(self.by_node)]
        ids = np.concatenate([np.zeros(0, np.int64), *(p[0] for p in parts)])
        values = np.concatenate([np.zeros(0), *(p[1] for p in parts)])
        at_ms = np.concatenate([np.zeros(0, np.int64), *(p[2] for p in parts)])
        used, groups = np.unique(ids, return_inverse=True)
        n = len(used)
        whole, fraction = sum_by(groups, n, *split(values))
        # Some values near their limit would wrap a sum, which stops there instead.
        rough = np.bincount(groups, values, n)
        absurd = np.abs(rough) > MAX_TOTAL
        if absurd.any():
            whole[absurd], fraction[absurd] = np.where(rough[absurd] > 0, MAX_TOTAL, -MAX_TOTAL), 0
        minimum, maximum = np.full(n, np.inf), np.full(n, -np.inf)
        np.minimum.at(minimum, groups, values)
        np.maximum.at(maximum, groups, values)
        last, last_ms = np.zeros(n), np.zeros(n, np.int64)
        # Ascending by time, then value: of repeated targets the last assignment stays.
        order = np.lexsort((values, at_ms))
        last[groups[order]] = values[order]
        last_ms[groups[order]] = at_ms[order]
        nodes = np.bincount(groups, minlength=n).astype(np.uint32)
        return GaugeCells(used, whole, fraction, minimum, maximum, last, last_ms, nodes)


def _newest(reports: list[GaugeReport]) -> tuple[I64, F64, I64]:
    """The newest value of each series in one node's reports (oldest first)."""
    if len(reports) == 1:
        return reports[0].ids, reports[0].values, reports[0].at_ms
    ids = np.concatenate([r.ids for r in reports])
    age = np.repeat(np.arange(len(reports)), [len(r.ids) for r in reports])
    newest = np.zeros(int(ids.max(initial=-1)) + 1, np.int64)
    newest[ids] = age  # ages ascend, and of repeated targets the last assignment stays
    # Not the last row but all of the newest report: several of a report's series may fold into one ``other``.
    rows = age == newest[ids]
    return (
        ids[rows],
        np.concatenate([r.values for r in reports])[rows],
        np.concatenate([r.at_ms for r in reports])[rows],
    )
