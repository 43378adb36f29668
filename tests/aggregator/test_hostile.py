"""Frames that are broken or lie: each ends in the ledger with its reason, changes no total, and the fold goes on."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from support.frames import STEP, T0, frame, key, run, tally
from support.hostile import (
    HITS,
    WAIT,
    accept,
    column,
    goes_on,
    good,
    honest,
    numbers,
    refuse,
)

from fleetmeter.aggregator import series
from fleetmeter.proto.columns import join_keys
from fleetmeter.proto.wire import FrameWire, decode


def test_frame_that_the_others_are_made_from_is_accepted() -> None:
    """The frame that each test here breaks is whole before that."""
    published = accept(good())
    assert published.totals[key("hits_total", user="x")] == Fraction(1, 2)


# Bytes


def test_frame_cut_short_anywhere_is_refused() -> None:
    """No prefix of a frame is taken for one."""
    payload = good()
    log, aggregator, published = honest()
    run(aggregator, [log.raw(payload[:n]) for n in range(len(payload))], published)
    assert aggregator.ledger.applied == 2
    assert set(aggregator.ledger.rejected) <= {"truncated", "malformed"}
    assert sum(aggregator.ledger.rejected.values()) == len(payload)
    goes_on(log, aggregator, published)


def test_flipped_bits_never_stop_the_fold() -> None:
    """Frames with bits flipped are refused or count as what they then say; the ledger accounts for each."""
    rng = random.Random(7)
    payload = good()
    log, aggregator, published = honest()
    for _ in range(1500):
        broken = bytearray(payload)
        for _ in range(rng.choice([1, 1, 2, 8])):
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        run(aggregator, [log.raw(bytes(broken))], published)
    assert aggregator.ledger.received == 1502
    assert len(aggregator.ledger.rejected) > 5
    goes_on(log, aggregator, published)


def test_random_bytes_never_stop_the_fold() -> None:
    """Random bytes after a right envelope are refused."""
    rng = random.Random(8)
    log, aggregator, published = honest()
    run(aggregator, [log.raw(b"FM\x01\x00" + rng.randbytes(rng.randrange(60))) for _ in range(1000)], published)
    assert sum(aggregator.ledger.rejected.values()) == 1000
    goes_on(log, aggregator, published)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "truncated"),
        (b"FM\x01", "truncated"),
        (b"GM" + good()[2:], "magic"),
        (b"FM\x02" + good()[3:], "version"),
        (b"FM\x00" + good()[3:], "version"),
        (b"FM\x01\x01" + good()[4:], "encoding"),
        (b"FM\x01\x00", "truncated"),
        (good() + b"\x00", "malformed"),
        (b"FM\x01\x00\x80", "malformed"),
        (b"FM\x01\x00\xc0", "malformed"),
        (b"FM\x01\x00" + b"\x91" * 100_000, "malformed"),
        (b"FM\x01\x00\xdd\xff\xff\xff\xff", "truncated"),
        (b"FM\x01\x00\x9b\x00\xa1\xff" + good()[7:], "malformed"),
    ],
)
def test_envelope_and_body_are_checked(payload: bytes, reason: str) -> None:
    """Another format, version or encoding is told apart from a body that is none."""
    refuse(payload, reason)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": 4},
        {"kind": -1},
        {"kind": 1 << 63},
        {"node": ""},
        {"node": "n" * 129},
        {"incarnation": 0},
        {"incarnation": -1},
        {"incarnation": 1 << 63},
        {"sequence": 0},
        {"sequence": -1},
        {"sequence": 1 << 60},
        {"sequence": (1 << 64) - 1},
        {"start_ms": -1},
        {"start_ms": T0 + 3 * STEP},
        {"end_ms": 1 << 49},
        {"sent_ms": -1},
        {"sent_ms": 1 << 60},
        {"counters": ["text", b"", b""]},
        {"counters": [1, 2, 3]},
        {"node": None},
    ],
    ids=str,
)
def test_header_is_checked(changes: dict[str, object]) -> None:
    """Kind, name, numbers and times out of range make a frame malformed."""
    payload = good(**changes)
    refuse(payload, "malformed", node=str(changes.get("node") or "a"))


# Who says it


def test_node_must_have_the_name_of_its_subject() -> None:
    """A node that may publish on its own subject alone can't speak for another."""
    refuse(good(node="b"), "node_claim")
    refuse(good(), "node_claim", node="b")


