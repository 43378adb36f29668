"""The gateway on a live cluster, with a real Prometheus as its reader."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.cluster import T0, Cluster
from support.peers import require
from support.waiting import eventually

from fleetmeter.emitter import Emitter
from fleetmeter.gateway import service
from fleetmeter.proto.errors import ConfigError


@contextlib.asynccontextmanager
async def gateway(cluster: Cluster, **flags: object) -> AsyncIterator[str]:
    """A gateway as a task of this process; gives its URL."""
    other = Cluster(cluster.server, {**cluster.flags, "gateway.port": "0", **flags})
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(service.run(other.config, on_ready=url.set_result))
    both: list[asyncio.Future[Any]] = [task, url]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    try:
        yield await url
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def fetch(url: str, **headers: str) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
        return answer.status, await answer.read()


def record(emitter: Emitter, n: int) -> None:
    for i in range(n):
        emitter.record_request(
            "openai", "gpt-4o", response_time=0.1 + i / 100, input_tokens=10, output_tokens=3, cost=0.25
        )


async def total(url: str) -> float:
    """Requests in total, by the gateway's JSON."""
    _, body = await fetch(f"{url}/metrics")
    return float(json.loads(body)["metrics"]["application"]["total_requests"])


async def test_requests_reach_json_and_text_with_the_same_numbers(cluster: Cluster) -> None:
    """What two nodes record is what both formats say, and prometheus_client's parser reads."""
    async with (
        cluster.aggregator(),
        gateway(cluster) as url,
        cluster.node("a") as (a, clock),
        cluster.node("b") as (b, other),
    ):
        for emitter, its_clock in ((a, clock), (b, other)):
            record(emitter, 50)
            its_clock.advance(1000)
            emitter.cut()

        async def all_there() -> bool:
            return await total(url) == 100

        await eventually(all_there, "100 requests at the gateway")
        _, text = await fetch(f"{url}/metrics", Accept="text/plain")
    families = {f.name: f for f in text_string_to_metric_families(text.decode())}
    samples = [s for f in families.values() for s in f.samples]
    assert sum(s.value for s in samples if s.name == "llmproxy_requests_total") == 100
    assert sum(s.value for s in samples if s.name == "llmproxy_request_duration_seconds_count") == 100
    assert sum(s.value for s in samples if s.name == "llmproxy_cost_usd_total") == 25.0


async def test_two_gateways_answer_alike_and_a_new_one_is_right_from_its_first_answer(cluster: Cluster) -> None:
    """Behind a balancer it does not matter who answers: bytes are equal, and /readyz waits for the fold."""
    cluster.flags["aggregator.snapshot_interval"] = "1s"
    async with cluster.aggregator(), gateway(cluster) as first, gateway(cluster) as second:
        async with cluster.node("a") as (a, clock):
            for _ in range(5):
                record(a, 10)
                clock.advance(1000)
                a.cut()
        await cluster.windows(T0 + 5000)

        async def same() -> bool:
            return await total(first) == await total(second) == 50

        await eventually(same, "both gateways at 50 requests")
        assert await fetch(f"{first}/metrics/prometheus") == await fetch(f"{second}/metrics/prometheus")
        async with gateway(cluster) as third:

            async def ready() -> bool:
                return (await fetch(f"{third}/readyz"))[0] == 200

            await eventually(ready, "the third gateway ready")
            assert await fetch(f"{third}/metrics/prometheus") == await fetch(f"{first}/metrics/prometheus")


async def test_a_real_prometheus_scrapes_and_agrees(cluster: Cluster, tmp_path: Path) -> None:
    """Prometheus finds the target up, stores the totals as they are, and computes plausible quantiles from buckets."""
    binary = require("prometheus", "prometheus")
    async with cluster.aggregator(), gateway(cluster) as url, cluster.node("a") as (a, clock):
        for _ in range(3):
            record(a, 100)
            clock.advance(1000)
            a.cut()

        async def there() -> bool:
            return await total(url) == 300

        await eventually(there, "300 requests at the gateway")
        async with prometheus(binary, url, tmp_path) as query:

            async def scraped() -> Any:
                return await query("sum(llmproxy_requests_total)")

            assert await eventually(scraped, "a scraped total") == 300
            assert await query("up") == 1
            assert await query('sum(llmproxy_tokens_total{type="input"})') == 3000
            assert await query("sum(llmproxy_cost_usd_total)") == 75.0
            assert await query("sum(llmproxy_request_duration_seconds_count)") == 300
            median = await query("histogram_quantile(0.5, sum by (le) (llmproxy_request_duration_seconds_bucket))")
            assert 0.5 <= median <= 1.0  # the classic bucket that holds the true median, 0.595


@contextlib.asynccontextmanager
async def prometheus(binary: str, target: str, directory: Path) -> AsyncIterator[Any]:
    """A Prometheus that scrapes `target` each second; gives a function that evaluates a query to a number or None."""
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [
            {"job_name": "fleetmeter", "static_configs": [{"targets": [target.removeprefix("http://")]}]},
        ],
    }
    file = directory / "prometheus.yml"
    file.write_text(json.dumps(config))
    with contextlib.closing(await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)) as probe:
        port = probe.sockets[0].getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        binary, f"--config.file={file}", f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip

    async def query(expression: str) -> float | None:
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": expression}) as answer,
            ):
                result = (await answer.json())["data"]["result"]
                return float(result[0]["value"][1]) if result else None
        except aiohttp.ClientError:
            return None

    try:
        yield query
    finally:
        process.kill()
        await process.wait()


async def test_a_port_in_use_is_said_with_the_remedy(cluster: Cluster) -> None:
    """A second gateway on the same port ends with the setting, the value and what to do."""
    async with gateway(cluster) as url:
        port = url.rpartition(":")[2]
        with pytest.raises(ConfigError, match=rf"gateway\.port: can't listen on 127\.0\.0\.1:{port} .*--port"):
            async with gateway(cluster, **{"gateway.port": port}):
                pass
