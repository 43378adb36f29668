"""NATS that refuses, vanishes, or loses a stream: the proxy does not notice, and totals stay right."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.cluster import T0, Cluster, running_server

from fleetmeter.deploy.nats_server import NatsServer
from fleetmeter.emitter import Emitter
from fleetmeter.proto.bus import Bus, BusOptions
from fleetmeter.proto.clock import ManualClock
from fleetmeter.proto.errors import BusRefused, BusUnreachable
from fleetmeter.proto.streams import bus_options


def record(emitter: Emitter, n: int) -> None:
    for _ in range(n):
        emitter.record_request("openai", "gpt-4o", response_time=0.25, input_tokens=10, output_tokens=3, cost=0.1)


async def test_killed_nats_server_loses_nothing(cluster: Cluster) -> None:
    """kill -9 of the NATS server, three times under load: every request counts once, in its own window."""
    async with cluster.aggregator(), cluster.node("a") as (a, clock):
        for _ in range(3):
            for _ in range(4):
                record(a, 5)
                clock.advance(1000)
                a.cut()
            cluster.server.kill()
            for _ in range(4):
                record(a, 5)
                clock.advance(1000)
                a.cut()
            cluster.server.start()
            await a.drained()
        seen = await cluster.windows(T0 + 24_000)
        frames = a.stats()
    assert seen.total("requests_total") == seen.sum("requests_total") == 120
    assert [seen.count("request_duration_seconds", T0 + i * 1000) for i in range(24)] == [5] * 24
    assert seen.resets == 0
    assert frames.frames_merged == 0


async def test_deleted_delta_stream_is_made_anew_and_totals_go_on(cluster: Cluster) -> None:
    """The DELTAS stream is deleted under a running cluster: it is created again, and counting continues from where it
    was.
    """
    async with cluster.aggregator(), cluster.node("a") as (a, clock):
        for _ in range(3):
            record(a, 5)
            clock.advance(1000)
            a.cut()
        await a.drained()
        await cluster.windows(T0 + 3000)
        async with await cluster.bus() as bus:
            await bus._js.delete_stream(cluster.subjects.deltas_stream)
        for _ in range(3):
            record(a, 5)
            clock.advance(1000)
            a.cut()
        await a.drained()
        seen = await cluster.windows(T0 + 6000)
    assert seen.total("requests_total") == seen.sum("requests_total") == 30
    assert seen.resets == 0
    assert seen.repetitions == 0


async def test_deleted_window_stream_is_made_anew_and_totals_go_on(cluster: Cluster) -> None:
    """The WINDOWS stream is deleted under a running cluster: later windows are published with totals that go on."""
    async with cluster.aggregator(), cluster.node("a") as (a, clock):
        for _ in range(3):
            record(a, 5)
            clock.advance(1000)
            a.cut()
        await cluster.windows(T0 + 3000)
        async with await cluster.bus() as bus:
            await bus._js.delete_stream(cluster.subjects.windows_stream)
        for _ in range(3):
            record(a, 5)
            clock.advance(1000)
            a.cut()
        await a.drained()
        seen = await cluster.windows(T0 + 6000)
    assert seen.total("requests_total") == 30
    assert seen.sum("requests_total") == 15


async def test_lost_frames_are_asked_for_again(cluster: Cluster) -> None:
    """Frames that the log lost after acknowledging them come back from the emitter's ring: the totals heal."""
    await cluster.create_streams()
    async with cluster.node("a") as (a, clock):
        for _ in range(3):
            record(a, 5)
            clock.advance(1000)
            a.cut()
        await a.drained()
        async with await cluster.bus() as bus:
            # All four frames so far vanish from the log before any aggregator has read them.
            await bus._js.delete_stream(cluster.subjects.deltas_stream)
        async with cluster.aggregator():
            record(a, 5)
            clock.advance(1000)
            a.cut()
            await a.drained()
            async with asyncio.timeout(20):
                while (seen := await cluster.windows(T0 + 1000)).total("requests_total") < 20:
                    pass
    assert seen.total("requests_total") == 20
    assert seen.resets == 0


