"""The aggregator's fold over logs written by hand: when windows seal, what they say, and what a late frame changes."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from support.frames import STEP, T0, Log, Published, check_ledger, fold, fractions, key, run

from fleetmeter.aggregator.fold import AggregatorFold
from fleetmeter.proto.errors import SnapshotError
from fleetmeter.proto.exact import ONE
from fleetmeter.proto.keys import encode_key
from fleetmeter.proto.window import window_counters
from fleetmeter.proto.wire import FrameKind, LogPosition, Settings

HITS = key("hits_total")
LATENCY = key("latency_seconds")
DEPTH = key("depth", node="a")


def two_nodes() -> tuple[Log, Published, AggregatorFold]:
    """Nodes a and b, and everything of their first window but b's frame."""
    log = Log()
    for name in ("a", "b"):
        log.node(name).hello(T0)
    log.node("a", 1).sequence = 1
    return log, Published(), fold()


# Sealing


def test_window_seals_with_the_frame_of_the_last_node() -> None:
    """The watermark passes a window's end with the last node's frame, not before, and without any delay."""
    log = Log()
    a, b = log.node("a"), log.node("b")
    a.hello(T0), b.hello(T0)
    a.data(T0, {HITS: 1}, at_ms=T0 + STEP + 3)
    aggregator = fold()
    before = run(aggregator, log.messages)
    assert before.markers == []
    after = run(aggregator, [b.data(T0, {HITS: 2}, at_ms=T0 + STEP + 40)])
    marker = after.markers[0]
    assert (marker.start_ms, marker.end_ms, marker.cause, marker.sealed_ms) == (
        T0,
        T0 + STEP,
        "watermark",
        T0 + STEP + 40,
    )
    assert (marker.nodes_expected, marker.nodes_heard, marker.missing) == (2, 2, [])
    assert after.counters["hits_total", T0] == {HITS: 3}
    assert after.totals[HITS] == 3


def test_markers_come_after_their_parts_and_name_them() -> None:
    """A marker's metrics are those of the parts before it, pipeline metrics included."""
    log = Log()
    a = log.node("a")
    a.hello(T0), a.data(T0, {HITS: 1}, values={LATENCY: [0.5]})
    published = run(fold(), log.messages)
    (output,) = published.outputs
    *parts, markers = output.stages
    assert len(markers) == 1
    assert published.markers[0].metrics == [part.metric for part in published.parts]
    assert sum(map(len, parts)) == len(published.parts)
    assert {"hits_total", "latency_seconds", "frames_total", "cluster_nodes", "window_seal_delay_seconds"} <= {
        *published.markers[0].metrics
    }


def test_silent_node_delays_a_window_by_the_deadline_and_is_named() -> None:
    """A node that says nothing holds its window for `seal_deadline`, and the marker names it."""
    log = Log()
    a, b = log.node("a"), log.node("b")
    a.hello(T0), b.hello(T0)
    a.data(T0, {HITS: 1})
    log.tick(T0 + STEP + 1999)
    aggregator = fold()
    assert run(aggregator, log.messages).markers == []
    published = run(aggregator, [log.tick(T0 + STEP + 2000)])
    marker = published.markers[0]
    assert (marker.cause, marker.missing, marker.nodes_expected, marker.nodes_heard) == ("deadline", ["b"], 2, 1)
    assert published.gauges["window_completeness_ratio", T0][key("window_completeness_ratio")].last == 0.5


def test_silent_node_is_not_waited_for_after_its_timeout() -> None:
    """`node_timeout` after its last frame a node delays nothing, and counts as stale."""
    log = Log()
    a, b = log.node("a"), log.node("b")
    a.hello(T0), b.hello(T0)
    for i in range(5):
        a.data(T0 + i * STEP, {HITS: 1})
    published = run(fold(), log.messages)
    causes = {marker.start_ms - T0: (marker.cause, marker.missing) for marker in published.markers}
    # b was heard at T0, and its time-out is 15 s: the window that ends at 20 s is the first that does not wait.
    assert causes == {
        0: ("deadline", ["b"]),
        STEP: ("deadline", ["b"]),
        2 * STEP: ("watermark", []),
        3 * STEP: ("watermark", []),
        4 * STEP: ("watermark", []),
    }
    nodes = published.gauges["cluster_nodes", T0 + 4 * STEP]
    assert {series: row.last for series, row in nodes.items()} == {
        key("cluster_nodes", state="live"): 1,
        key("cluster_nodes", state="stale"): 1,
    }


