"""The sketch: bucket indices to the bit, and quantiles within their bound."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetmeter.proto.errors import SketchError
from fleetmeter.proto.exact import ONE, total
from fleetmeter.proto.sketch import (
    MAX_INDEX,
    MIN_INDEX,
    RELATIVE_ERROR,
    SMALLEST_NORMAL,
    Sketch,
    index_of,
    lower_bound,
    midpoint,
    quantile,
    rank_of,
    upper_bound,
)

few = settings(max_examples=200, deadline=None, derandomize=True)
QUANTILES = (0.0, 0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)
Values = npt.NDArray[np.float64]


def true_index(value: float) -> int:
    """The index of the bucket (2^(i/32), 2^((i+1)/32)] that holds `value`, by arithmetic without rounding."""
    power = Fraction(value) ** 32  # value <= 2^((i+1)/32) just when value^32 <= 2^(i+1)
    i = math.frexp(value)[1] * 32
    while Fraction(2) ** i >= power:
        i -= 1
    return i


@few
@given(st.floats(SMALLEST_NORMAL, 1e308))
def test_index_is_that_of_the_bucket_that_holds_the_value(value: float) -> None:
    """Each value lies in its bucket, exactly, and so do its neighbours."""
    for one in (value, math.nextafter(value, math.inf), math.nextafter(value, 1.0)):
        assert int(index_of(np.array([one]))[0]) == true_index(one)


def test_values_around_each_bound_of_an_octave() -> None:
    """The doubles next to each bound fall on the right side of it."""
    for k in range(32):
        bound = 2.0 ** (k / 32)
        near = [bound, *(math.nextafter(bound, up) for up in (0.0, 2.0))]
        assert index_of(np.array(near)).tolist() == [true_index(value) for value in near]


@pytest.mark.parametrize("exponent", [-1022, -1021, -64, -1, 0, 1, 10, 40, 1023])
def test_power_of_two_is_an_inclusive_upper_bound(exponent: int) -> None:
    """2^e is the upper bound of bucket 32e - 1, and the next double lies in the one after."""
    value = 2.0**exponent
    assert index_of(np.array([value, math.nextafter(value, math.inf)])).tolist() == [32 * exponent - 1, 32 * exponent]
    assert upper_bound(32 * exponent - 1) == value


def test_range_of_indices() -> None:
    """The smallest normal double and the largest double have the least and the greatest index."""
    assert index_of(np.array([SMALLEST_NORMAL, np.finfo(np.float64).max])).tolist() == [MIN_INDEX, MAX_INDEX]
    assert np.iinfo(np.int16).max == MAX_INDEX
    assert upper_bound(MAX_INDEX) == math.inf
    assert math.isfinite(midpoint(MAX_INDEX))


@pytest.mark.parametrize("index", [MIN_INDEX + 1, -3200, -33, -32, -1, 0, 1, 31, 32, 1000, MAX_INDEX - 1])
def test_midpoint_is_within_the_bound_of_both_ends(index: int) -> None:
    """The value that stands for a bucket is within the relative error of everything in it."""
    low, high = lower_bound(index), upper_bound(index)
    assert low < midpoint(index) < high
    assert abs(midpoint(index) / low - 1) <= RELATIVE_ERROR
    assert abs(midpoint(index) / high - 1) <= RELATIVE_ERROR
    assert RELATIVE_ERROR < 0.0109


def distributions(n: int) -> dict[str, Values]:
    rng = np.random.default_rng(n)
    return {
        "uniform": rng.uniform(0.001, 1.0, n),
        "uniform from 0": rng.uniform(0.0, 1e-9, n),
        "wide": 10.0 ** rng.uniform(-9, 12, n),
        "lognormal": rng.lognormal(-1, 1.5, n),
        "narrow lognormal": rng.lognormal(0, 0.01, n),
        "exponential": rng.exponential(0.3, n),
        "pareto": rng.pareto(1.1, n) + 1e-3,
        "weibull": rng.weibull(0.5, n),
        "gamma": rng.gamma(0.3, 2.0, n),
        "normal": np.abs(rng.normal(5.0, 2.0, n)),
        "bimodal": np.where(rng.random(n) < 0.9, rng.normal(0.05, 0.002, n), rng.normal(30.0, 1.0, n)).clip(1e-9),
        "constant": np.full(n, 0.123456789),
        "two values": rng.choice([1e-9, 1e12], n),
        "zeros mixed in": np.where(rng.random(n) < 0.3, 0.0, rng.lognormal(0, 1, n)),
        "mostly zeros": np.where(rng.random(n) < 0.97, 0.0, 5.0),
        "all zeros": np.zeros(n),
        "powers of two": 2.0 ** rng.integers(-30, 40, n),
        "whole numbers": rng.integers(0, 5000, n).astype(np.float64),
        "ascending": np.linspace(1.0, 2.0, n),
    }


NAMES = list(distributions(1))


def sketch_of(values: Values) -> Sketch:
    """By numpy, as an emitter does; `Sketch.record` is checked against it elsewhere."""
    positive = values[values >= SMALLEST_NORMAL]
    indices, counts = np.unique(index_of(positive), return_counts=True)
    buckets = dict(zip(indices.tolist(), counts.tolist(), strict=True))
    return Sketch(
        len(values), total(values), float(values.min()), float(values.max()), len(values) - len(positive), buckets
    )


@pytest.mark.parametrize("n", [1, 2, 3, 10, 97, 1000, 30_000])
@pytest.mark.parametrize("name", NAMES)
def test_quantiles_are_within_the_bound(name: str, n: int) -> None:
    """Every quantile is within the relative error of the exact one (nearest rank); minimum and maximum are exact."""
    values = distributions(n)[name]
    sketch, ranked = sketch_of(values), np.sort(values)
    for q in QUANTILES:
        true = float(ranked[max(1, math.ceil(Fraction(str(q)) * n)) - 1])
        assert abs(sketch.quantile(q) - true) <= RELATIVE_ERROR * true, q
    assert (sketch.quantile(0.0), sketch.quantile(1.0)) == (ranked[0], ranked[-1])


@few
@given(st.lists(st.one_of(st.floats(0, 1e12), st.sampled_from([0.0, 1.0, 5e-324])), max_size=30), st.integers(0, 30))
def test_merge_is_the_sketch_of_all(values: list[float], cut: int) -> None:
    """Sketches of two halves, merged either way round, are the sketch of the whole, sums to the last bit."""
    whole, first, second = Sketch(), Sketch(), Sketch()
    for i, value in enumerate(values):
        whole.record(value)
        (first if i < cut else second).record(value)
    again = Sketch()
    again.merge(second)
    again.merge(first)
    first.merge(second)
    assert first == again == whole
    assert whole.units == sum(math.floor(Fraction(value) * ONE) for value in values)
    if values:
        assert whole == sketch_of(np.array(values))


def test_empty_sketch_has_no_quantiles() -> None:
    """Without values, quantiles and the mean are NaN, and count and sum 0."""
    empty = Sketch()
    assert math.isnan(empty.quantile(0.5)) and math.isnan(empty.mean)
    assert (empty.count, empty.sum) == (0, 0.0)


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan, math.inf])
def test_quantile_out_of_range_is_refused(q: float) -> None:
    """A quantile outside 0…1 is an error that names it."""
    with pytest.raises(SketchError, match=repr(q).replace(".", r"\.")):
        Sketch(count=1).quantile(q)


@pytest.mark.parametrize("value", [-1.0, -5e-324, math.nan, math.inf, -math.inf])
def test_value_that_a_sketch_cannot_hold_is_refused(value: float) -> None:
    """Negative, infinite and undefined values raise, and change nothing."""
    sketch = Sketch()
    with pytest.raises(SketchError):
        sketch.record(value)
    assert sketch == Sketch()


@pytest.mark.parametrize(
    ("q", "count", "rank"), [(0.95, 20, 19), (0.5, 4, 2), (0.5, 5, 3), (0.29, 100, 29), (0.0, 9, 0), (1.0, 9, 9)]
)
def test_rank_is_free_of_float_error(q: float, count: int, rank: int) -> None:
    """The rank is that of the decimal quantile, though 0.29 * 100 is a little more than 29 in doubles."""
    assert rank_of(q, count) == rank


def test_quantile_of_columns_reads_the_right_bucket() -> None:
    """Ranks count zeros first, then buckets in order."""
    indices, counts = np.array([0, 32], np.int16), np.array([2, 2])
    found = [quantile(q / 8, 8, 4, 0.0, 4.0, indices, counts) for q in range(1, 9)]
    assert found[:4] == [0.0] * 4
    assert found[4:] == [midpoint(0), midpoint(0), midpoint(32), 4.0]
