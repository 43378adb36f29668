from __future__ import annotations

import math
import re
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from support.peers import given, require

from fleetmeter.proto import keys
from fleetmeter.proto.catalogue import CATALOGUE, GROUPS, PREFIX, Kind, Metric, define, get, markdown_table
from fleetmeter.proto.errors import CatalogueError

METRICS = list(CATALOGUE.values())
PER_METRIC = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)

# Dashboards, rules and emitters are written with these: a name or label that goes missing breaks somebody's.
CALL, MODEL = ("provider", "model", "operation"), ("provider", "model")
LABELS = {
    "requests_total": (*CALL, "outcome", "stream"),
    "request_errors_total": (*CALL, "error_type"),
    **dict.fromkeys(("request_duration_seconds", "upstream_duration_seconds", "time_to_first_token_seconds"), CALL),
    **dict.fromkeys(("time_per_output_token_seconds", "overhead_duration_seconds", "queue_duration_seconds"), CALL),
    "requests_in_flight": (*CALL, "node"),
    "tokens_total": (*MODEL, "type"),
    "token_details_total": (*MODEL, "type"),
    "cost_usd_total": MODEL,
    "unpriced_requests_total": (*MODEL, "reason"),
    **dict.fromkeys(("budget_limit_usd", "budget_remaining_usd"), ("scope", "name")),
    "budget_reset_timestamp_seconds": ("scope", "name"),
    **dict.fromkeys(("active_users", "satisfaction_ratio"), ()),
    **dict.fromkeys(("ratelimit_limit_requests", "ratelimit_limit_tokens"), MODEL),
    **dict.fromkeys(("ratelimit_remaining_requests", "ratelimit_remaining_tokens"), MODEL),
    "cooldowns_total": (*MODEL, "reason"),
    "cooldown_until_timestamp_seconds": MODEL,
    "fallbacks_total": ("from_model", "to_model", "outcome"),
    "retries_total": MODEL,
    "provider_health": ("provider", "state"),
    "cache_requests_total": ("result",),
    **dict.fromkeys(("cache_evictions_total", "cache_entries", "cache_used_bytes", "cache_limit_bytes"), ()),
    **dict.fromkeys(("cache_item_size_bytes", "cache_oldest_entry_timestamp_seconds"), ()),
    "cache_newest_entry_timestamp_seconds": (),
    "cache_warmings_total": ("outcome",),
    **dict.fromkeys(("cache_warming_duration_seconds", "cache_warmed_items_total", "cache_warming_coverage_ratio"), ()),
    **dict.fromkeys(("cache_warming_last_timestamp_seconds", "cache_warming_next_timestamp_seconds"), ()),
    "pool_connections": ("state", "node"),
    "pool_connections_limit": ("kind", "node"),
    **dict.fromkeys(("pool_pending_requests", "pool_connections_created_total"), ("node",)),
    **dict.fromkeys(("pool_connections_closed_total", "pool_connections_reused_total"), ("node",)),
    "pool_connection_errors_total": ("type", "node"),
    "pool_connect_duration_seconds": ("node",),
    "endpoint_duration_seconds": ("method", "endpoint", "outcome"),
    "database_query_duration_seconds": ("query_type", "outcome"),
    "external_call_duration_seconds": ("provider", "endpoint", "status_code"),
    **dict.fromkeys(("node_cpu_usage_ratio", "node_cpu_cores", "node_cpu_frequency_hertz"), ("node",)),
    "node_load_average": ("span", "node"),
    **dict.fromkeys(("node_memory_used_bytes", "node_memory_total_bytes", "node_memory_available_bytes"), ("node",)),
    **dict.fromkeys(("node_swap_used_bytes", "node_swap_total_bytes"), ("node",)),
    **dict.fromkeys(("node_disk_used_bytes", "node_disk_total_bytes", "node_disk_available_bytes"), ("node",)),
    **dict.fromkeys(("node_disk_io_bytes_total", "node_network_bytes_total"), ("direction", "node")),
    "node_network_packets_total": ("direction", "node"),
    **dict.fromkeys(("node_network_connections", "node_network_errors_total", "event_loop_lag_seconds"), ("node",)),
    "build_info": ("part", "version"),
    "cluster_nodes": ("state",),
    "node_last_seen_timestamp_seconds": ("node",),
    "frames_total": ("result", "reason"),
    **dict.fromkeys(("frame_gaps_total", "window_completeness_ratio", "window_seal_delay_seconds"), ()),
    **dict.fromkeys(("aggregation_lag_seconds", "series", "render_duration_seconds"), ()),
    "series_overflow_total": ("metric",),
    "clock_skew_seconds": ("node",),
    "alerts_firing": ("rule", "severity"),
    "notifications_total": ("channel", "outcome"),
    "forward_samples_total": ("target", "outcome"),
}

