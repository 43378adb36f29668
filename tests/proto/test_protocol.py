"""PROTOCOL.md keeps its word: every vector in it is what this build writes and reads, byte for byte."""

from __future__ import annotations

import ast
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from support.frames import frame, key, tally

from fleetmeter.proto import exact
from fleetmeter.proto.keys import decode_key, encode_key, partition_of
from fleetmeter.proto.sketch import RELATIVE_ERROR, index_of
from fleetmeter.proto.subjects import node_of_token, node_token
from fleetmeter.proto.window import (
    WindowCounters,
    WindowGauges,
    WindowSketches,
    window_counters,
    window_gauges,
    window_sketches,
)
from fleetmeter.proto.wire import (
    FrameKind,
    FrameWire,
    Ledger,
    LogPosition,
    Part,
    Resend,
    Sealed,
    Settings,
    Tick,
    decode,
    decode_frame,
    encode,
    encode_frame,
)

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "proto" / "PROTOCOL.md").read_text(encoding="utf-8")

START, END, CREATED = 1_700_000_000_000, 1_700_000_005_000, 1_690_000_000_000
INCARNATION = START << 16 | 1
COST = key("cost_usd_total", model="gpt-4o", provider="openai")
HITS = key("hits_total")
CPU = key("node_cpu_usage_ratio", node="proxy-1")
WAIT = key("wait_seconds")
CONTENT = tally({COST: 0.1, HITS: 3}, {CPU: (0.25, START + 4000)}, {WAIT: [0.0, 0.25, 0.3, 0.3]})


def table(title: str) -> list[list[str]]:
    """The rows of the first table under a heading, code marks taken off."""
    section = PAGE.split(f"### {title}\n")[1].split("\n| ", 1)[1].split("\n\n")[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines()]
    return [[cell.strip().strip("`") for cell in row] for row in rows[2:]]


def message(name: str) -> bytes:
    """The bytes of the block under a heading; what follows # in a line is a remark."""
    block = PAGE.split(f"### {name}\n")[1].split("```hex\n")[1].split("```")[0]
    return bytes.fromhex("".join(line.partition("#")[0] for line in block.splitlines()))


@pytest.mark.parametrize(("metric", "labels", "raw"), table("Vectors: series keys"))
def test_series_keys(metric: str, labels: str, raw: str) -> None:
    """Keys have the documented bytes, and are read from them."""
    assert encode_key(metric, json.loads(labels)).hex() == raw
    assert decode_key(bytes.fromhex(raw)) == (metric, json.loads(labels))


@pytest.mark.parametrize(("raw", "partitions", "partition"), table("Vectors: partitions"))
def test_partitions(raw: str, partitions: str, partition: str) -> None:
    """Keys belong to the documented partitions."""
    assert partition_of(bytes.fromhex(raw), int(partitions)) == int(partition)


@pytest.mark.parametrize(("name", "token"), table("Vectors: node tokens"))
def test_node_tokens(name: str, token: str) -> None:
    """Names have the documented tokens, and are read from them."""
    assert node_token(json.loads(name)) == token
    assert node_of_token(token) == json.loads(name)


@pytest.mark.parametrize(("value", "whole", "fraction"), table("Vectors: fixed point"))
def test_fixed_point(value: str, whole: str, fraction: str) -> None:
    """Doubles have the documented columns, and are read from them."""
    columns = exact.split(np.array([float.fromhex(value) if "p" in value else float(value)]))
    assert [column.tobytes().hex() for column in columns] == [whole, fraction]


@pytest.mark.parametrize(("bits", "value", "index"), table("Vectors: bucket indices"))
def test_bucket_indices(bits: str, value: str, index: str) -> None:
    """Doubles, given by their bits, fall in the documented buckets."""
    (double,) = struct.unpack(">d", bytes.fromhex(bits))
    assert double == (float.fromhex(value) if "p" in value else float(value))
    assert int(index_of(np.array([double]))[0]) == int(index)


@pytest.mark.parametrize(("k", "mantissa"), table("The bounds of an octave"))
def test_bounds_of_an_octave(k: str, mantissa: str) -> None:
    """The documented mantissas are the floors of the roots, and the last double at or below each bound."""
    bits = 1023 << 52 | int(mantissa, 16)
    below, above = struct.unpack(">2d", struct.pack(">2Q", bits, bits + 1))
    assert index_of(np.array([below, above])).tolist() == [int(k) - 1, int(k)]


def test_hello_frame() -> None:
    """A HELLO has the documented bytes."""
    made = frame("proxy-1", 1, START, START, kind=FrameKind.HELLO, incarnation=INCARNATION, sent_ms=START + 123)
    assert made == message("Vector: HELLO frame")
    assert decode_frame(made).kind is FrameKind.HELLO


