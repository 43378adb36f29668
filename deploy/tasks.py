"""Tasks that are run together and end together."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any

#: How long a cancelled task may take before it is cancelled again, seconds.
_AGAIN_S = 0.5


async def together(*jobs: Coroutine[Any, Any, None]) -> None:
    """Run all. The first error ends the others, and is raised as it is rather than in a group."""
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        await end(tasks)


async def end(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel all, and return once they have ended; what they raise is dropped.

    More than once if need be: `asyncio.wait_for`, which the NATS client uses, may swallow a cancellation before Python
    3.12 (when what it waits for is done at the same moment), and a task in a loop would then go on for ever.
    """
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=_AGAIN_S)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not report it as forgotten
