"""The merge kernel: the same sums in any order, in any layout."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetmeter.aggregator import kernel
from fleetmeter.aggregator.kernel import (
    CounterSums,
    GaugeReport,
    GaugeReports,
    SketchLayout,
    SketchSums,
    bucket_ranges,
    check_sums,
    grown,
)
from fleetmeter.emitter.tally import Tally
from fleetmeter.proto import exact
from fleetmeter.proto.columns import SketchColumns
from fleetmeter.proto.errors import FrameError
from fleetmeter.proto.exact import MAX_TOTAL, ONE
from fleetmeter.proto.sketch import Sketch

few = settings(max_examples=60, deadline=None, derandomize=True)
values = st.one_of(st.floats(0, 1e12), st.sampled_from([0.0, 1.0, 1e-300, 2.0**40, 5e-324]))
Frame = dict[int, list[float]]  # recorded values by series id
frames = st.lists(st.dictionaries(st.integers(0, 6), st.lists(values, min_size=1, max_size=5), max_size=5), max_size=8)


def columns(frame: Frame) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], SketchColumns]:
    tally = Tally()
    for i, recorded in frame.items():
        tally.observe(str(i).encode(), [np.array(recorded, np.float64)])
    return np.array(list(frame), np.int64), tally.sketch_columns()


def merged(some: Sequence[Frame], distinct: bool = True) -> dict[int, Sketch]:
    """All frames added, each after the layout was made to hold it, read back through cells."""
    layout, sums = SketchLayout(), SketchSums()
    for frame in some:
        ids, c = columns(frame)
        used, first, last = bucket_ranges(c.lengths, c.indices)
        wider = layout.wider(7, ids[used], first, last)
        if wider is not None:
            if len(sums.counts):
                sums.counts = layout.moved(sums.counts, wider)
            layout = wider
        sums.reserve(7, layout)
        sums.check(ids, c.whole, distinct)
        sums.add(
            layout, ids, c.zero, c.whole, c.fraction, c.minimum, c.maximum, c.lengths, c.indices, c.counts, distinct
        )
    cells = sums.cells(layout)
    # Cells added to an empty accumulator are the same cells.
    again = SketchSums()
    again.reserve(7, layout)
    if len(cells.ids):
        again.add_cells(layout, cells)
    other = again.cells(layout)
    for field in ("ids", "zero", "whole", "fraction", "minimum", "maximum", "lengths", "indices", "counts"):
        assert getattr(other, field).tobytes() == getattr(cells, field).tobytes(), field
    found, end = {}, 0
    for i, at in enumerate(cells.ids.tolist()):
        start, end = end, end + int(cells.lengths[i])
        buckets = dict(zip(cells.indices[start:end].tolist(), cells.counts[start:end].tolist(), strict=True))
        units = (int(cells.whole[i]) << 64) + int(cells.fraction[i])
        zero = int(cells.zero[i])
        found[at] = Sketch(
            zero + sum(buckets.values()), units, float(cells.minimum[i]), float(cells.maximum[i]), zero, buckets
        )
    return found


@few
@given(frames, st.randoms(use_true_random=False))
def test_sketches_merge_to_those_of_all_values(some: list[Frame], rng: random.Random) -> None:
    """Whatever the order of frames and the layouts on the way, each series is the sketch of its values."""
    expected: dict[int, Sketch] = {}
    for frame in some:
        for i, recorded in frame.items():
            for value in recorded:
                expected.setdefault(i, Sketch()).record(value)
    shuffled = list(some)
    rng.shuffle(shuffled)
    assert merged(some) == merged(shuffled) == expected
    assert merged(some, distinct=False) == expected


def test_repeated_ids_add_up_within_a_frame() -> None:
    """Several series of a frame that fold into one are all in it."""
    layout, sums = SketchLayout(), SketchSums()
    _, c = columns({0: [1.0, 0.0], 1: [8.0], 2: [1.0]})
    ids = np.zeros(3, np.int64)
    used, first, last = bucket_ranges(c.lengths, c.indices)
    layout = layout.wider(1, ids[used], first, last) or layout
    sums.reserve(1, layout)
    sums.add(layout, ids, c.zero, c.whole, c.fraction, c.minimum, c.maximum, c.lengths, c.indices, c.counts, False)
    cells = sums.cells(layout)
    assert (cells.zero.tolist(), cells.whole.tolist(), cells.minimum.tolist(), cells.maximum.tolist()) == (
        [1],
        [10],
        [0.0],
        [8.0],
    )
    assert (cells.indices.tolist(), cells.counts.tolist()) == ([-1, 95], [2, 1])


def test_series_without_buckets_take_no_slots() -> None:
    """Zero-only sketches between others are read back as such."""
    found = merged([{0: [0.0], 1: [1.0], 2: [0.0], 5: [3.0], 6: [0.0]}])
    assert [len(found[i].buckets) for i in (0, 1, 2, 5, 6)] == [0, 1, 0, 1, 0]


def test_layout_that_holds_everything_stays() -> None:
    """No wider layout is made for what fits, and rows keep some spare."""
    layout = SketchLayout().wider(2, np.array([0]), np.array([10]), np.array([20]))
    assert layout is not None
    assert layout.wider(2, np.array([0]), np.array([9]), np.array([21])) is None
    assert layout.wider(2, np.array([0]), np.array([-5000]), np.array([-5000])) is not None
    assert layout.wider(3, np.array([2]), np.array([0]), np.array([0])) is not None


def test_layout_past_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that would take too many slots are an error, and the layout stays."""
    monkeypatch.setattr(kernel, "MAX_SLOTS", 1000)
    layout = SketchLayout()
    with pytest.raises(FrameError) as caught:
        layout.wider(1, np.array([0]), np.array([-32705]), np.array([32767]))
    assert caught.value.reason == "sketch_capacity"
    assert layout.slots == 0


