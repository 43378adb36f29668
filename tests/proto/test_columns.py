"""Columns: to bytes and back, and checked so well that the merge need not look again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.frames import T0, key, tally

from fleetmeter.proto import columns
from fleetmeter.proto.columns import (
    join_keys,
    pack_counters,
    pack_gauges,
    pack_sketches,
    split_keys,
    unpack_counters,
    unpack_gauges,
    unpack_sketches,
)
from fleetmeter.proto.errors import FrameError
from fleetmeter.proto.exact import MAX_DELTA, MAX_TOTAL

few = settings(max_examples=100, deadline=None, derandomize=True)
KEYS = [key("a"), key("a", x="1"), key("b", x="\n")]
Unpack = Callable[[list[bytes]], object]


@few
@given(st.dictionaries(st.sampled_from(KEYS), st.lists(st.floats(0, 1e12), min_size=1, max_size=9), min_size=1))
def test_columns_and_back(some: dict[bytes, list[float]]) -> None:
    """Counters, gauges and sketches of any values survive the way to bytes and back, and pass the checks."""
    content = tally({k: v[0] for k, v in some.items()}, {k: (-v[0], T0) for k, v in some.items()}, some)
    counters, gauges, sketches = content.counter_columns(), content.gauge_columns(), content.sketch_columns()
    assert pack_counters(unpack_counters(pack_counters(counters))) == pack_counters(counters)
    assert pack_gauges(unpack_gauges(pack_gauges(gauges))) == pack_gauges(gauges)
    assert pack_sketches(unpack_sketches(pack_sketches(sketches))) == pack_sketches(sketches)
    assert counters.key_list() == list(some)


@few
@given(st.lists(st.sampled_from(KEYS)))
def test_keys_joined_and_split(some: list[bytes]) -> None:
    """A column of keys is split as it was joined; none is empty bytes."""
    assert split_keys(join_keys(some)) == some


def test_no_columns_are_empty_columns() -> None:
    """A frame without a kind of columns has empty ones."""
    assert unpack_counters([]) is columns.NO_COUNTERS
    assert unpack_gauges([]) is columns.NO_GAUGES
    assert unpack_sketches([]) is columns.NO_SKETCHES


def test_fractions_that_are_all_zero_take_no_bytes() -> None:
    """Whole numbers travel without a fraction column."""
    whole = pack_counters(tally({KEYS[0]: 3, KEYS[1]: 7}).counter_columns())
    mixed = pack_counters(tally({KEYS[0]: 3, KEYS[1]: 0.5}).counter_columns())
    assert (whole[2], len(mixed[2])) == (b"", 16)
    assert unpack_counters(whole).fraction is None


def counters(whole: list[int], fraction: bytes = b"") -> list[bytes]:
    return [b"a", np.array(whole, "<i8").tobytes(), fraction]


def gauges(values: list[float], at_ms: list[int]) -> list[bytes]:
    return [b"a", np.array(values, "<f8").tobytes(), np.array(at_ms, "<i8").tobytes()]


def sketches(**changes: Any) -> list[bytes]:
    """Two sketches: 1.0 and 4.0, and a zero with 2.0; with some columns otherwise."""
    columns: dict[str, Any] = {
        "keys": b"a\xfdb",
        "zero": np.array([0, 1], "<i8"),
        "whole": np.array([5, 2], "<i8"),
        "fraction": b"",
        "minimum": np.array([1.0, 0.0]),
        "maximum": np.array([4.0, 2.0]),
        "lengths": np.array([2, 1], "<u4"),
        "indices": np.array([-1, 63, 31], "<i2"),
        "counts": np.array([1, 1, 1], "<u4"),
    }
    for name, (at, value) in changes.items():
        columns[name] = columns[name].copy()
        columns[name][at] = value
    return [raw if isinstance(raw, bytes) else raw.tobytes() for raw in columns.values()]


def test_sketches_that_the_next_tests_break_are_right() -> None:
    """The columns that are broken below pass as they are."""
    assert unpack_sketches(sketches()).key_list() == [b"a", b"b"]


@pytest.mark.parametrize(
    ("unpack", "raw", "reason"),
    [
        (unpack_counters, [b"a", bytes(8)], "length"),
        (unpack_counters, [b"a", bytes(7), b""], "length"),
        (unpack_counters, [b"a", bytes(8), bytes(16)], "length"),
        (unpack_counters, counters([-1]), "negative_counter"),
        (unpack_counters, counters([MAX_DELTA + 1]), "range"),
        (unpack_gauges, [b"a", bytes(8), bytes(8), bytes(8)], "length"),
        (unpack_gauges, gauges([1.0], [1, 2]), "length"),
        (unpack_gauges, gauges([float("nan")], [1]), "not_finite"),
        (unpack_gauges, gauges([float("-inf")], [1]), "not_finite"),
        (unpack_gauges, gauges([MAX_TOTAL * 1.1], [1]), "range"),
        (unpack_gauges, gauges([1.0], [-1]), "range"),
        (unpack_gauges, gauges([1.0], [columns.MAX_TIME_MS + 1]), "range"),
        (unpack_sketches, sketches()[:-1], "length"),
        (unpack_sketches, sketches(lengths=(0, 3)), "length"),
        (unpack_sketches, sketches(zero=(0, -1)), "sketch"),
        (unpack_sketches, sketches(zero=(1, columns.MAX_COUNT + 1)), "sketch"),
        (unpack_sketches, sketches(whole=(0, -1)), "sketch"),
        (unpack_sketches, sketches(whole=(0, MAX_DELTA + 1)), "range"),
        (unpack_sketches, sketches(minimum=(0, float("nan"))), "not_finite"),
        (unpack_sketches, sketches(maximum=(0, float("inf"))), "not_finite"),
        (unpack_sketches, sketches(minimum=(0, -1.0)), "sketch"),
        (unpack_sketches, sketches(minimum=(1, -0.0)), "sketch"),
        (unpack_sketches, sketches(minimum=(0, 0.5)), "sketch"),  # below the first bucket
        (unpack_sketches, sketches(minimum=(0, 0.0)), "sketch"),  # zero without a zero count
        (unpack_sketches, sketches(minimum=(1, 2.0)), "sketch"),  # no zero in spite of a zero count
        (unpack_sketches, sketches(minimum=(0, 5.0)), "sketch"),
        (unpack_sketches, sketches(maximum=(0, 5.0)), "sketch"),
        (unpack_sketches, sketches(maximum=(0, 3.0)), "sketch"),
        (unpack_sketches, sketches(indices=(1, -1)), "sketch"),
        (unpack_sketches, sketches(indices=(1, -5)), "sketch"),
        (unpack_sketches, sketches(indices=(2, 32)), "sketch"),
        (unpack_sketches, sketches(counts=(1, 0)), "sketch"),
        (unpack_sketches, sketches(lengths=(slice(None), [3, 0])), "sketch"),  # the second has a maximum, no bucket
    ],
)
def test_columns_that_are_wrong_are_refused(unpack: Unpack, raw: list[bytes], reason: str) -> None:
    """Lengths that do not fit, numbers out of range and sketches that contradict themselves have their reasons."""
    with pytest.raises(FrameError) as caught:
        unpack(raw)
    assert caught.value.reason == reason


def test_limits_themselves_are_taken() -> None:
    """The largest increment, gauge and time pass."""
    unpack_counters(counters([MAX_DELTA]))
    unpack_gauges(gauges([float(MAX_TOTAL)], [columns.MAX_TIME_MS]))
    unpack_gauges(gauges([-float(MAX_TOTAL)], [0]))


def test_views_are_not_writable() -> None:
    """Unpacked arrays are views of the message, and can't change it."""
    with pytest.raises(ValueError, match="read-only"):
        unpack_counters(counters([1])).whole[0] = 2
