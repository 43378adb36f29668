"""The recording API: what a program says, as the series that an aggregator accepts."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from support.frames import STEP, T0, Log, fold, frame, key, run

from fleetmeter.emitter.recorder import Recorder
from fleetmeter.emitter.tally import Tally
from fleetmeter.proto.catalogue import GROUPS
from fleetmeter.proto.exact import ONE

CALL = {"provider": "openai", "model": "gpt-4o", "operation": "chat"}


def recorder(max_series: int = 1000) -> Recorder:
    return Recorder("a", max_series, lambda: T0)


def accepted(tally: Tally) -> None:
    """An aggregator takes the frame."""
    log = Log()
    log.raw(frame("a", 1, T0, T0 + STEP, tally))
    aggregator = fold()
    run(aggregator, log.messages)
    assert aggregator.ledger.rejected == {}


class Grumpy:
    """An object that has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no")

    def __repr__(self) -> str:  # for the test's name, which has to be the same in every process
        return "Grumpy()"


def test_request_counts_once() -> None:
    """One call adds to count, latency, tokens and cost; the next fold has nothing of it."""
    meter = recorder()
    meter.record_request("openai", "gpt-4o", response_time=0.5, input_tokens=10, output_tokens=5, cost=0.25)
    tally = meter.fold()
    assert meter.recorded == 1
    assert tally.counters[key("requests_total", **CALL, outcome="success", stream="false")] == ONE
    assert tally.sketches[key("request_duration_seconds", **CALL)].units == ONE // 2
    assert meter.fold().series == 0
    accepted(tally)


def test_durations_beside_the_requests_own() -> None:
    """Each further time goes to its own histogram, by provider, model and operation."""
    meter = recorder()
    for _ in range(2):
        meter.record_request(
            "openai", "gpt-4o", time_to_first_token=1.0, time_per_output_token=2.0, upstream_time=3.0,
            overhead_time=4.0, queue_time=5.0,
        )  # fmt: skip
    tally = meter.fold()
    names = ("time_to_first_token", "time_per_output_token", "upstream_duration", "overhead_duration", "queue_duration")
    for i, name in enumerate(names, 1):
        assert tally.sketches[key(f"{name}_seconds", **CALL)].units == 2 * i * ONE
    accepted(tally)


def test_instrument_of_the_same_labels_is_the_same() -> None:
    """A name and labels have one instrument, in whatever order the labels are given."""
    meter = recorder()
    one = meter.counter("fallbacks_total", from_model="a", to_model="b", outcome="success")
    assert meter.counter("fallbacks_total", outcome="success", to_model="b", from_model="a") is one
    one.add(2)
    one.add(0.5)
    assert meter.fold().counters == {
        key("fallbacks_total", from_model="a", outcome="success", to_model="b"): 5 * ONE // 2
    }


def test_new_counter_is_announced_at_zero_once() -> None:
    """A counter that was made but not used is in the first frame, and only there."""
    meter = recorder()
    meter.counter("cache_evictions_total")
    assert meter.fold().counters == {key("cache_evictions_total"): 0}
    assert meter.fold().counters == {}


def test_gauge_is_reported_in_every_window() -> None:
    """A gauge has its value and time in each frame until it is cleared."""
    meter = recorder()
    gauge = meter.gauge("cache_entries")
    assert meter.fold().gauges == {}
    gauge.set(5)
    assert meter.fold().gauges == meter.fold().gauges == {key("cache_entries"): (5.0, T0)}
    gauge.clear()
    assert meter.fold().gauges == {}


def test_per_node_metrics_have_the_nodes_name() -> None:
    """The label `node` is filled in, and the frame is accepted."""
    meter = recorder()
    meter.gauge("node_cpu_cores").set(8)
    tally = meter.fold()
    assert list(tally.gauges) == [key("node_cpu_cores", node="a")]
    accepted(tally)


def test_programs_own_metrics_are_recorded() -> None:
    """Metrics that the catalogue does not have work without being declared."""
    meter = recorder()
    meter.counter("widgets_total", shape="round").add(3)
    meter.gauge("widget_temperature", shape="round").set(-4.5)
    meter.histogram("widget_size_bytes").record(512)
    tally = meter.fold()
    assert tally.counters == {key("widgets_total", shape="round"): 3 * ONE}
    assert tally.gauges == {key("widget_temperature", shape="round"): (-4.5, T0)}
    assert tally.sketches[key("widget_size_bytes")].maximum == 512
    assert meter.invalid.total == 0
    accepted(tally)


