"""The outbox: whatever is merged, split, sent twice or asked for again, counts and sequences are right."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.frames import STEP, T0, Log, fold, key, run, tally

from fleetmeter.emitter.outbox import Outbox, Sent
from fleetmeter.emitter.tally import Tally
from fleetmeter.proto import exact
from fleetmeter.proto.exact import ONE
from fleetmeter.proto.wire import MAX_PAYLOAD, Frame, FrameKind, Settings, decode_frame

HITS = key("hits_total")
WAIT = key("wait_seconds")


def outbox(queue_bytes: int = 1 << 20, ring_bytes: int = 1 << 20, max_payload: int = MAX_PAYLOAD) -> Outbox:
    return Outbox("a", 7, queue_bytes, ring_bytes, max_payload)


def put(box: Outbox, window: int, content: Tally, kind: FrameKind = FrameKind.DATA, partition: int = 0) -> None:
    box.put(kind, partition, T0 + window * STEP, T0 + (window + 1) * STEP, content)


def send_all(box: Outbox) -> list[Sent]:
    """Everything that waits, acknowledged at once."""
    sent = []
    while (one := box.next(T0)) is not None:
        sent.append(one)
        box.ack(one)
    return sent


def units(frames: list[Frame]) -> dict[bytes, int]:
    """Counters of all frames together."""
    total: dict[bytes, int] = {}
    for frame in frames:
        c = frame.counters
        fraction = c.fraction if c.fraction is not None else np.zeros(len(c.whole), np.uint64)
        for series, u in zip(c.key_list(), exact.to_units(c.whole, fraction), strict=True):
            total[series] = total.get(series, 0) + u
    return total


def test_frames_go_out_in_order_with_contiguous_sequences() -> None:
    """Sequences count from 1 for each partition, and the spans are those that were cut."""
    box = outbox()
    put(box, 0, Tally(), FrameKind.HELLO)
    put(box, 0, Tally(), FrameKind.HELLO, partition=1)
    for window in range(3):
        put(box, window, tally({HITS: window}))
        put(box, window, Tally(), partition=1)
    frames = [decode_frame(sent.payload) for sent in send_all(box)]
    for partition in (0, 1):
        mine = [frame for frame in frames if frame.partition == partition]
        assert [frame.sequence for frame in mine] == [1, 2, 3, 4]
        assert [frame.start_ms for frame in mine] == [T0, T0, T0 + STEP, T0 + 2 * STEP]
        assert {(frame.node, frame.incarnation) for frame in mine} == {("a", 7)}
    assert (box.cut, box.acked, box.pending_frames, box.pending_bytes, box.merged) == (8, 8, 0, 0, 0)
    assert box.next(T0) is None


def test_frame_in_flight_keeps_its_bytes() -> None:
    """Until its acknowledgement a frame is pending, with the bytes and the sequence that it was first sent with."""
    box = outbox()
    put(box, 0, tally({HITS: 1}))
    first = box.next(T0)
    put(box, 1, tally({HITS: 2}))
    assert first is not None and box.in_flight == [first]
    assert (box.pending_frames, box.has_drafts) == (2, True)
    second = box.next(T0 + 9)
    assert second is not None and second.sequence == 2
    assert box.in_flight == [first, second]
    box.ack(second)
    box.ack(second)  # a second acknowledgement of the same frame
    assert box.in_flight == [first]
    assert (box.acked, box.pending_bytes) == (1, len(first.payload))


def test_oldest_frames_merge_past_the_limit() -> None:
    """Past the limit the oldest become one frame over their windows; what is newest keeps its window."""
    box = outbox(queue_bytes=6000)
    put(box, 0, Tally(), FrameKind.HELLO)
    for window in range(50):
        put(box, window, tally({HITS: 1}, {key("g"): (window, T0 + window)}, {WAIT: [float(window)]}))
        assert box.pending_bytes <= 6000
    frames = [decode_frame(sent.payload) for sent in send_all(box)]
    assert frames[0].kind is FrameKind.HELLO
    assert box.merged == 51 - len(frames) > 40
    assert units(frames) == {HITS: 50 * ONE}
    assert sum(int(frame.sketches.counts.sum() + frame.sketches.zero.sum()) for frame in frames) == 50
    assert (frames[1].start_ms, frames[-1].end_ms) == (T0, T0 + 50 * STEP)
    assert frames[-1].end_ms - frames[-1].start_ms == STEP
    assert all(one.end_ms == two.start_ms for one, two in itertools.pairwise(frames[1:]))
    assert frames[1].gauges.values.tolist() == [(frames[1].end_ms - T0) // STEP - 1]


def test_frames_in_flight_are_never_merged() -> None:
    """A frame that may be stored already is not changed, though the queue is over its limit."""
    box = outbox(queue_bytes=1)
    put(box, 0, tally({HITS: 1}))
    first = box.next(T0)
    assert first is not None
    for window in range(1, 10):
        put(box, window, tally({HITS: 1}))
    assert box.in_flight == [first]
    box.ack(first)
    frames = [decode_frame(first.payload), *(decode_frame(sent.payload) for sent in send_all(box))]
    assert [frame.sequence for frame in frames] == [1, 2]
    assert units(frames) == {HITS: 10 * ONE}


def test_last_frame_stays_the_last_when_merged() -> None:
    """A merge with the BYE is a BYE."""
    box = outbox(queue_bytes=1)
    put(box, 0, tally({HITS: 1}))
    put(box, 1, tally({HITS: 1}), FrameKind.BYE)
    (frame,) = [decode_frame(sent.payload) for sent in send_all(box)]
    assert (frame.kind, frame.start_ms, frame.end_ms) == (FrameKind.BYE, T0, T0 + 2 * STEP)


def test_partitions_merge_apart() -> None:
    """Frames of different partitions never become one."""
    box = outbox(queue_bytes=1)
    for window in range(5):
        put(box, window, tally({HITS: 1}))
        put(box, window, tally({WAIT: 1}), partition=1)
    frames = [decode_frame(sent.payload) for sent in send_all(box)]
    assert [(frame.partition, units([frame])) for frame in frames] == [(0, {HITS: 5 * ONE}), (1, {WAIT: 5 * ONE})]


def test_merge_that_no_frame_could_carry_does_not_happen() -> None:
    """Frames whose sum would pass a frame's limit stay apart, though the queue is over its own."""
    box = outbox(queue_bytes=1)
    for window in range(3):
        put(box, window, tally({HITS: 1 << 52}))
    frames = [decode_frame(sent.payload) for sent in send_all(box)]
    assert [frame.counters.whole.tolist() for frame in frames] == [[1 << 53], [1 << 52]]


