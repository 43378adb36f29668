"""Windows: the sums of one span, while they are open and for as long as late frames may still correct them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..proto.exact import I64
from ..proto.wire import Frame
from .kernel import (
    CounterCells,
    CounterSums,
    GaugeReport,
    GaugeReports,
    SketchCells,
    SketchLayout,
    SketchSums,
    bucket_ranges,
)
from .series import Resolved


class Window:
    """Everything that counts in ``[start_ms, start_ms + interval)``.

    `revision` is that of the newest publication, -1 before the first. `expected` and `missing` are the nodes that the
    seal waited for, and those of them that had not come. A sealed window keeps its sums in compact form until a late
    frame needs the arrays again.
    """

    def __init__(self, start_ms: int) -> None:
        self.start_ms = start_ms
        self.revision = -1
        self.cause = ""
        self.expected: set[str] = set()
        self.missing: set[str] = set()
        #: Broker time of the first late frame that no publication tells of yet; 0 when there is none.
        self.dirty_ms = 0
        self.counters = CounterSums()
        self.sketches = SketchSums()
        self.gauges = GaugeReports()
        self._frozen: SketchCells | None = None
        # What `sketch_cells` has worked out and nothing has changed since: a seal asks for it more than once.
        self._cells: SketchCells | None = None

    def add_counters(self, frame: Frame, resolved: Resolved, series: int) -> None:
        self.counters.reserve(series)
        self.counters.add(resolved.ids, frame.counters.whole, frame.counters.fraction, resolved.distinct)

    def add_gauges(self, frame: Frame, resolved: Resolved) -> None:
        g = frame.gauges
        self.gauges.add(frame.node, GaugeReport(frame.incarnation, frame.sequence, resolved.ids, g.values, g.at_ms))

    def check_sketches(self, frame: Frame, resolved: Resolved, series: int, layout: SketchLayout) -> None:
        """Raise FrameError if the frame's sketches would overflow a sum. The layout must hold them."""
        self._thaw(layout)
        self.sketches.reserve(series, layout)
        self.sketches.check(resolved.ids, frame.sketches.whole, resolved.distinct)

    def add_sketches(self, frame: Frame, resolved: Resolved, layout: SketchLayout) -> None:
        """After `check_sketches` of the same."""
        s = frame.sketches
        self._cells = None
        self.sketches.add(
            layout, resolved.ids, s.zero, s.whole, s.fraction, s.minimum, s.maximum, s.lengths, s.indices, s.counts,
            resolved.distinct,
        )  # fmt: skip

    def relayout(self, old: SketchLayout, new: SketchLayout) -> None:
        """Follow the partition's layout."""
        if self._frozen is None and len(self.sketches.counts):
            self.sketches.counts = old.moved(self.sketches.counts, new)

    def sketch_cells(self, layout: SketchLayout) -> SketchCells:
        if self._frozen is not None:
            return self._frozen
        if self._cells is None:
            self._cells = self.sketches.cells(layout)
        return self._cells

    def freeze(self, layout: SketchLayout) -> None:
        """Give the arrays of buckets back; they are wide and mostly zero."""
        if self._frozen is None:
            self._frozen, self._cells = self.sketch_cells(layout), None
            self.sketches = SketchSums()

    def _thaw(self, layout: SketchLayout) -> None:
        frozen, self._frozen = self._frozen, None
        if frozen is not None and len(frozen.ids):
            self.sketches.reserve(int(frozen.ids[-1]) + 1, layout)
            self.sketches.add_cells(layout, frozen)

    def pack(self, layout: SketchLayout) -> dict[str, Any]:
        """The window as plain values and bytes, for a snapshot."""
        c = self.counters.cells()
        s = self.sketch_cells(layout)
        return {
            "start_ms": self.start_ms,
            "revision": self.revision,
            "cause": self.cause,
            "expected": sorted(self.expected),
            "missing": sorted(self.missing),
            "dirty_ms": self.dirty_ms,
            "counters": [_raw(a) for a in (c.ids, c.whole, c.fraction)],
            "sketches": [
                _raw(a)
                for a in (s.ids, s.zero, s.whole, s.fraction, s.minimum, s.maximum, s.lengths, s.indices, s.counts)
            ],
            "gauges": [
                [node, r.incarnation, r.sequence, _raw(r.ids), _raw(r.values), _raw(r.at_ms)]
                for node, reports in sorted(self.gauges.by_node.items())
                for r in reports
            ],
        }

    @classmethod
    def unpack(cls, packed: dict[str, Any], counters: int) -> Window:
        """The inverse of `pack`, for a table of so many counters. The layout must hold the sketches before they are
        used (see `ranges`).
        """
        window = cls(packed["start_ms"])
        window.revision = packed["revision"]
        window.cause = packed["cause"]
        window.expected = set(packed["expected"])
        window.missing = set(packed["missing"])
        window.dirty_ms = packed["dirty_ms"]
        ids, whole, fraction = (_array(raw, t) for raw, t in zip(packed["counters"], ("i8", "i8", "u8"), strict=True))
        window.counters.reserve(counters)
        window.counters.add(ids, whole, fraction, distinct=True)
        types = ("i8", "i8", "i8", "u8", "f8", "f8", "u4", "i2", "i8")
        window._frozen = SketchCells(*(_array(raw, t) for raw, t in zip(packed["sketches"], types, strict=True)))
        for node, incarnation, sequence, g_ids, values, at_ms in packed["gauges"]:
            report = GaugeReport(incarnation, sequence, _array(g_ids, "i8"), _array(values, "f8"), _array(at_ms, "i8"))
            window.gauges.add(node, report)
        return window

    def ranges(self, layout: SketchLayout) -> tuple[I64, I64, I64]:
        """Ids with buckets, and the first and last bucket index of each."""
        cells = self.sketch_cells(layout)
        used, first, last = bucket_ranges(cells.lengths, cells.indices)
        return cells.ids[used], first, last

    def counter_cells(self) -> CounterCells:
        return self.counters.cells()


def _raw(values: np.ndarray[Any, np.dtype[Any]]) -> bytes:
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()


def _array(raw: bytes, dtype: str) -> Any:
    return np.frombuffer(raw, "<" + dtype)
