"""Whatever the order, the split over nodes, the repetitions and the restarts: the same windows, to the last byte."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.frames import STEP, SUBJECTS, T0, Log, Published, fold, frame, key, run

from fleetmeter.aggregator.fold import AggregatorFold
from fleetmeter.emitter.tally import Tally
from fleetmeter.proto import exact
from fleetmeter.proto.bus import LogMessage
from fleetmeter.proto.wire import FrameKind, Settings

KEYS = [key("hits_total"), key("hits_total", user="x"), key("hits_total", user="ÿ\n")]
SKETCHES = [key("wait_seconds"), key("wait_seconds", user="y"), key("size_bytes")]
EVENT = Settings(clock="event", lateness_ms=3600 * 1000)
thorough = settings(max_examples=40, deadline=None, derandomize=True)

values = st.one_of(
    st.floats(0, exact.MAX_VALUE, allow_nan=False),
    st.floats(0, 1e-300),
    st.sampled_from([0.0, 1.0, 2.0**-1022, 2.0**-1074, 0.1, 2.0**40, 2.0**-64, 3.0]),
)


@dataclass(frozen=True)
class Record:
    """One recorded value: a counter's increment (series 0…2) or a histogram's value (3…5), in a window."""

    window: int
    series: int
    value: float


records = st.lists(st.builds(Record, st.integers(0, 3), st.integers(0, 5), values), max_size=40)


def tally_of(some: list[Record]) -> Tally:
    made = Tally()
    for record in some:
        value = np.array([record.value])
        if record.series < 3:
            made.count(KEYS[record.series], exact.total(value))
        else:
            made.observe(SKETCHES[record.series - 3], [value])
    return made


def frames_of(name: str, some: list[Record], pieces: int) -> list[bytes]:
    """A node's whole life, each window cut into so many frames."""
    made = [frame(name, 1, T0, T0, kind=FrameKind.HELLO)]
    for window in range(4):
        start = T0 + window * STEP
        mine = [record for record in some if record.window == window]
        for piece in range(pieces):
            kind = FrameKind.DATA if piece == pieces - 1 else FrameKind.MORE
            made.append(frame(name, len(made) + 1, start, start + STEP, tally_of(mine[piece::pieces]), kind=kind))
    end = T0 + 4 * STEP
    made.append(frame(name, len(made) + 1, end, end + STEP, kind=FrameKind.BYE))
    return made


def log_of(payloads: list[tuple[str, bytes]]) -> Log:
    """Frames at one moment, then ticks until everything is sealed and corrected."""
    log = Log()
    for name, payload in payloads:
        log.raw(payload, name)
    for seconds in (1, 2, 20, 21, 40):
        log.tick(T0 + seconds * 1000)
    return log


def result(published: Published) -> tuple[object, ...]:
    """What nodes reported, as published: columns of the newest revisions, and totals."""
    own = {k: v for k, v in published.columns.items() if k[0] in ("hits_total", "wait_seconds", "size_bytes", "depth")}
    return own, {series: total for series, total in published.totals.items() if series in KEYS}


@thorough
@given(records, st.data())
def test_split_over_nodes_order_and_repetition_change_no_byte(some: list[Record], data: st.DataObject) -> None:
    """Records spread over any nodes and frames, which arrive in any order and any number of times, give the columns
    that one node gives which sends them in order.
    """
    one = log_of([("one", payload) for payload in frames_of("one", some, 1)])
    expected = result(run(fold(EVENT), one.messages))
    n = data.draw(st.integers(1, 4), label="nodes")
    owner = [data.draw(st.integers(0, n - 1)) for _ in some]
    payloads: list[tuple[str, bytes]] = []
    for node in range(n):
        mine = [record for record, of in zip(some, owner, strict=True) if of == node]
        payloads += [(f"n{node}", p) for p in frames_of(f"n{node}", mine, data.draw(st.integers(1, 3), label="pieces"))]
    payloads += [payload for payload in payloads if data.draw(st.booleans(), label="twice")]
    shuffled = data.draw(st.permutations(payloads), label="order")
    aggregator = fold(EVENT)
    assert result(run(aggregator, log_of(shuffled).messages)) == expected
    assert aggregator.nodes.missing == 0
    assert aggregator.ledger.gap == aggregator.ledger.healed


