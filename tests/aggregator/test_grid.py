"""The grid of windows, while their length may change."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetmeter.aggregator.grid import Grid, Span

few = settings(max_examples=200, deadline=None, derandomize=True)


def test_windows_are_aligned() -> None:
    """A time lies in the window that begins at the multiple of the interval before it."""
    grid = Grid.of(5000)
    assert grid.span(12_345) == Span(10_000, 15_000, 5000)
    assert grid.span(10_000) == Span(10_000, 15_000, 5000)
    assert grid.span(9_999).end_ms == 10_000


@pytest.mark.parametrize(
    ("start", "end", "window"), [(5, 10, 5), (5, 15, 10), (5, 11, 10), (5, 5, 5), (0, 0, 0), (7, 7, 5), (7, 10, 5)]
)
def test_frame_lies_in_the_last_window_that_it_touches(start: int, end: int, window: int) -> None:
    """The end of a span is exclusive, and an empty span lies in the window of its start."""
    assert Grid.of(5).of_frame(start, end).start_ms == window


def test_change_begins_at_the_first_new_edge() -> None:
    """Windows that have begun keep their length, and the last one ends where the new ones begin."""
    grid = Grid.of(5)
    grid.change(7, 12)
    assert [grid.span(at) for at in (9, 12, 14, 20, 21)] == [
        Span(5, 10, 5), Span(10, 14, 5), Span(14, 21, 7), Span(14, 21, 7), Span(21, 28, 7),
    ]  # fmt: skip
    assert grid.longest_ms == 7


def test_later_change_replaces_one_that_has_not_begun() -> None:
    """Of two changes at the same time the later holds."""
    grid = Grid.of(5)
    grid.change(60, 12)
    grid.change(10, 12)
    assert [grid.span(at) for at in (15, 20, 65)] == [Span(15, 20, 5), Span(20, 30, 10), Span(60, 70, 10)]


def test_lengths_that_nothing_has_any_more_are_forgotten() -> None:
    """Only lengths of windows before the given time go, and the last one stays."""
    grid = Grid.of(5)
    grid.change(10, 20)
    grid.forget(19)
    assert len(grid.epochs) == 2
    grid.forget(20)
    assert [epoch.interval_ms for epoch in grid.epochs] == [10]
    grid.forget(1 << 60)
    assert grid.span(25) == Span(20, 30, 10)


@few
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 300)), max_size=5), st.integers(0, 400))
def test_windows_have_no_hole_and_no_overlap(changes: list[tuple[int, int]], at: int) -> None:
    """After any changes each time lies in one window, the next of which begins at its end."""
    grid = Grid.of(10)
    for interval, after in changes:
        grid.change(interval, after)
    end = 0
    while end <= at:
        span = grid.span(end)
        assert span.start_ms == end < span.end_ms <= end + span.resolution_ms
        assert grid.span(span.end_ms - 1) == span
        end = span.end_ms
    assert grid.span(at).start_ms <= at < grid.span(at).end_ms


@few
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 300))
def test_what_has_begun_keeps_its_span(before: int, after: int, at: int) -> None:
    """A change after a window's end does not move that window."""
    grid = Grid.of(before)
    span = grid.span(at)
    grid.change(after, span.end_ms)
    assert grid.span(at) == span