def test_large_frame_is_split() -> None:
    """What is too large for one message goes as MORE, then the rest with the promise; each piece fits."""
    box = outbox(max_payload=2000)
    content = tally({key("hits_total", user=str(i)): i for i in range(100)}, None, {WAIT: [2.0**i for i in range(30)]})
    put(box, 0, content, FrameKind.BYE)
    put(box, 1, tally({HITS: 1}))
    sent = send_all(box)
    frames = [decode_frame(one.payload) for one in sent]
    assert all(len(one.payload) <= 2000 for one in sent)
    assert [frame.sequence for frame in frames] == list(range(1, len(frames) + 1))
    assert [frame.kind for frame in frames[:-2]] == [FrameKind.MORE] * (len(frames) - 2)
    assert frames[-2].kind is FrameKind.BYE
    assert {frame.start_ms for frame in frames[:-1]} == {T0}
    assert sum(units(frames).values()) == (sum(range(100)) + 1) * ONE


def test_two_series_of_two_kinds_can_be_split() -> None:
    """A counter and a sketch that do not fit together go one after the other."""
    box = outbox(max_payload=110)
    put(box, 0, tally({key("hits_total", u="x" * 20): 1}, {key("g"): (1.0, T0)}))
    frames = [decode_frame(sent.payload) for sent in send_all(box)]
    assert [frame.kind for frame in frames] == [FrameKind.MORE, FrameKind.DATA]


def test_series_too_large_by_itself_is_sent_as_it_is() -> None:
    """A single series is not split for ever; the broker has the last word."""
    box = outbox(max_payload=50)
    put(box, 0, tally({key("hits_total", u="x" * 100): 1}))
    assert len(send_all(box)) == 1