@pytest.mark.parametrize(
    ("kind", "name", "labels"),
    [
        ("counter", "Widgets_total", {}),
        ("counter", "widgets", {}),  # a counter's name ends with _total
        ("gauge", "widgets_total", {}),
        ("gauge", "requests_total", {}),  # the catalogue's counter
        ("counter", "widgets_total", {"_x": 1}),
        ("counter", "widgets_total", {"le": 1}),
        ("counter", "widgets_total", {f"l{i}": 1 for i in range(17)}),
        ("counter", "widgets_total", {"x": Grumpy()}),
        ("counter", "widgets_total", {"node": "b"}),
        ("gauge", "node_cpu_cores", {"node": "b"}),
        ("histogram", "latency_bucket", {}),
        ("gauge", 5, {}),
        ("gauge", ["x"], {}),
        *(("gauge", metric.name, {}) for metric in GROUPS["Pipeline"]),
    ],
    ids=str,
)
def test_instrument_that_cannot_be_counts_nowhere(kind: str, name: Any, labels: dict[str, Any]) -> None:
    """A wrong name, kind or label is logged and counted, raises nothing, and spoils no frame."""
    meter = recorder()
    instrument = getattr(meter, kind)(name, **labels)
    getattr(instrument, {"counter": "add", "gauge": "set", "histogram": "record"}[kind])(1.0)
    meter.counter("cache_evictions_total").add()
    tally = meter.fold()
    assert tally.series == 1
    assert meter.invalid.counts == {"instrument": 1}
    accepted(tally)


def test_name_has_one_kind() -> None:
    """A name that is a gauge is refused as a histogram: both in one frame would have the whole frame refused."""
    meter = recorder()
    meter.gauge("widget_ratio").set(0.5)
    meter.histogram("widget_ratio").record(0.5)
    tally = meter.fold()
    assert (len(tally.gauges), tally.sketches) == (1, {})
    assert meter.invalid.counts == {"instrument": 1}


def test_node_label_may_be_given_if_it_is_right() -> None:
    """Giving the node's own name changes nothing."""
    meter = recorder()
    assert meter.gauge("node_cpu_cores", node="a") is meter.gauge("node_cpu_cores")


