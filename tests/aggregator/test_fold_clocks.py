"""The aggregator's fold when clocks are wrong, and when settings in the log change."""

from __future__ import annotations

import itertools

import pytest
from support.frames import STEP, T0, Log, fold, key, run, tally

from fleetmeter.proto.wire import FrameKind, Settings

HITS = key("hits_total")


# Clocks


@pytest.mark.parametrize("skew_s", [-3600, -181, -180, -7, -3, 3, 7, 180, 181, 3600])
def test_clock_skew_is_corrected_and_exported(skew_s: int) -> None:
    """A node whose clock is wrong by seconds or an hour has one frame in each window, delays none to its deadline,
    makes no corrections, and the error of its clock is published.
    """
    log = Log()
    right, wrong = log.node("right"), log.node("wrong", skew_ms=skew_s * 1000)
    first = T0 + -skew_s * 1000 % STEP  # its windows begin when its own clock says so
    right.hello(T0), wrong.hello(first, at_ms=first + 1)
    frames = [(T0 + i * STEP, right) for i in range(9)] + [(first + i * STEP, wrong) for i in range(9)]
    for start_ms, node in sorted(frames, key=lambda pair: pair[0]):
        node.data(start_ms, {key(f"{node.name}_total"): 1}, at_ms=start_ms + STEP + 4)
    published = run(fold(), log.messages)
    settled = T0 + 3 * STEP  # a clock that is wrong by less than a window is believed from the third frame on
    markers = [marker for marker in published.markers if marker.start_ms >= settled]
    assert len(markers) >= 4
    assert {(marker.cause, marker.revision) for marker in markers} == {("watermark", 0)}
    assert max(marker.sealed_ms - marker.end_ms for marker in markers) < 2000
    for metric in ("right_total", "wrong_total"):
        windows = {marker.start_ms: published.counters[metric, marker.start_ms] for marker in markers}
        assert list(windows.values()) == [{key(metric): 1}] * len(markers)
    skews = published.gauges["clock_skew_seconds", markers[-1].start_ms]
    assert skews[key("clock_skew_seconds", node="wrong")].last == pytest.approx(skew_s, abs=0.01)
    assert skews[key("clock_skew_seconds", node="right")].last == 0


def test_exact_skew_keeps_frames_in_their_window() -> None:
    """A clock that is wrong by whole intervals moves a frame to the very window it was counted in."""
    log = Log()
    wrong = log.node("wrong", skew_ms=180_000)
    wrong.hello(T0, at_ms=T0 + 4)
    for i, delay_ms in enumerate((4, 30, 1, 250)):
        wrong.data(T0 + i * STEP, {HITS: i + 1}, at_ms=T0 + (i + 1) * STEP + delay_ms)
    published = run(fold(), log.messages)
    assert [published.counters["hits_total", T0 + i * STEP] for i in range(4)] == [{HITS: i + 1} for i in range(4)]


def test_clock_that_is_put_right_is_believed_at_once() -> None:
    """When a clock that was ten minutes ahead is corrected, the node's next frame counts in its own window."""
    log = Log()
    a = log.node("a", skew_ms=600_000)
    a.hello(T0)
    for i in range(4):
        a.data(T0 + i * STEP, {HITS: 1})
    a.skew_ms = 0
    for i in range(4, 8):
        a.data(T0 + i * STEP, {HITS: 1})
    published = run(fold(), log.messages)
    assert [published.counters["hits_total", T0 + i * STEP] for i in range(8)] == [{HITS: 1}] * 8
    assert not any(marker.revision for marker in published.markers)
    skew = published.gauges["clock_skew_seconds", T0 + 7 * STEP][key("clock_skew_seconds", node="a")]
    assert skew.last == 0


def test_slow_delivery_is_not_taken_for_a_wrong_clock() -> None:
    """One frame that took three seconds to be stored does not move the node's windows."""
    log = Log()
    a = log.node("a")
    a.hello(T0), a.data(T0, {HITS: 1})
    slow = a.data(T0 + STEP, {HITS: 1})
    log.messages.pop()
    log.put(slow.subject, slow.data, T0 + 2 * STEP + 3000, slow.headers)
    a.data(T0 + 2 * STEP, {HITS: 1}), log.tick(T0 + 3 * STEP + 1000)
    published = run(fold(), log.messages)
    assert [published.counters["hits_total", T0 + i * STEP] for i in range(3)] == [{HITS: 1}] * 3


# Settings in the log