def test_acknowledged_frames_can_be_had_again() -> None:
    """The ring gives the same bytes for the sequences asked for, newest as far as they fit."""
    box = outbox(ring_bytes=2000)
    for window in range(100):
        put(box, window, tally({HITS: 1}))
        box.next(T0)
    sent = box.in_flight
    for one in sent:
        box.ack(one)
    assert box.again(0, 98, 100) == sent[97:]
    kept = box.again(0, 1, 100)
    assert kept == sent[-len(kept) :] and sum(len(one.payload) for one in kept) <= 2000
    assert box.again(0, 1, 2) == []


@pytest.mark.parametrize(("first", "last"), [(-5, 1 << 60), (0, 0), (5, 2), (1 << 60, 1 << 61), (-9, -1)])
def test_absurd_requests_for_frames_cost_nothing(first: int, last: int) -> None:
    """Any range is answered with what of it there is."""
    box = outbox()
    put(box, 0, Tally())
    (sent,) = send_all(box)
    assert box.again(0, first, last) == ([sent] if first <= 1 <= last else [])
    assert box.again(3, first, last) == []


def test_frame_in_flight_is_not_sent_again_on_request() -> None:
    """What has no acknowledgement yet is under way already."""
    box = outbox()
    put(box, 0, Tally())
    box.next(T0)
    assert box.again(0, 1, 1) == []


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 4), st.floats(0, 1e6)),
        st.tuples(st.just("next")),
        st.tuples(st.just("ack"), st.integers(0, 5)),
    ),
    max_size=60,
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(steps, st.integers(1, 4000), st.integers(120, 2000), st.integers(1, 2))
def test_every_count_arrives_once(
    some: list[tuple[object, ...]], queue_bytes: int, max_payload: int, partitions: int
) -> None:
    """Cut, merged, split, sent, acknowledged and repeated in any way: an aggregator counts each increment once, its
    sequences have no gap, and no frame comes later than it promised.
    """
    box = outbox(queue_bytes=queue_bytes, max_payload=max_payload)
    expected: dict[bytes, Fraction] = {}
    sent: list[Sent] = []
    window = 0
    for partition in range(partitions):
        put(box, 0, Tally(), FrameKind.HELLO, partition)

    def send() -> None:
        if (one := box.next(T0)) is not None:
            sent.append(one)

    for what, *arguments in some:
        if what == "put":
            series, value = arguments
            number = float(value)  # type: ignore[arg-type]
            content = tally({key("hits_total", u=f"{series}{i}"): number for i in range(5)}, None, {WAIT: [number] * 2})
            for u, increment in content.counters.items():
                expected[u] = expected.get(u, Fraction(0)) + Fraction(increment, ONE)
            for partition, part in enumerate(content.split(partitions)):
                put(box, window, part, partition=partition)
            window += 1
        elif what == "next":
            send()
        elif box.in_flight:
            box.ack(box.in_flight[int(arguments[0]) % len(box.in_flight)])  # type: ignore[call-overload]
    while box.has_drafts:
        send()
    frames = [decode_frame(one.payload) for one in sent]
    totals: dict[bytes, Fraction] = {}
    for partition in range(partitions):
        mine = [frame for frame in frames if frame.partition == partition]
        assert [frame.sequence for frame in mine] == list(range(1, len(mine) + 1))
        promised = 0
        for frame in mine:
            assert frame.start_ms >= promised
            promised = promised if frame.kind in (FrameKind.MORE, FrameKind.HELLO) else frame.end_ms
        for counter, amount in units(mine).items():
            totals[counter] = totals.get(counter, Fraction(0)) + Fraction(amount, ONE)
    assert totals == expected
    if partitions == 1:
        log = Log()
        for one in [*sent, *sent]:  # every frame twice
            log.raw(one.payload)
        log.tick(T0 + 20_000)
        log.tick(T0 + 22_000)
        aggregator = fold(Settings(clock="event"))
        published = run(aggregator, log.messages)
        assert aggregator.ledger.duplicate == len(sent) and aggregator.ledger.gap == 0
        assert {series: total for series, total in published.totals.items() if series in expected} == expected
