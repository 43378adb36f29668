"""The aggregator as a process: one Fold runner per partition, ticks that let idle time pass, and requests for missing
frames.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from ..proto.bus import Bus
from ..proto.clock import Clock, SystemClock
from ..proto.config import Config, parse_partitions
from ..proto.errors import BusError, FrameError
from ..proto.fold import FoldRunner
from ..proto.logs import get_logger
from ..proto.streams import connect, settings_of, settle_settings, stream_specs
from ..proto.subjects import Subjects
from ..proto.wire import LogPosition, Resend, Sealed, Settings, Tick, decode, encode
from .fold import AggregatorFold

log = get_logger(__name__)

T = TypeVar("T")

#: How often a tick is offered, seconds; replicas offer the same ones, and the broker keeps the first.
TICK_S = 0.5
#: A gap is asked for once it is this old, ms: most close by themselves, when a retry overtakes.
_ASK_AFTER_MS = 500
_ASK_TIMES = 5


async def run(config: Config, *, on_ready: Callable[[], None] | None = None, clock: Clock | None = None) -> None:
    """Aggregate until cancelled. `on_ready` is called once the log has been caught up with."""
    clock = clock or SystemClock()
    subjects = Subjects(config.cluster)
    replica = f"{socket.gethostname()}-{os.getpid()}".replace("@", "_")
    async with await connect(config, "aggregator") as bus:
        for spec in stream_specs(config):
            await _until_done("creating streams", partial(bus.ensure_stream, spec))
        settings = await _until_done("reading settings", lambda: settle_settings(bus, subjects, settings_of(config)))
        _compare(settings, settings_of(config))
        partitions = parse_partitions(config.aggregator.partitions, settings.partitions)
        runners = [_runner(bus, config, subjects, settings, p, replica, clock) for p in partitions]
        async with asyncio.TaskGroup() as tasks:
            for runner in runners:
                tasks.create_task(runner.run(), name=runner.name)
                tasks.create_task(_tick(bus, subjects, runner, clock), name=f"{runner.name} ticks")
                tasks.create_task(_ask(bus, subjects, runner), name=f"{runner.name} gaps")
            for runner in runners:
                await runner.caught_up.wait()
            log.info(
                "aggregating", cluster=config.cluster, partitions=len(partitions), interval_ms=settings.interval_ms
            )
            if on_ready is not None:
                on_ready()


async def _until_done(doing: str, attempt: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await attempt()
        except BusError as problem:
            log.warning("bus is not ready", every_s=10.0, doing=doing, reason=str(problem))
            await asyncio.sleep(0.25)


def _compare(current: Settings, configured: Settings) -> None:
    if current != configured:
        for name in current.__struct_fields__:
            used, ours = getattr(current, name), getattr(configured, name)
            if used != ours:
                log.warning(
                    "setting differs from the cluster's log; following the log", setting=name, log=used, ours=ours
                )


def _runner(
    bus: Bus, config: Config, subjects: Subjects, settings: Settings, partition: int, replica: str, clock: Clock
) -> FoldRunner:
    async def newest_output() -> tuple[LogPosition, int] | None:
        message = await bus.last(subjects.windows_stream, f"fm.{subjects.cluster}.window.*._sealed.{partition}")
        if message is None:
            return None
        try:
            marker = decode(Sealed, message.data)
        except FrameError:
            return None
        return marker.position, marker.start_ms

    return FoldRunner(
        bus=bus,
        fold=AggregatorFold(config.cluster, partition, settings),
        name=f"aggregator-{partition}",
        replica=replica,
        source=subjects.deltas_stream,
        subjects=subjects.deltas_of(partition),
        streams=stream_specs(config),
        bucket=subjects.snapshots_bucket,
        clock=clock,
        snapshot_interval_s=config.aggregator.snapshot_interval_ms / 1000,
        newest_output=newest_output,
    )


async def _tick(bus: Bus, subjects: Subjects, runner: FoldRunner, clock: Clock) -> None:
    """Put the broker's time into the log, so that windows seal by their deadline while no frames come."""
    fold = runner.fold
    assert isinstance(fold, AggregatorFold)
    payload = encode(Tick(fold.partition))
    while True:
        number = clock.now_ms() // round(TICK_S * 1000)
        with contextlib.suppress(BusError):
            await bus.publish(subjects.tick(fold.partition), payload, message_id=f"tick.{fold.partition}.{number}")
        await asyncio.sleep(TICK_S)


async def _ask(bus: Bus, subjects: Subjects, runner: FoldRunner) -> None:
    """Ask nodes for frames that are missing. Outside the fold: what comes of it arrives by the log."""
    fold = runner.fold
    assert isinstance(fold, AggregatorFold)
    asked: dict[tuple[str, int, int, int], int] = {}
    while True:
        await asyncio.sleep(0.5)
        seen: set[tuple[str, int, int, int]] = set()
        for node in list(fold.nodes.nodes.values()):
            for incarnation in node.incarnations:
                for gap in incarnation.gaps:
                    key = (node.name, incarnation.number, gap.first, gap.last)
                    seen.add(key)
                    if fold.now_ms - gap.since_ms < _ASK_AFTER_MS or asked.get(key, 0) >= _ASK_TIMES:
                        continue
                    asked[key] = asked.get(key, 0) + 1
                    request = Resend(incarnation.number, fold.partition, gap.first, gap.last)
                    log.info("asking for missing frames", every_s=5.0, node=node.name, first=gap.first, last=gap.last)
                    with contextlib.suppress(BusError):
                        await bus.send(subjects.resend(node.name), encode(request))
        asked = {key: times for key, times in asked.items() if key in seen}
