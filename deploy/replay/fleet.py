"""The worker processes of a replay: started, held at a barrier, followed to their end; `worker` says how they talk."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import msgspec

from ...proto.errors import FleetmeterError
from .. import children
from ..tasks import end, together
from .progress import Progress
from .worker import Task


@dataclass
class Workers:
    """The worker processes, one a node."""

    progress: Progress
    of_rows: int
    finished: bool = field(default=False, init=False)
    _tasks: list[Task] = field(default_factory=list, init=False)
    _processes: list[asyncio.subprocess.Process] = field(default_factory=list, init=False)
    _rows: list[int] = field(default_factory=list, init=False)
    _readers: list[asyncio.Task[None]] = field(default_factory=list, init=False)
    _output: list[AsyncIterator[str]] = field(default_factory=list, init=False)
    _words: list[deque[str]] = field(default_factory=list, init=False)

    async def __aenter__(self) -> Workers:
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._readers)
        await asyncio.gather(*(children.stop(process, 0.0) for process in self._processes))

    async def start(self, task: Task) -> None:
        argv = [sys.executable, "-m", "fleetmeter.deploy.replay.worker"]
        process = await children.spawn(argv, os.environ, stdin=asyncio.subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(task) + b"\n")
        words: deque[str] = deque(maxlen=5)
        self._tasks.append(task)
        self._processes.append(process)
        self._rows.append(0)
        self._output.append(children.lines(process.stdout))
        self._words.append(words)
        self._readers.append(asyncio.create_task(self._read_words(task.node, process, words.append)))

    async def ready(self) -> None:
        """Return once the cluster knows every node: no window may seal before."""
        for i in range(len(self._tasks)):
            async for line in self._output[i]:
                if line == "ready":
                    break
            else:
                await self._fail(i)

    async def go(self, opened_ms: int, first_ms: int) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"go {opened_ms} {first_ms}\n".encode())
        await asyncio.gather(*(p.stdin.drain() for p in self._processes if p.stdin is not None))

    async def done(self) -> None:
        """Return once all have recorded all their rows, and the broker has stored them."""
        await together(*(self._follow(i) for i in range(len(self._tasks))))
        self.finished = True

    async def _follow(self, i: int) -> None:
        done = False
        async for line in self._output[i]:
            if line.startswith("rows "):
                self._rows[i] = int(line[5:])
                self.progress.rows(sum(self._rows), self.of_rows)
            done = done or line == "done"
        if not done or await self._processes[i].wait():
            await self._fail(i)

    async def _fail(self, i: int) -> None:
        returncode = await self._processes[i].wait()
        await self._readers[i]
        words = " | ".join(self._words[i]) or "it said nothing"
        raise FleetmeterError(f"node {self._tasks[i].node} {children.describe_exit(returncode)}: {words}")

    async def _read_words(self, name: str, process: asyncio.subprocess.Process, keep: Callable[[str], None]) -> None:
        async for line in children.lines(process.stderr):
            keep(line)
            self.progress.words(name, line)
