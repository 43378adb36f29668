"""From the last frame of a window to the window at the gateway: NATS and aggregator as processes, eight emitters.

The clock starts with the broker's timestamp of the message that completes the window (in whole ms, so it starts up to
1 ms early), and stops when the gateway has the window and has rendered it as JSON. All on one machine, so one clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import uvloop
from bench.measure import Figure

from fleetmeter.deploy.nats_server import NatsServer
from fleetmeter.emitter import Emitter
from fleetmeter.gateway.http import Gateway
from fleetmeter.gateway.state import GatewayFold
from fleetmeter.proto.bus import Bus
from fleetmeter.proto.clock import SystemClock
from fleetmeter.proto.config import load_config
from fleetmeter.proto.fold import FoldRunner
from fleetmeter.proto.streams import bus_options, stream_specs
from fleetmeter.proto.subjects import Subjects

EMITTERS = 8
#: Of one emitter: models in use, and requests a second.
MODELS, RATE = 25, 200
#: Windows that are measured, after some in which all starts.
WINDOWS, WARM_UP = 32, 4
_STEP_S = 0.02


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="fleetmeter-bench-") as directory:
        server = NatsServer(Path(directory), die_with_parent=True)
        server.start()
        try:
            return uvloop.run(_measure(server))
        finally:
            server.stop()


class Watch:
    """Notes when each window can be read, and how long that took, ms: since its last frame, and since its end."""

    def __init__(self, fold: GatewayFold) -> None:
        self.since_frame: list[float] = []
        self.since_end: list[float] = []
        self.done = asyncio.Event()
        self._fold = fold
        self._gateway = Gateway(
            fold, clock=SystemClock(), version="bench", connected=lambda: True, not_ready=lambda: ""
        )
        self._newest = 0

    def look(self) -> None:
        """After each batch that the gateway has folded."""
        marker = self._fold.sealed.get(0)
        if marker is None or marker.end_ms <= self._newest:
            return
        self._newest = marker.end_ms
        self._gateway.json_body()
        now_ms = time.time() * 1000
        self.since_frame.append(now_ms - marker.sealed_ms)
        self.since_end.append(now_ms - marker.end_ms)
        if len(self.since_frame) == WINDOWS + WARM_UP:
            self.done.set()


async def _measure(server: NatsServer) -> list[Figure]:
    flags = {"nats.url": server.url, "cluster": "bench", "pipeline.interval": "1s", "emitter.host_metrics": "false"}
    config = load_config(None, environ={}, flags=flags)
    subjects = Subjects(config.cluster)
    async with await Bus.connect(bus_options(config), name="bench gateway") as bus, _aggregator(flags):
        fold = GatewayFold()
        watch = Watch(fold)
        runner = FoldRunner(
            bus=bus, fold=fold, name="gateway", replica="bench", source=subjects.windows_stream,
            subjects=subjects.windows_all, streams=stream_specs(config), bucket=subjects.snapshots_bucket,
            clock=SystemClock(), on_batch=watch.look,
        )  # fmt: skip
        async with contextlib.AsyncExitStack() as stack:
            tasks = [asyncio.create_task(runner.run())]
            for i in range(EMITTERS):
                emitter = await stack.enter_async_context(Emitter(config, node=f"proxy-{i}"))
                tasks.append(asyncio.create_task(_traffic(emitter, seed=i)))
            done = asyncio.create_task(watch.done.wait())
            await asyncio.wait([*tasks, done], timeout=4 * (WINDOWS + WARM_UP), return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            assert watch.done.is_set(), f"only {len(watch.since_frame)} windows came"
    since_frame, since_end = sorted(watch.since_frame[WARM_UP:]), sorted(watch.since_end[WARM_UP:])
    # Of fewer than a hundred values the 99th percentile, as nearest rank, is the greatest.
    return [
        Figure("seal.p99_ms", since_frame[-1], "ms", 250.0, at_most=True,
               peer=f"{WINDOWS} windows of 1 s, {EMITTERS} emitters of {RATE} requests/s over {MODELS} models"),
        Figure("seal, median", since_frame[WINDOWS // 2], "ms"),
        Figure("seal, since the window's end, worst", since_end[-1], "ms"),
        Figure("seal, since the window's end, median", since_end[WINDOWS // 2], "ms"),
    ]  # fmt: skip


async def _traffic(emitter: Emitter, seed: int) -> None:
    """Record requests until cancelled."""
    draw = random.Random(seed)
    while True:
        for _ in range(round(RATE * _STEP_S)):
            emitter.record_request(
                "openai", f"model-{draw.randrange(MODELS)}", success=draw.random() > 0.03,
                response_time=draw.lognormvariate(-0.5, 0.6), input_tokens=draw.randrange(4000),
                output_tokens=draw.randrange(1500), cost=draw.random() / 50,
            )  # fmt: skip
        await asyncio.sleep(_STEP_S)


@contextlib.asynccontextmanager
async def _aggregator(flags: dict[str, str]) -> AsyncIterator[None]:
    environ = {f"FLEETMETER_{key.upper().replace('.', '__')}": value for key, value in flags.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fleetmeter.deploy.cli", "run", "aggregator",
        env={**os.environ, **environ}, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await process.wait()
