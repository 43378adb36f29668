"""The aggregator's fold: gauges, caps, and that its state is a function of the log."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from support.frames import STEP, T0, Log, Published, check_ledger, fold, fractions, key, run

from fleetmeter.proto.errors import SnapshotError
from fleetmeter.proto.exact import ONE
from fleetmeter.proto.keys import encode_key
from fleetmeter.proto.window import window_counters
from fleetmeter.proto.wire import FrameKind, LogPosition, Settings

HITS = key("hits_total")
LATENCY = key("latency_seconds")
DEPTH = key("depth", node="a")


# Gauges


def test_gauges_merge_over_nodes() -> None:
    """Average, sum, minimum, maximum, value set last and number of nodes, over what each node set last."""
    log = Log()
    jobs = key("jobs")
    a, b, c = (log.node(name) for name in "abc")
    for node in (a, b, c):
        node.hello(T0)
    a.data(T0, gauges={jobs: (4.0, T0 + 100)})
    b.data(T0, gauges={jobs: (-1.5, T0 + 300)})
    c.data(T0, gauges={jobs: (0.25, T0 + 200)})
    row = run(fold(), log.messages).gauges["jobs", T0][jobs]
    assert (row.sum, row.minimum, row.maximum, row.last, row.last_ms, row.nodes) == (
        2.75,
        -1.5,
        4.0,
        -1.5,
        T0 + 300,
        3,
    )
    assert row.average == pytest.approx(2.75 / 3)


def test_newest_report_of_a_node_counts_for_a_gauge() -> None:
    """Of several frames of a node in one window the newest counts for each gauge, and the node once."""
    log = Log()
    jobs, other = key("jobs"), key("other_jobs")
    a = log.node("a")
    a.hello(T0)
    a.data(T0, gauges={jobs: (4.0, T0 + 1), other: (1.0, T0 + 1)}, kind=FrameKind.MORE)
    a.data(T0, gauges={jobs: (7.0, T0 + 2)})
    published = run(fold(), log.messages)
    assert published.gauges["jobs", T0][jobs].sum == 7.0
    assert published.gauges["jobs", T0][jobs].nodes == 1
    assert published.gauges["other_jobs", T0][other].sum == 1.0


# Caps


def test_series_over_the_cap_fold_into_other_with_exact_sums() -> None:
    """Past a metric's cap new series add to the one whose label values are all "other"; nothing is lost."""
    log = Log()
    a = log.node("a")
    a.hello(T0)
    for window in range(2):
        keys = {key("hits_total", user=str(i)): i + 1 for i in range(window * 20, window * 20 + 30)}
        a.data(T0 + window * STEP, keys, values={key("wait_seconds", user=str(i)): [float(i + 1)] for i in range(30)})
    published = run(fold(Settings(max_series_per_metric=10)), log.messages)
    other = key("hits_total", user="other")
    first, second = (published.counters["hits_total", T0 + i * STEP] for i in range(2))
    assert len(first) == 11 and set(second) == {other}
    assert first[other] == sum(range(11, 31)) and second[other] == sum(range(21, 51))
    assert sum(published.totals[k] for k in first) == sum(range(1, 31)) + sum(range(21, 51))
    sketch = published.sketches["wait_seconds", T0][key("wait_seconds", user="other")]
    assert (sketch.count, sketch.sum, sketch.minimum, sketch.maximum) == (20, sum(range(11, 31)), 11, 30)
    assert published.totals[encode_key("series_overflow_total", {"metric": "hits_total"})] == 20 + 30


def test_gauges_over_the_cap_add_up_under_other() -> None:
    """Of two reports of a node the newer counts with all of its series that fold into one."""
    queues = [key("depth", queue=str(i)) for i in range(6)]
    log = Log()
    a = log.node("a")
    a.hello(T0)
    a.data(T0, gauges={queue: (10.0**i, T0) for i, queue in enumerate(queues)}, kind=FrameKind.MORE)
    a.data(T0, gauges={queue: (2 * 10.0**i, T0) for i, queue in enumerate(queues)})
    published = run(fold(Settings(max_series_per_metric=1)), log.messages)
    sums = {series: row.sum for series, row in published.gauges["depth", T0].items()}
    assert sums == {queues[0]: 2.0, key("depth", queue="other"): 222220.0}


# Restarts and replicas


