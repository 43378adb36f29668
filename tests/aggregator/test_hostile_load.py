"""Keys, times, sequences and amounts that would harm an aggregator: refused or bounded, and never felt by others."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from support.frames import STEP, T0, Log, fold, frame, key, run, tally
from support.hostile import (
    HITS,
    WAIT,
    accept,
    column,
    counted,
    goes_on,
    good,
    honest,
    numbers,
    refuse,
)

from fleetmeter.aggregator import kernel, nodes
from fleetmeter.proto.columns import join_keys
from fleetmeter.proto.wire import MAX_PAYLOAD, SENT_HEADER, FrameWire, Settings, decode

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


def test_sums_near_the_limit_are_refused_after_a_restart_too() -> None:
    """A fold that was restored refuses what the one that went on refuses."""
    log, aggregator, _ = honest()
    huge = tally({HITS: 1 << 53})
    for i in range(600):
        log.raw(frame("b", i + 1, T0 + STEP, T0 + 2 * STEP, huge), "b")
    run(aggregator, log.messages[2:402])
    restored = fold()
    restored.restore(aggregator.snapshot())
    for one in (aggregator, restored):
        run(one, log.messages[402:])
    assert aggregator.ledger.rejected == restored.ledger.rejected == {"overflow": 600 - 512}
    assert aggregator.snapshot() == restored.snapshot()


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
