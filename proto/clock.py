"""Time, passed in: the system's clock, and one that a test or a replay moves by hand.

Wall time is integer milliseconds since the Unix epoch (UTC); it aligns windows. Monotonic time is float seconds; it
measures durations and time-outs and never goes backwards.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What a part may know about time."""

    def now_ms(self) -> int:
        """Wall time, ms since the Unix epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary origin; never decreases."""
        ...

    async def sleep_until_ms(self, at_ms: int) -> None:
        """Return once `now_ms() >= at_ms`."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep_until_ms(self, at_ms: int) -> None:
        while (left := at_ms - self.now_ms()) > 0:  # noqa: ASYNC110  # there is no event to wait for
            # At most a second at a time: the wall clock may be set while we sleep.
            await asyncio.sleep(min(left / 1000, 1.0))


class ManualClock:
    """A clock that stands still until `advance_to` or `advance` moves it. Single-threaded use per event loop."""

    def __init__(self, now_ms: int = 0) -> None:
        self._now_ms = now_ms
        self._sleepers: list[tuple[int, asyncio.Future[None]]] = []

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic(self) -> float:
        return self._now_ms / 1000

    async def sleep_until_ms(self, at_ms: int) -> None:
        if at_ms <= self._now_ms:
            await asyncio.sleep(0)
            return
        waiter = asyncio.get_running_loop().create_future()
        self._sleepers.append((at_ms, waiter))
        await waiter

    def advance_to(self, at_ms: int) -> None:
        """Move to `at_ms` and wake who waited for it. A step backwards raises ValueError: time does not do that."""
        if at_ms < self._now_ms:
            raise ValueError(f"a clock at {self._now_ms} ms can't go back to {at_ms} ms")
        self._now_ms = at_ms
        due = [w for at, w in self._sleepers if at <= at_ms]
        self._sleepers = [(at, w) for at, w in self._sleepers if at > at_ms]
        for waiter in due:
            if not waiter.done():
                waiter.set_result(None)

    def advance(self, by_ms: int) -> None:
        """Move forward by `by_ms` milliseconds."""
        self.advance_to(self._now_ms + by_ms)