async def test_recording_goes_on_within_the_memory_limit_while_nats_is_away(cluster: Cluster, tmp_path: Path) -> None:
    """With NATS down for 300 windows the queue stays within its limit by merging; in the end each request counts."""
    cluster.flags["emitter.queue_bytes"] = 1 << 20
    models = [f"model-{i}" for i in range(200)]
    async with cluster.aggregator(), cluster.node("a") as (a, clock):
        cluster.server.kill()
        for _ in range(300):
            for model in models:
                a.record_request("openai", model, response_time=0.25, input_tokens=10)
            clock.advance(1000)
            a.cut()
            assert a.stats().pending_bytes <= (1 << 20) + (256 << 10)
            await asyncio.sleep(0)
        assert a.stats().frames_merged > 0
        cluster.server.start()
        await a.drained()
        seen = await cluster.windows(T0 + 300_000)
    assert seen.total("requests_total") == 300 * len(models)
    assert seen.total("tokens_total", type="input") == 10 * 300 * len(models)


async def test_recording_costs_the_same_while_nats_is_away(cluster: Cluster) -> None:
    """A request is recorded without waiting for anything: without NATS it costs at most three times what it costs with
    it.
    """

    def cost(emitter: Emitter) -> float:
        best = float("inf")
        for _ in range(7):
            start = time.perf_counter()
            record(emitter, 3000)
            best = min(best, time.perf_counter() - start)
        return best

    async with cluster.aggregator(), cluster.node("a") as (a, clock):
        with_nats = cost(a)
        cluster.server.kill()
        clock.advance(1000)
        a.cut()
        without = cost(a)
        cluster.server.start()
    assert without < 3 * with_nats


async def test_nats_that_refuses_the_connection_says_so(tmp_path: Path) -> None:
    """A server that wants a password refuses with a message that names the setting, and shows no secret."""
    conf = tmp_path / "nats.conf"
    conf.write_text('authorization { user: "fleet", password: "right" }\n')
    with running_server(tmp_path / "plain") as plain:
        port = plain.port
    server = NatsServer(tmp_path / "locked", port, extra=("--config", str(conf)))
    server.start()
    try:
        with pytest.raises(BusRefused, match=r"nats\.user") as refused:
            await Bus.connect(
                BusOptions(urls=(server.url,), user="fleet", password="wr0ng", connect_timeout_s=3), name="t"
            )
        assert "wr0ng" not in str(refused.value)
        async with await Bus.connect(BusOptions(urls=(server.url,), user="fleet", password="right"), name="t") as bus:
            assert bus.connected
    finally:
        server.stop()


async def test_emitter_outlives_a_server_that_comes_late(tmp_path: Path) -> None:
    """An emitter that starts before NATS does sends everything once NATS is there."""
    with running_server(tmp_path / "first") as first:
        pass
    cluster = Cluster(NatsServer(tmp_path / "late", first.port))
    with pytest.raises(BusUnreachable, match=r"nats\.url"):
        await Bus.connect(
            bus_options(cluster.config).__class__(urls=(cluster.server.url,), connect_timeout_s=0.3), name="t"
        )
    clock = ManualClock(T0)
    async with Emitter(cluster.config, node="early", clock=clock) as emitter:
        record(emitter, 5)
        clock.advance(1000)
        emitter.cut()
        cluster.server.start()
        try:
            async with cluster.aggregator():
                await emitter.drained()
                seen = await cluster.windows(T0 + 1000)
                await emitter.close()
        finally:
            cluster.server.stop()
    assert seen.total("requests_total") == 5


PROXY = """
import asyncio, sys, threading
from fleetmeter.emitter import Emitter
from fleetmeter.proto.config import load_config
config = load_config(None, environ={}, flags={
    "nats.url": sys.argv[1], "cluster": "test", "emitter.host_metrics": "false",
    "pipeline.interval": "60s", "pipeline.node_timeout": "60s",
})
def record(emitter):
    def work():
        for _ in range(500):
            emitter.record_request("p", "m", response_time=1.0)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
if sys.argv[2] == "thread":
    with Emitter(config, node="proxy") as emitter:
        record(emitter)
        print("ready", flush=True)
        threading.Event().wait()
else:
    async def main():
        async with Emitter(config, node="proxy") as emitter:
            record(emitter)
            print("ready", flush=True)
            await asyncio.Event().wait()
    asyncio.run(main())
"""


@pytest.mark.parametrize("mode", ["thread", "asyncio"])
async def test_sigterm_flushes_the_window_that_is_open(cluster: Cluster, mode: str) -> None:
    """A proxy that is told to stop loses no request: what four threads recorded arrives, and it dies of the signal."""
    cluster.flags.update({"pipeline.interval": "60s", "pipeline.node_timeout": "60s"})
    await cluster.create_streams()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROXY, cluster.server.url, mode, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        process.terminate()
        assert await process.wait() == -signal.SIGTERM
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    async with cluster.aggregator():
        seen = await cluster.windows(1)
    assert seen.total("requests_total") == 2000
