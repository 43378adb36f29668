"""Running totals of sketches: every bucket of every window that was ever published, added up. Exact, in integers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..proto.columns import join_keys, split_keys
from ..proto.exact import I64, U64
from ..proto.window import WindowSketches

_INDEX_OFFSET = 1 << 15  # makes an int16 index non-negative


@dataclass(slots=True)
class CumulativeSketches:
    """One metric. A series is a row, in the order in which series appeared; a *slot* is ``row << 16 | index + 2^15``.

    `slots` ascend, with `counts` at them; `zero`, `whole` and `fraction` (the sum in 64.64 fixed point) are by row.
    """

    keys: list[bytes] = field(default_factory=list)
    rows: dict[bytes, int] = field(default_factory=dict)
    zero: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    whole: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    fraction: U64 = field(default_factory=lambda: np.zeros(0, np.uint64))
    slots: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: I64 = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, window: WindowSketches) -> None:
        """Add a window's sketches."""
        rows = self._rows(window.keys)
        self._reserve()
        self.zero[rows] += window.zero
        before = self.fraction[rows]
        after = before + window.fraction
        self.fraction[rows] = after
        self.whole[rows] += window.whole + (after < before)  # a wrapped sum is less than its terms: the carry
        self._add_slots(self._slots(rows, window), window.counts)

    def subtract(self, window: WindowSketches) -> None:
        """Take back a window that was added before."""
        rows = self._rows(window.keys)
        self.zero[rows] -= window.zero
        before = self.fraction[rows]
        self.fraction[rows] = before - window.fraction
        self.whole[rows] -= window.whole + (before < window.fraction)  # the borrow
        self._add_slots(self._slots(rows, window), -window.counts)

    def _rows(self, keys: list[bytes]) -> I64:
        rows = self.rows
        for key in keys:
            if key not in rows:
                rows[key] = len(self.keys)
                self.keys.append(key)
        return np.fromiter((rows[key] for key in keys), np.int64, len(keys))

    def _reserve(self) -> None:
        missing = len(self.keys) - len(self.zero)
        if missing > 0:
            self.zero = np.concatenate([self.zero, np.zeros(missing, np.int64)])
            self.whole = np.concatenate([self.whole, np.zeros(missing, np.int64)])
            self.fraction = np.concatenate([self.fraction, np.zeros(missing, np.uint64)])

    def _slots(self, rows: I64, window: WindowSketches) -> I64:
        return (np.repeat(rows, window.lengths) << 16) + window.indices + _INDEX_OFFSET

    def _add_slots(self, slots: I64, counts: I64) -> None:
        at = np.searchsorted(self.slots, slots)
        known = at < len(self.slots)
        known[known] = self.slots[at[known]] == slots[known]
        if not known.all():
            # New buckets are rare once a service has run for a while; only then is the array made anew.
            fresh = np.unique(slots[~known])
            places = np.searchsorted(self.slots, fresh)
            self.slots = np.insert(self.slots, places, fresh)
            self.counts = np.insert(self.counts, places, 0)
            at = np.searchsorted(self.slots, slots)
        self.counts[at] += counts

    def below(self, limits: I64) -> npt.NDArray[np.int64]:
        """How many values lie in buckets with an index below each of the ascending `limits`, by row; the last column is
        all values. Shape: rows × (limits + 1).
        """
        n, columns = len(self.keys), len(limits) + 1
        bins = np.searchsorted(limits, (self.slots & 0xFFFF) - _INDEX_OFFSET, side="right")
        flat = np.zeros(n * columns, np.int64)
        np.add.at(flat, (self.slots >> 16) * columns + bins, self.counts)
        table = flat.reshape(n, columns)
        table[:, 0] += self.zero
        return np.cumsum(table, axis=1)

    def pack(self) -> list[Any]:
        arrays = (self.zero, self.whole, self.fraction, self.slots, self.counts)
        return [join_keys(self.keys), *(a.tobytes() for a in arrays)]

    @classmethod
    def unpack(cls, packed: list[Any]) -> CumulativeSketches:
        keys = split_keys(packed[0])
        types = ("<i8", "<i8", "<u8", "<i8", "<i8")
        arrays = [np.frombuffer(raw, t).copy() for raw, t in zip(packed[1:], types, strict=True)]
        return cls(keys, {key: row for row, key in enumerate(keys)}, *arrays)
