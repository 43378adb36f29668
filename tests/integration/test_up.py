"""`fleetmeter up`: one command to a running cluster, which mends itself, and of which nothing stays behind."""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import psutil
import pytest
from support.command import Command, fleetmeter

pytest.importorskip("fleetmeter.gateway.service")

JSON = {"Accept": "application/json"}


@asynccontextmanager
async def up(directory: Path, *more: object, demo: int = 1) -> AsyncIterator[Command]:
    """A cluster on free ports."""
    async with fleetmeter(
        "up", "--data-dir", directory / "data", "--port", 0, "--nats-port", 0, "--demo", demo, *more,
        FLEETMETER_PIPELINE__INTERVAL="1s",
    ) as command:  # fmt: skip
        yield command


async def url_of(command: Command, what: str) -> str:
    return (await command.said(f"{what:<8} ")).split()[-1]


async def test_up_and_down(tmp_path):
    """The URLs are printed and work, windows come, and Ctrl-C ends all with 130."""
    async with up(tmp_path, demo=3) as command:
        nats = await url_of(command, "NATS")
        metrics = await url_of(command, "metrics")
        async with aiohttp.ClientSession() as session, session.get(metrics, headers=JSON) as answer:
            served = await answer.json()
        async with fleetmeter("tail", "requests_total", "-o", "json", "--count", 2, "--nats-url", nats) as tail:
            tailed = await tail.ended()
        processes = command.children()
        command.process.send_signal(signal.SIGINT)
        code = await command.ended()

    assert "metrics" in served
    assert tailed == 0, tail.err
    assert json.loads(tail.out[0])["metric"] == "requests_total"
    assert code == 130
    assert len(processes) == 6  # NATS, aggregator, gateway, three demos
    assert psutil.wait_procs(processes, timeout=30)[1] == []


async def test_sigterm_is_a_clean_end(tmp_path):
    """A service manager stops it with SIGTERM, and that is no failure."""
    async with up(tmp_path) as command:
        await url_of(command, "NATS")
        command.process.send_signal(signal.SIGTERM)
        code = await command.ended()

    assert code == 0


@pytest.mark.parametrize("part", ["run aggregator", "run gateway", "nats-server", "deploy.demo"])
async def test_mends_itself(tmp_path, part):
    """Whichever part is killed is started again, and windows go on."""
    async with up(tmp_path) as command:
        nats = await url_of(command, "NATS")
        before = await command.child(part)

        before.kill()
        await command.said("exited with signal 9; restarting in 0.5 s")
        after = await command.child(part)

        async with fleetmeter("tail", "requests_total", "-o", "json", "--count", 1, "--nats-url", nats) as tail:
            code = await tail.ended()
        command.process.send_signal(signal.SIGINT)
        await command.ended()

    assert code == 0, tail.err
    assert before.pid != after.pid


async def test_same_directory_twice(tmp_path):
    """A second cluster on the same data is refused, and the first goes on."""
    async with up(tmp_path) as first:
        await url_of(first, "NATS")
        async with up(tmp_path) as second:
            code = await second.ended()
        still_running = first.process.returncode is None

    assert (code, still_running) == (1, True)
    assert f"(process {first.process.pid})" in second.err[-1]


@pytest.mark.parametrize("option", ["--port", "--nats-port"])
async def test_port_in_use(tmp_path, option):
    """A port in use is one clear message, before anything is started."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        async with up(tmp_path, option, port) as command:
            code = await command.ended()

    assert (code, command.out) == (1, [])
    assert f"127.0.0.1:{port} can't be listened on" in command.err[-1]
    assert len(command.err) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel kills children with their parent on Linux only")
async def test_kill_9_leaves_nothing_running(tmp_path):
    """When the supervisor is killed, so is everything, and the directory can be used at once."""
    async with up(tmp_path) as command:
        await url_of(command, "NATS")
        processes = command.children()
        command.process.kill()
        await command.ended()
    gone = psutil.wait_procs(processes, timeout=30)[1] == []

    async with up(tmp_path) as again:
        await url_of(again, "NATS")

    assert len(processes) == 4
    assert gone
