"""Tallies: exact, mergeable, and cut into columns that an aggregator accepts."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.frames import T0, key, tally

from fleetmeter.emitter.tally import Tally, distribution, distributions, is_number, totals, valid
from fleetmeter.proto import exact
from fleetmeter.proto.columns import (
    MAX_COUNT,
    pack_counters,
    pack_gauges,
    pack_sketches,
    unpack_counters,
    unpack_gauges,
    unpack_sketches,
)
from fleetmeter.proto.exact import ONE
from fleetmeter.proto.keys import partition_of
from fleetmeter.proto.sketch import Sketch

few = settings(max_examples=100, deadline=None, derandomize=True)
KEYS = [key("a_total", x=str(i)) for i in range(4)]
values = st.one_of(st.floats(0, exact.MAX_VALUE), st.sampled_from([0.0, 1.0, 5e-324, 2.0**-1022, 2.0**40, 0.3]))
runs = st.lists(st.lists(values, min_size=1, max_size=12), max_size=8)


@st.composite
def tallies(draw: st.DrawFn) -> Tally:
    return tally(
        draw(st.dictionaries(st.sampled_from(KEYS), st.floats(0, 1e12), max_size=4)),
        draw(st.dictionaries(st.sampled_from(KEYS), st.tuples(st.floats(-9, 9), st.integers(T0, T0 + 3)), max_size=4)),
        draw(st.dictionaries(st.sampled_from(KEYS), st.lists(values, min_size=1, max_size=6), max_size=4)),
    )


def content(one: Tally) -> tuple[object, ...]:
    """A tally as plain values, comparable."""
    sketches = {
        k: (d.zero, d.units, d.minimum, d.maximum, d.indices.tolist(), d.counts.tolist())
        for k, d in one.sketches.items()
    }
    return one.counters, one.gauges, sketches


def merged(*some: Tally) -> Tally:
    result = Tally()
    for one in some:
        result.merge(one)
    return result


@few
@given(runs)
def test_distributions_are_those_of_one_value_after_the_other(some: list[list[float]]) -> None:
    """All runs at once give what a sketch gives that sees each value, sums to the last bit."""
    flat = np.array([value for run in some for value in run], np.float64)
    lengths = np.array([len(run) for run in some], np.int64)
    for run, found in zip(some, distributions(flat, lengths), strict=True):
        sketch = Sketch()
        for value in run:
            sketch.record(value)
        assert (found.zero, found.units, found.minimum, found.maximum) == (
            sketch.zero,
            sketch.units,
            sketch.minimum,
            sketch.maximum,
        )
        assert dict(zip(found.indices.tolist(), found.counts.tolist(), strict=True)) == sketch.buckets
        assert found.indices.tolist() == sorted(sketch.buckets)
    assert totals(flat, lengths) == [exact.total(np.array(run)) for run in some]


def test_wide_distributions_are_counted_by_sorting() -> None:
    """Values over the whole range of doubles, in few runs or many, are counted without an array of all buckets."""
    rng = random.Random(1)
    some = [[2.0 ** rng.uniform(-1022, 40) for _ in range(20)] for _ in range(300)]
    flat = np.array([value for run in some for value in run])
    for run, found in zip(some, distributions(flat, np.full(300, 20)), strict=True):
        alone = distribution(np.array(run))
        assert (found.indices.tolist(), found.counts.tolist()) == (alone.indices.tolist(), alone.counts.tolist())
        assert found.counts.sum() == 20


def test_negative_zero_is_recorded_as_zero() -> None:
    """-0.0 passes as a value, and its minimum is 0.0, which frames take."""
    made = Tally()
    made.observe(KEYS[0], [np.array([-0.0, 1.0])])
    assert str(made.sketches[KEYS[0]].minimum) == "0.0"
    unpack_sketches(pack_sketches(made.sketch_columns()))


@few
@given(tallies(), tallies(), tallies())
def test_merging_is_exact_and_associative(a: Tally, b: Tally, c: Tally) -> None:
    """Grouping of merges changes nothing, and the parts of a merge are not changed."""
    before = content(b), content(c)
    right = merged(a, merged(b, c))
    assert content(merged(merged(a, b), c)) == content(right)
    assert (content(b), content(c)) == before
    for series in right.counters:
        assert right.counters[series] == sum(one.counters.get(series, 0) for one in (a, b, c))


def test_of_two_gauges_the_one_set_later_stays() -> None:
    """The time decides, not the order of the merge; at the same time the later tally does."""
    old, new = tally(gauges={KEYS[0]: (1.0, 5)}), tally(gauges={KEYS[0]: (2.0, 6)})
    assert merged(old, new).gauges[KEYS[0]] == merged(new, old).gauges[KEYS[0]] == (2.0, 6)
    assert merged(new, tally(gauges={KEYS[0]: (3.0, 6)})).gauges[KEYS[0]] == (3.0, 6)


@few
@given(tallies(), st.integers(1, 5))
def test_split_by_partition_loses_nothing(one: Tally, partitions: int) -> None:
    """Each series is in the tally of its partition, and together they are the whole."""
    before = content(one)
    parts = one.split(partitions)
    assert len(parts) == partitions
    for partition, part in enumerate(parts):
        for series in (*part.counters, *part.gauges, *part.sketches):
            assert partition_of(series, partitions) == partition
    together = content(merged(*parts))
    assert together == before


@few
@given(tallies())
def test_halves_are_smaller_and_lose_nothing(one: Tally) -> None:
    """Two halves merge to the whole, and neither is the whole while there are two series."""
    before, n = content(one), one.series
    first, second = one.halves()
    assert abs(first.series - second.series) <= 1 and first.series + second.series == n
    assert content(merged(first, second)) == before


@few
@given(tallies())
def test_columns_pass_the_checks_of_an_aggregator(one: Tally) -> None:
    """Whatever was recorded is accepted, and means the same."""
    counters = unpack_counters(pack_counters(one.counter_columns()))
    gauges = unpack_gauges(pack_gauges(one.gauge_columns()))
    sketches = unpack_sketches(pack_sketches(one.sketch_columns()))
    fraction = counters.fraction if counters.fraction is not None else np.zeros(len(counters.whole), np.uint64)
    assert dict(zip(counters.key_list(), exact.to_units(counters.whole, fraction), strict=True)) == one.counters
    assert gauges.values.tolist() == [value for value, _ in one.gauges.values()]
    assert sketches.key_list() == list(one.sketches)
    assert int(sketches.counts.sum()) == sum(int(d.counts.sum()) for d in one.sketches.values())


@pytest.mark.parametrize("part", ["counts", "zero", "sum", "counter"])
def test_merges_past_a_frames_limits_are_seen_before(part: str) -> None:
    """`fits_u32` refuses a merge whose bucket, zero count, sum or counter no frame could carry, and only that."""
    one, two = (tally({KEYS[0]: 1}, None, {KEYS[0]: [0.0, 1.0]}) for _ in range(2))
    assert one.fits_u32(two)
    sketch = one.sketches[KEYS[0]]
    if part == "counts":
        sketch.counts = np.array([MAX_COUNT])
    elif part == "zero":
        sketch.zero = MAX_COUNT
    elif part == "sum":
        sketch.units = exact.MAX_DELTA * ONE
    else:
        one.counters[KEYS[0]] = exact.MAX_DELTA * ONE
    assert not one.fits_u32(two)
    assert one.fits_u32(tally({KEYS[1]: 1}))


def test_counting_zero_makes_a_series_known() -> None:
    """A counter with increment 0 is in the frame."""
    made = Tally()
    made.count(KEYS[0], 0)
    assert made.counter_columns().key_list() == [KEYS[0]]


def test_observing_nothing_adds_nothing() -> None:
    """A series without values has no distribution."""
    made = Tally()
    made.observe(KEYS[0], [np.zeros(0)])
    assert not made.sketches and made.series == 0


def test_size_grows_with_content() -> None:
    """The estimate counts keys, series and buckets."""
    small, large = tally({KEYS[0]: 1}), tally(dict.fromkeys(KEYS, 1), None, {KEYS[0]: [2.0**i for i in range(40)]})
    assert 0 < small.size() < large.size()


def test_valid_values() -> None:
    """Negative, infinite, undefined and absurd values are no values."""
    some = np.array([0.0, -0.0, 1e-300, 2.0**40, -1e-300, 2.0**41, np.inf, -np.inf, np.nan])
    assert valid(some).tolist() == [True, True, True, True, False, False, False, False, False]


@pytest.mark.parametrize(
    ("value", "good"),
    [
        (0, True), (-1.5, True), (True, True), (1 << 62, True), (np.float64(2), True), (float("nan"), False),
        (float("inf"), False), (1 << 63, False), (10**400, False), ("1", False), (None, False), (1j, False),
        (Fraction(1, 2), False),
    ],
)  # fmt: skip
def test_numbers_that_a_gauge_may_hold(value: object, good: bool) -> None:
    """Finite ints and floats within the limit, however large the int that is not."""
    assert bool(is_number(value)) is good
