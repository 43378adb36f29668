"""What an emitter costs a busy aiohttp server: its requests per second with and without one, in many short turns.

The server is an LLM proxy with nothing but the necessary: it reads a chat request as JSON, asks an upstream over HTTP,
reads the answer as JSON for its tokens, and passes it on. `wrk` keeps it busy all the time. There is one server
process, because two would differ by more than is measured: memory layout alone makes a percent. For each turn with an
emitter one is started (connected to a real NATS server, with windows of one second, so that each turn has its share of
folds and frames), and closed afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, cast

import aiohttp
import uvloop
from aiohttp import web
from bench.measure import Figure

from fleetmeter.deploy.nats_server import NatsServer
from fleetmeter.emitter import Emitter
from fleetmeter.proto.bus import Bus
from fleetmeter.proto.config import load_config
from fleetmeter.proto.streams import bus_options, stream_specs

#: Pairs of turns, and how long one lasts, s: one window's edge lies in each.
PAIRS, TURN_S = 30, 1.0
CONNECTIONS = 16
QUESTION = json.dumps(
    {
        "model": "gpt-4o",
        "messages": [
            {"role": "system", "content": "You answer in one paragraph, and name your sources. " * 4},
            {"role": "user", "content": "What makes the sky blue, and why is a sunset red? " * 8},
        ],
        "max_tokens": 400,
    }
)
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "gpt-4o",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Light is scattered. " * 40}}],
        "usage": {"prompt_tokens": 150, "completion_tokens": 200},
    }
)


class Turn(NamedTuple):
    """Requests per second of wall time, and the server's CPU time for one, µs."""

    rate: float
    cpu_us: float


class Proxy:
    """The server. ``POST /emitter/on`` and ``/emitter/off`` switch; ``/used`` tells requests served and CPU seconds."""

    def __init__(self, nats_url: str, upstream: str) -> None:
        self._config = load_config(None, environ={}, flags=_flags(nats_url))
        self._upstream = upstream
        self._meter: Emitter | None = None
        self._served = 0

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/emitter/{state}", self.switch)
        app.router.add_get("/used", self.used)
        app.cleanup_ctx.append(self._client)
        return app

    async def chat(self, request: web.Request) -> web.Response:
        question = await request.json()
        start = time.perf_counter()
        async with self._session.post(self._upstream, json=question) as upstream:
            body = await upstream.read()
        took = time.perf_counter() - start
        usage = json.loads(body)["usage"]
        tokens_in, tokens_out = usage["prompt_tokens"], usage["completion_tokens"]
        cost = tokens_in * 2.5e-6 + tokens_out * 1e-5
        if self._meter is not None:
            self._meter.record_request(
                "openai", question["model"], response_time=took, input_tokens=tokens_in, output_tokens=tokens_out,
                cost=cost,
            )  # fmt: skip
        self._served += 1
        return web.Response(body=body, content_type="application/json")

    async def switch(self, request: web.Request) -> web.Response:
        if self._meter is not None:
            await self._meter.close()
            self._meter = None
        if request.match_info["state"] == "on":
            meter = Emitter(self._config, node=f"bench-{self._served}")
            await meter.start()
            await meter.hello_acked()
            self._meter = meter
        return web.Response()

    async def used(self, _: web.Request) -> web.Response:
        return web.json_response([self._served, time.process_time()])

    async def _client(self, _: web.Application) -> AsyncIterator[None]:
        async with aiohttp.ClientSession() as self._session:
            yield


def serve(nats_url: str, upstream: str, ready: Connection) -> None:
    """The server's process; tells its port."""

    async def main() -> None:
        runner = web.AppRunner(Proxy(nats_url, upstream).application(), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ready.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    uvloop.run(main())


class Upstream(asyncio.Protocol):
    """Answers each request with the same bytes at once; one request at a time on a connection."""

    _response = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(ANSWER)}\r\n\r\n{ANSWER}".encode()
    )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if found and len(body) >= int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            self._received = b""
            self._transport.write(self._response)


