"""Counter, gauge and histogram: one labelled series each, to keep and call.

Recording appends one double to a column and returns; the column is folded at the window's edge (`take`). Appending is
one C call under the interpreter's lock, so threads lose nothing and no lock of ours is taken. A value that can't be
recorded is counted in
`Invalid`, never raised.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable

import numpy as np

from ..proto.exact import F64
from .tally import is_number


class Invalid:
    """Counts what could not be recorded, by reason."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: dict[str, int] = {}

    def add(self, reason: str, n: int = 1) -> None:
        with self._lock:
            self.counts[reason] = self.counts.get(reason, 0) + n

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def take(column: array[float]) -> F64:
    """Everything recorded so far, out of a live column.

    Not a view of it: while one exists, `append` raises BufferError. Not a swap for a new array either: a thread that
    was interrupted between reading the attribute and appending would write to the old one. A copied slice, and then the
    deletion of that prefix, lose nothing.
    """
    n = len(column)
    values = np.frombuffer(column[:n].tobytes())
    del column[:n]
    return values


class Counter:
    """A sum that only grows."""

    __slots__ = ("_append", "_invalid", "column", "key")

    def __init__(self, key: bytes, invalid: Invalid) -> None:
        self.key = key
        self.column: array[float] = array("d")
        self._append = self.column.append
        self._invalid = invalid

    def add(self, n: float = 1.0) -> None:
        """Add `n` >= 0. What is not such a number is counted as invalid."""
        try:
            self._append(n)
        except Exception:
            self._invalid.add("counter_type")


class Histogram:
    """A distribution of values >= 0, in the unit that its name ends with."""

    __slots__ = ("_append", "_invalid", "column", "key")

    def __init__(self, key: bytes, invalid: Invalid) -> None:
        self.key = key
        self.column: array[float] = array("d")
        self._append = self.column.append
        self._invalid = invalid

    def record(self, value: float) -> None:
        """Record one value. What is negative, infinite, NaN, over 2^40 or no number is counted as invalid."""
        try:
            self._append(value)
        except Exception:
            self._invalid.add("histogram_type")


class Gauge:
    """A value that goes up and down. It is reported in every window from the first `set` on."""

    __slots__ = ("_invalid", "_lock", "_now_ms", "current", "key")

    def __init__(self, key: bytes, invalid: Invalid, now_ms: Callable[[], int]) -> None:
        self.key = key
        self.current: tuple[float, int] | None = None  # value, and when it was set: one assignment, so never torn
        self._invalid = invalid
        self._now_ms = now_ms
        self._lock = threading.Lock()

    def set(self, value: float) -> None:
        """The value from now on. What is not a finite number is counted as invalid."""
        if is_number(value):
            self.current = (float(value), self._now_ms())
        else:
            self._invalid.add("gauge_value")

    def add(self, by: float = 1.0) -> None:
        """Change the value by `by`; from 0 when it was never set."""
        if not is_number(by):
            self._invalid.add("gauge_value")
            return
        with self._lock:
            before = self.current[0] if self.current is not None else 0.0
            self.set(before + by)

    def clear(self) -> None:
        """Report no value until it is set again."""
        self.current = None
