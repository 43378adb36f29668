"""Prometheus text: its meaning by prometheus_client's parser, its form by promtool."""

from __future__ import annotations

import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.frames import T0, Log, key
from support.gateway import fed, windows_of
from support.peers import require

from fleetmeter.aggregator.series import RESERVED
from fleetmeter.gateway.exposition import TextExposition, own_metrics
from fleetmeter.gateway.state import GatewayFold
from fleetmeter.proto.catalogue import CATALOGUE, Kind
from fleetmeter.proto.keys import encode_key

LATENCY = key("request_duration_seconds", provider="openai", model="gpt-4o", operation="chat")
HOSTILE = ['say "hi"', "two\nlines", "back\\slash", "naïve 名前 🚀", "a{b}=c,d", "\ttab", " "]


def samples(body: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by name and labels, as prometheus_client reads it."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def body_of(log: Log) -> bytes:
    return TextExposition(own_metrics("1.2.3")).render(fed(windows_of(log)))


def everything() -> Log:
    """A log with a series of every metric that nodes may report, and with values of every sort."""
    log = Log()
    a = log.node("a")
    a.hello(T0)
    counters, gauges, values = {}, {}, {}
    for metric in (m for m in CATALOGUE.values() if m.name not in RESERVED):
        labels = {name: metric.values.get(name, ("x",))[0] for name in metric.labels}
        if "node" in labels:
            labels["node"] = "a"
        series = encode_key(metric.name, labels)
        match metric.kind:
            case Kind.COUNTER:
                counters[series] = 1.5 if metric.unit == "usd" else 3
            case Kind.GAUGE:
                gauges[series] = (0.25, T0)
            case Kind.HISTOGRAM:
                values[series] = [0.0, 0.001, 0.25, 700.0]
    a.data(T0, counters, gauges, values)
    return log


def test_promtool_finds_nothing_wrong_with_every_metric_of_the_catalogue() -> None:
    """`promtool check metrics` passes the whole body, lint included."""
    promtool = require("promtool", "prometheus")
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=body_of(everything()), capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stderr.decode() + checked.stdout.decode()


def test_an_empty_gateway_serves_a_valid_body() -> None:
    """Before the first window there is just what the gateway says of itself."""
    promtool = require("promtool", "prometheus")
    body = TextExposition(own_metrics("1.2.3")).render(GatewayFold())
    checked = subprocess.run([promtool, "check", "metrics"], input=body, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr.decode()
    assert samples(body) == {("llmproxy_build_info", frozenset({("part", "gateway"), ("version", "1.2.3")})): 1.0}


@pytest.mark.parametrize("value", HOSTILE)
def test_any_label_value_survives(value: str) -> None:
    """What a proxy gave as a label is what a scraper reads, whatever is in it."""
    log = Log()
    a = log.node("a")
    a.hello(T0)
    a.data(T0, {key("tokens_total", provider=value, model="m", type="input"): 7})
    found = samples(body_of(log))
    assert found["llmproxy_tokens_total", frozenset({("provider", value), ("model", "m"), ("type", "input")})] == 7


def test_bucket_counts_are_exact_at_every_bound() -> None:
    """The classic buckets count precisely the values at or below each bound, bounds themselves included."""
    bounds = CATALOGUE["request_duration_seconds"].bounds
    values = sorted([0.0, 1e-6, *bounds, *(b * 1.0001 for b in bounds), *(b * 0.9999 for b in bounds), 5000.0])
    log = Log()
    a = log.node("a")
    a.hello(T0)
    a.data(T0, values={LATENCY: values})
    found = samples(body_of(log))
    labels = {("provider", "openai"), ("model", "gpt-4o"), ("operation", "chat")}
    for bound in bounds:
        edge = str(int(bound)) if bound >= 1 else repr(bound)
        got = found["llmproxy_request_duration_seconds_bucket", frozenset({*labels, ("le", edge)})]
        assert got == sum(value <= bound for value in values), bound
    assert found["llmproxy_request_duration_seconds_bucket", frozenset({*labels, ("le", "+Inf")})] == len(values)
    assert found["llmproxy_request_duration_seconds_count", frozenset(labels)] == len(values)
    assert found["llmproxy_request_duration_seconds_sum", frozenset(labels)] == pytest.approx(sum(values), rel=1e-12)


def test_counters_are_written_without_loss() -> None:
    """Large whole numbers have all their digits, fractions the shortest that give them back; an empty label is left
    out.
    """
    log = Log()
    a = log.node("a")
    a.hello(T0)
    big = (1 << 53) - 1
    a.data(T0, {key("tokens_total", provider="", model="m", type="input"): big, key("cost_usd_total", model="m"): 0.1})
    text = body_of(log).decode()
    assert f'llmproxy_tokens_total{{model="m",type="input"}} {big}\n' in text
    assert 'llmproxy_cost_usd_total{model="m"} 0.1\n' in text


def test_equal_folds_give_equal_bytes_in_whatever_order_series_came() -> None:
    """Two gateways behind a balancer answer with the same bytes."""
    bodies = []
    for order in (("x", "y"), ("y", "x")):
        log = Log()
        a = log.node("a")
        a.hello(T0)
        a.data(T0, {key("tokens_total", provider=p, model="m", type="input"): 1 for p in order})
        bodies.append(body_of(log))
    assert bodies[0] == bodies[1]
