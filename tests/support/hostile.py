"""Frames that are broken or lie, made from a good one, and what must become of them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction

import msgspec
from support.frames import STEP, SUBJECTS, T0, Log, Published, fold, frame, key, run, tally

from fleetmeter.aggregator.fold import AggregatorFold
from fleetmeter.proto.wire import FrameWire, decode, encode

HITS = key("hits_total")
WAIT = key("wait_seconds")
HONEST = key("honest_total")
DEPTH = key("depth", node="a")
CONTENT = tally({HITS: 2, key("hits_total", user="x"): 0.5}, {DEPTH: (3.0, T0)}, {WAIT: [0.0, 0.25, 7.0]})


def honest() -> tuple[Log, AggregatorFold, Published]:
    """A log with a node's first two frames, the fold that has read it, and what it published."""
    log = Log()
    log.raw(frame("a", 1, T0, T0, kind=1))  # type: ignore[arg-type]
    log.raw(frame("a", 2, T0, T0 + STEP, tally({HITS: 1})), at_ms=T0 + STEP)
    aggregator = fold()
    return log, aggregator, run(aggregator, log.messages)


def goes_on(log: Log, aggregator: AggregatorFold, published: Published) -> None:
    """An honest node's frames still count, its window seals, and the state can be stored."""
    b = log.node("honest")
    start = log.now_ms - log.now_ms % STEP
    messages = [b.hello(start, at_ms=log.now_ms), b.data(start, {HONEST: 10}, values={WAIT: [1.0]}, at_ms=start + STEP)]
    run(aggregator, [*messages, log.tick(start + 2 * STEP + 2000)], published)
    assert published.totals[HONEST] == 10
    fold().restore(aggregator.snapshot())


def counted(published: Published) -> dict[bytes, Fraction]:
    """Totals of what nodes report."""
    return {series: total for series, total in published.totals.items() if not series.startswith((b"frame", b"series"))}


def refuse(payload: bytes, reason: str, node: str = "a", headers: dict[str, str] | None = None) -> None:
    """The message is rejected for `reason`, and nothing else changes."""
    log, aggregator, published = honest()
    before = counted(published)
    run(aggregator, [log.put(SUBJECTS.delta(0, node), payload, headers=headers)], published)
    assert aggregator.ledger.rejected == {reason: 1}
    assert (aggregator.ledger.applied, counted(published)) == (2, before)
    goes_on(log, aggregator, published)


def accept(payload: bytes, node: str = "a", headers: dict[str, str] | None = None) -> Published:
    """The message is applied; returns what is published once its window has sealed."""
    log, aggregator, published = honest()
    run(aggregator, [log.put(SUBJECTS.delta(0, node), payload, headers=headers)], published)
    assert aggregator.ledger.rejected == {}
    goes_on(log, aggregator, published)
    return published


def good(**changes: object) -> bytes:
    """Node a's next frame, with everything in it, and other fields as given."""
    wire = decode(FrameWire, frame("a", 3, T0 + STEP, T0 + 2 * STEP, CONTENT))
    return encode(msgspec.structs.replace(wire, **changes))


def column(field: str, place: int, change: Callable[[bytes], bytes]) -> bytes:
    """Node a's next frame with one of its columns changed."""
    columns = list(getattr(decode(FrameWire, good()), field))
    columns[place] = change(columns[place])
    return good(**{field: columns})


def numbers(kind: str, *values: float) -> Callable[[bytes], bytes]:
    """Puts other numbers at the beginning of a column."""

    def change(raw: bytes) -> bytes:
        new = struct.pack(f"<{len(values)}{kind}", *values)
        return new + raw[len(new) :]

    return change
