"""The way of a request through real parts: emitter, NATS, aggregator."""

from __future__ import annotations

import asyncio

from support.cluster import T0, Cluster

from fleetmeter.emitter import Emitter


def record(emitter: Emitter, n: int) -> None:
    for i in range(n):
        emitter.record_request(
            "openai", "gpt-4o", response_time=0.1 + i / 1000, input_tokens=10, output_tokens=3, cost=0.1
        )


async def test_requests_of_three_nodes_add_up_in_each_window(cluster: Cluster) -> None:
    """What three nodes record in two windows comes out as one exact number for each window."""
    async with cluster.aggregator(), cluster.node("a") as a, cluster.node("b") as b, cluster.node("c") as c:
        for window in (0, 1):
            for n, (emitter, clock) in enumerate((a, b, c), start=1):
                record(emitter, 10 * n + window)
                clock.advance(1000)
                emitter.cut()
        seen = await cluster.windows(T0 + 2000)
    assert [seen.count("request_duration_seconds", T0 + w * 1000) for w in (0, 1)] == [60, 63]
    assert seen.total("requests_total", outcome="success") == 123
    assert seen.total("tokens_total", type="input") == 1230
    assert abs(seen.total("cost_usd_total") - 12.3) < 1e-12
    assert seen.starts[:2] == [T0, T0 + 1000]
    assert all(m.nodes_heard == m.nodes_expected == 3 for m in seen.markers[:2])


async def test_two_aggregators_publish_each_window_once_and_in_the_same_bytes(cluster: Cluster) -> None:
    """Two replicas side by side leave no duplicate in the WINDOWS stream, and either one's bytes will do."""
    async with cluster.aggregator(), cluster.aggregator():
        async with cluster.node("a") as (a, clock), cluster.node("b") as (b, other):
            for _ in range(20):
                record(a, 5)
                record(b, 7)
                clock.advance(1000)
                other.advance(1000)
                a.cut()
                b.cut()
                await a.drained()
        seen = await cluster.windows(T0 + 20_000)
    assert seen.total("requests_total") == 240
    assert seen.repetitions == 0
    assert len(seen.markers) == len({m.start_ms for m in seen.markers})


async def test_a_second_aggregator_that_starts_later_changes_nothing(cluster: Cluster) -> None:
    """A replica that replays the whole log publishes nothing twice."""
    async with cluster.aggregator():
        async with cluster.node("a") as (a, clock):
            for _ in range(5):
                record(a, 5)
                clock.advance(1000)
                a.cut()
        before = await cluster.windows(T0 + 5000)
        async with cluster.aggregator():
            after = await cluster.windows(T0 + 5000)
    assert after.stored == before.stored


async def test_restart_from_a_snapshot_goes_on_without_a_counter_reset(cluster: Cluster) -> None:
    """An aggregator that was stopped goes on from snapshot and log: totals continue, no window is missing or twice."""
    cluster.flags["aggregator.snapshot_interval"] = "1s"
    await cluster.create_streams()
    async with cluster.node("a") as (a, clock):
        for _ in range(4):
            async with cluster.aggregator():
                for _ in range(3):
                    record(a, 5)
                    clock.advance(1000)
                    a.cut()
                    await a.drained()
                await cluster.windows(clock.now_ms())
    async with cluster.aggregator():
        seen = await cluster.windows(T0 + 12_000)
    assert seen.total("requests_total") == 60
    assert seen.resets == 0
    assert seen.starts[:12] == [T0 + i * 1000 for i in range(12)]


async def test_killed_aggregator_loses_nothing(cluster: Cluster) -> None:
    """kill -9 of the only aggregator, five times under load: totals and windows are exact, and no counter resets."""
    cluster.flags["aggregator.snapshot_interval"] = "1s"
    await cluster.create_streams()
    async with cluster.node("a") as (a, clock):
        for _ in range(5):
            async with cluster.aggregator_process() as process:
                sealed = asyncio.create_task(cluster.windows(clock.now_ms() + 2000))
                for _ in range(6):
                    record(a, 5)
                    clock.advance(1000)
                    a.cut()
                    await a.drained()
                await sealed
                process.kill()
    async with cluster.aggregator():
        seen = await cluster.windows(T0 + 30_000)
    assert seen.total("requests_total") == 150
    assert seen.sum("requests_total") == 150
    assert seen.resets == 0
    assert seen.starts[:30] == [T0 + i * 1000 for i in range(30)]
