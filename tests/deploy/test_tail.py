"""`fleetmeter tail`: names, and what a window looks like."""

from __future__ import annotations

import asyncio
import json

import msgspec
import numpy as np
import pytest

from fleetmeter.deploy.nats_server import NatsServer
from fleetmeter.deploy.tail import follow, json_lines, metric_name, printer
from fleetmeter.proto.bus import Bus
from fleetmeter.proto.config import Config, load_config
from fleetmeter.proto.keys import encode_key
from fleetmeter.proto.streams import bus_options, stream_specs
from fleetmeter.proto.subjects import Subjects
from fleetmeter.proto.window import WindowCounters, WindowSketches
from fleetmeter.proto.wire import LogPosition, Part, encode

T0 = 1_700_000_000_000


def counter_part(start_ms: int = T0, increment: int = 10, resolution_ms: int = 5000) -> Part:
    none = np.zeros(1, np.uint64)
    key = encode_key("requests_total", {"model": "gpt-4o", "outcome": "success"})
    columns = WindowCounters([key], np.array([increment]), none, np.array([100]), none)
    return Part(
        metric="requests_total",
        partition=0,
        resolution_ms=resolution_ms,
        start_ms=start_ms,
        end_ms=start_ms + resolution_ms,
        revision=1,
        position=LogPosition(1, 1),
        counters=columns.pack(),
    )


@pytest.mark.parametrize("given", ["requests_total", "llmproxy_requests_total"])
def test_known_name(given):
    """A name of the catalogue is taken as it is, or as it stands in Prometheus."""
    assert metric_name(given) == ("requests_total", "")


def test_unknown_name_is_allowed_with_a_hint():
    """A metric may be one's own; if it is a slip, the likely names are said."""
    name, warning = metric_name("request_total")

    assert name == "request_total"
    assert "did you mean requests_total" in warning


@pytest.mark.parametrize("given", ["", "Requests", "a b", "a.*", ">", "a" * 200, "a\n", "é"])
def test_impossible_name(given):
    """What can't be a metric's name never becomes a part of a subject."""
    with pytest.raises(ValueError, match="is no metric's name"):
        metric_name(given)


def test_json_line():
    """A line says which window of what, and then the series' numbers."""
    (line,) = json_lines(counter_part())

    assert json.loads(line) == {
        "metric": "requests_total",
        "start": "2023-11-14T22:13:20.000Z",
        "end": "2023-11-14T22:13:25.000Z",
        "resolution": "5s",
        "revision": 1,
        "labels": {"model": "gpt-4o", "outcome": "success"},
        "increment": 10.0,
        "rate": 2.0,
        "total": 100.0,
    }


def test_no_nan_in_json():
    """What has no value is null: NaN is no JSON."""
    zero = np.zeros(1, np.int64)
    columns = WindowSketches(
        [b"queue_duration_seconds"], zero, zero, zero.view(np.uint64), np.array([np.inf]), np.array([-np.inf]),
        zero.astype(np.uint32), np.zeros(0, np.int16), np.zeros(0, np.int64),
    )  # fmt: skip
    part = Part(
        metric="queue_duration_seconds", partition=0, resolution_ms=5000, start_ms=T0, end_ms=T0 + 5000, revision=1,
        position=LogPosition(1, 1), sketches=columns.pack(),
    )  # fmt: skip

    (line,) = json_lines(part)

    values = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert (values["count"], values["p99"], values["min"]) == (0, None, None)


def test_table(capsys):
    """A table has a row for each series, and is plain text off a terminal."""
    printer("table", print)(counter_part())

    printed = capsys.readouterr().out
    assert printed.splitlines()[1].split() == ["model", "outcome", "increment", "rate", "total"]
    assert printed.splitlines()[2].split() == ["gpt-4o", "success", "10", "2", "100"]
    assert "2023-11-14T22:13:20.000Z" in printed
    assert "\x1b" not in printed


def test_hostile_label_cannot_steer_the_terminal(capsys):
    """A label value comes from a frame; an escape sequence in it is shown, not sent, and markup is text."""
    none = np.zeros(1, np.uint64)
    key = encode_key("requests_total", {"model": "\x1b[2J[red]\u202e"})
    columns = WindowCounters([key], np.array([1]), none, np.array([1]), none)
    part = msgspec.structs.replace(counter_part(), counters=columns.pack())

    for output in ("table", "json"):
        printer(output, print)(part)

    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\u202e" not in printed
    assert "\\x1b[2J[red]" in printed


@pytest.fixture
def config(nats: NatsServer) -> Config:
    return load_config(None, environ={}, flags={"nats.url": nats.url, "cluster": "test"})


async def test_follows_new_windows_only(config):
    """What was there before is left out, other resolutions too, and it ends after the count."""
    subjects = Subjects("test")
    shown: list[int] = []
    said = asyncio.Event()
    async with await Bus.connect(bus_options(config), name="test") as bus:

        async def publish(part: Part) -> None:
            await bus.publish(subjects.window(part.resolution_ms, "requests_total", 0), encode(part))

        for spec in stream_specs(config):
            await bus.ensure_stream(spec)
        await publish(counter_part(T0))
        following = asyncio.create_task(
            follow(config, "requests_total", lambda part: shown.append(part.start_ms), None, 2, lambda _: said.set())
        )
        await said.wait()
        for part in (
            counter_part(T0 + 5000),
            counter_part(T0, resolution_ms=60_000),
            counter_part(T0 + 10_000),
            counter_part(T0 + 15_000),
        ):
            await publish(part)
        async with asyncio.timeout(30):
            await following

    assert shown == [T0 + 5000, T0 + 10_000]


async def test_waits_for_a_cluster_that_is_not_there_yet(config):
    """Without a stream of windows it waits, says so once, and shows the first window that comes."""
    subjects = Subjects("test")
    shown: list[int] = []
    said: asyncio.Queue[str] = asyncio.Queue()
    async with await Bus.connect(bus_options(config), name="test") as bus:
        following = asyncio.create_task(
            follow(config, "requests_total", lambda part: shown.append(part.start_ms), None, 1, said.put_nowait)
        )
        async with asyncio.timeout(30):
            while "has no windows yet" not in await said.get():
                pass
            for spec in stream_specs(config):
                await bus.ensure_stream(spec)
            await bus.publish(subjects.window(5000, "requests_total", 0), encode(counter_part()))
            await following

    assert shown == [T0]
    assert said.empty()