def test_node_label_must_be_the_frames_node() -> None:
    """Nobody reports another node's gauges, in a new series or in one that exists."""
    other = tally(gauges={key("depth", node="b"): (1.0, T0)})
    refuse(frame("a", 3, T0 + STEP, T0 + 2 * STEP, other), "node_claim")
    log, aggregator, published = honest()
    run(aggregator, [log.raw(frame("b", 1, T0 + STEP, T0 + 2 * STEP, other), "b")], published)
    run(aggregator, [log.raw(frame("a", 3, T0 + STEP, T0 + 2 * STEP, other))], published)
    assert aggregator.ledger.rejected == {"node_claim": 1}
    goes_on(log, aggregator, published)


@pytest.mark.parametrize("token", ["a=2", "=41", "=c3=bc", "b=FF", "a.b", "ü", ""])
def test_node_token_must_be_canonical(token: str) -> None:
    """A subject whose last token is no name in its one spelling is refused."""
    log, aggregator, published = honest()
    run(aggregator, [log.put(f"fm.test.delta.0.{token}", good())], published)
    assert sum(aggregator.ledger.rejected.values()) == 1
    assert set(aggregator.ledger.rejected) <= {"subject", "node_claim"}
    goes_on(log, aggregator, published)


def test_partition_must_be_the_subjects() -> None:
    """A frame of another partition is refused."""
    refuse(good(partition=1), "partition")
    refuse(good(partition=-1), "partition")


@pytest.mark.parametrize("metric", sorted(series.RESERVED))
def test_pipeline_metrics_are_reserved(metric: str) -> None:
    """Nodes can't report what the pipeline says of itself."""
    refuse(frame("a", 3, T0 + STEP, T0 + 2 * STEP, tally({key(metric): 1})), "reserved")


def test_kind_of_a_metric_is_fixed() -> None:
    """A metric has one kind: the catalogue's, that of its first report, and one in a frame."""
    gauge, span = tally(gauges={HITS: (1.0, T0)}), (T0 + STEP, T0 + 2 * STEP)
    refuse(frame("a", 3, *span, gauge), "kind")
    refuse(frame("a", 3, *span, tally(gauges={key("requests_total"): (1.0, T0)})), "kind")
    both = tally({key("jobs"): 1}, {key("jobs"): (1.0, T0)})
    refuse(frame("a", 3, *span, both), "kind")


# Columns


FRACTIONS = {("counters", 2), ("sketches", 3)}


@pytest.mark.parametrize(
    ("field", "places"), [("counters", range(1, 3)), ("gauges", range(1, 3)), ("sketches", range(1, 9))]
)
@pytest.mark.parametrize("change", ["shorter", "longer", "odd", "empty"])
def test_lengths_of_columns_must_fit(field: str, places: Sequence[int], change: str) -> None:
    """A column with an item too few or too many, or with part of one, is refused."""
    changes: dict[str, Callable[[bytes], bytes]] = {
        "shorter": lambda raw: raw[8:],
        "longer": lambda raw: raw + bytes(8),
        "odd": lambda raw: raw[:-1],
        "empty": lambda raw: b"",
    }
    for place in places:
        payload = column(field, place, changes[change])
        if (field, place) in FRACTIONS and not getattr(decode(FrameWire, payload), field)[place]:
            continue  # no fractions is what whole numbers look like
        log, aggregator, published = honest()
        run(aggregator, [log.raw(payload)], published)
        assert aggregator.ledger.rejected == {"length": 1}, (place, change)
        goes_on(log, aggregator, published)


