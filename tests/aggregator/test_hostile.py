"""Frames that are broken or lie: each ends in the ledger with its reason, changes no total, and the fold goes on."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import pytest
from support.frames import STEP, SUBJECTS, T0, Log, Published, fold, frame, key, run, tally

from fleetmeter.aggregator import kernel, nodes, series
from fleetmeter.aggregator.fold import AggregatorFold
from fleetmeter.proto.columns import join_keys
from fleetmeter.proto.wire import MAX_PAYLOAD, SENT_HEADER, FrameWire, Settings, decode, encode

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


def numbers(kind: str, *values: float) -> Callable[[bytes], bytes]:
    """Puts other numbers at the beginning of a column."""

    def change(raw: bytes) -> bytes:
        new = struct.pack(f"<{len(values)}{kind}", *values)
        return new + raw[len(new) :]

    return change


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


# Keys


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ([b"hits_total\xfeuser\xff\xc3", HITS], "key"),  # cut UTF-8
        ([b"hits_total\xfeuser\xff\xed\xa0\x80", HITS], "key"),  # a surrogate
        ([b"Hits", HITS], "key"),
        ([b"\x00", HITS], "key"),
        ([b"hits_total\xfe", HITS], "key"),
        ([b"hits_total\xfeuser", HITS], "key"),
        ([b"hits_total\xfeuser\xffa\xffb", HITS], "key"),
        ([b"hits_total\xfeb\xff1\xfea\xff1", HITS], "key"),  # out of order
        ([b"hits_total\xfea\xff1\xfea\xff2", HITS], "key"),
        ([b"hits_total\xfe_user\xff", HITS], "key"),
        ([b"hits_total\xfeuser\xff" + b"x" * 257, HITS], "key"),
        ([b"h" * 129, HITS], "key"),
        ([b"hits_total" + b"".join(b"\xfel%02d\xff" % i for i in range(17)), HITS], "key"),
        ([b"", HITS], "key"),
        ([HITS, HITS], "duplicate_key"),
        ([HITS], "length"),
        ([HITS, b"a", b"b"], "length"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_keys_are_checked(keys: list[bytes], reason: str) -> None:
    """Keys that are none, not canonical, too long or repeated are refused."""
    refuse(column("counters", 0, lambda _: join_keys(keys)), reason)


def test_known_keys_with_another_number_of_values_are_refused() -> None:
    """The key column of the frame before, with values too few, is refused as well."""
    log, aggregator, published = honest()
    run(aggregator, [log.raw(good())], published)
    two_keys_one_value = good(sequence=4, counters=[decode(FrameWire, good()).counters[0], bytes(8), b""])
    run(aggregator, [log.raw(two_keys_one_value)], published)
    assert aggregator.ledger.rejected == {"length": 1}
    goes_on(log, aggregator, published)


def test_any_text_may_be_a_label_value() -> None:
    """Newlines, quotes, NUL and emoji are legal in a label's value, and in a node's name."""
    odd = key("hits_total", user='new\nline "quoted" \\ \x00 😀')
    name = 'n\n"😀.*>'
    content = tally({odd: 1}, {key("depth", node=name): (1.0, T0)})
    published = accept(frame(name, 1, T0 + STEP, T0 + 2 * STEP, content), node=name)
    assert published.totals[odd] == 1


# Times and sequences


def test_windows_far_ahead_are_refused() -> None:
    """A frame more than some windows ahead of the broker's clock is refused, and its node's other frames are not."""
    far = T0 + 1000 * STEP
    refuse(good(start_ms=far, end_ms=far + STEP), "future_window")
    refuse(good(start_ms=0, end_ms=(1 << 48) - 1), "future_window")


def test_window_of_the_distant_past_counts_in_totals_only() -> None:
    """A frame from 1970 changes totals and no window."""
    published = accept(good(start_ms=0, end_ms=STEP))
    assert {part.start_ms for part in published.parts if part.resolution_ms == 0} == {0}
    assert published.totals[HITS] == 3


@pytest.mark.parametrize("text", ["", "x", "-5", "1e9", "９", "9" * 400, "9" * 15, "1 2", "\x00", "٣"])
def test_garbage_in_the_sent_header_harms_nobody_else(text: str) -> None:
    """A header that is no time is ignored; a wrong one moves its own node's frame, whose sums still count."""
    published = accept(good(), headers={SENT_HEADER: text, "Other": text})
    assert published.totals[HITS] == 3