@pytest.mark.parametrize(
    ("before", "after"), [(5000, 1000), (1000, 5000), (5000, 60_000), (60_000, 5000), (5000, 7000), (3000, 2000)]
)
def test_interval_changes_without_losing_or_doubling_anything(before: int, after: int) -> None:
    """A new window length takes hold at a boundary: windows go on without hole or overlap, and sums stay exact."""
    log = Log()
    a, b = log.node("a"), log.node("b")
    a.step_ms = b.step_ms = before
    a.hello(T0), b.hello(T0)
    expected = 0
    for i in range(5):
        a.data(T0 + i * before, {HITS: 1})
        b.data(T0 + i * before, {HITS: 1})
        expected += 2
    late = b.data(T0 + 5 * before, {HITS: 100}, at_ms=T0 + 6 * before)
    log.messages.remove(late)
    log.settings(Settings(interval_ms=after, node_timeout_ms=120_000), T0 + 5 * before + before // 2)
    log.again(late, T0 + 6 * before)
    a.data(T0 + 5 * before, {HITS: 1}, at_ms=T0 + 6 * before)
    expected += 101
    now = T0 + 6 * before
    for node in (a, b):
        node.step_ms = after
    aligned = -(-now // after) * after
    for node in (a, b):  # as an emitter does: up to the next edge of the new grid, then in new steps
        if aligned > now:
            node.data(now, {HITS: 1}, end_ms=aligned, at_ms=aligned)
            expected += 1
    for i in range(30):
        for node in (a, b):
            node.data(aligned + i * after, {HITS: 1})
            expected += 1
    published = run(fold(Settings(interval_ms=before, node_timeout_ms=120_000)), log.messages)
    sealed = sorted({(m.start_ms, m.end_ms) for m in published.markers})
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(sealed))
    assert published.markers[-1].end_ms - published.markers[-1].start_ms == after
    assert published.totals[HITS] == expected
    assert sum(window[HITS] for (metric, _), window in published.counters.items() if metric == "hits_total") == expected
    assert all(part.resolution_ms in (before, after) for part in published.parts)


def test_second_change_of_the_interval_before_the_first_took_hold() -> None:
    """Two changes in a row: the later one wins, and windows go on without hole or overlap."""
    log = Log()
    a = log.node("a")
    a.hello(T0), a.data(T0, {HITS: 1})
    log.settings(Settings(interval_ms=60_000), T0 + STEP + 100)
    log.settings(Settings(interval_ms=10_000), T0 + STEP + 200)
    a.data(T0 + STEP, {HITS: 1})
    for i in range(2, 10, 2):
        a.data(T0 + i * STEP, {HITS: 1}, end_ms=T0 + (i + 2) * STEP)
    published = run(fold(), log.messages)
    sealed = sorted({(m.start_ms, m.end_ms) for m in published.markers})
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(sealed))
    assert published.markers[-1].end_ms - published.markers[-1].start_ms == 10_000
    assert published.totals[HITS] == 6


def test_settings_in_the_log_take_hold_at_their_message() -> None:
    """A shorter deadline counts from the message on that carries it."""
    log = Log()
    a = log.node("a")
    a.hello(T0)
    log.tick(T0 + STEP + 1000)
    aggregator = fold()
    assert run(aggregator, log.messages).markers == []
    published = run(aggregator, [log.settings(Settings(seal_deadline_ms=500), T0 + STEP + 1000)])
    assert [m.cause for m in published.markers] == ["deadline"]


def test_settings_that_cannot_be_are_ignored() -> None:
    """Settings out of range or not readable leave the old ones."""
    log = Log()
    a = log.node("a")
    a.hello(T0)
    for wrong in (
        Settings(interval_ms=0),
        Settings(interval_ms=-5000),
        Settings(interval_ms=1 << 60),
        Settings(partitions=0),
        Settings(max_series=-1),
        Settings(lateness_ms=-1),
        Settings(clock="moon"),  # type: ignore[arg-type]
        Settings(node_timeout_ms=-1),
    ):
        log.settings(wrong)
    log.put("fm.test.settings", b"FM\x01\x00\x81")
    a.data(T0, {HITS: 1})
    aggregator = fold()
    assert run(aggregator, log.messages).totals[HITS] == 1
    assert aggregator.settings == Settings()


def test_node_that_has_not_heard_of_shorter_windows_is_heard() -> None:
    """A goodbye over the rest of a window that was long until now is not taken for one from the future."""
    log = Log()
    a = log.node("a")
    a.step_ms = 60_000
    a.hello(T0)
    log.settings(Settings(interval_ms=1000), T0 + 500)
    a.send(FrameKind.BYE, T0, T0 + 60_000, tally({HITS: 3}), T0 + 1000)
    for second in range(2, 70):
        log.tick(T0 + second * 1000)
    aggregator = fold(Settings(interval_ms=60_000))
    published = run(aggregator, log.messages)
    assert aggregator.ledger.rejected == {}
    assert published.totals[HITS] == 3


def test_shorter_lateness_keeps_corrections_that_are_due() -> None:
    """Windows that were corrected before lateness shrank are still published, in order of their spans."""
    log = Log()
    a, b = log.node("a"), log.node("b")
    a.hello(T0), b.hello(T0)
    for i in range(8):
        a.data(T0 + i * STEP, {HITS: 1}), b.data(T0 + i * STEP)
    now = log.now_ms
    a.data(T0, {HITS: 10}, at_ms=now + 1)
    log.settings(Settings(lateness_ms=0), now + 2)
    a.data(T0 + STEP, {HITS: 100}, at_ms=now + 3)
    a.data(T0, {HITS: 1000}, at_ms=now + 4)
    log.tick(now + 2000)
    published = run(fold(), log.messages)
    assert published.counters["hits_total", T0] == {HITS: 1011}
    assert published.counters["hits_total", T0 + STEP] == {HITS: 101}
    assert published.totals[HITS] == 8 + 1110
