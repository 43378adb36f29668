"""The gateway's fold over logs that retries, several partitions, rollups and broken writers make."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.windows import STEP, T0, WindowLog, apply, counters, gauges, sketches

from fleetmeter.gateway import state
from fleetmeter.gateway.exposition import TextExposition
from fleetmeter.gateway.metrics_json import document
from fleetmeter.gateway.state import GatewayFold
from fleetmeter.gateway.view import View
from fleetmeter.proto.keys import encode_key

DURATION = "request_duration_seconds"
CALL = {"provider": "p", "model": "m", "operation": "chat"}
LATENCY = encode_key(DURATION, CALL)
LIVE = encode_key("cluster_nodes", {"state": "live"})


def requests(provider: str) -> bytes:
    labels = {**CALL, "provider": provider, "outcome": "success", "stream": "false"}
    return encode_key("requests_total", labels)


def values_in(fold: GatewayFold) -> int:
    """How many values the histogram of durations holds."""
    sums = fold.cumulative[DURATION]
    return int(sums.counts.sum() + sums.zero.sum())


def lines(fold: GatewayFold, name: str) -> list[str]:
    return [line for line in TextExposition().render(fold).decode().split("\n") if line.startswith(f"llmproxy_{name}")]


def test_pieces_count_in_whatever_order_they_were_stored() -> None:
    """A retried publication may come after a later piece of its metric, and counts all the same."""
    log = WindowLog()
    log.part("requests_total", counters({requests("b"): 5}), piece=1, pieces=2)
    log.part("requests_total", counters({requests("a"): 7}), piece=0, pieces=2)
    log.seal()
    assert View(log.fold()).total("requests_total") == 12


def test_a_rollup_adds_nothing_to_what_its_windows_have_added() -> None:
    """A minute made of twelve windows leaves histograms as they were."""
    log = WindowLog()
    for i in range(12):
        log.part(DURATION, sketches({LATENCY: [0.1]}), at=i + 1, start_ms=T0 + i * STEP)
        log.seal(at=i + 1, start_ms=T0 + i * STEP)
    log.part(DURATION, sketches({LATENCY: [0.1] * 12}), at=12, length_ms=60_000)
    log.seal(at=12, length_ms=60_000)
    assert values_in(log.fold()) == 12


def test_a_correction_of_a_window_that_was_dropped_is_counted_not_added_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory did not hold what a window had added, its correction is left out, and a counter says so."""
    monkeypatch.setattr(state, "KEEP_BYTES", 500)
    log = WindowLog()
    for i in range(4):
        log.part(DURATION, sketches({LATENCY: [0.1]}), at=i + 1, start_ms=T0 + i * STEP)
        log.seal(at=i + 1, start_ms=T0 + i * STEP)
    log.part(DURATION, sketches({LATENCY: [0.1, 0.2]}), at=9, revision=1)
    log.seal(at=9, revision=1)
    fold = log.fold()
    assert (values_in(fold), fold.malformed) == (4, {"forgotten_window": 1})


def test_what_every_partition_reports_under_one_name_adds_up() -> None:
    """Frames and series are those of all partitions, whichever was heard last."""
    applied = encode_key("frames_total", {"result": "applied", "reason": ""})
    log = WindowLog()
    for partition, n in ((0, 100), (1, 40)):
        log.part("frames_total", counters({applied: n}), partition=partition)
        log.part("series", gauges({b"series": n}), partition=partition)
        log.seal(partition=partition)
    fold = log.fold()
    assert lines(fold, "frames_total") == ['llmproxy_frames_total{result="applied"} 140']
    assert lines(fold, "series") == ["llmproxy_series 140"]


def test_a_histogram_of_a_user_has_the_bounds_of_its_unit() -> None:
    """Without a definition at hand, the unit in the name decides on the buckets."""
    log = WindowLog()
    log.part("my_step_seconds", sketches({encode_key("my_step_seconds", {"step": "a"}): [0.1]}))
    log.seal()
    buckets = lines(log.fold(), "my_step_seconds_bucket")
    assert 'llmproxy_my_step_seconds_bucket{step="a",le="0.125"} 1' in buckets
    assert 'llmproxy_my_step_seconds_bucket{step="a",le="0.0625"} 0' in buckets


@pytest.mark.parametrize(
    ("metric", "content", "reason"),
    [
        ("tokens_total", counters({b"tokens_total\xfe\xc3\x28": 1}), "key"),
        ("tokens_total", counters({requests("a"): 1}), "key"),
        ("cluster_nodes", gauges({LIVE: math.nan}), "not_finite"),
        ("cluster_nodes", gauges({LIVE: 1.0}, nodes=0), "range"),
        ("cluster_nodes", counters({LIVE: 1}), "kind"),
        ("x_seconds_count", gauges({b"x_seconds_count": 1.0}), "catalogue"),
    ],
)
def test_a_part_that_could_not_be_shown_is_refused_whole(
    metric: str, content: dict[str, list[bytes]], reason: str
) -> None:
    """A broken part ends in a counter with its reason, and every page is what it is without it."""
    good, bad = WindowLog(), WindowLog()
    for log in (good, bad):
        log.part("requests_total", counters({requests("a"): 5}))
        if log is bad:
            log.part(metric, content)
        log.seal()
    fold = bad.fold()
    assert fold.malformed == {reason: 1}
    assert TextExposition().render(fold) == TextExposition().render(good.fold())
    assert document(View(fold), T0) == document(View(good.fold()), T0)


def test_a_gauge_of_one_node_is_shown_as_it_was_set() -> None:
    """Sums are rounded down to 2^-64, which must not show in a small value."""
    log = WindowLog()
    log.part("my_share_ratio", gauges({b"my_share_ratio": 1e-6}))
    log.seal()
    assert lines(log.fold(), "my_share_ratio") == ["llmproxy_my_share_ratio 1e-06"]


@given(st.data())
def test_snapshot_and_repetition_anywhere_change_nothing(data: st.DataObject) -> None:
    """Cut the log anywhere, restore, read some messages again and the rest: the state is that of one plain reading."""
    log = WindowLog()
    for at in range(1, data.draw(st.integers(1, 6)) + 1):
        window, revision = data.draw(st.sampled_from([(at, 0), (max(1, at - 1), at)]))
        for partition in range(data.draw(st.integers(1, 2))):
            place = {"at": at, "start_ms": T0 + window * STEP, "revision": revision, "partition": partition}
            recorded = data.draw(st.lists(st.sampled_from([0.0, 0.1, 3.0]), min_size=1, max_size=4))
            log.part(DURATION, sketches({LATENCY: recorded}), **place)
            for piece in data.draw(st.permutations(range(2))):
                log.part("requests_total", counters({requests(f"{piece}"): at}), **place, piece=piece, pieces=2)
            log.seal(**place)
    cut = data.draw(st.integers(0, len(log.messages)))
    again = data.draw(st.integers(0, cut))
    restored = GatewayFold()
    restored.restore(apply(GatewayFold(), log.messages[:cut]).snapshot())
    apply(restored, log.messages[again:])
    plain = log.fold()
    plain.repetitions = restored.repetitions  # what was read again is counted, and is all that may differ
    assert restored.snapshot() == plain.snapshot()
