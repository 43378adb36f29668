"""A cluster for tests: a real NATS server, and the parts in this process or in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleetmeter.aggregator import service
from fleetmeter.deploy.nats_server import NatsServer
from fleetmeter.emitter import Emitter
from fleetmeter.proto.bus import Bus, LogReader
from fleetmeter.proto.clock import ManualClock
from fleetmeter.proto.config import Config, load_config
from fleetmeter.proto.errors import BusError
from fleetmeter.proto.exact import to_float
from fleetmeter.proto.keys import decode_key
from fleetmeter.proto.streams import bus_options, stream_specs
from fleetmeter.proto.subjects import Subjects
from fleetmeter.proto.window import window_counters, window_sketches
from fleetmeter.proto.wire import LogPosition, Part, Sealed, decode

#: Where the trace of a manual clock begins: a round time, so that windows are easy to read.
T0 = 1_700_000_000_000


@dataclass
class Cluster:
    """`flags` are settings by dotted key. Windows of 1 s in event time unless set otherwise."""

    server: NatsServer
    flags: dict[str, object] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        defaults: dict[str, object] = {
            "nats.url": self.server.url,
            "cluster": "test",
            "pipeline.interval": "1s",
            "pipeline.clock": "event",
            "emitter.host_metrics": "false",
        }
        return load_config(None, environ={}, flags={**defaults, **self.flags})

    @property
    def subjects(self) -> Subjects:
        return Subjects(self.config.cluster)

    async def bus(self, name: str = "test") -> Bus:
        return await Bus.connect(bus_options(self.config), name=name)

    async def create_streams(self) -> None:
        async with await self.bus() as bus:
            for spec in stream_specs(self.config):
                await bus.ensure_stream(spec)

    @contextlib.asynccontextmanager
    async def aggregator(self) -> AsyncIterator[asyncio.Task[None]]:
        """An aggregator as a task of this process, caught up."""
        ready = asyncio.Event()
        task = asyncio.create_task(service.run(self.config, on_ready=ready.set))
        waiter = asyncio.create_task(ready.wait())
        await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        try:
            yield task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    @contextlib.asynccontextmanager
    async def aggregator_process(self) -> AsyncIterator[asyncio.subprocess.Process]:
        """An aggregator as a process of its own, to be killed."""
        flags = {**{"cluster": "test", "pipeline.interval": "1s", "pipeline.clock": "event"}, **self.flags}
        environ = {f"FLEETMETER_{key.upper().replace('.', '__')}": str(value) for key, value in flags.items()}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "fleetmeter.deploy.cli", "run", "aggregator", "--nats-url", self.server.url,
            env={**os.environ, **environ},
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            await process.wait()

    @contextlib.asynccontextmanager
    async def node(self, name: str, at_ms: int = T0) -> AsyncIterator[tuple[Emitter, ManualClock]]:
        """An emitter on a manual clock, known to the broker."""
        clock = ManualClock(at_ms)
        async with Emitter(self.config, node=name, clock=clock) as emitter:
            await emitter.hello_acked()
            yield emitter, clock

    async def windows(self, through_ms: int, timeout_s: float = 20.0) -> Windows:
        """Everything published, once all windows that end by `through_ms` are sealed and no correction is due."""
        async with asyncio.timeout(timeout_s), await self.bus("reader") as bus:
            windows = Windows()
            reader = LogReader(bus, self.subjects.windows_stream, self.subjects.windows_all, 1)
            try:
                while windows.sealed_through < through_ms:
                    with contextlib.suppress(BusError):
                        for message in await reader.batch(0.2):
                            windows.add(message.subject, message.data)
                windows.add_all(await reader.batch(0.3))
            finally:
                await reader.close()
            return windows


@dataclass
class Windows:
    """The WINDOWS log as a reader understands it: of each window and metric the newest revision."""

    counters: dict[tuple[str, int], dict[frozenset[tuple[str, str]], float]] = field(default_factory=dict)
    sketches: dict[tuple[str, int], dict[frozenset[tuple[str, str]], Any]] = field(default_factory=dict)
    totals: dict[bytes, float] = field(default_factory=dict)
    markers: list[Sealed] = field(default_factory=list)
    sealed_through: int = 0
    #: (subject, payload) as stored.
    stored: list[tuple[str, bytes]] = field(default_factory=list)
    resets: int = 0
    repetitions: int = 0
    _newest: dict[tuple[str, int, int], tuple[LogPosition, int, int]] = field(default_factory=dict)

    def add_all(self, messages: list[Any]) -> None:
        for message in messages:
            self.add(message.subject, message.data)

    def add(self, subject: str, payload: bytes) -> None:
        self.stored.append((subject, payload))
        if "._sealed." in subject:
            marker = decode(Sealed, payload)
            self.markers.append(marker)
            self.sealed_through = max(self.sealed_through, marker.end_ms)
            return
        part = decode(Part, payload)
        source = (part.metric, part.resolution_ms, part.partition)
        place = (part.position, part.start_ms, part.piece)
        if source in self._newest and place <= self._newest[source]:
            self.repetitions += 1
            return
        self._newest[source] = place
        if part.counters:
            columns = window_counters(part)
            values = to_float(columns.whole, columns.fraction).tolist()
            window = {frozenset(decode_key(key)[1].items()): v for key, v in zip(columns.keys, values, strict=True)}
            if part.resolution_ms:
                if part.piece:
                    window = {**self.counters[part.metric, part.start_ms], **window}
                self.counters[part.metric, part.start_ms] = window
            totals = to_float(columns.total_whole, columns.total_fraction).tolist()
            for key, total in zip(columns.keys, totals, strict=True):
                self.resets += total < self.totals.get(key, 0.0)
                self.totals[key] = total
        if part.sketches:
            sketches = window_sketches(part)
            self.sketches[part.metric, part.start_ms] = {
                frozenset(decode_key(key)[1].items()): sketch
                for key, sketch in zip(sketches.keys, sketches.sketches(), strict=True)
            }

    def total(self, metric: str, **labels: str) -> float:
        """Sum of the running totals of a metric's series that have these labels."""
        return sum(value for key, value in self.totals.items() if _matches(key, metric, labels))

    def sum(self, metric: str, **labels: str) -> float:
        """Sum of the increments over all windows, of the series that have these labels."""
        wanted = set(labels.items())
        return sum(
            value
            for (name, _), window in self.counters.items()
            if name == metric
            for series, value in window.items()
            if wanted <= series
        )

    def count(self, metric: str, start_ms: int) -> int:
        """How many values a histogram's window holds, over all series."""
        return sum(sketch.count for sketch in self.sketches.get((metric, start_ms), {}).values())

    @property
    def starts(self) -> list[int]:
        """Starts of the sealed windows, each once, ascending."""
        return sorted({marker.start_ms for marker in self.markers})


def _matches(key: bytes, metric: str, labels: dict[str, str]) -> bool:
    name, own = decode_key(key)
    return name == metric and all(own.get(label) == value for label, value in labels.items())


@contextlib.contextmanager
def running_server(store_dir: Path) -> Iterator[NatsServer]:
    """A NATS server of its own for one test."""
    server = NatsServer(store_dir, die_with_parent=True)
    server.start()
    try:
        yield server
    finally:
        server.stop()