def run() -> list[Figure]:
    if shutil.which("wrk") is None:
        raise SystemExit("no wrk on PATH; on Debian: apt-get install wrk")
    with tempfile.TemporaryDirectory(prefix="fleetmeter-bench-") as directory:
        server = NatsServer(Path(directory) / "nats", die_with_parent=True)
        server.start()
        try:
            return uvloop.run(_measure(server.url, Path(directory) / "chat.lua"))
        finally:
            server.stop()


def _flags(nats_url: str) -> dict[str, object]:
    return {"nats.url": nats_url, "cluster": "bench", "pipeline.interval": "1s"}


async def _measure(nats_url: str, script: Path) -> list[Figure]:
    config = load_config(None, environ={}, flags=_flags(nats_url))
    async with await Bus.connect(bus_options(config), name="bench") as bus:
        for spec in stream_specs(config):
            await bus.ensure_stream(spec)
    pairs: list[dict[str, Turn]] = []
    async with _proxy(nats_url) as url, _load(url, script), aiohttp.ClientSession(url) as control:
        await _turn(control, "on")
        for number in range(PAIRS):
            # Who goes first changes from pair to pair: otherwise a machine that gets slower would favour one.
            order = ("off", "on") if number % 2 else ("on", "off")
            pairs.append({state: await _turn(control, state) for state in order})
    lost = sorted((1 - pair["on"].rate / pair["off"].rate) * 100 for pair in pairs)
    cpu_us = sorted(pair["on"].cpu_us - pair["off"].cpu_us for pair in pairs)
    rate = statistics.median(pair["off"].rate for pair in pairs)
    per_request_us = statistics.median(pair["off"].cpu_us for pair in pairs)
    quartile = PAIRS // 4
    return [
        Figure("overhead.percent", statistics.median(lost), "%", 1.0, at_most=True,
               peer=f"without an emitter {rate:,.0f} requests/s; half of the {PAIRS} pairs lie within "
               f"{lost[quartile]:.1f}…{lost[-1 - quartile]:.1f} %"),
        Figure("overhead, by CPU time", statistics.median(cpu_us) / per_request_us * 100, "%",
               peer=f"without an emitter {per_request_us:.0f} µs a request; half of the pairs within "
               f"{cpu_us[quartile]:.2f}…{cpu_us[-1 - quartile]:.2f} µs more"),
    ]  # fmt: skip


async def _turn(control: aiohttp.ClientSession, state: str) -> Turn:
    async with control.post(f"/emitter/{state}") as answer:
        answer.raise_for_status()
    served, cpu_s, start = *await _used(control), time.perf_counter()
    await asyncio.sleep(TURN_S)
    more_served, more_cpu_s, end = *await _used(control), time.perf_counter()
    n = more_served - served
    return Turn(n / (end - start), (more_cpu_s - cpu_s) / n * 1e6)


async def _used(control: aiohttp.ClientSession) -> tuple[int, float]:
    async with control.get("/used") as answer:
        served, cpu_s = await answer.json()
        return served, cpu_s


@contextlib.asynccontextmanager
async def _proxy(nats_url: str) -> AsyncIterator[str]:
    """The server's URL, in a process of its own, with its upstream in this one."""
    upstream = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
    context = multiprocessing.get_context("spawn")
    ready, theirs = context.Pipe()
    url = f"http://127.0.0.1:{upstream.sockets[0].getsockname()[1]}/v1/chat/completions"
    process = context.Process(target=serve, args=(nats_url, url, theirs), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{await asyncio.to_thread(ready.recv)}"
    finally:
        process.terminate()
        await asyncio.to_thread(process.join)
        upstream.close()


@contextlib.asynccontextmanager
async def _load(url: str, script: Path) -> AsyncIterator[None]:
    """wrk, until the end."""
    script.write_text(  # noqa: ASYNC240  # nothing else runs yet
        f'wrk.method = "POST"\nwrk.body = [==[{QUESTION}]==]\nwrk.headers["Content-Type"] = "application/json"\n'
    )
    wrk = await asyncio.create_subprocess_exec(
        "wrk", "-t1", f"-c{CONNECTIONS}", "-d1h", "-s", str(script), f"{url}/v1/chat/completions",
        stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        wrk.kill()
        await wrk.wait()