def test_bucket_ranges_skip_empty_rows() -> None:
    """First and last indices are those of rows that have buckets."""
    used, first, last = bucket_ranges(np.array([0, 2, 0, 1], np.uint32), np.array([3, 9, -4], np.int16))
    assert (used.tolist(), first.tolist(), last.tolist()) == ([False, True, False, True], [3, -4], [9, -4])


@few
@given(st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1 << 70)), max_size=6), max_size=6))
def test_counters_add_exactly(some: list[list[tuple[int, int]]]) -> None:
    """Sums of frames, with repeated ids or not, are those of whole numbers; cells hold what was added, and no more."""
    sums = CounterSums()
    expected: dict[int, int] = {}
    for frame in some:
        ids = [i for i, _ in frame]
        sums.reserve(5)
        whole, fraction = exact.columns([u for _, u in frame]) if frame else (np.zeros(0, np.int64), None)
        sums.add(np.array(ids, np.int64), whole, fraction, distinct=len(set(ids)) == len(ids))
        for i, u in frame:
            expected[i] = expected.get(i, 0) + u
    cells = sums.cells()
    assert dict(zip(cells.ids.tolist(), exact.to_units(cells.whole, cells.fraction), strict=True)) == expected
    assert sums.most == max((u // ONE for u in expected.values()), default=0)


def test_sums_past_the_limit_are_refused_together() -> None:
    """The limit holds for all accumulators and all rows of an id together, and refuses nothing below it."""
    one, two = CounterSums(), CounterSums()
    for sums, amount in ((one, MAX_TOTAL - 10), (two, 4)):
        sums.reserve(3)
        sums.add(np.array([2]), np.array([amount]), None, distinct=True)
    check_sums([one, two], np.array([1, 0]), np.array([1 << 53, 1 << 53]))
    check_sums([one, two], np.array([2, 5]), np.array([6, 1]))
    with pytest.raises(FrameError) as caught:
        check_sums([one, two], np.array([2] * 5000), np.array([1] * 5000))
    assert caught.value.reason == "overflow"
    check_sums([one], np.zeros(0, np.int64), np.zeros(0, np.int64))


def test_growing_keeps_what_is_there() -> None:
    """A larger array begins with the old one and is filled with the given value."""
    old = np.array([1.0, 2.0])
    assert grown(old, 2) is old
    new = grown(old, 3, np.inf)
    assert new[:2].tolist() == [1.0, 2.0] and np.isinf(new[2:]).all() and len(new) >= 3


def report(
    ids: list[int], values: list[float], at_ms: list[int], sequence: int = 1, incarnation: int = 1
) -> GaugeReport:
    return GaugeReport(incarnation, sequence, np.array(ids, np.int64), np.array(values), np.array(at_ms, np.int64))


def test_gauges_merge_over_nodes_in_any_order() -> None:
    """Sum, extremes, the value set last and the number of nodes; ties of time go to the greater value."""
    reports = [
        ("a", report([0, 1], [1.5, -3.0], [5, 5])),
        ("b", report([1, 0], [7.0, -2.5], [5, 9])),
        ("c", report([1], [6.0], [5])),
    ]
    for order in (reports, reports[::-1]):
        gauges = GaugeReports()
        for node, one in order:
            gauges.add(node, one)
        cells = gauges.cells()
        assert cells.ids.tolist() == [0, 1]
        assert exact.to_float(cells.whole, cells.fraction).tolist() == [-1.0, 10.0]
        assert (cells.minimum.tolist(), cells.maximum.tolist()) == ([-2.5, -3.0], [1.5, 7.0])
        assert (cells.last.tolist(), cells.last_ms.tolist(), cells.nodes.tolist()) == ([-2.5, 7.0], [9, 5], [2, 3])


def test_newest_report_counts_for_each_series() -> None:
    """By incarnation and sequence, whatever the order of arrival; a series that the newest lacks keeps its value."""
    gauges = GaugeReports()
    gauges.add("a", report([0, 1], [3.0, 30.0], [1, 1], sequence=1, incarnation=2))
    gauges.add("a", report([0, 2], [1.0, 10.0], [9, 9], sequence=7, incarnation=1))
    gauges.add("a", report([0], [2.0], [1], sequence=2, incarnation=2))
    cells = gauges.cells()
    assert dict(zip(cells.ids.tolist(), cells.last.tolist(), strict=True)) == {0: 2.0, 1: 30.0, 2: 10.0}
    assert cells.nodes.tolist() == [1, 1, 1]


def test_no_gauges_are_no_cells() -> None:
    """Nothing reported is nothing published, and an empty report neither."""
    gauges = GaugeReports()
    assert len(gauges.cells().ids) == 0
    gauges.add("a", report([], [], []))
    gauges.add("a", report([], [], [], sequence=2))
    assert len(gauges.cells().ids) == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_gauge_sum_stops_at_its_limit(sign: int) -> None:
    """Absurd values do not wrap around to the other sign."""
    gauges = GaugeReports()
    for node in "abc":
        gauges.add(node, report([0, 1], [sign * float(MAX_TOTAL), 1.0], [1, 1]))
    cells = gauges.cells()
    assert cells.whole.tolist() == [sign * MAX_TOTAL, 3]
    assert cells.maximum[0] == sign * float(MAX_TOTAL)
