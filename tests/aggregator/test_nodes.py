"""Nodes: each sequence once, gaps, who is alive, and whose clock is wrong."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetmeter.aggregator import nodes
from fleetmeter.aggregator.nodes import GAP_PATIENCE_MS, REMEMBER_MS, Incarnation, Node, NodeTable, Verdict
from fleetmeter.proto.errors import FrameError
from fleetmeter.proto.wire import FrameKind, FrameWire

NEW, HEALED, DUPLICATE = Verdict.NEW, Verdict.HEALED, Verdict.DUPLICATE


def wire(node: str = "a", incarnation: int = 1, sequence: int = 1, kind: FrameKind = FrameKind.DATA) -> FrameWire:
    return FrameWire(int(kind), node, incarnation, 0, sequence, 0, 0, 0)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 25), max_size=60))
def test_each_sequence_counts_once(sequences: list[int]) -> None:
    """In any order, with any repetitions, the first of a sequence is new or heals; the gaps are what is missing."""
    one, seen = Incarnation(number=1), set()
    counted = 0
    for sequence in sequences:
        verdict, missing = one.admit(sequence, 0)
        assert (verdict is DUPLICATE) == (sequence in seen)
        if verdict is HEALED:
            assert sequence < one.top
        seen.add(sequence)
        counted += missing - (verdict is HEALED)
        absent = {n for n in range(1, max(seen)) if n not in seen}
        assert {n for gap in one.gaps for n in range(gap.first, gap.last + 1)} == absent
        assert one.missing == counted == len(absent)
        assert one.top == max(seen)


def test_gap_holds_progress_until_it_heals() -> None:
    """What is promised after a gap counts when the gap has closed."""
    one = Incarnation(number=1)
    one.admit(1, 0)
    one.promise(100)
    one.admit(3, 0)
    one.promise(300)
    assert one.progress_ms == 100
    one.admit(2, 0)
    one.promise(200)
    assert one.progress_ms == 300


def test_gap_is_given_up_with_a_later_frame() -> None:
    """A gap that is old enough holds nothing more, once the process sends again."""
    one = Incarnation(number=1)
    one.admit(1, 0)
    one.promise(100)
    one.admit(3, 5)
    one.promise(300)
    one.admit(4, 5 + GAP_PATIENCE_MS)
    one.promise(400)
    assert one.progress_ms == 100
    one.admit(5, 6 + GAP_PATIENCE_MS)
    one.promise(500)
    assert one.progress_ms == 500
    assert one.missing == 1
    assert one.admit(2, 7 + GAP_PATIENCE_MS) == (HEALED, 0)


def test_healing_a_gap_in_its_middle_leaves_two() -> None:
    """Both parts keep the gap's age."""
    one = Incarnation(number=1)
    one.admit(10, 7)
    one.admit(5, 9)
    assert [(gap.first, gap.last, gap.since_ms) for gap in one.gaps] == [(1, 4, 7), (6, 9, 7)]


def test_oldest_gaps_are_forgotten_past_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would have filled a forgotten gap is a duplicate: it can't be told from one any more."""
    monkeypatch.setattr(nodes, "MAX_GAPS", 3)
    one = Incarnation(number=1)
    for sequence in range(2, 12, 2):
        one.admit(sequence, 0)
    assert [gap.first for gap in one.gaps] == [5, 7, 9]
    assert one.admit(1, 0) == (DUPLICATE, 0)
    assert one.admit(5, 0) == (HEALED, 0)


def test_node_lives_until_its_timeout() -> None:
    """A node is live for `timeout` after its last frame, then stale, and forgotten after a day."""
    table = NodeTable()
    table.admit(wire(), 1000, None)
    assert [node.name for node in table.live(6000, 5000)] == ["a"]
    assert table.live(6001, 5000) == []
    assert [node.name for node in table.stale(6001, 5000)] == ["a"]
    table.forget(1000 + REMEMBER_MS)
    assert "a" in table.nodes
    table.forget(1001 + REMEMBER_MS)
    assert table.nodes == {}


def test_node_that_left_is_neither_live_nor_stale() -> None:
    """After a BYE a node is gone until another process of its name comes."""
    table = NodeTable()
    table.admit(wire(), 0, None)
    table.admit(wire(sequence=2, kind=FrameKind.BYE), 0, None)
    assert table.live(0, 5000) == table.stale(9999, 5000) == []
    table.admit(wire(incarnation=2), 0, None)
    assert [node.newest.number for node in table.live(0, 5000)] == [2]