@thorough
@given(st.lists(st.tuples(st.integers(0, 2), st.floats(-1e15, 1e15), st.integers(0, 9)), max_size=12), st.data())
def test_order_of_frames_changes_no_gauge(some: list[tuple[int, float, int]], data: st.DataObject) -> None:
    """Gauges of several nodes, set at times that may be equal, merge to the same bytes in any order of arrival."""
    payloads = []
    for name in "abc":
        for sequence, (series, value, at) in enumerate(some, 1):
            content = Tally(gauges={key("depth", queue=str(series)): (value + (name == "b"), T0 + at)})
            payloads.append((name, frame(name, sequence, T0, T0 + STEP, content, kind=FrameKind.MORE)))
    shuffled = data.draw(st.permutations(payloads), label="order")
    assert result(run(fold(EVENT), log_of(shuffled).messages)) == result(run(fold(EVENT), log_of(payloads).messages))


@st.composite
def logs(draw: st.DrawFn) -> list[LogMessage]:
    """Logs of anything: frames in wrong order, missing, repeated, late and broken, ticks and settings at any time."""
    log = Log()
    names = ["a", "b", "c"]
    now = T0
    for _ in range(draw(st.integers(5, 40))):
        now += draw(st.sampled_from([0, 1, 100, 999, 2500, STEP, 4 * STEP, 30_000]))
        what = draw(st.sampled_from(["frame"] * 8 + ["tick", "tick", "again", "broken", "settings"]))
        name = draw(st.sampled_from(names))
        if what == "tick":
            log.tick(now)
        elif what == "settings":
            log.settings(
                Settings(
                    interval_ms=draw(st.sampled_from([1000, STEP, 10_000])),
                    lateness_ms=draw(st.sampled_from([0, STEP, 60_000])),
                    max_series_per_metric=draw(st.integers(1, 3)),
                    clock=draw(st.sampled_from(["broker", "event"])),
                ),
                now,
            )
        elif what == "again" and log.messages:
            message = draw(st.sampled_from(log.messages))
            log.put(message.subject, message.data, now, message.headers)
        elif what == "broken":
            log.raw(b"FM\x01\x00" + draw(st.binary(max_size=30)), name, now)
        else:
            start = now - now % STEP - draw(st.sampled_from([0, 0, 0, 1, 5, 20])) * STEP
            some = draw(st.lists(st.builds(Record, st.just(0), st.integers(0, 5), values), max_size=4))
            content = tally_of(some)
            content.gauges[key("depth", node=name)] = (draw(st.floats(-10, 10)), now)
            payload = frame(
                name,
                draw(st.integers(1, 12)),
                start,
                start + draw(st.sampled_from([0, STEP, STEP, 3 * STEP])),
                content,
                kind=draw(st.sampled_from([FrameKind.DATA] * 5 + list(FrameKind))),
                incarnation=draw(st.integers(1, 2)),
            )
            headers = {"Fm-Sent": str(now + draw(st.sampled_from([0, 0, -3, 40_000])))}
            log.put(SUBJECTS.delta(0, name), payload, now, headers if draw(st.booleans()) else {})
    log.tick(now + 70_000)
    return log.messages


@thorough
@given(logs(), st.data())
def test_restart_at_any_point_changes_no_byte(messages: list[LogMessage], data: st.DataObject) -> None:
    """A fold restored from its snapshot after any message publishes what the one that went on does, and ends in the
    same state.
    """
    whole = fold()
    expected = run(whole, messages).stored
    cut = data.draw(st.integers(0, len(messages)), label="cut")
    first, second = fold(), fold(Settings(interval_ms=60_000))
    before = run(first, messages[:cut]).stored
    second.restore(first.snapshot())
    assert before + run(second, messages[cut:]).stored == expected
    assert second.snapshot() == whole.snapshot()


@thorough
@given(logs())
def test_any_log_is_accounted_for(messages: list[LogMessage]) -> None:
    """No log raises; every frame is applied, a duplicate or rejected; windows have no hole, and no total decreases."""
    aggregator: AggregatorFold = fold()
    published = run(aggregator, messages)  # checks ledger and totals at each message
    assert aggregator.ledger.received == sum(message.subject.startswith("fm.test.delta.") for message in messages)
    sealed = sorted((m.start_ms, m.end_ms) for m in published.markers if m.revision == 0)
    for (_, end), (start, _) in itertools.pairwise(sealed):
        assert start >= end
