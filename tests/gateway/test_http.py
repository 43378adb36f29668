"""The HTTP server: paths, formats, caching, errors."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from typing import TypeAlias

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from support.frames import STEP, T0, Log, key
from support.gateway import fed, windows_of

from fleetmeter.gateway.http import Gateway
from fleetmeter.gateway.state import GatewayFold
from fleetmeter.proto.clock import ManualClock

Client: TypeAlias = TestClient[web.Request, web.Application]

CALL = {"provider": "openai", "model": "gpt-4o", "operation": "chat"}


def busy() -> Log:
    log = Log()
    a = log.node("a")
    a.hello(T0)
    a.data(
        T0,
        {
            key("requests_total", **CALL, outcome="success", stream="false"): 9,
            key("requests_total", **CALL, outcome="error", stream="false"): 1,
            key("request_errors_total", **CALL, error_type="timeout"): 1,
            key("tokens_total", provider="openai", model="gpt-4o", type="input"): 100,
            key("tokens_total", provider="openai", model="gpt-4o", type="output"): 50,
            key("cost_usd_total", provider="openai", model="gpt-4o"): 0.5,
            key("cache_requests_total", result="hit"): 3,
            key("cache_requests_total", result="miss"): 1,
        },
        {key("node_memory_used_bytes", node="a"): (3.0, T0), key("node_memory_total_bytes", node="a"): (4.0, T0)},
        {key("request_duration_seconds", **CALL): [0.1] * 9 + [1.0]},
    )
    return log


@pytest.fixture
def fold() -> GatewayFold:
    return fed(windows_of(busy()))


@pytest.fixture
async def client(fold: GatewayFold) -> AsyncIterator[Client]:
    gateway = Gateway(
        fold, clock=ManualClock(T0 + STEP + 500), version="1.2.3", connected=lambda: True, not_ready=lambda: ""
    )
    async with TestClient(TestServer(gateway.application())) as client:
        yield client


async def test_metrics_as_json_has_the_guide_s_fields(client: Client) -> None:
    """Totals, ratios, latencies and rates come under the guide's names, with the right numbers."""
    answer = await client.get("/metrics")
    body = await answer.json()
    application = body["metrics"]["application"]
    assert answer.content_type == "application/json"
    expected = {
        "total_requests": 10, "successful_requests": 9, "failed_requests": 1, "success_rate": 0.9,
        "requests_per_second": 2.0, "error_rate": 0.1, "error_rate_percent": 10.0, "total_tokens": 150, "cost_usd": 0.5,
        "total_errors": 1, "timeout_errors": 1, "server_errors": 0,
    }  # fmt: skip
    assert {name: application[name] for name in expected} == pytest.approx(expected)
    assert application["avg_response_time_ms"] == pytest.approx(190.0)
    assert application["p50_response_time_ms"] == pytest.approx(100.0, rel=0.0109)
    assert application["p99_response_time_ms"] == 1000.0
    assert body["metrics"]["providers"]["openai"]["models_used"] == ["gpt-4o"]
    assert body["metrics"]["models"]["gpt-4o"]["cost_per_request_usd"] == 0.05
    assert body["metrics"]["cache"]["hit_rate"] == 0.75
    assert body["metrics"]["system"]["memory_percent"] == 75.0
    assert body["metrics"]["nodes"] == {"live": 1, "stale": 0}
    assert body["window"]["interval_seconds"] == 5.0 and body["window"]["completeness"] == 1.0


async def test_before_the_first_window_json_is_complete_and_strict() -> None:
    """A gateway that has seen nothing answers with the same fields, null where nothing is known; there is no NaN."""
    gateway = Gateway(
        GatewayFold(),
        clock=ManualClock(T0),
        version="1",
        connected=lambda: False,
        not_ready=lambda: "NATS is not connected",
    )

    def no_constants(name: str) -> None:
        raise AssertionError(f"{name} in JSON")

    async with TestClient(TestServer(gateway.application())) as client:
        body = json.loads(await (await client.get("/metrics")).text(), parse_constant=no_constants)
        assert body["window"] is None
        assert body["metrics"]["application"]["total_requests"] == 0
        assert body["metrics"]["application"]["p95_response_time_ms"] is None
        ready = await client.get("/readyz")
        assert (ready.status, await ready.text()) == (503, "not ready: NATS is not connected\n")
        assert (await client.get("/livez")).status == 200
        assert (await (await client.get("/health")).json())["status"] == "degraded"