def test_sequences_at_the_limit_keep_every_count_within_64_bits() -> None:
    """Thousands of processes that begin at the largest sequence do not overflow the count of missing frames."""
    log, aggregator, published = honest()
    for i in range(2100):
        log.raw(frame("b", (1 << 53) - 1, T0 + STEP, T0 + 2 * STEP, incarnation=i + 1), "b")
    run(aggregator, log.messages[2:], published)
    assert aggregator.ledger.gap == 1 << 62
    goes_on(log, aggregator, published)
    assert published.markers[-1].gaps == 1 << 62


def test_gaps_of_one_process_are_bounded() -> None:
    """A sender that leaves out every other sequence makes no list without end, and its frames count."""
    log, aggregator, published = honest()
    n = 3 * nodes.MAX_GAPS
    for i in range(n):
        log.raw(frame("b", 2 * i + 2, T0 + STEP, T0 + 2 * STEP, tally({HITS: 1})), "b")
    run(aggregator, log.messages[2:], published)
    assert len(aggregator.nodes.nodes["b"].newest.gaps) == nodes.MAX_GAPS
    goes_on(log, aggregator, published)
    assert published.totals[HITS] == 1 + n


def test_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit of names a new one is refused, and those that are known go on."""
    monkeypatch.setattr(nodes, "MAX_NODES", 20)
    log, aggregator, published = honest()
    for i in range(100):
        log.raw(frame(f"n{i}", 1, T0 + STEP, T0 + STEP, kind=1), f"n{i}")  # type: ignore[arg-type]
    run(aggregator, log.messages[2:], published)
    assert aggregator.ledger.rejected == {"nodes": 81}
    run(aggregator, [log.raw(good(), at_ms=T0 + 2 * STEP)], published)
    assert aggregator.ledger.applied == 22


def test_older_incarnation_counts_and_changes_nothing_else() -> None:
    """A frame of an incarnation from before the present one is applied once; its repetition is a duplicate."""
    log, aggregator, published = honest()
    old = frame("a", 1, T0 + STEP, T0 + 2 * STEP, tally({HITS: 5}), incarnation=7)
    older = frame("a", 1, T0 + STEP, T0 + 2 * STEP, tally({HITS: 5}), incarnation=3)
    run(aggregator, [log.raw(old), log.raw(older), log.raw(older), log.raw(old)], published)
    assert (aggregator.ledger.applied, aggregator.ledger.duplicate) == (4, 2)
    goes_on(log, aggregator, published)
    assert published.totals[HITS] == 11


# Amounts


def test_sums_that_would_wrap_are_refused() -> None:
    """However large increments are, a total stops below 2^62 and is never negative."""
    log, aggregator, published = honest()
    huge = tally({HITS: 1 << 53})
    for i in range(700):
        log.raw(frame("b", i + 1, T0 + (i % 3) * STEP, T0 + (i % 3 + 1) * STEP, huge), "b")
    run(aggregator, log.messages[2:], published)
    assert set(aggregator.ledger.rejected) == {"overflow"}
    run(aggregator, [log.tick(T0 + 10 * STEP)], published)
    assert 1 << 61 < published.totals[HITS] <= (1 << 62) + 1024


def test_sums_of_folded_series_that_would_wrap_are_refused() -> None:
    """Increments that fold into one series within a frame are checked together."""
    log = Log()
    a = log.node("a")
    a.hello(T0)
    keys = [key("hits_total", user=str(i)) for i in range(3000)]
    a.data(T0, dict.fromkeys(keys, 1 << 53))
    a.data(T0 + STEP, values={key("size_bytes", user=str(i)): [2.0**40] for i in range(3000)})
    aggregator = fold(Settings(max_series_per_metric=10))
    published = run(aggregator, log.messages)
    assert aggregator.ledger.rejected == {"overflow": 1}
    assert all(total >= 0 for total in published.totals.values())


def test_overflow_check_gives_way_again() -> None:
    """After one series came near its limit, others still count."""
    log, aggregator, published = honest()
    for i in range(600):
        log.raw(frame("b", i + 1, T0 + STEP, T0 + 2 * STEP, tally({key("bytes_total"): 1 << 53})), "b")
    for i in range(5):
        log.raw(frame("c", i + 1, T0 + STEP, T0 + 2 * STEP, tally({HITS: 1})), "c")
    run(aggregator, log.messages[2:], published)
    assert aggregator.ledger.rejected == {"overflow": 600 - 512}
    goes_on(log, aggregator, published)
    assert published.totals[HITS] == 6


def test_endless_series_fold_with_exact_sums() -> None:
    """A flood of ever new series, metrics and label names keeps tables and messages small; every increment counts."""
    log = Log()
    settings = Settings(max_series_per_metric=100, max_series=1000)
    aggregator = fold(settings)
    a = log.node("a")
    messages = [a.hello(T0)]
    total = 0
    for i in range(60):
        names = [key("hits_total", user=f"{i}-{j}") for j in range(100)]
        names += [key("label_total", **{f"l{i}x{j}": "v"}) for j in range(100)]
        names += [key(f"m{i}x{j}_total") for j in range(100)]
        messages.append(a.data(T0 + i * STEP, dict.fromkeys(names, 1)))
        total += len(names)
    published = run(aggregator, messages)
    assert aggregator.ledger.rejected == {}
    assert sum(counted(published).values()) == total
    assert len(aggregator.series) <= settings.max_series + 1100
    assert all(len(payload) < MAX_PAYLOAD for _, payload, _ in published.stored)
    assert published.totals[b"other_total"] > 0


def test_endless_metrics_fit_into_a_marker() -> None:
    """Metrics with names as long as they may be, without end, still leave the marker within one message."""
    log = Log()
    a = log.node("a")
    messages = [a.hello(T0)]
    for i in range(12):
        names = [key(f"m{i:02}x{j:03}".ljust(128, "z")) for j in range(500)]
        messages.append(
            a.data(T0 + i * STEP, dict.fromkeys(names[:300], 1), values={name: [1.0] for name in names[300:]})
        )
    published = run(fold(), messages)
    assert max(len(payload) for _, payload, _ in published.stored) < MAX_PAYLOAD
    assert sum(counted(published).values()) == 12 * 300


def test_frame_of_as_many_keys_as_fit_stays_within_memory() -> None:
    """A frame of 1 MB of keys is merged within a few times its size."""
    names = sorted(f"u{i:x}" for i in range(30_000))
    content = tally({key("hits_total", u=name): 1 for name in names})
    payload = frame("b", 1, T0 + STEP, T0 + 2 * STEP, content)
    assert 0.8e6 < len(payload) < MAX_PAYLOAD
    log, aggregator, published = honest()
    message = log.raw(payload, "b")
    tracemalloc.start()
    run(aggregator, [message], published)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6
    assert aggregator.ledger.applied == 3
    goes_on(log, aggregator, published)
    # The cap is 10,000 series: those, and one for the rest.
    assert sum(v for k, v in published.totals.items() if k.startswith(b"hits_total\xfe")) == 30_000


def test_sketches_of_extreme_range_are_refused_at_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sketches that would need more buckets than there may be are refused, and ordinary ones still count."""
    monkeypatch.setattr(kernel, "MAX_SLOTS", 1 << 21)
    log, aggregator, published = honest()
    n = 10
    wide = [
        join_keys([key("wide_seconds", u=str(i)) for i in range(n)]),
        np.zeros(n, "<i8").tobytes(),
        np.zeros(n, "<i8").tobytes(),
        b"",
        np.full(n, 2.0**-1022).tobytes(),
        np.full(n, 2.0**62).tobytes(),
        np.full(n, 2, "<u4").tobytes(),
        np.tile(np.array([-1022 * 32 - 1, 62 * 32 - 1], "<i2"), n).tobytes(),
        np.ones(2 * n, "<u4").tobytes(),
    ]
    for i in range(12):
        names = join_keys([key("wide_seconds", u=str(i * n + j)) for j in range(n)])
        log.raw(good(sequence=3 + i, counters=[], gauges=[], sketches=[names, *wide[1:]]))
    run(aggregator, log.messages[2:], published)
    assert set(aggregator.ledger.rejected) == {"sketch_capacity"}
    assert aggregator.ledger.applied > 5
    goes_on(log, aggregator, published)
    assert published.sketches["wait_seconds", T0 + STEP][WAIT].count == 1


def test_refused_frame_still_keeps_its_place() -> None:
    """The sequence of a frame whose columns are refused is no gap: its repetition is a duplicate, the next one new."""
    log, aggregator, published = honest()
    broken = column("counters", 1, numbers("q", -1))
    run(aggregator, [log.raw(broken), log.raw(broken)], published)
    run(aggregator, [log.raw(frame("a", 4, T0 + STEP, T0 + 2 * STEP, tally({HITS: 1})))], published)
    ledger = aggregator.ledger
    assert (ledger.applied, ledger.duplicate, ledger.gap, ledger.rejected) == (3, 1, 0, {"negative_counter": 1})
    assert published.marker(T0 + STEP).cause == "watermark"


def test_refused_frame_leaves_no_part_of_itself() -> None:
    """When one column of a frame is refused, none of the others counts."""
    log, aggregator, published = honest()
    run(aggregator, [log.raw(column("sketches", 4, numbers("d", 8.0))), log.tick(T0 + 4 * STEP)], published)
    assert published.totals[HITS] == 1
    assert ("wait_seconds", T0 + STEP) not in published.sketches
    assert ("depth", T0 + STEP) not in published.gauges
