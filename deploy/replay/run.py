"""A replay from end to end: the broker and the aggregator it needs, the workers, and the windows that come of it.

The way of a replay, in `replay`: file → cluster (its own, or one that is there) → workers, held at a barrier until the
cluster knows them all → windows, read back until the last is sealed → summary, and what differs from the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...proto.bus import Bus, LogReader
from ...proto.clock import SystemClock
from ...proto.config import Config, load_config
from ...proto.errors import BusError, ConfigError, FleetmeterError, StreamMissing
from ...proto.streams import bus_options, read_settings, settings_of, settle_settings, stream_specs
from ...proto.subjects import Subjects
from ...proto.wire import Settings
from .. import children
from ..nats_server import NatsServer
from ..supervisor import Part, Supervisor
from ..tasks import together
from .collect import Collector
from .fleet import Workers
from .progress import Progress
from .rule import requests
from .trace import Trace, read_trace
from .verify import Difference, Result, differences, expected, quantile_error
from .worker import Task

#: The cluster of a replay that brings its own broker.
OWN_CLUSTER = "replay"
#: No window for so long, after all workers are done, means that nobody aggregates.
PATIENCE_S = 30.0
#: How long a window that was sealed without a late node may take to be published again, seconds.
CORRECTION_S = 5.0
#: Nodes of a cluster of our own count as live that long in silence, so that a slow replay's windows are not sealed
#: without them.
_NODE_TIMEOUT_MS = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to replay, and where. `speed` is 0 for as fast as it goes. Without `nats_url` a broker is started for it
    alone.
    """

    trace: Path
    nodes: int = 8
    speed: float = 0.0
    seed: int = 1
    nats_url: str | None = None
    cluster: str | None = None
    config: Path | None = None
    verify: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What came out. Counts and `cost_usd` are the cluster's; the last three are None without verification."""

    requests: int
    input_tokens: int
    output_tokens: int
    cost_usd: float
    windows: int
    seconds: float
    max_quantile_error: float | None = None
    match: bool | None = None
    differences: list[Difference] | None = None


@dataclass(frozen=True, slots=True)
class _Span:
    """The trace's windows: start of the first, end of the last, and their length; ms."""

    start_ms: int
    end_ms: int
    interval_ms: int

    @classmethod
    def of(cls, trace: Trace, interval_ms: int) -> _Span:
        first, last = int(trace.at_ms[0]), int(trace.at_ms[-1])
        return cls(first - first % interval_ms, last - last % interval_ms + interval_ms, interval_ms)

    def shifted(self, by_ms: int) -> _Span:
        return _Span(self.start_ms + by_ms, self.end_ms + by_ms, self.interval_ms)


async def replay(options: Options, progress: Progress) -> Summary:
    """Play the trace, and read what the cluster makes of it.

    Raises TraceError before anything is sent; ConfigError for settings that do not go together; BusUnreachable;
    FleetmeterError when a worker fails, or when no windows come.
    """
    began = time.monotonic()
    progress.phase("reading the trace")
    trace = read_trace(options.trace)
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleetmeter-replay-")))
        flags = await stack.enter_async_context(_broker(options, directory, progress))
        config = load_config(options.config, environ=os.environ, flags=flags)
        bus = await stack.enter_async_context(await Bus.connect(bus_options(config), name="fleetmeter replay"))
        settings, fresh = await _settle(bus, config, options)
        flags |= _flags_of(settings)
        supervisor = Supervisor(progress.words)
        stack.push_async_callback(supervisor.stop)
        if fresh:
            progress.phase("starting an aggregator")
            await supervisor.start(_aggregator(options, flags))
        shift_ms, result = await _play(trace, options, flags, settings, bus, config, directory, progress)
    # The servers are gone by now: what follows needs nothing but the windows.
    if options.verify:
        progress.phase("computing what must come out")
        want = expected(requests(trace.shifted(shift_ms), options.seed), settings.interval_ms)
        found = list(differences(want, result))
        verified = {"max_quantile_error": quantile_error(want, result), "match": not found, "differences": found}
    else:
        verified = {}
    return Summary(
        requests=int(result.total("requests_total")),
        input_tokens=int(result.total("tokens_total", type="input")),
        output_tokens=int(result.total("tokens_total", type="output")),
        cost_usd=float(result.total("cost_usd_total")),
        windows=len(result.windows),
        seconds=time.monotonic() - began,
        **verified,  # type: ignore[arg-type]
    )


@contextlib.asynccontextmanager
async def _broker(options: Options, directory: Path, progress: Progress) -> AsyncIterator[dict[str, str]]:
    """Settings (by dotted key) that lead to the broker: the one that is named, or one of our own for as long as this
    lasts.
    """
    flags = {"cluster": options.cluster} if options.cluster else {}
    if options.nats_url is not None:
        yield flags | {"nats.url": options.nats_url}
        return
    progress.phase("starting NATS")
    server = NatsServer(directory / "nats", die_with_parent=True)
    server.start()
    try:
        yield {"cluster": OWN_CLUSTER} | flags | {"nats.url": server.url}
    finally:
        await asyncio.to_thread(server.stop)