# How the reference of names abbreviates, and what it means by it.
ABBREVIATIONS = {
    "ratelimit_limit_requests|_tokens": ("ratelimit_limit_requests", "ratelimit_limit_tokens"),
    "ratelimit_remaining_requests|_tokens": ("ratelimit_remaining_requests", "ratelimit_remaining_tokens"),
    "cache_newest_…": ("cache_newest_entry_timestamp_seconds",),
    "…_next_…": ("cache_warming_next_timestamp_seconds",),
    "…_closed_total": ("pool_connections_closed_total",),
    "…_reused_total": ("pool_connections_reused_total",),
    **{
        f"node_{what}_used_bytes|_total_|_available_": tuple(
            f"node_{what}_{state}_bytes" for state in ("used", "total", "available")
        )
        for what in ("memory", "disk")
    },
    "node_swap_…": ("node_swap_used_bytes", "node_swap_total_bytes"),
}
REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "metrics.md"


def test_catalogue_has_the_documented_names_and_labels() -> None:
    """The catalogue has every documented metric with its documented labels, and no other."""
    assert {m.name: set(m.labels) for m in METRICS} == {name: set(labels) for name, labels in LABELS.items()}


def test_catalogue_has_every_name_of_the_reference() -> None:
    """Each name in backticks in the reference's own section is in the catalogue, abbreviations written out."""
    text = given(REFERENCE).read_text()
    groups = [line for line in text.split("## Ours")[1].split("Buckets of duration")[0].splitlines() if "`" in line]
    written = re.findall(r"`([^`{}]+)`", "\n".join(line for line in groups if not line.startswith("##")))
    names = {name for each in written for name in ABBREVIATIONS.get(each, (each,))} - {"llmproxy_", "_total", "node"}

    missing = names - CATALOGUE.keys()

    assert len(names) > 80
    assert not missing


def test_names_are_unique_over_groups() -> None:
    """No metric stands in two groups, where the later would silently win."""
    assert len(CATALOGUE) == sum(len(group) for group in GROUPS.values())


@PER_METRIC
def test_name_says_kind_and_unit(metric: Metric) -> None:
    """Counters, and only they, end with _total, and a unit is a base unit that ends the name."""
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    if metric.unit:
        assert f"{PREFIX}{metric.name}".removesuffix("_total").endswith(f"_{metric.unit}")
    assert not re.search(r"_(ms|us|milliseconds|minutes|hours|kb|mb|gb|percent|cents)(_|$)", metric.name)


@PER_METRIC
def test_help_is_one_sentence(metric: Metric) -> None:
    """Each help text begins with a capital or a figure, ends with a period and has no other sentence."""
    assert re.fullmatch(r"[A-Z0-9][^.\n|]*\.", metric.help)


@PER_METRIC
def test_only_per_node_metrics_have_the_label_node(metric: Metric) -> None:
    """A cluster metric never holds `node`; a per-node one always does."""
    assert ("node" in metric.labels) == metric.per_node


@PER_METRIC
def test_metric_fits_into_a_series_key(metric: Metric) -> None:
    """A key can carry each metric with all its labels and any of their known values."""
    labels = {label: metric.values.get(label, ("x",))[-1] for label in metric.labels}

    key = keys.encode_key(metric.name, labels)

    assert keys.decode_key(key) == (metric.name, dict(sorted(labels.items())))


@PER_METRIC
def test_known_values_are_of_labels_of_the_metric(metric: Metric) -> None:
    """A closed set of values belongs to a label of the metric, has a choice and no value twice."""
    assert set(metric.values) <= set(metric.labels)
    assert all(len(set(known)) == len(known) > 1 for known in metric.values.values())


@PER_METRIC
def test_histogram_bounds_are_ascending_powers_of_two(metric: Metric) -> None:
    """Histograms, and only they, have bounds, all of them edges of the sketch's buckets."""
    assert bool(metric.bounds) == (metric.kind is Kind.HISTOGRAM)
    assert all(math.frexp(bound)[0] == 0.5 for bound in metric.bounds)
    assert all(low < high for low, high in pairwise(metric.bounds))


