"""The grid of windows: which window a time lies in, while the length of windows may change. Pure."""

from __future__ import annotations

from typing import NamedTuple

import msgspec


class Span(NamedTuple):
    """A window: half-open, ms of broker time. It is shorter than `resolution_ms` where the next length begins."""

    start_ms: int
    end_ms: int
    resolution_ms: int


class Epoch(msgspec.Struct, array_like=True, frozen=True):
    """From `from_ms` on, a multiple of it, windows are `interval_ms` long."""

    from_ms: int
    interval_ms: int


class Grid(msgspec.Struct, array_like=True):
    """Windows without hole or overlap. `epochs` ascend; the first began before anything that is still open."""

    epochs: list[Epoch]

    @classmethod
    def of(cls, interval_ms: int) -> Grid:
        return cls([Epoch(0, interval_ms)])

    @property
    def longest_ms(self) -> int:
        return max(epoch.interval_ms for epoch in self.epochs)

    def span(self, at_ms: int) -> Span:
        """The window that `at_ms` lies in."""
        i = len(self.epochs) - 1
        while i and at_ms < self.epochs[i].from_ms:
            i -= 1
        interval_ms = self.epochs[i].interval_ms
        start_ms = at_ms - at_ms % interval_ms
        end_ms = start_ms + interval_ms
        if i + 1 < len(self.epochs):
            end_ms = min(end_ms, self.epochs[i + 1].from_ms)
        return Span(start_ms, end_ms, interval_ms)

    def of_frame(self, start_ms: int, end_ms: int) -> Span:
        """The window that a frame of this span counts in: the last one that it touches."""
        return self.span(max(start_ms, end_ms - 1))

    def change(self, interval_ms: int, after_ms: int) -> None:
        """Another length, from its first edge at or after `after_ms` on. What begins before that stays as it is."""
        from_ms = -(-after_ms // interval_ms) * interval_ms
        self.epochs = [*(e for e in self.epochs if e.from_ms < from_ms), Epoch(from_ms, interval_ms)]

    def forget(self, before_ms: int) -> None:
        """Drop lengths that only windows before `before_ms` had."""
        while len(self.epochs) > 1 and self.epochs[1].from_ms <= before_ms:
            del self.epochs[0]