@pytest.mark.parametrize(("field", "n"), [("counters", 3), ("gauges", 3), ("sketches", 9)])
def test_number_of_columns_must_fit(field: str, n: int) -> None:
    """A column too few or too many is refused."""
    columns = list(getattr(decode(FrameWire, good()), field))
    refuse(good(**{field: columns[:-1]}), "length")
    refuse(good(**{field: [*columns, b""]}), "length")
    assert len(columns) == n


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("field", "place", "change", "reason"),
    [
        ("counters", 1, numbers("q", -1), "negative_counter"),
        ("counters", 1, numbers("q", -(1 << 63)), "negative_counter"),
        ("counters", 1, numbers("q", (1 << 53) + 1), "range"),
        ("counters", 1, numbers("q", (1 << 63) - 1), "range"),
        ("gauges", 1, numbers("d", NAN), "not_finite"),
        ("gauges", 1, numbers("d", INF), "not_finite"),
        ("gauges", 1, numbers("d", -INF), "not_finite"),
        ("gauges", 1, numbers("d", 1e19), "range"),
        ("gauges", 1, numbers("d", -1e308), "range"),
        ("gauges", 2, numbers("q", -1), "range"),
        ("gauges", 2, numbers("q", 1 << 50), "range"),
        ("sketches", 1, numbers("q", -1), "sketch"),
        ("sketches", 1, numbers("q", 1 << 32), "sketch"),
        ("sketches", 2, numbers("q", -1), "sketch"),
        ("sketches", 2, numbers("q", 1 << 60), "range"),
        ("sketches", 4, numbers("d", NAN), "not_finite"),
        ("sketches", 4, numbers("d", -1.0), "sketch"),
        ("sketches", 4, numbers("d", -0.0), "sketch"),
        ("sketches", 4, numbers("d", 8.0), "sketch"),  # above the maximum
        ("sketches", 4, numbers("d", 0.1), "sketch"),  # a zero count needs a minimum of 0
        ("sketches", 5, numbers("d", INF), "not_finite"),
        ("sketches", 5, numbers("d", 9.0), "sketch"),  # not in the outermost bucket
        ("sketches", 5, numbers("d", 1.0), "sketch"),
        ("sketches", 6, numbers("I", 3), "length"),
        ("sketches", 6, numbers("I", (1 << 32) - 1), "length"),
        ("sketches", 7, numbers("h", 300), "sketch"),  # not ascending
        ("sketches", 7, numbers("h", 89, 89), "sketch"),  # one twice
        ("sketches", 8, numbers("I", 0), "sketch"),
    ],
)
def test_numbers_are_checked(field: str, place: int, change: Callable[[bytes], bytes], reason: str) -> None:
    """Numbers out of range, not finite or that contradict each other are refused."""
    refuse(column(field, place, change), reason)


def sketch_columns(**changes: Any) -> list[bytes]:
    """One sketch of 1.0, three times, with some columns otherwise."""
    columns: dict[str, Any] = {
        "keys": WAIT,
        "zero": np.array([0], "<i8"),
        "whole": np.array([3], "<i8"),
        "fraction": b"",
        "minimum": np.array([1.0]),
        "maximum": np.array([1.0]),
        "lengths": np.array([1], "<u4"),
        "indices": np.array([-1], "<i2"),
        "counts": np.array([3], "<u4"),
        **changes,
    }
    return [raw if isinstance(raw, bytes) else raw.tobytes() for raw in columns.values()]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lengths": np.array([0], "<u4"), "indices": b"", "counts": b""}, "sketch"),
        ({"zero": np.array([3], "<i8"), "lengths": np.array([0], "<u4"), "indices": b"", "counts": b""}, "sketch"),
        (
            {"indices": np.array([-32768], "<i2"), "minimum": np.array([5e-324]), "maximum": np.array([5e-324])},
            "sketch",
        ),
        ({"maximum": np.array([1e300])}, "sketch"),
    ],
    ids=["empty", "maximum without bucket", "below the smallest normal", "maximum out of range"],
)
def test_sketches_that_contradict_themselves(changes: dict[str, object], reason: str) -> None:
    """A sketch without values, or with a minimum or maximum that its buckets do not hold, is refused."""
    refuse(good(counters=[], gauges=[], sketches=sketch_columns(**changes)), reason)


def test_maximum_of_a_bucketless_sketch_is_checked_beside_others() -> None:
    """A lying maximum is found too when another sketch of the frame has buckets."""
    two = sketch_columns(
        keys=join_keys([WAIT, key("other_seconds")]),
        zero=np.array([0, 1], "<i8"),
        whole=np.array([3, 0], "<i8"),
        minimum=np.array([1.0, 0.0]),
        maximum=np.array([1.0, 1e9]),
        lengths=np.array([1, 0], "<u4"),
    )
    refuse(good(counters=[], gauges=[], sketches=two), "sketch")


def test_largest_and_smallest_doubles_have_buckets() -> None:
    """The whole range of a sketch's buckets is taken, up to the limit of values."""
    span = sketch_columns(
        minimum=np.array([2.0**-1022]),
        maximum=np.array([2.0**62]),
        lengths=np.array([2], "<u4"),
        indices=np.array([-1022 * 32 - 1, 62 * 32 - 1], "<i2"),
        counts=np.array([1, 1], "<u4"),
    )
    sketch = accept(good(counters=[], gauges=[], sketches=span)).sketches["wait_seconds", T0 + STEP][WAIT]
    assert (sketch.minimum, sketch.maximum) == (2.0**-1022, 2.0**62)