def test_closed_value_sets() -> None:
    """The values that the JSON views and alert rules name are the catalogue's."""
    errors = ("connection", "timeout", "rate_limit", "authentication", "server", "client")
    assert CATALOGUE["request_errors_total"].values == {"error_type": errors}
    assert CATALOGUE["requests_total"].values == {"outcome": ("success", "error"), "stream": ("true", "false")}
    assert CATALOGUE["frames_total"].values["result"] == ("applied", "duplicate", "late", "healed", "rejected")


def _exposition(counter_suffix: str, *, units: bool) -> str:
    """One series of each metric in a text format; `counter_suffix` ends a counter's family name."""
    lines = []
    for m in METRICS:
        name = PREFIX + m.name
        family = name.removesuffix("_total") + counter_suffix if m.kind is Kind.COUNTER else name
        lines += [f"# HELP {family} {m.help}", f"# TYPE {family} {m.kind}"]
        lines += [f"# UNIT {family} {m.unit}"] * (units and bool(m.unit))
        labels = [f'{label}="{m.values.get(label, ("x",))[0]}"' for label in m.labels]
        shown = f"{{{','.join(labels)}}}"
        if m.kind is Kind.HISTOGRAM:
            edges = [f'le="{edge}"' for edge in (*m.bounds, "+Inf")]
            lines += [f"{name}_bucket{{{','.join([*labels, edge])}}} 1" for edge in edges]
            lines += [f"{name}_sum{shown} 0.0", f"{name}_count{shown} 1"]
        else:
            lines.append(f"{name}{shown} 1")
    return "\n".join(lines) + "\n"


def test_openmetrics_parser_takes_the_whole_catalogue() -> None:
    """Names, units and series suffixes don't clash by OpenMetrics' rules, as prometheus_client's parser knows them."""
    families = list(text_string_to_metric_families(_exposition("", units=True) + "# EOF\n"))

    assert {family.name: family.unit for family in families} == {
        PREFIX + (m.name.removesuffix("_total") if m.kind is Kind.COUNTER else m.name): m.unit for m in METRICS
    }


def test_promtool_finds_nothing_to_lint() -> None:
    """Prometheus's own linter is content with every name and help text."""
    done = subprocess.run(
        [require("promtool", "prometheus"), "check", "metrics"],
        input=_exposition("_total", units=False),
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_get_knows_names_without_prefix_only() -> None:
    """A name is looked up as it stands in series keys."""
    assert get("tokens_total") is CATALOGUE["tokens_total"]
    assert get("llmproxy_tokens_total") is None


def test_define_makes_a_metric() -> None:
    """A user's metric takes its unit from its name and keeps labels, values and bounds as given."""
    metric = define("guard_seconds", "histogram", ["rule"], " Time. ", bounds=[0.5, 1, 2], values={"rule": ["a", "b"]})

    assert metric == Metric(
        "guard_seconds", Kind.HISTOGRAM, "seconds", ("rule",), "Time.", False, (0.5, 1.0, 2.0), {"rule": ("a", "b")}
    )


@pytest.mark.parametrize("labels", [["pool"], ["pool", "node"]])
def test_define_per_node_adds_the_label_node(labels: list[str]) -> None:
    """A per-node metric has `node` once, whether or not the user lists it."""
    assert define("threads", "gauge", labels, "Threads.", per_node=True).labels == ("pool", "node")


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [("a_seconds", 2**-10, 512), ("a_bytes", 64, 2**30), ("a_ratio", 2**-10, 1), ("batch_size", 1, 2**20)],
)
def test_define_chooses_bounds_by_unit(name: str, first: float, last: float) -> None:
    """A histogram without bounds gets powers of two that suit its unit."""
    bounds = define(name, "histogram", (), "What it is.").bounds

    assert (bounds[0], bounds[-1]) == (first, last)
    assert all(high == 2 * low for low, high in pairwise(bounds))


def test_define_returns_the_catalogues_own() -> None:
    """Who defines a catalogue metric as it is, labels in any order, gets the catalogue's."""
    assert define("tokens_total", "counter", ["type", "model", "provider"], "Mine.") is CATALOGUE["tokens_total"]