def test_node_that_said_goodbye_is_not_waited_for() -> None:
    """After a BYE the other nodes' windows seal without the node."""
    log = Log()
    a, b = log.node("a"), log.node("b")
    a.hello(T0), b.hello(T0)
    b.bye(T0, at_ms=T0 + 1000)
    a.data(T0, {HITS: 1})
    a.data(T0 + STEP, {HITS: 1})
    markers = run(fold(), log.messages).markers
    assert [(m.start_ms - T0, m.cause, m.nodes_expected) for m in markers] == [
        (0, "watermark", 1),
        (STEP, "watermark", 1),
    ]


def test_restarted_node_is_waited_for_under_its_new_incarnation_only() -> None:
    """A process that was killed and started again under its name holds no window that only the old one could fill."""
    log = Log()
    old = log.node("a", incarnation=1)
    old.hello(T0), old.data(T0, {HITS: 1})
    new = log.node("a", incarnation=2)
    new.hello(T0 + STEP, at_ms=T0 + STEP + 1000)
    new.data(T0 + STEP, {HITS: 5})
    published = run(fold(), log.messages)
    assert [(m.start_ms - T0, m.cause) for m in published.markers] == [(0, "watermark"), (STEP, "watermark")]
    assert published.totals[HITS] == 6


def test_restarted_node_is_waited_for_though_its_clock_went_back() -> None:
    """A new process whose clock is behind the old one's has a smaller number, and still counts as the live one."""
    log = Log()
    old = log.node("a", incarnation=9)
    old.hello(T0), old.data(T0, {HITS: 1})
    new = log.node("a", incarnation=5)
    new.hello(T0 + STEP, at_ms=T0 + STEP + 1000)
    for i in range(1, 6):
        new.data(T0 + i * STEP, {HITS: 1})
    published = run(fold(), log.messages)
    assert [m.cause for m in published.markers] == ["watermark"] * 6
    assert max(m.revision for m in published.markers) == 0


def test_clock_of_the_first_frame_sets_the_first_window() -> None:
    """Nothing is sealed from before the first frame."""
    log = Log()
    a = log.node("a")
    a.hello(T0 + 7 * STEP)
    a.data(T0 + 7 * STEP)
    assert [m.start_ms for m in run(fold(), log.messages).markers] == [T0 + 7 * STEP]


def test_idle_cluster_seals_by_ticks() -> None:
    """With every node gone, ticks seal window after window, `seal_deadline` after their end."""
    log = Log()
    a = log.node("a")
    a.hello(T0), a.data(T0, {HITS: 1}), a.bye(T0 + STEP, at_ms=T0 + STEP + 1)
    for ms in range(0, 4 * STEP, 500):
        log.tick(T0 + STEP + 500 + ms)
    markers = run(fold(), log.messages).markers
    assert [(m.start_ms - T0, m.cause, m.sealed_ms - m.end_ms) for m in markers] == [
        (0, "watermark", 0),
        (STEP, "deadline", 2000),
        (2 * STEP, "deadline", 2000),
        (3 * STEP, "deadline", 2000),
    ]


@pytest.mark.parametrize("first", ["tick", "frame"])
def test_long_idle_time_is_passed_over(first: str) -> None:
    """After a weekend with nobody there, the first message seals at most an hour of empty windows; nothing is lost."""
    log = Log()
    a = log.node("a")
    a.hello(T0), a.data(T0, {HITS: 1})
    later = T0 + 60 * 3600 * 1000
    if first == "tick":
        log.tick(later)
    b = log.node("a", incarnation=2)
    b.hello(later), b.data(later, {HITS: 4})
    published = run(fold(), log.messages)
    assert len(published.markers) < 800
    assert published.counters["hits_total", later] == {HITS: 4}
    assert published.totals[HITS] == 5