def test_repeated_goodbye_changes_nothing() -> None:
    """A duplicate of any kind does not make a node leave."""
    table = NodeTable()
    table.admit(wire(sequence=1), 0, None)
    assert table.admit(wire(sequence=1, kind=FrameKind.BYE), 0, None)[0] is DUPLICATE
    assert len(table.live(0, 5000)) == 1


def test_newest_process_is_the_one_first_heard_of_last() -> None:
    """Late frames of an old process do not make it the present one, whatever its number."""
    table = NodeTable()
    for incarnation, sequence in ((5, 1), (3, 1), (5, 2)):
        table.admit(wire(incarnation=incarnation, sequence=sequence), 0, None)
    assert table.nodes["a"].newest.number == 3
    assert [one.top for one in table.nodes["a"].incarnations] == [2, 1]


def test_old_incarnations_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a name that is started without end the latest processes are remembered."""
    monkeypatch.setattr(nodes, "MAX_INCARNATIONS", 3)
    table = NodeTable()
    for incarnation in range(1, 10):
        table.admit(wire(incarnation=incarnation), 0, None)
    assert [one.number for one in table.nodes["a"].incarnations] == [7, 8, 9]


def test_names_past_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new name is an error with its reason; known ones go on."""
    monkeypatch.setattr(nodes, "MAX_NODES", 1)
    table = NodeTable()
    table.admit(wire(), 0, None)
    with pytest.raises(FrameError) as caught:
        table.admit(wire("b"), 0, None)
    assert caught.value.reason == "nodes"
    assert table.admit(wire(sequence=2), 0, None)[0] is NEW


def test_skew_is_the_greatest_of_the_newest_samples() -> None:
    """Delay makes samples too small; old ones are dropped."""
    node = Node(name="a")
    for sample in (100, 90, 70, 95, 60, 50, 80, 55):
        node.samples = node.samples_with(sample)
    assert node.skew_ms == 100
    node.samples = node.samples_with(40)
    assert node.skew_ms == 95
    assert node.samples_with(None) == node.samples


def test_clock_that_was_put_back_starts_anew() -> None:
    """A sample far below the others is not delay; those say nothing any more."""
    node = Node(name="a", samples=[600_000, 599_900])
    assert node.samples_with(590_500) == [600_000, 599_900, 590_500]
    assert node.samples_with(-20) == [-20]
    assert Node(name="a", samples=[-50]).samples_with(700_000) == [-50, 700_000]


def test_node_without_samples_has_no_skew() -> None:
    """Senders that do not say their clock are believed."""
    table = NodeTable()
    table.admit(wire(), 0, None)
    assert table.nodes["a"].skew_ms == 0
    assert table.shift_ms("a", None, 5000, 2000) == table.shift_ms("b", None, 5000, 2000) == 0


@pytest.mark.parametrize(
    ("skew", "shift"),
    [(0, 0), (-900, 0), (-1100, -5000), (3900, 0), (4100, 5000), (-6000, -5000), (-6100, -10_000), (180_000, 180_000)],
)
def test_frames_move_by_whole_intervals(skew: int, shift: int) -> None:
    """A frame arrives at most a second after the end of the window that it is moved to, half the deadline."""
    table = NodeTable()
    table.admit(wire(sequence=1), 0, skew)
    table.admit(wire(sequence=2), 0, skew)
    assert table.shift_ms("a", skew, 5000, 2000) == shift


def test_small_skew_is_believed_from_the_third_sample_on() -> None:
    """One slow delivery is no wrong clock; an error of more than an interval is believed at once."""
    table = NodeTable()
    assert table.shift_ms("a", -3000, 5000, 2000) == 0
    assert table.shift_ms("a", -7000, 5000, 2000) == -10_000
    table.admit(wire(sequence=1), 0, -3000)
    assert table.shift_ms("a", -3000, 5000, 2000) == 0
    table.admit(wire(sequence=2), 0, -3000)
    assert table.shift_ms("a", -3000, 5000, 2000) == -5000


def test_missing_is_the_sum_over_all() -> None:
    """Gaps of every incarnation count, also of those that are gone."""
    table = NodeTable()
    table.admit(wire(sequence=3), 0, None)
    table.admit(wire(incarnation=2, sequence=2), 0, None)
    table.admit(wire("b", sequence=4), 0, None)
    assert table.missing == 2 + 1 + 3