REFUSED = {
    "kind": (("a", "summary", (), "H."), {}, ["'summary'", "counter, gauge, histogram"]),
    "name case": (("BadName", "gauge", (), "H."), {}, ["'BadName'", "[a-z][a-z0-9_]*"]),
    "name colon": (("a:b", "gauge", (), "H."), {}, ["'a:b'"]),
    "name newline": (("a\n", "gauge", (), "H."), {}, [r"'a\n'"]),
    "name empty": (("", "gauge", (), "H."), {}, ["''"]),
    "name length": (("a" * 129, "gauge", (), "H."), {}, ["129", "128", "shorten"]),
    "prefix": (("llmproxy_a", "gauge", (), "H."), {}, ["'llmproxy_a'", "write 'a'"]),
    "counter suffix": (("hits", "counter", (), "H."), {}, ["'hits'", "'hits_total'"]),
    "gauge suffix": (("hits_total", "gauge", (), "H."), {}, ["'hits_total'", "gauge", "counter"]),
    "histogram's series": (("queue_count", "gauge", (), "H."), {}, ["'queue_count'", "_count"]),
    "labels as text": (("a", "gauge", "model", "H."), {}, ["'model'", "['model']"]),
    "label le": (("a", "gauge", ["le"], "H."), {}, ["'le'", "another name"]),
    "label quantile": (("a", "gauge", ["quantile"], "H."), {}, ["'quantile'"]),
    "label __": (("a", "gauge", ["__name__"], "H."), {}, ["'__name__'", "a letter first"]),
    "label dash": (("a", "gauge", ["user-id"], "H."), {}, ["'user-id'", "[a-zA-Z]"]),
    "label length": (("a", "gauge", ["l" * 129], "H."), {}, ["129", "128"]),
    "label twice": (("a", "gauge", ["b", "b"], "H."), {}, ["'b'", "2 times"]),
    "labels many": (("a", "gauge", [f"l{i}" for i in range(17)], "H."), {}, ["17", "16"]),
    "labels and node": (("a", "gauge", [f"l{i}" for i in range(16)], "H."), {"per_node": True}, ["17", "16"]),
    "node": (("a", "gauge", ["node"], "H."), {}, ["'node'", "per_node"]),
    "help": (("a", "gauge", (), " "), {}, ["'a'", "help"]),
    "other kind": (("tokens_total", "counter", ["type"], "H."), {}, ["{type}", "{provider, model, type}"]),
    "other labels": (("active_users", "histogram", (), "H."), {}, ["histogram", "gauge"]),
    "other bounds": (("cache_item_size_bytes", "histogram", (), "H."), {"bounds": [1]}, ["64.0", "give none"]),
    "gauge bounds": (("a", "gauge", (), "H."), {"bounds": [1]}, ["gauge", "1 bounds"]),
    "no bounds": (("a", "histogram", (), "H."), {"bounds": []}, ["0 bounds", "1 to 64"]),
    "odd bound": (("a", "histogram", (), "H."), {"bounds": [0.1]}, ["0.1", "power of two"]),
    "negative bound": (("a", "histogram", (), "H."), {"bounds": [-1]}, ["-1", "power of two"]),
    "infinite bound": (("a", "histogram", (), "H."), {"bounds": [1, math.inf]}, ["inf", "+Inf is added"]),
    "bounds fall": (("a", "histogram", (), "H."), {"bounds": [2, 1]}, ["1", "2", "ascending"]),
    "values": (("a", "gauge", ["b"], "H."), {"values": {"c": ["d"]}}, ["'c'", "{b}"]),
    "value length": (("a", "gauge", ["b"], "H."), {"values": {"b": ["é" * 129]}}, ["258 bytes", "256"]),
}


@pytest.mark.parametrize(("args", "options", "said"), REFUSED.values(), ids=REFUSED)
def test_define_refuses(args: tuple[str, str, list[str], str], options: dict[str, object], said: list[str]) -> None:
    """What can't be exposed is refused with the value, the limit and the remedy."""
    with pytest.raises(CatalogueError) as caught:
        define(*args, **options)  # type: ignore[arg-type]

    assert all(part in str(caught.value) for part in said), str(caught.value)


def test_markdown_has_a_row_for_each_metric() -> None:
    """The printed reference names every metric as it is exposed, with labels, known values and buckets."""
    text = markdown_table()

    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == len(CATALOGUE)
    assert all(row.count("|") == 5 for row in rows)
    assert "| `llmproxy_cluster_nodes` | gauge | `state` (live, stale) | Nodes of the cluster. |" in rows
    assert "from 2^6 to 2^30 bytes." in text
    assert [line[4:] for line in text.splitlines() if line.startswith("### ")] == list(GROUPS)