def test_event_clock_seals_by_what_frames_say() -> None:
    """With the clock "event", windows seal by the frames' own spans, however long the broker's clock takes."""
    log = Log()
    a, b = log.node("a"), log.node("b")
    a.hello(T0, at_ms=T0 + 10**8), b.hello(T0, at_ms=T0 + 10**8)
    for i in range(3):
        a.data(T0 + i * STEP, {HITS: 1}, at_ms=T0 + 10**8 + i)
    aggregator = fold(Settings(clock="event"))
    assert run(aggregator, log.messages).markers == []
    log.tick(T0 + 10**8 + 9000)
    published = run(aggregator, [log.messages[-1], b.data(T0, {HITS: 1}, at_ms=T0 + 10**8 + 9000)])
    assert [m.start_ms for m in published.markers] == [T0]
    assert published.counters["hits_total", T0] == {HITS: 2}
    assert "window_seal_delay_seconds" not in published.markers[0].metrics  # it would be the replay's


def test_event_clock_seals_what_is_left_when_all_nodes_are_gone() -> None:
    """At the end of a replay, when all have left, the windows that hold something are sealed."""
    log = Log()
    a = log.node("a")
    a.hello(T0), a.data(T0, {HITS: 1})
    a.send(FrameKind.BYE, T0 + STEP, T0 + 2 * STEP, None, T0 + STEP)
    b = log.node("b")
    b.hello(T0 + STEP), b.data(T0 + 2 * STEP, {HITS: 3})
    b.bye(T0 + 3 * STEP, at_ms=T0)
    published = run(fold(Settings(clock="event")), log.messages)
    assert published.counters["hits_total", T0 + 2 * STEP] == {HITS: 3}


def test_event_clock_is_not_stopped_by_a_gap() -> None:
    """With the clock "event", a frame that never comes holds windows for some seconds of broker time, not for ever."""
    log = Log()
    a = log.node("a")
    a.hello(T0), a.data(T0, {HITS: 1}), a.skip()
    for i in range(2, 8):
        a.data(T0 + i * STEP, {HITS: 1})
    published = run(fold(Settings(clock="event", node_timeout_ms=60_000)), log.messages)
    assert published.markers[-1].start_ms == T0 + 7 * STEP


def test_event_clock_passes_over_long_idle_time() -> None:
    """A replay with a week between two frames does not publish every empty window of that week."""
    log = Log()
    a = log.node("a")
    a.hello(T0), a.data(T0, {HITS: 1})
    week = T0 + 7 * 24 * 3600 * 1000
    a.data(week, {HITS: 2}, at_ms=T0 + STEP), a.data(week + STEP, {HITS: 3}, at_ms=T0 + STEP)
    published = run(fold(Settings(clock="event")), log.messages)
    assert len(published.markers) < 800
    assert published.counters["hits_total", week] == {HITS: 2}
    assert published.totals[HITS] == 6


# Late frames


def late_log(settings: Settings | None = None) -> tuple[Log, AggregatorFold, Published]:
    """Node b's frame of the first window is missing when that is sealed by its deadline."""
    log = Log()
    a, b = log.node("a"), log.node("b")
    a.hello(T0), b.hello(T0)
    a.data(T0, {HITS: 1}, values={LATENCY: [1.0]})
    log.tick(T0 + STEP + 2000)
    aggregator = fold(settings)
    return log, aggregator, run(aggregator, log.messages)


def test_late_frame_publishes_its_window_again() -> None:
    """A frame that comes after its window sealed makes revision 1, with the sums of both and the node heard."""
    log, aggregator, published = late_log()
    b = log.node("b")
    b.skip()
    late = b.data(T0, {HITS: 2}, values={LATENCY: [4.0]}, at_ms=T0 + STEP + 2500)
    run(aggregator, [late, log.tick(T0 + STEP + 3500)], published)
    marker = published.marker(T0, revision=1)
    assert (marker.cause, marker.nodes_expected, marker.nodes_heard, marker.missing) == ("late", 2, 2, [])
    assert marker.ledger.late == 1
    assert published.counters["hits_total", T0] == {HITS: 3}
    assert published.totals[HITS] == 3
    sketch = published.sketches["latency_seconds", T0][LATENCY]
    assert (sketch.count, sketch.sum, sketch.minimum, sketch.maximum) == (2, 5.0, 1.0, 4.0)


