"""The emitter as a proxy uses it: both ways to run it, many threads, wrong use."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from support.cluster import T0, Cluster

from fleetmeter.emitter import Emitter
from fleetmeter.proto.clock import ManualClock


def hammer(emitter: Emitter, threads: int, records: int) -> None:
    """Record from many threads at once, with the folding thread in between."""

    def work() -> None:
        hits = emitter.counter("hits_total")
        for i in range(records):
            emitter.record_request("p", "m", response_time=0.5, input_tokens=i % 5, cost=0.5)
            hits.add()

    all_threads = [threading.Thread(target=work) for _ in range(threads)]
    for thread in all_threads:
        thread.start()
    for thread in all_threads:
        thread.join()


async def test_threads_lose_nothing_while_windows_are_cut(cluster: Cluster) -> None:
    """Eight threads × 5,000 records, folded again and again meanwhile: each one counts once."""
    async with cluster.aggregator(), cluster.node("a") as (a, clock):
        running = asyncio.create_task(asyncio.to_thread(hammer, a, 8, 5000))
        while not running.done():
            clock.advance(1000)
            a.cut()
            await asyncio.sleep(0)
        await running
        clock.advance(1000)
        a.cut()
        await a.drained()
        seen = await cluster.windows(clock.now_ms())
    assert seen.total("requests_total") == seen.total("hits_total") == 40_000
    assert seen.total("tokens_total", type="input") == 8 * 5000 * 2
    assert seen.total("cost_usd_total") == 20_000.0
    assert a.stats().invalid == {}


def test_a_program_without_asyncio_sends_from_a_thread(cluster: Cluster) -> None:
    """`with` runs the sender in a thread of its own, and leaving it sends everything."""
    asyncio.run(cluster.create_streams())
    with Emitter(cluster.config, node="thread", clock=ManualClock(T0)) as emitter:
        hammer(emitter, 4, 500)
    assert (emitter.stats().requests, emitter.stats().pending_frames) == (2000, 0)

    async def total() -> float:
        async with cluster.aggregator():
            return (await cluster.windows(T0 + 1000)).total("requests_total")

    assert asyncio.run(total()) == 2000


@pytest.mark.parametrize("jitter", ["0s", "60s"])
async def test_closing_waits_for_no_jitter(cluster: Cluster, jitter: str) -> None:
    """A process that ends sends at once, however long its share of the spread would be."""
    cluster.flags["emitter.jitter"] = jitter
    await cluster.create_streams()
    async with asyncio.timeout(10):
        emitter = Emitter(cluster.config, node="a", clock=ManualClock(T0))
        await emitter.start()
        hammer(emitter, 1, 10)
        assert await emitter.close()
    assert emitter.stats().frames_acked == 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"response_time": "slow"},
        {"response_time": float("nan")},
        {"response_time": -1.0},
        {"input_tokens": None, "output_tokens": object()},
        {"cost": float("inf")},
        {"provider": None, "model": ["a"]},
        {"provider": "\ud800", "model": "x" * 10_000},
        {"success": False, "error_type": 7},
        {"operation": b"chat", "stream": "yes"},
        {"time_to_first_token": "soon", "queue_time": -1},
    ],
)
async def test_wrong_arguments_count_the_request_and_raise_nothing(cluster: Cluster, arguments: dict[str, Any]) -> None:
    """Whatever a proxy passes, the request counts and the proxy goes on."""
    async with cluster.aggregator(), cluster.node("a") as (a, clock):
        a.record_request(**{"provider": "p", "model": "m", **arguments})
        clock.advance(1000)
        a.cut()
        seen = await cluster.windows(T0 + 1000)
    assert seen.total("requests_total") == 1


async def test_ten_million_label_values_stay_within_the_cap(cluster: Cluster) -> None:
    """A label that explodes folds into `other`: the number of series is bounded, sums are exact (10 M, scaled down)."""
    cluster.flags["emitter.max_series_per_metric"] = 50
    async with cluster.aggregator(), cluster.node("a") as (a, clock):
        for i in range(5000):
            a.record_request("p", f"model-{i}", response_time=0.1, input_tokens=2)
            a.counter("hits_total", user=str(i)).add()
        clock.advance(1000)
        a.cut()
        seen = await cluster.windows(T0 + 1000)
    assert seen.total("requests_total") == 5000
    assert seen.total("tokens_total", type="input") == 10_000
    assert seen.total("hits_total") == 5000
    assert seen.total("hits_total", user="other") == 4950
    assert len([key for key in seen.totals if key.startswith(b"hits_total")]) == 51


async def test_an_instrument_that_cannot_be_is_inert(cluster: Cluster) -> None:
    """A bad name or a counter used as a gauge is logged and counted, and its recordings go nowhere."""
    emitter = Emitter(cluster.config, node="a", clock=ManualClock(T0))
    emitter.counter("Not A Name").add()
    emitter.gauge("requests_total").set(3)
    emitter.counter("hits_total", le="1").add()
    assert emitter.stats().invalid["instrument"] == 3
