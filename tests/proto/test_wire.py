"""Messages and their bytes: what is encoded is decoded, and what is no message is refused with a reason."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.frames import STEP, T0, frame, key, tally

from fleetmeter.proto.columns import MAX_TIME_MS, pack_counters, pack_gauges, pack_sketches
from fleetmeter.proto.errors import FrameError
from fleetmeter.proto.wire import (
    Frame,
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
    decode_header,
    encode,
    encode_frame,
    window_start,
)

few = settings(max_examples=150, deadline=None, derandomize=True)
times = st.integers(0, MAX_TIME_MS)
SEALED = Sealed(
    partition=1, resolution_ms=STEP, start_ms=T0, end_ms=T0 + STEP, revision=2, position=LogPosition(T0, 9),
    sealed_ms=T0 + STEP, cause="late", nodes_expected=3, nodes_heard=2, missing=["ü"], gaps=1, metrics=["a"],
    ledger=Ledger(received=3, applied=1, duplicate=1, rejected={"magic": 1}), lateness_ms=5,
)  # fmt: skip


@few
@given(
    st.sampled_from(FrameKind), st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
    st.integers(1, (1 << 63) - 1), st.integers(0, 1 << 31), st.integers(1, (1 << 53) - 1), times, times, times,
    st.dictionaries(st.sampled_from([key("a_total"), key("b_total", x="\n")]), st.floats(0, 1e12)),
    st.lists(st.floats(0, 1e12), max_size=5),
)  # fmt: skip
def test_frame_and_back(
    kind: FrameKind, node: str, incarnation: int, partition: int, sequence: int, one_ms: int, other_ms: int,
    sent_ms: int, counters: dict[bytes, float], values: list[float],
) -> None:  # fmt: skip
    """Every field and column of a frame survives the way to bytes and back."""
    content = tally(counters, {key("g"): (-1.5, one_ms)}, {key("h"): values} if values else None)
    start_ms, end_ms = sorted((one_ms, other_ms))
    made = Frame(
        kind=kind, node=node, incarnation=incarnation, partition=partition, sequence=sequence, start_ms=start_ms,
        end_ms=end_ms, sent_ms=sent_ms, counters=content.counter_columns(), gauges=content.gauge_columns(),
        sketches=content.sketch_columns(),
    )  # fmt: skip
    read = decode_frame(encode_frame(made))
    for field in ("kind", "node", "incarnation", "partition", "sequence", "start_ms", "end_ms", "sent_ms"):
        assert getattr(read, field) == getattr(made, field)
    assert pack_counters(read.counters) == pack_counters(made.counters)
    assert pack_gauges(read.gauges) == pack_gauges(made.gauges)
    assert pack_sketches(read.sketches) == pack_sketches(made.sketches)
    assert encode_frame(read) == encode_frame(made)


@pytest.mark.parametrize(
    "message",
    [
        Settings(interval_ms=1000, clock="event"),
        Tick(3),
        Resend(1 << 60, 0, 5, 9),
        SEALED,
        Part(metric="m", partition=0, resolution_ms=0, start_ms=T0, end_ms=T0, revision=0, position=LogPosition(),
             counters=[b"\xff"]),
    ],
)  # fmt: skip
def test_message_and_back(message: Settings | Tick | Resend | Sealed | Part) -> None:
    """Each kind of message survives the way to bytes and back."""
    assert decode(type(message), encode(message)) == message


def test_fields_that_a_newer_version_appends_are_ignored() -> None:
    """A message with more fields than this build knows is read, and so is one without those that have defaults."""
    longer = encode(Tick(3))[:4] + msgspec.msgpack.encode([3, "new", 7])
    assert decode(Tick, longer) == Tick(3)
    fields = msgspec.msgpack.decode(encode(SEALED)[4:])
    assert decode(Sealed, b"FM\x01\x00" + msgspec.msgpack.encode(fields[:-1])).lateness_ms == 60_000


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "truncated"),
        (b"FM\x01", "truncated"),
        (b"MF\x01\x00\x91\x00", "magic"),
        (b"FM\x02\x00\x91\x00", "version"),
        (b"FM\x01\x07\x91\x00", "encoding"),
        (b"FM\x01\x00", "truncated"),
        (b"FM\x01\x00\x91", "truncated"),
        (b"FM\x01\x00\x91\xa1x", "malformed"),
        (b"FM\x01\x00\x91\x00\x00", "malformed"),
        (b"FM\x01\x00\xc1", "malformed"),
    ],
)
def test_what_is_no_message_is_refused_with_its_reason(payload: bytes, reason: str) -> None:
    """Too short, of another kind, version or encoding, and not decodable are told apart."""
    with pytest.raises(FrameError) as caught:
        decode(Tick, payload)
    assert caught.value.reason == reason


@pytest.mark.parametrize("cut", range(60))
def test_frame_cut_short_is_refused(cut: int) -> None:
    """No proper prefix of a frame is one."""
    payload = frame("a", 1, T0, T0 + STEP, tally({key("a_total"): 1}, None, {key("h"): [1.0]}))
    with pytest.raises(FrameError):
        decode_frame(payload[: cut * len(payload) // 60])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", 4), ("kind", -1), ("node", ""), ("node", "ü" * 65), ("incarnation", 0), ("incarnation", 1 << 63),
        ("sequence", 0), ("sequence", 1 << 53), ("start_ms", -1), ("start_ms", T0 + 1), ("end_ms", MAX_TIME_MS + 1),
        ("sent_ms", -1), ("sent_ms", MAX_TIME_MS + 1),
    ],
)  # fmt: skip
def test_header_out_of_range_is_malformed(field: str, value: object) -> None:
    """Each scalar of a frame is checked."""
    wire = msgspec.structs.replace(decode_header(frame("a", 1, T0, T0)), **{field: value})
    with pytest.raises(FrameError) as caught:
        decode_header(encode(wire))
    assert caught.value.reason == "malformed"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("interval_ms", 0), ("interval_ms", 3_600_001), ("lateness_ms", -1), ("seal_deadline_ms", -1),
        ("node_timeout_ms", -1), ("partitions", 0), ("partitions", 1025), ("clock", "sun"), ("max_series", 0),
        ("max_series_per_metric", 0), ("interval_ms", "5s"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_malformed(field: str, value: object) -> None:
    """Settings that no part could work with are refused where they are read."""
    with pytest.raises(FrameError) as caught:
        decode(Settings, encode(msgspec.structs.replace(Settings(), **{field: value})))
    assert caught.value.reason == "malformed"


@pytest.mark.parametrize(
    ("start", "end", "window"),
    [(0, 5, 0), (5, 10, 5), (0, 15, 10), (0, 11, 10), (5, 5, 5), (7, 7, 5), (3, 4, 0), (0, 0, 0)],
)
def test_frame_counts_in_the_last_window_that_it_touches(start: int, end: int, window: int) -> None:
    """The end is exclusive, and an empty span lies in the window of its start."""
    assert window_start(start, end, 5) == window


def test_positions_order_by_stream_then_sequence() -> None:
    """A place in a stream made later comes after every place in the one before."""
    assert LogPosition(1, 9) < LogPosition(1, 10) < LogPosition(2, 1)


def test_frame_without_columns_is_small() -> None:
    """A heartbeat costs some tens of bytes."""
    assert len(frame("proxy-1", 100, T0, T0 + STEP)) < 64


def test_absent_columns_are_empty() -> None:
    """A body that ends after the header is a frame without columns."""
    fields = msgspec.msgpack.decode(frame("a", 1, T0, T0)[4:])
    short = b"FM\x01\x00" + msgspec.msgpack.encode(fields[:8])
    assert decode(FrameWire, short).counters == []
    assert decode_frame(short).sketches.keys == b""