def test_late_frames_are_published_together() -> None:
    """Corrections of a window wait up to a second for others, and make one revision."""
    log, aggregator, published = late_log()
    c = log.node("c")
    messages = [c.hello(T0, at_ms=T0 + STEP + 2100)]
    messages += [c.data(T0, {HITS: 1}, at_ms=T0 + STEP + 2200 + i * 100) for i in range(5)]
    messages += [log.tick(T0 + STEP + 3100), log.tick(T0 + STEP + 3300)]
    run(aggregator, messages, published)
    assert [(m.start_ms, m.revision) for m in published.markers] == [(T0, 0), (T0, 1)]
    assert published.counters["hits_total", T0] == {HITS: 6}


def test_late_frame_of_a_window_nobody_reported_in() -> None:
    """A frame for a window from before the first makes one, as revision 1."""
    log = Log()
    a = log.node("a")
    a.hello(T0), a.data(T0, {HITS: 1})
    b = log.node("b")
    b.data(T0 - STEP, {HITS: 7}, at_ms=T0 + STEP + 10)
    log.tick(T0 + STEP + 1100)
    published = run(fold(), log.messages)
    assert published.marker(T0 - STEP, revision=1).nodes_expected == 0
    assert published.counters["hits_total", T0 - STEP] == {HITS: 7}
    assert published.totals[HITS] == 8


def test_frame_past_lateness_counts_in_totals_only() -> None:
    """A frame for a window that is closed for good changes totals and the ledger, and no window."""
    log, aggregator, published = late_log(Settings(lateness_ms=2 * STEP))
    a, b = log.node("a"), log.node("b")
    a.skip(2), b.skip(1)
    messages = [a.data(T0 + i * STEP, {HITS: 1}) for i in range(1, 8)]
    messages.append(b.data(T0, {HITS: 100}, values={LATENCY: [9.0]}, at_ms=T0 + 8 * STEP + 1))
    messages += [a.data(T0 + 8 * STEP, {HITS: 1}), log.tick(T0 + 9 * STEP + 2000)]
    run(aggregator, messages, published)
    late = [part for part in published.parts if part.resolution_ms == 0]
    assert {part.metric for part in late} == {"hits_total", "latency_seconds"}
    assert {(part.start_ms, part.end_ms) for part in late} == {(T0, T0 + STEP)}
    assert published.counters["hits_total", T0] == {HITS: 1}
    assert published.totals[HITS] == 109
    assert not any(marker.revision for marker in published.markers)
    assert published.markers[-1].ledger.late == 1


def test_gauges_of_a_closed_window_are_left_out() -> None:
    """What a gauge was long ago changes nothing."""
    log, aggregator, published = late_log(Settings(lateness_ms=0))
    b = log.node("b")
    b.skip(1)
    gauge = key("depth", node="b")
    late = b.data(T0 - 10 * STEP, gauges={gauge: (3.0, T0)}, at_ms=T0 + STEP + 2500)
    run(aggregator, [late], published)
    assert not [part for part in published.parts if part.metric == "depth"]
    assert aggregator.ledger.applied == 4


# Gaps


def gap_log() -> tuple[Log, AggregatorFold, Published]:
    """Node a has lost frame 3, that of the second window."""
    log = Log()
    a, b = log.node("a"), log.node("b")
    a.hello(T0), b.hello(T0)
    a.data(T0, {HITS: 1}), b.data(T0)
    b.data(T0 + STEP)
    a.skip()
    a.data(T0 + 2 * STEP, {HITS: 1})
    aggregator = fold()
    return log, aggregator, run(aggregator, log.messages)


