"""Exact sums: 64.64 fixed point, so that adding is associative and commutative to the last bit.

A float sum depends on the order of its terms, so two replicas, a retry or another split of the same requests over nodes
would give other bytes. Here every recorded value is first rounded towards zero to a multiple of 2^-64 (5.4e-20) —
exact for every double that is zero or at least 2^-12 in magnitude, and for all whole numbers — and from then on only
integers are added.

A number is two columns: `whole` (int64, floor of the value) and `fraction` (uint64, in units of 2^-64), value =
whole + fraction * 2^-64. The range is [-2^63, 2^63). An all-zero fraction column travels as empty.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

F64: TypeAlias = npt.NDArray[np.float64]
I64: TypeAlias = npt.NDArray[np.int64]
U64: TypeAlias = npt.NDArray[np.uint64]
U32: TypeAlias = npt.NDArray[np.uint32]
I16: TypeAlias = npt.NDArray[np.int16]

ONE = 1 << 64
#: Largest magnitude of one recorded value (1.1e12).
MAX_VALUE = float(1 << 40)
#: Largest magnitude of one frame's increment or sum; what is over it is refused, so that totals have room.
MAX_DELTA = 1 << 53
#: A total past this refuses further increments: it would wrap at 2^63.
MAX_TOTAL = 1 << 62
_SCALE = float(ONE)  # a power of two: multiplying by it is exact
_LOW = np.uint64(0xFFFF_FFFF)
_HALF = np.uint64(32)


def split(values: F64) -> tuple[I64, U64]:
    """`values` (finite, |v| < 2^63) as whole and fraction columns, rounded towards zero to 2^-64."""
    magnitude = np.abs(values)  # subtracting the floor is exact from 0 up, but not below
    floor = np.floor(magnitude)
    whole, fraction = floor.astype(np.int64), ((magnitude - floor) * _SCALE).astype(np.uint64)
    return _negated(whole, fraction, values < 0)


def total(values: F64) -> int:
    """The sum of `values` (0…MAX_VALUE, fewer than 2^22) in units of 2^-64; their order does not matter."""
    floor = np.floor(values)
    rest = values - floor
    units = int(floor.astype(np.int64).sum()) << 64
    if rest.any():
        # Halves, because a sum of 64-bit fractions would wrap; one of 2^32 halves below 2^32 does not.
        fraction = (rest * _SCALE).astype(np.uint64)
        units += (int((fraction >> _HALF).sum()) << 32) + int((fraction & _LOW).sum())
    return units


def _negated(whole: I64, fraction: U64, which: npt.NDArray[np.bool_]) -> tuple[I64, U64]:
    """The numbers with their sign changed at `which`."""
    if not which.any():
        return whole, fraction
    return np.where(which, -whole - (fraction > 0), whole), np.where(which, ~fraction + np.uint64(1), fraction)


def columns(units: list[int]) -> tuple[I64, U64]:
    """Python integers in units of 2^-64 as whole and fraction columns. Raises OverflowError outside the range."""
    raw = b"".join(u.to_bytes(16, "little", signed=True) for u in units)
    pairs = np.frombuffer(raw, dtype="<u8").reshape(-1, 2)
    return pairs[:, 1].view(np.int64).copy(), pairs[:, 0].copy()


def to_units(whole: I64, fraction: U64) -> list[int]:
    """The inverse of `columns`."""
    return [(w << 64) + f for w, f in zip(whole.tolist(), fraction.tolist(), strict=True)]


def to_float(whole: I64, fraction: U64) -> F64:
    """Nearest-double view of a column (within 2 ulp; exact for whole numbers below 2^53)."""
    negative = whole < 0
    whole, fraction = _negated(whole, fraction, negative)  # -1 + 0.99… would leave few digits of a small number
    magnitude = whole.astype(np.float64) + fraction.astype(np.float64) / _SCALE
    return np.where(negative, -magnitude, magnitude)


def add_at(whole: I64, fraction: U64, ids: I64, more_whole: I64, more_fraction: U64 | None) -> None:
    """Add a column into accumulators at `ids`, which must be distinct; `more_fraction` None means all zero."""
    if more_fraction is None:
        whole[ids] += more_whole
        return
    before = fraction[ids]
    after = before + more_fraction  # wraps modulo 2^64 …
    fraction[ids] = after
    whole[ids] += more_whole + (after < before)  # … and a wrapped sum is less than its terms: the carry


def add_at_repeated(whole: I64, fraction: U64, ids: I64, more_whole: I64, more_fraction: U64 | None) -> None:
    """`add_at` for `ids` that may repeat (series folded into ``other``); slower."""
    used, at = np.unique(ids, return_inverse=True)
    add_at(whole, fraction, used, *sum_by(at, len(used), more_whole, more_fraction))


def sum_by(groups: I64, n: int, whole: I64, fraction: U64 | None) -> tuple[I64, U64]:
    """Sums of the values of each of `n` groups; `groups` gives the group (0…n-1) of each value."""
    wholes = np.zeros(n, np.int64)
    np.add.at(wholes, groups, whole)
    fractions = np.zeros(n, np.uint64)
    if fraction is not None:
        # Halves, because a sum of 64-bit fractions would wrap.
        low, high = np.zeros(n, np.uint64), np.zeros(n, np.uint64)
        np.add.at(low, groups, fraction & _LOW)
        np.add.at(high, groups, fraction >> _HALF)
        high += low >> _HALF
        fractions = (high << _HALF) | (low & _LOW)
        wholes += (high >> _HALF).astype(np.int64)
    return wholes, fractions