async def test_metrics_as_text_when_accept_prefers_it(client: Client) -> None:
    """The same path serves Prometheus when it asks as Prometheus does."""
    answer = await client.get("/metrics", headers={"Accept": "text/plain"})
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert await answer.read() == await (await client.get("/metrics/prometheus")).read()


async def test_a_body_is_rendered_once_a_window(client: Client, fold: GatewayFold) -> None:
    """While no window seals, answers are the same bytes; an unchanged body is not sent again."""
    first = await client.get("/metrics")
    again = await client.get("/metrics", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status, await again.read()) == (304, b"")
    assert await first.read() == await (await client.get("/metrics")).read()
    log = busy()
    log.tick(T0 + 10 * STEP)
    fed(windows_of(log), fold)
    newer = await client.get("/metrics", headers={"If-None-Match": first.headers["ETag"]})
    assert newer.status == 200


async def test_gzip_for_who_takes_it(client: Client) -> None:
    """A compressed body unpacks to the plain one."""
    async with client.session.get(
        client.make_url("/metrics/prometheus"), headers={"Accept-Encoding": "gzip"}, auto_decompress=False
    ) as answer:
        packed = await answer.read()
        assert answer.headers["Content-Encoding"] == "gzip"
    async with client.session.get(
        client.make_url("/metrics/prometheus"), headers={"Accept-Encoding": "identity"}
    ) as answer:
        assert gzip.decompress(packed) == await answer.read()


async def test_health_has_the_guide_s_shape(client: Client) -> None:
    """Checks, overall status, version and uptime; unhealthy answers 503."""
    answer = await client.get("/health")
    body = await answer.json()
    assert answer.status == 200
    assert {"status", "timestamp", "version", "uptime_seconds", "checks", "overall_status"} <= body.keys()
    assert body["checks"]["providers"]["details"]["openai"]["status"] == "degraded"
    assert body["checks"]["memory"]["usage_percent"] == 75.0
    assert body["checks"]["pipeline"]["status"] == "healthy"
    assert body["status"] == body["overall_status"] == "degraded"


async def test_health_is_503_when_every_provider_fails() -> None:
    """All providers failing most requests is an outage, and says so by its status code."""
    log = Log()
    a = log.node("a")
    a.hello(T0)
    a.data(T0, {key("requests_total", **CALL, outcome="error", stream="false"): 5})
    gateway = Gateway(
        fed(windows_of(log)), clock=ManualClock(T0 + STEP), version="1", connected=lambda: True, not_ready=lambda: ""
    )
    async with TestClient(TestServer(gateway.application())) as client:
        answer = await client.get("/health")
        assert (answer.status, (await answer.json())["status"]) == (503, "unhealthy")


async def test_old_numbers_are_said_to_be_old(fold: GatewayFold) -> None:
    """When no window came for long the pipeline is degraded, whatever the last numbers were."""
    gateway = Gateway(
        fold, clock=ManualClock(T0 + 100 * STEP), version="1", connected=lambda: True, not_ready=lambda: ""
    )
    async with TestClient(TestServer(gateway.application())) as client:
        pipeline = (await (await client.get("/health")).json())["checks"]["pipeline"]
    assert pipeline["status"] == "degraded"
    assert pipeline["window_age_seconds"] == 99 * STEP / 1000


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("GET", "/metrics/../../etc/passwd", 404),
        ("POST", "/metrics", 405),
        ("PUT", "/health", 405),
    ],
)
async def test_errors_are_problem_documents(client: Client, method: str, path: str, status: int) -> None:
    """What is not there, or not possible, is answered as RFC 9457 says."""
    answer = await client.request(method, path)
    assert answer.status == status
    assert answer.content_type == "application/problem+json"
    assert (await answer.json())["status"] == status


async def test_head_and_security_headers(client: Client) -> None:
    """HEAD answers like GET without a body; every answer forbids sniffing."""
    answer = await client.head("/metrics")
    assert (answer.status, await answer.read()) == (200, b"")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert (await client.get("/nope")).headers["Cache-Control"] == "no-store"


async def test_the_index_names_every_endpoint(client: Client) -> None:
    """A newcomer who opens / finds the way."""
    text = await (await client.get("/")).text()
    assert all(path in text for path in ("/metrics", "/metrics/prometheus", "/health", "/livez", "/readyz"))