def test_gap_holds_the_watermark_until_it_heals() -> None:
    """A missing sequence keeps windows from sealing by the watermark; when it comes, they seal at once."""
    log = Log()
    a = log.node("a")
    a.hello(T0), a.data(T0, {HITS: 1}), a.skip()
    a.data(T0 + 2 * STEP, {HITS: 1}, at_ms=T0 + STEP + 100)  # far faster than the deadline
    aggregator = fold()
    published = run(aggregator, log.messages)
    assert [m.start_ms for m in published.markers] == [T0]
    assert published.markers[0].ledger.gap == 0
    missing = log.node("a")
    missing.skip(2)
    run(aggregator, [missing.data(T0 + STEP, {HITS: 10}, at_ms=T0 + STEP + 200)], published)
    assert [m.start_ms for m in published.markers] == [T0, T0 + STEP, T0 + 2 * STEP]
    ledger = published.markers[-1].ledger
    assert (ledger.gap, ledger.healed, ledger.late) == (1, 1, 0)
    assert published.markers[-1].gaps == 0
    assert published.totals[HITS] == 12


def test_gap_is_reported_while_it_is_open() -> None:
    """A window that seals by its deadline says how many frames are missing, and by whom."""
    log, aggregator, published = gap_log()
    run(aggregator, [log.tick(T0 + 2 * STEP + 2000)], published)
    marker = published.marker(T0 + STEP)
    assert (marker.cause, marker.missing, marker.gaps, marker.ledger.gap) == ("deadline", ["a"], 1, 1)


def test_gap_is_given_up() -> None:
    """Ten seconds after a gap showed, its node's progress counts without it; what heals it later counts as late."""
    log, aggregator, published = gap_log()
    a, b = log.node("a"), log.node("b")
    a.skip(4), b.skip(3)
    messages = [b.data(T0 + 2 * STEP)]
    for i in range(3, 7):
        messages += [a.data(T0 + i * STEP, {HITS: 1}), b.data(T0 + i * STEP)]
    run(aggregator, messages, published)
    assert published.markers[-1].cause == "watermark"
    assert published.markers[-1].missing == []
    assert published.markers[-1].gaps == 1
    missing = log.node("a")
    missing.skip(2)
    run(
        aggregator,
        [missing.data(T0 + STEP, {HITS: 10}, at_ms=log.now_ms + 1), log.tick(log.now_ms + 1001)],
        published,
    )
    assert (aggregator.ledger.healed, aggregator.ledger.late) == (1, 1)
    assert published.counters["hits_total", T0 + STEP] == {HITS: 10}


def test_repeated_frames_count_once() -> None:
    """Each repetition of a frame, before or after its window sealed, is a duplicate and changes nothing else."""
    log = Log()
    a = log.node("a")
    a.hello(T0)
    one = a.data(T0, {HITS: 1})
    two = a.data(T0 + STEP, {HITS: 1})
    copies = [log.again(message) for message in (one, one, two, one)]
    aggregator = fold()
    published = run(aggregator, [*log.messages, log.tick(T0 + 4 * STEP)])
    assert aggregator.ledger.duplicate == len(copies)
    assert published.totals[HITS] == 2
    assert not any(marker.revision for marker in published.markers)


def test_more_frame_promises_nothing() -> None:
    """Of a span that comes as several frames only the last lets its window seal."""
    log = Log()
    a = log.node("a")
    a.hello(T0)
    a.data(T0, {HITS: 1}, kind=FrameKind.MORE)
    a.data(T0, {HITS: 1}, kind=FrameKind.MORE)
    aggregator = fold()
    assert run(aggregator, log.messages).markers == []
    assert run(aggregator, [a.data(T0, {HITS: 1})]).counters["hits_total", T0] == {HITS: 3}


def test_merged_frame_counts_in_its_last_window() -> None:
    """A frame over several windows promises all of them, and its sums lie in the last."""
    log = Log()
    a = log.node("a")
    a.hello(T0)
    a.data(T0, {HITS: 30}, end_ms=T0 + 3 * STEP)
    published = run(fold(), log.messages)
    assert [m.cause for m in published.markers] == ["watermark"] * 3
    assert [published.counters.get(("hits_total", T0 + i * STEP)) for i in range(3)] == [None, None, {HITS: 30}]


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
        Settings(clock="moon"),
        Settings(node_timeout_ms=-1),
    ):
        log.settings(wrong)
    log.put("fm.test.settings", b"FM\x01\x00\x81")
    a.data(T0, {HITS: 1})
    aggregator = fold()
    assert run(aggregator, log.messages).totals[HITS] == 1
    assert aggregator.settings == Settings()


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
