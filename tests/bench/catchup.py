"""Catching up: a new aggregator reads a DELTAS log on disk from its beginning, folds it, and publishes every window."""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import uvloop
from bench.frames import INCARNATION, Fleet
from bench.measure import Figure

from fleetmeter.aggregator.fold import AggregatorFold
from fleetmeter.deploy.nats_server import NatsServer
from fleetmeter.proto.bus import Bus, LogMessage, LogReader
from fleetmeter.proto.clock import SystemClock
from fleetmeter.proto.config import load_config
from fleetmeter.proto.fold import FoldRunner
from fleetmeter.proto.streams import bus_options, settings_of, stream_specs
from fleetmeter.proto.subjects import Subjects, frame_id
from fleetmeter.proto.wire import Settings

NODES, WINDOWS = 16, 80
#: Series of a frame. A model has about three counters to each histogram.
COUNTERS, SKETCHES = 750, 250
ROUNDS = 3
_IN_FLIGHT = 64


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="fleetmeter-bench-") as directory:
        server = NatsServer(Path(directory), die_with_parent=True)
        server.start()
        try:
            return uvloop.run(_measure(server))
        finally:
            server.stop()


async def _measure(server: NatsServer) -> list[Figure]:
    config = load_config(
        None, environ={}, flags={"nats.url": server.url, "cluster": "bench", "pipeline.clock": "event"}
    )
    subjects = Subjects(config.cluster)
    async with await Bus.connect(bus_options(config), name="bench") as bus:
        deltas_spec, windows_spec = stream_specs(config)
        # So short that the windows of one round are no duplicates of those of the round before: each stores its own.
        streams = (deltas_spec, dataclasses.replace(windows_spec, dedup_window_s=0.1))
        for spec in streams:
            await bus.ensure_stream(spec)
        stored, frames = await _fill(bus, settings_of(config))
        took, computed, read = [], [], []
        for i in range(ROUNDS):
            read.append(await _read(bus, subjects, frames))
            # Another name each time, so that no round finds the snapshot of another.
            fold = AggregatorFold(config.cluster, 0, settings_of(config))
            runner = FoldRunner(
                bus=bus, fold=fold, name=f"catchup-{i}", replica="bench", source=subjects.deltas_stream,
                subjects=subjects.deltas_of(0), streams=streams, bucket=subjects.snapshots_bucket, clock=SystemClock(),
            )  # fmt: skip
            wall, cpu = time.perf_counter(), time.process_time()
            task = asyncio.create_task(runner.run())
            await runner.caught_up.wait()
            await runner.flushed()
            took.append(time.perf_counter() - wall)
            computed.append(time.process_time() - cpu)
            task.cancel()
            await asyncio.wait([task])
            assert fold.ledger.applied == frames, "every frame is folded"
    deltas = (frames - NODES) * (COUNTERS + SKETCHES)
    return [
        Figure("catchup.series_deltas_per_s", deltas / min(took), "a second", 1e6,
               peer=f"{stored / 1e6:.0f} MB in {frames} frames; {min(computed) / min(took):.0%} of the time computing"),
        Figure("catchup, reading alone", deltas / min(read), "a second",
               peer="the same LogReader with nothing behind it"),
        Figure("catchup, spread of rounds", statistics.pstdev(took) / statistics.mean(took) * 100, "%"),
    ]  # fmt: skip


async def _fill(bus: Bus, settings: Settings) -> tuple[int, int]:
    """Put the log on disk; its size in bytes, and how many frames it has."""
    fleet = Fleet("bench", NODES, COUNTERS, SKETCHES, settings.interval_ms)
    slots = asyncio.Semaphore(_IN_FLIGHT)
    stored = 0

    async def publish(message: LogMessage, number: int) -> None:
        async with slots:
            node = message.subject.rpartition(".")[2]
            name = frame_id(node, INCARNATION, 0, number)
            await bus.publish(message.subject, message.data, message_id=name, headers=message.headers)

    frames = 0
    for number, batch in enumerate([fleet.hellos(), *map(list, map(fleet.window, range(WINDOWS)))], start=1):
        await asyncio.gather(*(publish(message, number) for message in batch))
        stored += sum(len(message.data) for message in batch)
        frames += len(batch)
    return stored, frames


async def _read(bus: Bus, subjects: Subjects, frames: int) -> float:
    """Seconds to read the log alone."""
    start = time.perf_counter()
    reader = LogReader(bus, subjects.deltas_stream, subjects.deltas_of(0), 1)
    left = frames
    while left:
        left -= len(await reader.batch(5.0))
    took = time.perf_counter() - start
    await reader.close()
    return took
