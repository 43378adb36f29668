"""Columns: many series' deltas as a few little-endian arrays, so that they are packed, checked and merged by numpy.

`CounterColumns`, `GaugeColumns` and `SketchColumns` are what frames carry (shapes below; n series, b buckets in all);
`pack` and
`unpack` are the way to and from bytes. Unpacking checks everything that can be checked without knowing the series:
lengths, ranges, order. A column that passes can be merged without another look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import exact
from .errors import FrameError
from .exact import F64, I16, I64, U32, U64
from .keys import KEY_SEP
from .sketch import MIN_INDEX, SMALLEST_NORMAL, index_of

#: Largest timestamp that is taken, ms: the year 10889. Keeps arithmetic on times far from int64's end.
MAX_TIME_MS = 1 << 48
#: Most values of one bucket, or of the zero bucket, in a frame.
MAX_COUNT = (1 << 32) - 1


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Columns:
    """`keys`: the n series keys joined with 0xFD, each once. Subclasses add the arrays."""

    keys: bytes

    def key_list(self) -> list[bytes]:
        """The n keys."""
        return split_keys(self.keys)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CounterColumns(Columns):
    """Increments: `whole` (n × i64) + `fraction` (n × u64 in 2^-64, or empty when all are zero)."""

    whole: I64
    fraction: U64 | None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class GaugeColumns(Columns):
    """`values` (n × f64, finite, at most 2^62 in magnitude) as last set at `at_ms` (n × i64, ms since the epoch)."""

    values: F64
    at_ms: I64


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SketchColumns(Columns):
    """Distributions. Per series (n): `zero` i64, `whole` i64 + `fraction` u64 (the exact sum), `minimum` and `maximum`
    f64, and
    `lengths` u32, its number of buckets. Over all (b = sum of lengths): `indices` i16, ascending within a series, and
    `counts` u32.
    """

    zero: I64
    whole: I64
    fraction: U64 | None
    minimum: F64
    maximum: F64
    lengths: U32
    indices: I16
    counts: U32


NO_COUNTERS = CounterColumns(keys=b"", whole=np.zeros(0, np.int64), fraction=None)
NO_GAUGES = GaugeColumns(keys=b"", values=np.zeros(0), at_ms=np.zeros(0, np.int64))
NO_SKETCHES = SketchColumns(
    keys=b"",
    zero=np.zeros(0, np.int64),
    whole=np.zeros(0, np.int64),
    fraction=None,
    minimum=np.zeros(0),
    maximum=np.zeros(0),
    lengths=np.zeros(0, np.uint32),
    indices=np.zeros(0, np.int16),
    counts=np.zeros(0, np.uint32),
)


def join_keys(keys: Sequence[bytes]) -> bytes:
    return KEY_SEP.join(keys)


def split_keys(blob: bytes) -> list[bytes]:
    return blob.split(KEY_SEP) if blob else []


def pack_counters(columns: CounterColumns) -> list[bytes]:
    return [columns.keys, _bytes(columns.whole, "<i8"), pack_fraction(columns.fraction)]


def pack_gauges(columns: GaugeColumns) -> list[bytes]:
    return [columns.keys, _bytes(columns.values, "<f8"), _bytes(columns.at_ms, "<i8")]


def pack_sketches(columns: SketchColumns) -> list[bytes]:
    return [
        columns.keys,
        _bytes(columns.zero, "<i8"),
        _bytes(columns.whole, "<i8"),
        pack_fraction(columns.fraction),
        _bytes(columns.minimum, "<f8"),
        _bytes(columns.maximum, "<f8"),
        _bytes(columns.lengths, "<u4"),
        _bytes(columns.indices, "<i2"),
        _bytes(columns.counts, "<u4"),
    ]


def unpack_counters(raw: Sequence[bytes]) -> CounterColumns:
    """Checked counter columns. Raises FrameError (reason ``length``, ``negative_counter`` or ``range``)."""
    if not raw:
        return NO_COUNTERS
    keys, whole_raw, fraction_raw = _expect(raw, 3, "counters")
    whole = array(whole_raw, "<i8", "counters.whole")
    if len(whole):
        _check_increments(whole, "counters.whole", "negative_counter")
    return CounterColumns(
        keys=keys, whole=whole, fraction=unpack_fraction(fraction_raw, len(whole), "counters.fraction")
    )


def unpack_gauges(raw: Sequence[bytes]) -> GaugeColumns:
    """Checked gauge columns. Raises FrameError (``length``, ``not_finite`` or ``range``)."""
    if not raw:
        return NO_GAUGES
    keys, values_raw, at_raw = _expect(raw, 3, "gauges")
    values = array(values_raw, "<f8", "gauges.values")
    at_ms = array(at_raw, "<i8", "gauges.at_ms", len(values))
    if len(values):
        if not np.isfinite(values).all():
            raise FrameError("not_finite", "gauges.values holds NaN or infinity")
        if np.abs(values).max() > exact.MAX_TOTAL:
            raise FrameError("range", f"gauges.values holds {np.abs(values).max():g}, the limit is 2^62")
        if at_ms.min() < 0 or at_ms.max() > MAX_TIME_MS:
            raise FrameError("range", "gauges.at_ms lies outside 0…2^48 ms")
    return GaugeColumns(keys=keys, values=values, at_ms=at_ms)


def unpack_sketches(raw: Sequence[bytes]) -> SketchColumns:
    """Checked sketch columns. Raises FrameError (``length``, ``not_finite``, ``range`` or ``sketch``)."""
    if not raw:
        return NO_SKETCHES
    keys, zero_raw, whole_raw, fraction_raw, min_raw, max_raw, len_raw, index_raw, count_raw = _expect(
        raw, 9, "sketches"
    )
    zero = array(zero_raw, "<i8", "sketches.zero")
    n = len(zero)
    columns = SketchColumns(
        keys=keys,
        zero=zero,
        whole=array(whole_raw, "<i8", "sketches.whole", n),
        fraction=unpack_fraction(fraction_raw, n, "sketches.fraction"),
        minimum=array(min_raw, "<f8", "sketches.minimum", n),
        maximum=array(max_raw, "<f8", "sketches.maximum", n),
        lengths=array(len_raw, "<u4", "sketches.lengths", n),
        indices=array(index_raw, "<i2", "sketches.indices"),
        counts=array(count_raw, "<u4", "sketches.counts"),
    )
    if n:
        _check_sketches(columns)
    return columns


def _check_sketches(c: SketchColumns) -> None:
    ends = np.cumsum(c.lengths, dtype=np.int64)
    b = int(ends[-1])
    if b != len(c.indices) or b != len(c.counts):
        raise FrameError(
            "length",
            f"sketches: lengths add up to {b}, but there are {len(c.indices)} indices and {len(c.counts)} counts",
        )
    _check_increments(c.whole, "sketches.whole", "sketch")
    if c.zero.min() < 0 or c.zero.max() > MAX_COUNT:
        raise FrameError("sketch", "sketches.zero lies outside 0…2^32 - 1")
    if not (np.isfinite(c.maximum).all() and np.isfinite(c.minimum).all()):
        raise FrameError("not_finite", "sketches.minimum or maximum holds NaN or infinity")
    # -0.0 is refused: which of two zeros is the minimum would depend on the order of frames.
    if np.signbit(c.minimum).any() or (c.minimum > c.maximum).any() or c.maximum.max() > exact.MAX_TOTAL:
        raise FrameError("sketch", "sketches need 0 <= minimum <= maximum <= 2^62")
    used = c.lengths > 0
    if not used.all():
        if not c.zero[~used].all():
            raise FrameError("sketch", "sketches holds an empty one: no buckets and no zero count")
        if (c.maximum[~used] >= SMALLEST_NORMAL).any():
            raise FrameError("sketch", "a sketch without buckets has a maximum that needs one")
    if not b:
        return
    if not c.counts.min():  # a third of what all() takes on integers
        raise FrameError("sketch", "sketches.counts holds 0; empty buckets are left out")
    lengths, zero, low, high = c.lengths, c.zero, c.minimum, c.maximum
    if not used.all():
        ends, lengths, zero, low, high = ends[used], lengths[used], zero[used], low[used], high[used]
    steps = c.indices[1:] > c.indices[:-1]
    steps[ends[:-1] - 1] = True  # between two sketches any order is right
    if not steps.all():
        raise FrameError("sketch", "sketches.indices do not ascend within a sketch")
    # Minimum and maximum must lie in the outermost buckets; otherwise quantiles would lie.
    # Both in one go: for a thousand series calling numpy costs about as much as what it does.
    outermost = c.indices[np.concatenate((ends - lengths, ends - 1))]
    wrong = index_of(np.maximum(np.concatenate((low, high)), SMALLEST_NORMAL)) != outermost
    if zero.any():
        lowest = wrong[: len(low)]
        np.copyto(lowest, low >= SMALLEST_NORMAL, where=zero > 0)
    if wrong.any():
        raise FrameError("sketch", "a sketch's minimum or maximum lies outside its outermost buckets")
    if c.indices.min() < MIN_INDEX:
        raise FrameError("sketch", f"sketches.indices go below {MIN_INDEX}, the smallest normal double's")


def _check_increments(whole: I64, where: str, reason: str) -> None:
    if whole.min() < 0:
        raise FrameError(reason, f"{where} holds {int(whole.min())}; increments are at least 0")
    if whole.max() > exact.MAX_DELTA:
        raise FrameError("range", f"{where} holds {int(whole.max())}, the limit is 2^53")


def _expect(raw: Sequence[bytes], n: int, what: str) -> Sequence[bytes]:
    if len(raw) != n:
        raise FrameError("length", f"{what} has {len(raw)} columns, expected {n}")
    return raw


def array(raw: bytes, dtype: str, where: str, n: int | None = None) -> npt.NDArray[Any]:
    """A read-only view of `raw`. Raises FrameError (``length``) unless it holds whole items, exactly `n` of them if
    given.
    """
    size = int(dtype[-1])
    if len(raw) % size or (n is not None and len(raw) != n * size):
        expected = f"{n} items of {size}" if n is not None else f"a multiple of {size}"
        raise FrameError("length", f"{where} has {len(raw)} bytes, expected {expected}")
    return np.frombuffer(raw, dtype=dtype)


def unpack_fraction(raw: bytes, n: int, where: str) -> U64 | None:
    return array(raw, "<u8", where, n) if raw else None


def pack_fraction(fraction: U64 | None) -> bytes:
    return _bytes(fraction, "<u8") if fraction is not None and fraction.any() else b""


def _bytes(values: npt.NDArray[Any], dtype: str) -> bytes:
    return np.ascontiguousarray(values, dtype=dtype).tobytes()
