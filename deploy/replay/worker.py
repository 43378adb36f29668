"""One node of a replay: a process with an emitter of its own, which plays its share of the trace on a clock that it
moves itself.

It speaks with the process that started it by lines: a `Task` (JSON) comes on standard input; it answers ``ready`` once
the cluster knows the node; ``go <wall ms> <first ms>`` starts it, with the wall time at which the first window opens
and the time that the windows start at; ``rows <n>`` tells how many requests it has recorded, and ``done`` that the
broker has stored all. It ends when its input does.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from ...emitter import Emitter
from ...proto.clock import SystemClock
from ...proto.config import load_config
from ...proto.errors import FleetmeterError
from ...proto.logs import configure_logging
from .rule import NUSD, Request, node_of, requests
from .trace import Trace

#: Frames that may wait for the broker before the replay waits for them, bytes.
MAX_PENDING = 8 * 1024 * 1024
#: How long closing may take, seconds; all frames are stored before, but for the goodbye.
CLOSE_TIMEOUT_S = 30.0
#: How often progress is told, seconds.
_REPORT_S = 0.2


class Task(msgspec.Struct, kw_only=True, frozen=True):
    """What one worker does. `trace` is a file that `Trace.save` wrote; `speed` is 0 for as fast as it goes.

    `start_ms` is the start of the trace's first window, `end_ms` the end of its last. With `realtime` windows are the
    wall clock's.
    """

    trace: str
    config: str | None
    flags: dict[str, str]
    node: str
    index: int
    nodes: int
    seed: int
    interval_ms: int
    start_ms: int
    end_ms: int
    realtime: bool
    speed: float


def arguments(request: Request) -> dict[str, Any]:
    """What `record_request` is told of a request."""
    told: dict[str, Any] = {
        "provider": request.model.provider,
        "model": request.model.name,
        "success": request.failure is None,
        "response_time": request.latency,
        "input_tokens": request.input_tokens,
        "output_tokens": request.output_tokens,
        "cost": request.cost_nusd / NUSD,
        "operation": request.operation,
        "stream": request.stream,
        "time_to_first_token": request.first_token,
    }
    return told if request.failure is None else told | {"error_type": request.failure.error_type}


async def play(task: Task, listen: asyncio.StreamReader) -> None:
    """Introduce the node, wait for the word, and play. Raises FleetmeterError when the broker does not store all."""
    trace = Trace.load(Path(task.trace))
    mine = list(requests(trace.part(node_of(trace.row, task.nodes) == task.index), task.seed))
    config = load_config(Path(task.config) if task.config else None, environ=os.environ, flags=task.flags)
    clock = ReplayClock(SystemClock().now_ms() if task.realtime else task.start_ms, task.realtime)
    emitter = Emitter(config, node=task.node, clock=clock)
    async with emitter:
        await emitter.hello_acked()
        await emitter.drained()  # of each partition
        _tell("ready")
        word = (await listen.readline()).decode().split()
        if word[:1] != ["go"]:
            return
        opened_ms, first_ms = int(word[1]), int(word[2])
        await SystemClock().sleep_until_ms(opened_ms)
        clock.advance(emitter, first_ms, task.interval_ms)
        shift_ms = first_ms - task.start_ms
        told_at, i = time.monotonic(), 0
        for edge_ms in range(task.start_ms + task.interval_ms, task.end_ms + 1, task.interval_ms):
            while i < len(mine) and mine[i].at_ms < edge_ms:
                emitter.record_request(**arguments(mine[i]))
                i += 1
            if task.speed:
                await SystemClock().sleep_until_ms(opened_ms + round((edge_ms - task.start_ms) / task.speed))
            clock.advance(emitter, edge_ms + shift_ms, task.interval_ms)
            await asyncio.sleep(0)  # the sender's turn: it shares this loop
            await emitter.drained(MAX_PENDING)
            if time.monotonic() >= told_at + _REPORT_S:
                told_at = time.monotonic()
                _tell(f"rows {i}")
        await emitter.drained()
        if not await emitter.close(CLOSE_TIMEOUT_S):
            raise FleetmeterError(
                f"node {task.node}: the broker has not stored the last frame within {CLOSE_TIMEOUT_S:g} s"
            )
        if invalid := emitter.stats().invalid:
            raise FleetmeterError(f"node {task.node}: the emitter refused values: {invalid}")
        _tell(f"rows {i}")
        _tell("done")


class ReplayClock:
    """The emitter's clock in a replay, which cuts where the replay has come to, and nowhere by itself.

    In event time it stands at the edge reached last. In real time it tells the machine's, so that the broker sees no
    clock that is wrong; but a cut sees its edge, so that a process that runs late moves no request to another window.
    """

    def __init__(self, at_ms: int, realtime: bool) -> None:
        self._system = SystemClock()
        self._edge_ms = at_ms
        self._stands = not realtime
        self._realtime = realtime

    def now_ms(self) -> int:
        return self._edge_ms if self._stands else self._system.now_ms()

    def monotonic(self) -> float:
        return self._system.monotonic()

    async def sleep_until_ms(self, at_ms: int) -> None:
        await asyncio.Event().wait()

    def advance(self, emitter: Emitter, to_ms: int, interval_ms: int) -> None:
        """Move on edge by edge, with a cut at each: over several at once, what was recorded would count in the last."""
        self._stands = True
        first_ms = self._edge_ms - self._edge_ms % interval_ms + interval_ms
        for edge_ms in range(first_ms, to_ms + 1, interval_ms):
            self._edge_ms = edge_ms
            emitter.cut()
        self._stands = not self._realtime


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def main() -> int:
    """Take the task from standard input and play it; the exit code."""
    loop = asyncio.get_running_loop()
    listen = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(listen), sys.stdin)
    task = msgspec.json.decode(await listen.readline(), type=Task)
    try:
        await play(task, listen)
    except FleetmeterError as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    configure_logging("warning", "text")
    with asyncio.Runner() as runner:
        sys.exit(runner.run(main()))
