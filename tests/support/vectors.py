"""The test vectors of PROTOCOL.md: for each block its lines, as (what, hexadecimal bytes or a number)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fleetmeter.emitter.tally import Tally
from fleetmeter.proto import exact
from fleetmeter.proto.catalogue import Kind
from fleetmeter.proto.keys import encode_key
from fleetmeter.proto.sketch import index_of
from fleetmeter.proto.subjects import node_token
from fleetmeter.proto.window import WindowCounters, WindowGauges, WindowSketches
from fleetmeter.proto.wire import Frame, FrameKind, Ledger, LogPosition, Part, Sealed, encode, encode_frame

DOCUMENT = Path(__file__).parents[2] / "proto" / "PROTOCOL.md"
START = 1_700_000_000_000
MODEL = {"model": "gpt-4o", "provider": "openai"}
Block = Mapping[str, str]


def read_blocks(text: str) -> dict[str, dict[str, str]]:
    """The blocks of a document by name; their lines are ``what: value``."""
    blocks = {}
    for name, body in re.findall(r"^```vector ([^\n]+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        pairs = (line.rpartition(": ") for line in body.splitlines())
        blocks[name] = {what: value for what, _, value in pairs}
    return blocks


def hello_frame() -> Frame:
    return Frame(
        kind=FrameKind.HELLO, node="proxy-1", incarnation=111411200000007, partition=0, sequence=1,
        start_ms=START, end_ms=START, sent_ms=START + 1234,
    )  # fmt: skip


def data_frame() -> Frame:
    tally = Tally()
    tally.count(encode_key("requests_total", MODEL), 3 * exact.ONE)
    tally.count(encode_key("cost_usd_total", MODEL), exact.ONE // 4)
    tally.gauges[encode_key("cache_entries", {})] = (42.0, START + 2000)
    tally.observe(encode_key("request_duration_seconds", {"model": "gpt-4o"}), [np.array([0.0, 0.25, 0.3, 0.3, 8.0])])
    return Frame(
        kind=FrameKind.DATA, node="proxy-1", incarnation=111411200000007, partition=0, sequence=2,
        start_ms=START, end_ms=START + 5000, sent_ms=START + 5003,
        counters=tally.counter_columns(), gauges=tally.gauge_columns(), sketches=tally.sketch_columns(),
    )  # fmt: skip


def part(kind: Kind) -> Part:
    """The window of two nodes that each sent what `data_frame` holds."""
    both = data_frame()
    packed: dict[Kind, tuple[str, list[bytes]]] = {
        Kind.COUNTER: (
            "requests_total",
            WindowCounters(
                both.counters.key_list()[:1], both.counters.whole[:1] * 2, np.zeros(1, np.uint64),
                np.array([106]), np.zeros(1, np.uint64),
            ).pack(),
        ),
        Kind.GAUGE: (
            "cache_entries",
            WindowGauges(
                both.gauges.key_list(), np.array([84]), np.zeros(1, np.uint64), both.gauges.values, both.gauges.values,
                both.gauges.values, both.gauges.at_ms, np.array([2], np.uint32),
            ).pack(),
        ),
        Kind.HISTOGRAM: (
            "request_duration_seconds",
            WindowSketches(
                both.sketches.key_list(), both.sketches.zero * 2, *exact.columns([2 * u for u in _units(both)]),
                both.sketches.minimum, both.sketches.maximum, both.sketches.lengths, both.sketches.indices,
                both.sketches.counts.astype(np.int64) * 2,
            ).pack(),
        ),
    }  # fmt: skip
    metric, columns = packed[kind]
    return Part(
        metric=metric, partition=0, resolution_ms=5000, start_ms=START, end_ms=START + 5000, revision=0,
        position=LogPosition(START - 86_400_000, 4711),
        counters=columns if kind is Kind.COUNTER else [],
        gauges=columns if kind is Kind.GAUGE else [],
        sketches=columns if kind is Kind.HISTOGRAM else [],
    )  # fmt: skip


def sealed() -> Sealed:
    return Sealed(
        partition=0, resolution_ms=5000, start_ms=START, end_ms=START + 5000, revision=0,
        position=LogPosition(START - 86_400_000, 4711), sealed_ms=START + 5012, cause="watermark",
        nodes_expected=2, nodes_heard=2, missing=[], gaps=0, metrics=["requests_total"],
        ledger=Ledger(received=4, applied=4),
    )  # fmt: skip


def blocks() -> dict[str, dict[str, str]]:
    """All blocks, as this build computes them."""
    values = [0.25, 0.1, 1e-18, 1e12 + 0.5, -0.75]
    whole, fraction = exact.split(np.array(values))
    doubles = [2.0**-1022, 1e-9, 0.25, float(np.nextafter(0.25, 1)), 1.0, 1.5, 2.0, 1e12, float(np.finfo(float).max)]
    return {
        "tokens": {repr(name): node_token(name) for name in ("proxy-7", "a.b c", "größe", "=")},
        "keys": {
            "series": encode_key("series", {}).hex(),
            'cost_usd_total{model="gpt-4o", provider="openai"}': encode_key("cost_usd_total", MODEL).hex(),
            'tokens_total{model="näme", type="in\\nput"}': encode_key(
                "tokens_total", {"type": "in\nput", "model": "näme"}
            ).hex(),
        },
        "fixed point": {
            repr(value): f"{w} {f}" for value, w, f in zip(values, whole.tolist(), fraction.tolist(), strict=True)
        },
        "buckets": {d.hex(): str(i) for d, i in zip(doubles, index_of(np.array(doubles)).tolist(), strict=True)},
        "hello": {"frame": encode_frame(hello_frame()).hex()},
        "data": {"frame": encode_frame(data_frame()).hex()},
        "part counters": {"part": encode(part(Kind.COUNTER)).hex()},
        "part gauges": {"part": encode(part(Kind.GAUGE)).hex()},
        "part sketches": {"part": encode(part(Kind.HISTOGRAM)).hex()},
        "sealed": {"marker": encode(sealed()).hex()},
    }


def _units(frame: Frame) -> list[int]:
    fraction = frame.sketches.fraction
    return exact.to_units(
        frame.sketches.whole, np.zeros(len(frame.sketches.whole), np.uint64) if fraction is None else fraction
    )