async def _settle(bus: Bus, config: Config, options: Options) -> tuple[Settings, bool]:
    """The cluster's settings, and whether we have just founded it. Raises ConfigError when this replay does not go with
    them.
    """
    subjects = Subjects(config.cluster)
    try:
        settings = await read_settings(bus, subjects)
    except StreamMissing:
        settings = None
    if settings is None:
        for spec in stream_specs(config):
            await bus.ensure_stream(spec)
        wanted = msgspec.structs.replace(settings_of(config), clock="event", node_timeout_ms=_NODE_TIMEOUT_MS)
        return await settle_settings(bus, subjects, wanted), True
    another = f"--cluster {config.cluster}-replay" if config.cluster != OWN_CLUSTER else "--cluster replay-2"
    if settings.clock == "broker" and options.speed != 1.0:
        speed = f"{options.speed:g}x" if options.speed else "max"
        raise ConfigError(
            f"--speed {speed}: cluster {config.cluster} goes by the broker's clock, so a replay must take its real "
            f"time (--speed 1x); name a new cluster, such as {another}, to replay at any speed, or leave out --nats-url"
        )
    if settings.clock == "event" and await bus.last(subjects.deltas_stream, f"fm.{config.cluster}.delta.>") is not None:
        raise ConfigError(
            f"--cluster {config.cluster}: it has had frames already, and a cluster that goes by the frames' time "
            f"can't go back; name a new one, such as {another}"
        )
    return settings, False


def _flags_of(settings: Settings) -> dict[str, str]:
    """The cluster's settings as flags for the processes that we start, so that none begins with others."""
    return {
        "pipeline.interval": f"{settings.interval_ms}ms",
        "pipeline.partitions": str(settings.partitions),
        "pipeline.clock": settings.clock,
        "pipeline.node_timeout": f"{settings.node_timeout_ms}ms",
        "emitter.host_metrics": "false",
    }


def _aggregator(options: Options, flags: dict[str, str]) -> Part:
    argv = [sys.executable, "-m", "fleetmeter.deploy.cli", "run", "aggregator"]
    if options.config is not None:
        argv += ["--config", str(options.config)]
    # By environment, because a URL may hold a password, and arguments are seen by everyone on the machine.
    env = {f"FLEETMETER_{key.upper().replace('.', '__')}": value for key, value in flags.items()}
    env |= {"FLEETMETER_LOG__LEVEL": "warning", "FLEETMETER_LOG__FORMAT": "text"}
    return Part("aggregator", argv, children.environment(env, os.environ))


async def _play(
    trace: Trace,
    options: Options,
    flags: dict[str, str],
    settings: Settings,
    bus: Bus,
    config: Config,
    directory: Path,
    progress: Progress,
) -> tuple[int, Result]:
    """Run the workers and read windows until the last is sealed; by how many ms times were shifted, and what came."""
    span = _Span.of(trace, settings.interval_ms)
    realtime = settings.clock == "broker"
    saved = directory / "trace.npy"
    trace.save(saved)
    stream = Subjects(config.cluster).windows_stream
    reader = LogReader(bus, stream, [*Subjects(config.cluster).windows_all], await _next_sequence(bus, stream))
    progress.phase(f"starting {options.nodes} nodes")
    clock = SystemClock()
    async with Workers(progress, len(trace)) as workers:
        for index in range(options.nodes):
            await workers.start(
                Task(
                    trace=str(saved),
                    config=str(options.config) if options.config else None,
                    flags=flags,
                    node=f"replay-{index + 1}",
                    index=index,
                    nodes=options.nodes,
                    seed=options.seed,
                    interval_ms=span.interval_ms,
                    start_ms=span.start_ms,
                    end_ms=span.end_ms,
                    realtime=realtime,
                    speed=options.speed,
                )
            )
        await workers.ready()
        now_ms = clock.now_ms()
        opened_ms = now_ms - now_ms % span.interval_ms + span.interval_ms if realtime else now_ms
        shift_ms = opened_ms - span.start_ms if realtime else 0
        progress.phase("replaying")
        await workers.go(opened_ms, span.start_ms + shift_ms)
        moved = span.shifted(shift_ms)
        collector = Collector(span.interval_ms, settings.partitions, moved.start_ms, moved.end_ms, only_span=realtime)
        await together(workers.done(), _collect(reader, collector, workers, progress, config.cluster))
    await reader.close()
    return shift_ms, collector.result()


async def _next_sequence(bus: Bus, stream: str) -> int:
    try:
        return (await bus.stream_state(stream)).last_sequence + 1
    except StreamMissing:
        return 1


async def _collect(reader: LogReader, collector: Collector, workers: Workers, progress: Progress, cluster: str) -> None:
    """Take windows until the last is sealed. Raises FleetmeterError when none come any more."""
    heard_at = time.monotonic()
    while not (collector.complete and workers.finished):
        if await _read(reader, collector) or not workers.finished:
            heard_at = time.monotonic()
        if workers.finished:
            progress.phase("waiting for the last window")
        if time.monotonic() - heard_at > PATIENCE_S:
            raise FleetmeterError(
                f"no window came for {PATIENCE_S:g} s; sealed up to {collector.sealed_ms} of {collector.end_ms} ms: "
                f"is an aggregator of cluster {cluster} running?"
            )
    until = time.monotonic() + CORRECTION_S
    while not collector.corrected and time.monotonic() < until:
        await _read(reader, collector)


async def _read(reader: LogReader, collector: Collector) -> bool:
    """Take what is there, or comes soon; False when that is nothing."""
    try:
        batch = await reader.batch(0.25)
    except BusError:  # the aggregator makes the stream; the broker may be restarting
        await asyncio.sleep(0.1)
        return False
    for message in batch:
        collector.take(message)
    return bool(batch)
