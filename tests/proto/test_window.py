"""Parts as readers see them: columns to bytes and back, and rows with names."""

from __future__ import annotations

import numpy as np
import pytest
from support.frames import STEP, T0, Log, fold, key, run

from fleetmeter.proto.errors import FrameError
from fleetmeter.proto.sketch import RELATIVE_ERROR
from fleetmeter.proto.window import (
    WindowCounters,
    WindowGauges,
    WindowSketches,
    rows,
    window_counters,
    window_gauges,
    window_sketches,
)
from fleetmeter.proto.wire import LogPosition, Part, decode, encode

KEYS = [key("m"), key("m", x='"\n')]
COUNTERS = WindowCounters(
    KEYS, np.array([1, 2]), np.array([0, 1 << 63], np.uint64), np.array([10, 20]), np.array([1 << 62, 0], np.uint64)
)
GAUGES = WindowGauges(
    KEYS, np.array([3, -1]), np.array([0, 1 << 63], np.uint64), np.array([1.0, -1.0]), np.array([2.0, 0.5]),
    np.array([2.0, 0.5]), np.array([T0, T0 + 1]), np.array([2, 4], np.uint32),
)  # fmt: skip
SKETCHES = WindowSketches(
    KEYS, np.array([1, 0]), np.array([5, 8]), np.array([0, 0], np.uint64), np.array([0.0, 2.0]), np.array([4.0, 2.0]),
    np.array([2, 1], np.uint32), np.array([-1, 63, 31], np.int16), np.array([1, 1, 1 << 40]),
)  # fmt: skip


def part(**columns: list[bytes]) -> Part:
    return Part(
        metric="m", partition=0, resolution_ms=STEP, start_ms=T0, end_ms=T0 + STEP, revision=0,
        position=LogPosition(1, 2), **columns,  # type: ignore[arg-type]
    )  # fmt: skip


def test_columns_and_back() -> None:
    """Each kind of columns survives the way through a part's bytes."""
    made = part(counters=COUNTERS.pack())
    assert window_counters(decode(Part, encode(made))).pack() == COUNTERS.pack()
    assert window_gauges(part(gauges=GAUGES.pack())).pack() == GAUGES.pack()
    assert window_sketches(part(sketches=SKETCHES.pack())).pack() == SKETCHES.pack()


def test_counter_rows_have_increment_rate_and_total() -> None:
    """A counter's row gives the window's increment, it per second, and all increments ever."""
    first, second = rows(part(counters=COUNTERS.pack()))
    assert first == {"labels": {}, "increment": 1.0, "rate": 0.2, "total": 10.25}
    assert second == {"labels": {"x": '"\n'}, "increment": 2.5, "rate": 0.5, "total": 20.0}


def test_gauge_rows_have_every_aggregate() -> None:
    """A gauge's row gives average, sum, extremes, the value set last, and how many nodes reported."""
    first, second = rows(part(gauges=GAUGES.pack()))
    assert first == {"labels": {}, "average": 1.5, "sum": 3.0, "min": 1.0, "max": 2.0, "last": 2.0, "nodes": 2}
    assert (second["sum"], second["average"]) == (-0.5, -0.125)


def test_sketch_rows_have_quantiles_and_their_bound() -> None:
    """A histogram's row gives exact count, sum and extremes, and quantiles with their error."""
    first, second = rows(part(sketches=SKETCHES.pack()), quantiles=(0.5, 0.999))
    assert first == {
        "labels": {}, "count": 3, "sum": 5.0, "average": 5 / 3, "min": 0.0, "max": 4.0,
        "p50": pytest.approx(1.0, rel=RELATIVE_ERROR), "p99.9": 4.0, "relative_error": RELATIVE_ERROR,
    }  # fmt: skip
    assert second["count"] == 1 << 40


def test_part_without_the_kind_is_refused() -> None:
    """Asking a counter's part for gauges is an error that names the metric."""
    with pytest.raises(FrameError, match="part of m has 0 columns of gauges, expected 8"):
        window_gauges(part(counters=COUNTERS.pack()))


@pytest.mark.parametrize("kind", ["counters", "gauges", "sketches"])
def test_columns_that_do_not_fit_are_refused(kind: str) -> None:
    """A column cut short anywhere is an error, never a wrong number."""
    read = {"counters": window_counters, "gauges": window_gauges, "sketches": window_sketches}[kind]
    columns: dict[str, WindowCounters | WindowGauges | WindowSketches] = {
        "counters": COUNTERS, "gauges": GAUGES, "sketches": SKETCHES,
    }  # fmt: skip
    whole = columns[kind].pack()
    for i, column in enumerate(whole[1:], 1):
        if column:
            with pytest.raises(FrameError):
                read(part(**{kind: [*whole[:i], column[:-1], *whole[i + 1 :]]}))


def test_windows_of_an_aggregator_read_as_rows() -> None:
    """What an aggregator publishes is what `rows` reads."""
    log = Log()
    a = log.node("a")
    a.hello(T0)
    a.data(T0, {key("hits_total", x="1"): 10}, {key("depth", node="a"): (4.0, T0)}, {key("wait_seconds"): [1.0, 3.0]})
    found = {p.metric: list(rows(p)) for p in run(fold(), log.messages).parts}
    assert found["hits_total"] == [{"labels": {"x": "1"}, "increment": 10.0, "rate": 2.0, "total": 10.0}]
    assert found["depth"][0]["average"] == 4.0
    assert (found["wait_seconds"][0]["count"], found["wait_seconds"][0]["average"]) == (2, 2.0)