def test_data_frame() -> None:
    """A DATA frame with counters, gauges and sketches has the documented bytes."""
    made = frame("proxy-1", 2, START, END, CONTENT, incarnation=INCARNATION, sent_ms=END + 3)
    assert made == message("Vector: DATA frame")
    assert encode_frame(decode_frame(made)) == made
    assert decode(FrameWire, made).node == "proxy-1"


def part(metric: str, **columns: list[bytes]) -> Part:
    return Part(
        metric=metric, partition=0, resolution_ms=5000, start_ms=START, end_ms=END, revision=0,
        position=LogPosition(CREATED, 42), **columns,  # type: ignore[arg-type]
    )  # fmt: skip


def test_part_of_counters() -> None:
    """A Part of counters has the documented bytes."""
    whole, fraction = exact.split(np.array([0.1]))
    columns = WindowCounters([COST], whole, fraction, *exact.split(np.array([2.5])))
    made = part("cost_usd_total", counters=columns.pack())
    assert encode(made) == message("Vector: Part of counters")
    assert window_counters(decode(Part, encode(made))).pack() == columns.pack()


def test_part_of_gauges() -> None:
    """A Part of gauges has the documented bytes."""
    one = np.array([0.25])
    columns = WindowGauges([CPU], *exact.split(one), one, one, one, np.array([START + 4000]), np.array([1], np.uint32))
    made = part("node_cpu_usage_ratio", gauges=columns.pack())
    assert encode(made) == message("Vector: Part of gauges")
    assert window_gauges(decode(Part, encode(made))).pack() == columns.pack()


def test_part_of_sketches() -> None:
    """A Part of sketches has the documented bytes; it is the DATA frame's sketch with wider counts."""
    s = decode_frame(message("Vector: DATA frame")).sketches
    assert s.fraction is not None
    columns = WindowSketches(
        [WAIT], s.zero, s.whole, s.fraction, s.minimum, s.maximum, s.lengths, s.indices, s.counts.astype(np.int64)
    )
    made = part("wait_seconds", sketches=columns.pack())
    assert encode(made) == message("Vector: Part of sketches")
    (sketch,) = window_sketches(decode(Part, encode(made))).sketches()
    assert (sketch.count, sketch.minimum, sketch.maximum) == (4, 0.0, 0.3)
    assert sketch.sum == pytest.approx(0.85)


def test_sealed_marker() -> None:
    """A Sealed marker has the documented bytes."""
    made = Sealed(
        partition=0, resolution_ms=5000, start_ms=START, end_ms=END, revision=0, position=LogPosition(CREATED, 42),
        sealed_ms=END + 2000, cause="deadline", nodes_expected=2, nodes_heard=1, missing=["proxy-2"], gaps=0,
        metrics=["cost_usd_total", "hits_total"],
        ledger=Ledger(received=7, applied=5, duplicate=1, late=0, healed=0, gap=0, rejected={"magic": 1}),
        lateness_ms=60_000,
    )  # fmt: skip
    assert encode(made) == message("Vector: Sealed marker")
    assert decode(Sealed, encode(made)) == made


def test_settings_tick_and_resend() -> None:
    """The small messages have the documented bytes."""
    assert encode(Settings()) == message("Vector: settings")
    assert encode(Tick(0)) == message("Vector: tick")
    assert encode(Resend(INCARNATION, 0, 5, 9)) == message("Vector: resend request")


def test_every_reason_for_a_rejection_is_documented() -> None:
    """The table of reasons names those that the code has, and no other."""
    used = {"negative_counter", "malformed"}  # passed on in a variable
    for file in (file for part in ("proto", "aggregator") for file in (ROOT / part).glob("*.py")):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "FrameError":
                constants = (node for node in ast.walk(call.args[0]) if isinstance(node, ast.Constant))
                used |= {node.value for node in constants if isinstance(node.value, str)}
    assert {row[0] for row in table("Reasons for a rejection")} == used


def test_fields_are_documented_in_their_order() -> None:
    """The tables of fields list what the structs have."""
    for title, struct_ in (
        ("Frame", FrameWire),
        ("Part", Part),
        ("Sealed", Sealed),
        ("Resend", Resend),
        ("Tick", Tick),
    ):
        assert [row[1] for row in table(f"{title}: fields")] == list(struct_.__struct_fields__), title
    assert [row[0] for row in table("Settings: keys")] == list(Settings.__struct_fields__)


def test_numbers_in_the_page_are_those_of_the_code() -> None:
    """Bounds that the page states in its text hold."""
    assert "1.083 %" in PAGE and f"{RELATIVE_ERROR:.3%}" == "1.083%"


def test_the_page_names_files_that_exist() -> None:
    """Paths in the text lead somewhere."""
    paths = re.findall(r"`((?:proto|tests)/[a-z_/]+\.[a-z]+)`", PAGE)
    assert paths and all((ROOT / path).is_file() for path in paths)
