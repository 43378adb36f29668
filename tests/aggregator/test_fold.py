"""The aggregator's fold over logs written by hand: when windows seal, and what a late or missing frame changes."""

from __future__ import annotations

import pytest
from support.frames import STEP, T0, Log, Published, fold, key, run

from fleetmeter.aggregator.fold import AggregatorFold
from fleetmeter.proto.wire import FrameKind, Settings

HITS = key("hits_total")
LATENCY = key("latency_seconds")


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
    a.hello(T0), a.data(T0, {HITS: 1})
    a.skip()
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
    a.skip(2)
    b.skip(1)
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
    a.hello(T0), a.data(T0, {HITS: 1})
    a.skip()
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
    a.skip(4)
    b.skip(3)
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
