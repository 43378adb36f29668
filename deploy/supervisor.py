"""The one-machine supervisor: starts parts, restarts those that die, stops all in order.

It knows nothing of what the parts do. What it has to say, and each line that a part writes to standard error, goes to
one callback.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..proto.errors import FleetmeterError
from . import children

#: Exit statuses that a restart does not change: wrong usage, and an invalid configuration.
HOPELESS = frozenset({2, 3})
#: So many starts of a part that was never ready, and the supervisor gives up.
MAX_FALSE_STARTS = 3


@dataclass(frozen=True, slots=True)
class Part:
    """A process to keep alive: `argv`, its whole environment `env`, and how long it may take to stop (s).

    One that `reports` writes a line to standard output when it is ready; another counts as ready once it runs.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(repr=False)  # it may hold secrets
    grace_s: float = 10.0
    reports: bool = True


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before a restart, seconds: `first_s`, doubled each time up to `max_s`, reset after `healthy_s`
    of life.
    """

    first_s: float = 0.5
    max_s: float = 30.0
    healthy_s: float = 60.0

    def after(self, failures: int) -> float:
        """The wait after so many failures in a row (1, 2, …)."""
        return min(self.first_s * 2.0 ** min(failures - 1, 30), self.max_s)


class Supervisor:
    """Keeps groups of parts alive.

    `say(name, line)` hears each line of a part's standard error, and of the supervisor's own words about the part.
    """

    def __init__(
        self,
        say: Callable[[str, str], None],
        *,
        backoff: Backoff = Backoff(),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say = say
        self._backoff = backoff
        self._monotonic = monotonic
        self._groups: list[list[_Keeper]] = []
        #: Set to an exit code once a part can't be kept alive.
        self.failure: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()

    async def start(self, *parts: Part) -> list[str]:
        """Start a group, and return each part's ready line (empty for one that reports none) once all are ready.

        Raises FleetmeterError when one can't be kept alive.
        """
        group = [_Keeper(part, self._say, self._backoff, self._monotonic, self._failed) for part in parts]
        self._groups.append(group)
        for keeper in group:
            keeper.task = asyncio.create_task(keeper.run(), name=f"keeper of {keeper.part.name}")
        waiting = {keeper.ready for keeper in group}
        while waiting and not self.failure.done():
            either: list[asyncio.Future[Any]] = [*waiting, self.failure]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            waiting = {ready for ready in waiting if not ready.done()}
        self.raise_failure()
        return [keeper.ready.result() for keeper in group]

    def raise_failure(self) -> None:
        """Raise PartFailed when a part can't be kept alive."""
        if self.failure.done():
            raise PartFailed(*self.failure.result())

    def pids(self) -> dict[str, int]:
        """The process id of each part that runs now."""
        return {k.part.name: k.process.pid for group in self._groups for k in group if k.process is not None}

    async def stop(self) -> None:
        """Stop all, the group started last first, each group's parts at once."""
        while self._groups:
            await asyncio.gather(*(keeper.stop() for keeper in self._groups[-1]))
            self._groups.pop()

    def kill(self) -> None:
        """Have no patience any more: SIGKILL for everything that still runs. `stop` then returns soon."""
        for group in self._groups:
            for keeper in group:
                keeper.kill()

    def _failed(self, name: str, code: int) -> None:
        if not self.failure.done():
            self.failure.set_result((name, code))


class PartFailed(FleetmeterError):
    """A part that can't be kept alive. `exit_code` is what the command should end with."""

    def __init__(self, name: str, returncode: int) -> None:
        super().__init__(
            f"{name} {children.describe_exit(returncode)} and can't be kept running; its last words are above"
        )
        self.exit_code = returncode if returncode in HOPELESS else 1


class _Keeper:
    """One part's life."""

    def __init__(
        self,
        part: Part,
        say: Callable[[str, str], None],
        backoff: Backoff,
        monotonic: Callable[[], float],
        failed: Callable[[str, int], None],
    ) -> None:
        self.part = part
        self.process: asyncio.subprocess.Process | None = None
        self.task: asyncio.Task[None] | None = None
        self.ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._say = say
        self._backoff = backoff
        self._monotonic = monotonic
        self._failed = failed
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            started = self._monotonic()
            try:
                returncode = await self._live()
            except OSError as problem:  # the executable is gone, no memory, no processes left
                self._say(self.part.name, f"can't be started: {problem}")
                returncode = 1
            if self._stopping.is_set():
                return
            lived_s = self._monotonic() - started
            failures = 1 if lived_s >= self._backoff.healthy_s else failures + 1
            how = children.describe_exit(returncode)
            if returncode in HOPELESS or (not self.ready.done() and failures >= MAX_FALSE_STARTS):
                self._say(self.part.name, f"{how}; not restarting")
                self._failed(self.part.name, returncode)
                return
            delay_s = self._backoff.after(failures)
            self._say(self.part.name, f"{how}; restarting in {delay_s:g} s")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._stopping.wait()

    async def _live(self) -> int:
        """Start the process, pass its lines on, and return what it ended with."""
        process = self.process = await children.spawn(self.part.argv, self.part.env)
        if self._stopping.is_set():  # `stop` came while the process was being made, and found none
            await children.stop(process, 0.0)
        if not self.part.reports:
            self._is_ready("")
        output = asyncio.gather(self._read_reports(process), self._read_words(process))
        try:
            await process.wait()
            # A grandchild may hold the pipes open for ever.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(output, 1.0)
        finally:
            output.cancel()
            self.process = None
        assert process.returncode is not None
        return process.returncode

    async def _read_reports(self, process: asyncio.subprocess.Process) -> None:
        async for line in children.lines(process.stdout):
            self._is_ready(line)

    async def _read_words(self, process: asyncio.subprocess.Process) -> None:
        async for line in children.lines(process.stderr):
            self._say(self.part.name, line)

    def _is_ready(self, line: str) -> None:
        if not self.ready.done():
            self.ready.set_result(line)

    async def stop(self) -> None:
        self._stopping.set()
        if self.process is not None:
            await children.stop(self.process, self.part.grace_s)
        if self.task is not None:
            await self.task

    def kill(self) -> None:
        self._stopping.set()
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
