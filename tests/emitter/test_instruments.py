"""Counter, gauge and histogram: one call, from any thread, never an exception."""

from __future__ import annotations

import threading
from array import array

import pytest

from fleetmeter.emitter.instruments import Counter, Gauge, Histogram, Invalid, take
from fleetmeter.proto.clock import ManualClock

NOT_NUMBERS = ["1", None, [], object(), 1j]


def test_take_empties_the_column() -> None:
    """What was recorded is taken once, in order."""
    column = array("d", [1.0, 2.0])
    assert take(column).tolist() == [1.0, 2.0]
    column.append(3.0)
    assert take(column).tolist() == [3.0]
    assert take(column).tolist() == []


def test_column_can_be_appended_to_while_what_was_taken_lives() -> None:
    """The values taken are no view that would keep the column from growing."""
    column = array("d", [1.0])
    values = take(column)
    column.append(2.0)
    assert values.tolist() == [1.0]


def test_nothing_is_lost_between_threads() -> None:
    """Threads that record while another takes lose no value and double none."""
    counter = Counter(b"a", Invalid())
    done = threading.Event()

    def record() -> None:
        for _ in range(20_000):
            counter.add()

    threads = [threading.Thread(target=record) for _ in range(4)]
    taken = 0.0
    for thread in threads:
        thread.start()
    while not done.is_set():
        if not any(thread.is_alive() for thread in threads):
            done.set()
        taken += take(counter.column).sum()
    assert taken + take(counter.column).sum() == 80_000


def test_counter_adds_one_by_default() -> None:
    """`add()` is one event."""
    counter = Counter(b"a", Invalid())
    counter.add()
    counter.add(2.5)
    assert take(counter.column).tolist() == [1.0, 2.5]


@pytest.mark.parametrize("value", NOT_NUMBERS)
def test_what_is_no_number_is_counted_as_invalid(value: object) -> None:
    """Wrong types never reach the caller, and are counted by instrument."""
    invalid = Invalid()
    Counter(b"a", invalid).add(value)  # type: ignore[arg-type]
    Histogram(b"a", invalid).record(value)  # type: ignore[arg-type]
    gauge = Gauge(b"a", invalid, lambda: 0)
    gauge.set(value)  # type: ignore[arg-type]
    gauge.add(value)  # type: ignore[arg-type]
    assert invalid.counts == {"counter_type": 1, "histogram_type": 1, "gauge_value": 2}
    assert invalid.total == 4


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_integers_without_a_double_are_counted_as_invalid(value: int) -> None:
    """An int beyond every double raises nothing into the program."""
    invalid = Invalid()
    Counter(b"a", invalid).add(value)
    Histogram(b"a", invalid).record(value)
    gauge = Gauge(b"a", invalid, lambda: 0)
    gauge.set(value)
    gauge.add(value)
    assert invalid.total == 4


def test_gauge_remembers_when_it_was_set() -> None:
    """A value stays until another, with its time."""
    clock = ManualClock(100)
    gauge = Gauge(b"a", Invalid(), clock.now_ms)
    assert gauge.current is None
    gauge.set(5)
    clock.advance(50)
    assert gauge.current == (5.0, 100)
    gauge.add(-2.5)
    assert gauge.current == (2.5, 150)


def test_gauge_adds_from_zero_and_clears() -> None:
    """`add` of a gauge that was never set starts at 0, and `clear` takes its value away."""
    gauge = Gauge(b"a", Invalid(), lambda: 7)
    gauge.add()
    assert gauge.current == (1.0, 7)
    gauge.clear()
    assert gauge.current is None
    gauge.add(2.0)
    assert gauge.current == (2.0, 7)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_gauge_keeps_its_value_over_one_that_cannot_be(value: float) -> None:
    """NaN, infinity and what no frame takes leave the value as it was, also by adding."""
    invalid = Invalid()
    gauge = Gauge(b"a", invalid, lambda: 0)
    gauge.set(3.0)
    gauge.set(value)
    gauge.add(value)
    assert gauge.current == (3.0, 0)
    assert invalid.counts == {"gauge_value": 2}


def test_gauge_adds_of_many_threads_all_count() -> None:
    """Adding reads and writes as one step."""
    gauge = Gauge(b"a", Invalid(), lambda: 0)

    def add() -> None:
        for _ in range(5000):
            gauge.add(1)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gauge.current == (20_000.0, 0)
