"""Exact sums, against Python's fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetmeter.proto import exact
from fleetmeter.proto.exact import ONE

few = settings(max_examples=150, deadline=None, derandomize=True)
values = st.one_of(
    st.floats(0, exact.MAX_VALUE), st.floats(0, 1e-15), st.sampled_from([0.0, 0.1, 2.0**-64, 2.0**-1074, 2.0**40])
)
signed = st.one_of(st.floats(-(2.0**62), 2.0**62), st.floats(-1e-10, 1e-10), st.sampled_from([-0.3, -1.0, -1e-30, 0.3]))


def units(value: float) -> int:
    """A value in units of 2^-64, rounded towards zero, by arithmetic without rounding."""
    return math.trunc(Fraction(value) * ONE)


@few
@given(st.lists(values, max_size=50))
def test_total_is_the_sum_without_rounding(some: list[float]) -> None:
    """A total is the sum of the values, each rounded to 2^-64, and nothing else is rounded."""
    assert exact.total(np.array(some, np.float64)) == sum(map(units, some))


@few
@given(st.lists(values, max_size=30), st.randoms(use_true_random=False), st.integers(0, 30))
def test_total_does_not_depend_on_order_or_grouping(some: list[float], rng: object, cut: int) -> None:
    """Values shuffled and summed in two groups have the same total, to the last bit."""
    shuffled = sorted(some, key=lambda _: rng.random())  # type: ignore[attr-defined]
    array = np.array(shuffled, np.float64)
    assert exact.total(array[:cut]) + exact.total(array[cut:]) == exact.total(np.array(some, np.float64))


def test_total_of_a_million_fractions_does_not_wrap() -> None:
    """Fractions whose sum is far beyond 64 bits add up."""
    some = np.full(1_000_000, 0.9999999)
    assert exact.total(some) == 1_000_000 * units(0.9999999)


def test_total_of_nothing_is_zero() -> None:
    """The sum of no values is 0."""
    assert exact.total(np.zeros(0)) == 0


@few
@given(st.lists(signed, max_size=20))
def test_split_is_exact(some: list[float]) -> None:
    """Whole and fraction of any double within the range give it back, but for what lies below 2^-64."""
    assert exact.to_units(*exact.split(np.array(some, np.float64))) == [units(value) for value in some]


@few
@given(st.lists(st.one_of(signed, st.floats(-1.0, 1.0)), max_size=20))
def test_split_and_back_is_the_same_double(some: list[float]) -> None:
    """A double that has no bits below 2^-64 survives the way there and back."""
    kept = [value for value in some if Fraction(value) * ONE == units(value)]
    assert exact.to_float(*exact.split(np.array(kept, np.float64))).tolist() == kept


@few
@given(st.lists(st.integers(-(1 << 126), (1 << 126)), max_size=20))
def test_columns_and_back(some: list[int]) -> None:
    """Any number in the range survives the way to columns and back, and its float is within 2 ulp."""
    whole, fraction = exact.columns(some)
    assert exact.to_units(whole, fraction) == some
    for value, approximate in zip(some, exact.to_float(whole, fraction).tolist(), strict=True):
        assert abs(Fraction(approximate) - Fraction(value, ONE)) <= 2 * Fraction(math.ulp(value / ONE))


def test_columns_refuse_what_is_out_of_range() -> None:
    """A number of 2^63 or more has no column."""
    with pytest.raises(OverflowError):
        exact.columns([1 << 127])


@few
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1 << 80)), max_size=30))
def test_adding_at_ids_carries(some: list[tuple[int, int]]) -> None:
    """Columns added at distinct or repeated ids are sums of whole numbers in units of 2^-64."""
    expected = [sum(u for i, u in some if i == at) for at in range(5)]
    one_by_one = np.zeros(5, np.int64), np.zeros(5, np.uint64)
    for i, u in some:
        exact.add_at(*one_by_one, np.array([i]), *exact.columns([u]))
    together = np.zeros(5, np.int64), np.zeros(5, np.uint64)
    if some:
        ids, all_units = zip(*some, strict=True)
        exact.add_at_repeated(*together, np.array(ids), *exact.columns(list(all_units)))
    assert exact.to_units(*one_by_one) == exact.to_units(*together) == expected


def test_absent_fraction_means_zero() -> None:
    """A column without fractions adds whole numbers."""
    sums = np.zeros(2, np.int64), np.full(2, 1 << 63, np.uint64)
    exact.add_at(*sums, np.array([1]), np.array([3]), None)
    exact.add_at_repeated(*sums, np.array([1, 1]), np.array([1, 1]), None)
    assert exact.to_float(*sums).tolist() == [0.5, 5.5]
