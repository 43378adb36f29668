"""`fleetmeter` as a process of its own, as a user runs it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import psutil


@dataclass
class Command:
    """A running command, and what it has said so far, line by line."""

    process: asyncio.subprocess.Process
    out: list[str] = field(default_factory=list)
    err: list[str] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _readers: list[asyncio.Task[None]] = field(default_factory=list)

    async def said(self, text: str, times: int = 1, timeout_s: float = 60.0) -> str:
        """The line in which `text` stands the n-th time, on either output. Fails with all that was said without it."""
        try:
            async with asyncio.timeout(timeout_s):
                while len(found := [line for line in (*self.out, *self.err) if text in line]) < times:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            said = "\n".join((*self.out, *self.err))
            raise AssertionError(f"{text!r} was not said {times} times within {timeout_s:g} s, but:\n{said}") from None
        return found[times - 1]

    def children(self) -> list[psutil.Process]:
        """Its child processes."""
        return psutil.Process(self.process.pid).children()

    async def child(self, what: str, timeout_s: float = 30.0) -> psutil.Process:
        """The child in whose command line `what` stands, as soon as there is one."""
        async with asyncio.timeout(timeout_s):
            while True:
                for process in self.children():
                    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                        if what in " ".join(process.cmdline()):
                            return process
                await asyncio.sleep(0.01)  # a process tells nobody that it has started

    async def ended(self, timeout_s: float = 60.0) -> int:
        """Its exit code, once all it said has been read."""
        async with asyncio.timeout(timeout_s):
            code = await self.process.wait()
            await asyncio.gather(*self._readers)
        return code

    async def _read(self, stream: asyncio.StreamReader, lines: list[str]) -> None:
        async for line in stream:
            lines.append(line.decode(errors="replace").rstrip("\n"))
            self._changed.set()


@contextlib.asynccontextmanager
async def fleetmeter(*arguments: object, **environment: str) -> AsyncIterator[Command]:
    """Run ``fleetmeter ARGUMENTS``; it is killed at the end, if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fleetmeter.deploy.cli", *map(str, arguments),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    command = Command(process)
    command._readers += [
        asyncio.create_task(command._read(process.stdout, command.out)),
        asyncio.create_task(command._read(process.stderr, command.err)),
    ]
    try:
        yield command
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await asyncio.gather(*command._readers)
