"""Tasks that are run together end together, whatever becomes of them."""

from __future__ import annotations

import asyncio

import pytest

from fleetmeter.deploy.tasks import end, together


class Slow:
    """A job that goes on until it is cancelled so many times."""

    def __init__(self, swallows: int = 0) -> None:
        self.started = asyncio.Event()
        self.ended = False
        self._swallows = swallows

    async def run(self) -> None:
        try:
            while True:
                try:
                    self.started.set()
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    if not self._swallows:
                        raise
                    self._swallows -= 1
        finally:
            self.ended = True


async def test_returns_when_all_have():
    """Jobs that end well are waited for."""
    ran: list[int] = []

    async def job(n: int) -> None:
        ran.append(n)

    await together(job(1), job(2))

    assert sorted(ran) == [1, 2]


async def test_first_error_ends_the_others():
    """An error of one is raised bare, once the others have ended."""
    slow = Slow()

    async def fail() -> None:
        await slow.started.wait()
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        await together(slow.run(), fail())

    assert slow.ended


async def test_cancelling_ends_all():
    """Who runs jobs together can be cancelled, and they are."""
    slow = Slow()
    running = asyncio.create_task(together(slow.run()))
    await slow.started.wait()

    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running
    assert slow.ended


async def test_a_swallowed_cancellation_is_repeated():
    """A job that loses a cancellation is cancelled again, and does not hold the end up for ever."""
    slow = Slow(swallows=1)
    task = asyncio.create_task(slow.run())
    await slow.started.wait()

    async with asyncio.timeout(30):
        await end([task])

    assert slow.ended