@pytest.mark.parametrize(
    "arguments",
    [
        {"response_time": "fast"}, {"response_time": None}, {"cost": []}, {"input_tokens": None},
        {"output_tokens": Grumpy()}, {"response_time": 10**400}, {"cost": 1j}, {"error_type": 7, "success": False},
        {"provider": None}, {"provider": ["x"]}, {"model": {"a": 1}}, {"stream": "yes"}, {"success": None},
        {"success": "no"}, {"time_to_first_token": "soon"}, {"time_to_first_token": -1}, {"queue_time": Grumpy()},
        {"operation": b"x"}, {"provider": "\ud800"}, {"model": "m" * 100_000},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_arguments_raise_nothing_and_count_the_request(arguments: dict[str, Any]) -> None:
    """Whatever a program passes, the request counts, and the frame is accepted."""
    meter = recorder()
    for _ in range(2):
        meter.record_request(**{"provider": "openai", "model": "gpt-4o", **arguments})
    tally = meter.fold()
    assert meter.recorded == 2
    assert sum(units for series, units in tally.counters.items() if series.startswith(b"requests_total")) == 2 * ONE
    accepted(tally)


@pytest.mark.parametrize("where", ["provider", "model", "operation", "error_type"])
def test_label_without_text_raises_nothing(where: str) -> None:
    """An object whose text can't be had loses its own request, counted as such, and nothing else."""
    meter = recorder()
    arguments = {"provider": "p", "model": "m", "success": False, "time_to_first_token": 1.0, where: Grumpy()}
    meter.record_request(**arguments)  # type: ignore[arg-type]
    meter.record_request("openai", "gpt-4o")
    assert meter.fold().counters[key("requests_total", **CALL, outcome="success", stream="false")] == ONE
    assert meter.invalid.counts["request"] == 1
    assert meter.recorded == 1


def test_invalid_values_are_counted_by_instrument() -> None:
    """Values out of range are left out when the window is folded."""
    meter = recorder()
    counter, histogram = meter.counter("cache_evictions_total"), meter.histogram("cache_item_size_bytes")
    for value in (1.0, -1.0, float("nan"), float("inf")):
        counter.add(value)
        histogram.record(value)
    tally = meter.fold()
    assert tally.counters[key("cache_evictions_total")] == ONE
    assert int(tally.sketches[key("cache_item_size_bytes")].counts.sum()) == 1
    assert meter.invalid.counts == {"counter_value": 3, "histogram_value": 3}


def test_histogram_of_invalid_values_only_is_left_out() -> None:
    """A window without a valid value has no distribution."""
    meter = recorder()
    meter.histogram("cache_item_size_bytes").record(-1.0)
    assert meter.fold().sketches == {}


def test_sum_over_a_frames_limit_is_left_out() -> None:
    """A series that would have its whole frame refused is dropped and counted, alone."""
    meter = recorder()
    meter.counter("cache_evictions_total").add(1)
    huge = meter.counter("widgets_total")
    for _ in range(1 << 14):
        huge.add(2.0**40)
    tally = meter.fold()
    assert tally.counters == {key("cache_evictions_total"): ONE}
    assert meter.invalid.counts == {"overflow": 1}
    accepted(tally)


def test_series_past_the_cap_add_to_other() -> None:
    """Past the cap of a metric new series are one, of which nothing is lost; known ones and other metrics go on."""
    meter = recorder(max_series=10)
    for i in range(100):
        meter.counter("widgets_total", shape=str(i)).add(1)
    meter.counter("widgets_total", shape="3").add(1)
    meter.counter("gadgets_total", shape="x").add(1)
    counters = meter.fold().counters
    assert counters[key("widgets_total", shape="other")] == 90 * ONE
    assert counters[key("widgets_total", shape="3")] == 2 * ONE
    assert counters[key("gadgets_total", shape="x")] == ONE
    assert len(counters) == 12


def test_other_keeps_the_nodes_name() -> None:
    """Folded series of a per-node metric stay this node's, and the frame is accepted."""
    meter = recorder(max_series=2)
    for i in range(5):
        meter.gauge("node_load_average", span=str(i)).set(i)
    tally = meter.fold()
    assert key("node_load_average", node="a", span="other") in tally.gauges
    assert len(tally.gauges) == 3
    accepted(tally)


def test_requests_past_the_cap_add_to_other() -> None:
    """Requests of ever new models count under "other", all of them."""
    meter = recorder(max_series=5)
    for i in range(50):
        meter.record_request("p", f"m{i}", response_time=1.0)
    counters = meter.fold().counters
    requests = {series: units for series, units in counters.items() if series.startswith(b"requests_total")}
    assert sum(requests.values()) == 50 * ONE
    other = dict.fromkeys(("provider", "model", "operation"), "other")
    assert requests[key("requests_total", **other, outcome="success", stream="false")] == 45 * ONE


def test_threads_lose_nothing_while_windows_are_folded() -> None:
    """Requests of many threads, of old and new models, each count once, in one window or another."""
    meter = recorder()
    start = threading.Barrier(5)

    def work(worker: int) -> None:
        start.wait()
        for i in range(3000):
            meter.record_request("p", f"m{i % 7}", response_time=0.1, input_tokens=1, cost=0.5)
            meter.counter("widgets_total", shape=str((worker, i % 5))).add()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    start.wait()
    total = Tally()
    while any(thread.is_alive() for thread in threads):
        total.merge(meter.fold())
    total.merge(meter.fold())

    def added(metric: bytes) -> int:
        return sum(units for series, units in total.counters.items() if series.startswith(metric))

    assert added(b"requests_total") == added(b"widgets_total") == added(b"tokens_total") == 12_000 * ONE
    assert added(b"cost_usd_total") == 6000 * ONE
    assert sum(int(d.counts.sum()) for d in total.sketches.values()) == meter.recorded == 12_000