def busy_log() -> Log:
    """Three nodes over ten windows with everything: a restart, a gap that heals, late and too late frames, settings."""
    log = Log()
    a, b, c = (log.node(name) for name in "abc")
    for node in (a, b, c):
        node.hello(T0)
    held = []
    for i in range(10):
        start = T0 + i * STEP
        a.data(start, {HITS: 0.1, key("hits_total", user="x"): 2}, {DEPTH: (i, start)}, {LATENCY: [0.1 * i, 3.0]})
        if i in (2, 3, 7):
            held.append(b.data(start, {HITS: 0.2}, values={LATENCY: [1e-9, 70.0, 0.0]}))
            log.messages.remove(held[-1])
        else:
            b.data(start, {HITS: 0.2}, values={LATENCY: [1e-9, 70.0, 0.0]})
        if i == 5:
            c = log.node("c", incarnation=2)
            c.hello(start)
            log.settings(Settings(lateness_ms=2 * STEP, max_series_per_metric=3), start + 10)
        c.data(start, {key("hits_total", user=str(i)): 1}, values={LATENCY: [float(i)] * 3})
        if i == 4:
            log.again(held[0])
        if i == 8:
            log.again(held[1])
            log.raw(b"FM\x01\x00garbage", "b")
        log.tick(start + STEP + 2100)
    log.again(held[2])
    log.tick(log.now_ms + 20_000)
    return log


def outcome(published: Published) -> list[tuple[str, bytes, str]]:
    return published.stored


def test_two_folds_over_one_log_publish_the_same_bytes() -> None:
    """Subjects, bytes and message ids are a function of the log, and so is the state."""
    log = busy_log()
    one, two = fold(), fold()
    assert outcome(run(one, log.messages)) == outcome(run(two, log.messages))
    assert one.snapshot() == two.snapshot()


def test_restart_from_a_snapshot_at_any_message_changes_no_byte() -> None:
    """Restored from the snapshot after any message, a fold publishes what it would have: no total falls back."""
    log = busy_log()
    whole = run(fold(), log.messages)
    first = fold()
    before = Published()
    for i, message in enumerate(log.messages):
        run(first, [message], before)
        state = first.snapshot()
        restored = fold(Settings(interval_ms=1000))  # the snapshot's settings count, not those it was started with
        restored.restore(state)
        assert restored.snapshot() == state
        after = run(restored, log.messages[i + 1 :])
        assert outcome(before) + outcome(after) == outcome(whole), f"after message {i + 1}"


def test_totals_are_the_sum_of_all_that_was_recorded() -> None:
    """Windows and late parts add up to the totals, and those to what the nodes counted, to the last bit."""
    published = run(fold(), busy_log().messages)
    late = Fraction(0)
    for part in published.parts:
        if part.metric == "hits_total" and not part.resolution_ms:
            columns = window_counters(part)
            late += dict(zip(columns.keys, fractions(columns.whole, columns.fraction), strict=True))[HITS]
    windows = sum(w.get(HITS, 0) for (metric, _), w in published.counters.items() if metric == "hits_total")
    recorded = sum(Fraction(math.floor(Fraction(value) * ONE), ONE) for value in [0.1] * 10 + [0.2] * 10)
    assert late > 0
    assert windows + late == published.totals[HITS] == recorded


@pytest.mark.parametrize("cut", [0, 1, 10, 100])
def test_state_that_cannot_be_read_is_refused_and_leaves_the_fold(cut: int) -> None:
    """A broken state raises SnapshotError, and the fold stays as it was."""
    log = busy_log()
    aggregator = fold()
    run(aggregator, log.messages)
    state = aggregator.snapshot()
    fresh = fold()
    empty = fresh.snapshot()
    for broken in (state[: len(state) * cut // 101], b"\x80", b"\x01", b"\x93\x01\x02\x03", b"\xc0"):
        with pytest.raises(SnapshotError):
            fresh.restore(broken)
    assert fresh.snapshot() == empty


def test_apply_ignores_messages_of_other_subjects() -> None:
    """A message that is neither frame, tick nor settings passes time and changes nothing else."""
    aggregator = fold()
    log = Log()
    aggregator.apply(log.put("fm.test.other", b"x", T0 + 5), LogPosition(1, 1))
    check_ledger(aggregator)
    assert aggregator.now_ms == T0 + 5
    assert aggregator.ledger.received == 0
