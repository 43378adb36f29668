"""Every metric there is: its name, kind, unit, labels, meaning and, for histograms, bucket bounds.

Emitters record by this table, the gateway exposes by it and the documentation is printed from it, so that a name means
one thing everywhere. Names are Prometheus's, without the prefix that exposition puts before them: base units, ratios
from 0 to 1, ``_total`` for counters and for nothing else. A per-node metric has the label `node`, a cluster metric not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from itertools import pairwise
from types import MappingProxyType

from .errors import CatalogueError
from .keys import MAX_LABELS, MAX_NAME, MAX_VALUE

#: Exposition puts this before each name; names in the catalogue and in series keys go without.
PREFIX = "llmproxy_"


class Kind(StrEnum):
    """How a metric's values merge: counters add increments, gauges aggregate over nodes, histograms add buckets."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. Its unit ends its name (before ``_total``), as OpenMetrics demands of a unit, or is empty."""

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]  # in the order in which people read them; a series key sorts them
    help: str  # one sentence
    per_node: bool
    bounds: tuple[float, ...] = ()  # upper bounds of a histogram's classic buckets, ascending, without +Inf
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)  # all of a label's, where known


def _powers(lowest: int, highest: int) -> tuple[float, ...]:
    return tuple(math.ldexp(1.0, exponent) for exponent in range(lowest, highest + 1))


# Powers of two, because they are bucket edges of the sketch: a classic bucket's count is then exact, not estimated.
# The bounds serve classic exposition alone; percentiles come from the sketch, so a bound costs a line and no accuracy.
#: 1 ms to 512 s: from a cache hit to a long answer with reasoning, past the usual client time-out of 300 s.
REQUEST_SECONDS = _powers(-10, 9)
#: 61 µs to 32 s: what the proxy itself, its database and its pool take; good ones are far below a millisecond.
WORK_SECONDS = _powers(-14, 5)
#: 0.24 ms to 16 s a token: 4,000 tokens/s is beyond today's fastest hardware, 16 s is a stalled stream.
TOKEN_SECONDS = _powers(-12, 4)
#: 64 bytes to 1 GiB.
SIZE_BYTES = _powers(6, 30)
# For a user's own histogram: by its unit, where no bounds are given. COUNT serves what has no unit, tokens for one.
_RATIO = _powers(-10, 0)
_COUNT = _powers(0, 20)
_MAX_BOUNDS = 64

# Label sets, as `_metric` reads them.
_CALL = "provider model operation"
_MODEL = "provider model"
_OUTCOME = "outcome=success|error"

# What a name's last word (before ``_total``) must be to be its unit: what is measured in, and what is counted.
_MEASURES = frozenset({"seconds", "bytes", "usd", "ratio", "hertz"})
_THINGS = frozenset({"tokens", "requests", "connections", "packets", "entries", "users", "nodes", "cores", "frames"})


def _unit_of(name: str) -> str:
    last = name.removesuffix("_total").rpartition("_")[2]
    return last if last in _MEASURES | _THINGS else ""


def _metric(kind: Kind, name: str, labels: str, help: str, bounds: tuple[float, ...] = ()) -> Metric:
    """`labels` are separated by spaces; one whose values are all known has them after it: ``type=input|output``."""
    pairs = [label.partition("=") for label in labels.split()]
    values = {label: tuple(known.split("|")) for label, _, known in pairs if known}
    names = tuple(label for label, _, _ in pairs)
    return Metric(name, kind, _unit_of(name), names, help, "node" in names, bounds, MappingProxyType(values))


_counter = partial(_metric, Kind.COUNTER)
_gauge = partial(_metric, Kind.GAUGE)
_histogram = partial(_metric, Kind.HISTOGRAM)

#: The table, by group, in the order in which people read it.
# One metric begins one line, which the formatter would not leave so.
# fmt: off
GROUPS: Mapping[str, tuple[Metric, ...]] = MappingProxyType({
"Requests": (
    _counter("requests_total", f"{_CALL} {_OUTCOME} stream=true|false", "Requests that ended, whatever their outcome."),
    _counter("request_errors_total", f"{_CALL} error_type=connection|timeout|rate_limit|authentication|server|client",
        "Requests that failed, by what went wrong."),
    _histogram("request_duration_seconds", _CALL,
        "Time from a request's arrival to the end of its answer.", REQUEST_SECONDS),
    _histogram("upstream_duration_seconds", _CALL, "Time that the provider took of a request.", REQUEST_SECONDS),
    _histogram("time_to_first_token_seconds", _CALL,
        "Time from a request's arrival to the first token of its answer.", REQUEST_SECONDS),
    _histogram("time_per_output_token_seconds", _CALL,
        "Mean time between the output tokens of an answer, after its first.", TOKEN_SECONDS),
    _histogram("overhead_duration_seconds", _CALL, "Time that the proxy added to a request.", WORK_SECONDS),
    _histogram("queue_duration_seconds", _CALL,
        "Time that a request waited before it was sent to a provider.", REQUEST_SECONDS),
    _gauge("requests_in_flight", f"{_CALL} node", "Requests that a node is answering now."),
),
"Tokens and cost": (
    _counter("tokens_total", f"{_MODEL} type=input|output", "Tokens that went in and came out."),
    _counter("token_details_total", f"{_MODEL} type=cache_read|cache_write|reasoning",
        "Input or output tokens of a special type; the count of all tokens holds them already."),
    _counter("cost_usd_total", _MODEL, "Cost of the requests that a price is known for, in US dollars."),
    _counter("unpriced_requests_total", f"{_MODEL} reason",
        "Requests whose cost is unknown and so missing from the cost."),
    _gauge("budget_limit_usd", "scope name", "What a budget allows in its period, in US dollars."),
    _gauge("budget_remaining_usd", "scope name", "What is left of a budget in its period, in US dollars."),
    _gauge("budget_reset_timestamp_seconds", "scope name", "When a budget's next period starts, as Unix time."),
),
"Users": (
    _gauge("active_users", "", "Distinct users in the window, estimated from hashes."),
    _gauge("satisfaction_ratio", "",
        "Apdex of the window: the satisfied requests and half the tolerated ones, of all."),
),
"Routing": (
    _gauge("ratelimit_limit_requests", _MODEL, "Requests that a provider allows in its period, as it said last."),
    _gauge("ratelimit_limit_tokens", _MODEL, "Tokens that a provider allows in its period, as it said last."),
    _gauge("ratelimit_remaining_requests", _MODEL,
        "Requests that a provider still allows in its period, as it said last."),
    _gauge("ratelimit_remaining_tokens", _MODEL, "Tokens that a provider still allows in its period, as it said last."),
    _counter("cooldowns_total", f"{_MODEL} reason",
        "Times that a provider's model was taken out of routing for a while."),
    _gauge("cooldown_until_timestamp_seconds", _MODEL, "When a model returns to routing, as Unix time."),
    _counter("fallbacks_total", f"from_model to_model {_OUTCOME}", "Requests that were passed on to another model."),
    _counter("retries_total", _MODEL, "Further attempts at a request with the same model."),
    _gauge("provider_health", "provider state=healthy|degraded|unhealthy",
        "1 for the state that a provider is in, 0 for the others."),
),
"Cache": (
    _counter("cache_requests_total", "result=hit|miss", "Look-ups in the cache."),
    _counter("cache_evictions_total", "", "Entries that the cache dropped to make room."),
    _gauge("cache_entries", "", "Entries in the cache."),
    _gauge("cache_used_bytes", "", "Memory that the cache's entries take."),
    _gauge("cache_limit_bytes", "", "Memory that the cache may take."),
    _histogram("cache_item_size_bytes", "", "Size of the entries that were put in the cache.", SIZE_BYTES),
    _gauge("cache_oldest_entry_timestamp_seconds", "", "When the cache's oldest entry was made, as Unix time."),
    _gauge("cache_newest_entry_timestamp_seconds", "", "When the cache's newest entry was made, as Unix time."),
    _counter("cache_warmings_total", _OUTCOME, "Runs that filled the cache ahead of need."),
    _histogram("cache_warming_duration_seconds", "", "Time that a warming took.", REQUEST_SECONDS),
    _counter("cache_warmed_items_total", "", "Entries that warmings put in the cache."),
    _gauge("cache_warming_coverage_ratio", "", "Share of the entries meant to be warm that are in the cache."),
    _gauge("cache_warming_last_timestamp_seconds", "", "When the last warming ended, as Unix time."),
    _gauge("cache_warming_next_timestamp_seconds", "", "When the next warming is due, as Unix time."),
),
"Connection pool": (
    _gauge("pool_connections", "node state=active|idle", "Connections that are open."),
    _gauge("pool_connections_limit", "node kind=total|keepalive",
        "Connections that may be open, in total and kept alive when idle."),
    _gauge("pool_pending_requests", "node", "Requests that wait for a connection."),
    _counter("pool_connections_created_total", "node", "Connections that were opened."),
    _counter("pool_connections_closed_total", "node", "Connections that were closed."),
    _counter("pool_connections_reused_total", "node", "Requests that went over a connection already open."),
    _counter("pool_connection_errors_total", "node type=connection|timeout",
        "Connections that could not be opened or that broke."),
    _histogram("pool_connect_duration_seconds", "node", "Time that opening a connection took.", WORK_SECONDS),
),
"Endpoints, databases, external calls": (
    _histogram("endpoint_duration_seconds", f"method endpoint {_OUTCOME}",
        "Time that an endpoint of the proxy took.", REQUEST_SECONDS),
    _histogram("database_query_duration_seconds", f"query_type {_OUTCOME}",
        "Time that a database query took.", WORK_SECONDS),
    _histogram("external_call_duration_seconds", "provider endpoint status_code",
        "Time that a call of an outside API took.", REQUEST_SECONDS),
),
"Node": (
    _gauge("node_cpu_usage_ratio", "node", "Share of the node's processor time in use."),
    _gauge("node_cpu_cores", "node", "Logical processors of the node."),
    _gauge("node_cpu_frequency_hertz", "node", "Clock rate of the node's processors."),
    _gauge("node_load_average", "node span=1m|5m|15m", "Runnable tasks of the node, averaged over a span."),
    _gauge("node_memory_used_bytes", "node", "Memory of the node in use."),
    _gauge("node_memory_total_bytes", "node", "Memory of the node."),
    _gauge("node_memory_available_bytes", "node", "Memory of the node that programs can have without swapping."),
    _gauge("node_swap_used_bytes", "node", "Swap space of the node in use."),
    _gauge("node_swap_total_bytes", "node", "Swap space of the node."),
    _gauge("node_disk_used_bytes", "node", "Space in use on the disk that the proxy runs from."),
    _gauge("node_disk_total_bytes", "node", "Size of the disk that the proxy runs from."),
    _gauge("node_disk_available_bytes", "node", "Space that programs can have on the disk that the proxy runs from."),
    _counter("node_disk_io_bytes_total", "node direction=read|write", "Bytes that went from and to the node's disks."),
    _counter("node_network_bytes_total", "node direction=sent|received",
        "Bytes that went over the node's network interfaces."),
    _counter("node_network_packets_total", "node direction=sent|received",
        "Packets that went over the node's network interfaces."),
    _gauge("node_network_connections", "node", "Network connections of the node."),
    _counter("node_network_errors_total", "node",
        "Packets that the node's network interfaces could not send or receive."),
    _histogram("event_loop_lag_seconds", "node",
        "Time by which the proxy's event loop ran a due callback late.", WORK_SECONDS),
),
"Pipeline": (
    _gauge("build_info", "part version", "1 for each part and version of Fleetmeter that runs."),
    _gauge("cluster_nodes", "state=live|stale", "Nodes of the cluster."),
    _gauge("node_last_seen_timestamp_seconds", "node",
        "When the node's newest frame reached the broker, as Unix time."),
    _counter("frames_total", "result=applied|duplicate|late|healed|rejected reason",
        "Frames received, by what became of them and, where rejected, why."),
    _counter("frame_gaps_total", "", "Frames that were found missing in a node's sequence."),
    _gauge("window_completeness_ratio", "", "Share of the nodes expected in the newest window that were heard."),
    _histogram("window_seal_delay_seconds", "", "Time from a window's end to its sealing.", WORK_SECONDS),
    _gauge("aggregation_lag_seconds", "", "Age of the newest frame that is in the totals."),
    _gauge("series", "", "Series that the aggregator holds."),
    _counter("series_overflow_total", "metric",
        "Series that were folded into the label value other, past the cap of their metric."),
    _gauge("clock_skew_seconds", "node", "How far the node's clock is ahead of the broker's."),
    _gauge("alerts_firing", "rule severity", "Alerts that fire."),
    _counter("notifications_total", f"channel {_OUTCOME}", "Notifications that were delivered or given up."),
    _histogram("render_duration_seconds", "", "Time that rendering the metrics page of a window took.", WORK_SECONDS),
    _counter("forward_samples_total", f"target {_OUTCOME}", "Samples that were delivered to a target or given up."),
),
})
# fmt: on

CATALOGUE: Mapping[str, Metric] = MappingProxyType(
    {metric.name: metric for group in GROUPS.values() for metric in group}
)


def get(name: str) -> Metric | None:
    """The catalogue's metric of a name without prefix; None when it has none, as for a user's own."""
    return CATALOGUE.get(name)


_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
_LABEL = re.compile(r"[a-zA-Z][a-zA-Z0-9_]*\Z")  # stricter than Prometheus: a series key holds no leading underscore
_RESERVED_SUFFIXES = ("_bucket", "_count", "_sum")
_RESERVED_LABELS = ("le", "quantile")


def define(
    name: str,
    kind: Kind | str,
    labels: Iterable[str] = (),
    help: str = "",
    *,
    per_node: bool = False,
    bounds: Iterable[float] | None = None,
    values: Mapping[str, Iterable[str]] | None = None,
) -> Metric:
    """A user's own metric, or the catalogue's where that is the same.

    `per_node` adds the label `node`. `bounds` are a histogram's, by default what suits the unit in its name. `values`
    are all values of a label, where they are known, so that their series start at 0. Raises CatalogueError for what
    can't be exposed, or would clash with the catalogue.
    """
    if kind not in tuple(Kind):
        raise CatalogueError(f"metric {name!r}: kind {kind!r}, expected one of {', '.join(Kind)}")
    kind = Kind(kind)
    _check_name(name, kind)
    if isinstance(labels, str):
        raise CatalogueError(f"metric {name!r}: labels are the text {labels!r}, expected a list: write [{labels!r}]")
    names = tuple(labels)
    if per_node and "node" not in names:
        names += ("node",)
    _check_labels(name, names, per_node)
    edges = None if bounds is None else _check_bounds(name, kind, tuple(bounds))
    known = CATALOGUE.get(name)
    if known is not None:
        if (known.kind, sorted(known.labels)) != (kind, sorted(names)):
            raise CatalogueError(
                f"{kind} {name!r} with labels {_listed(names)}: the catalogue has it as a {known.kind} with labels "
                f"{_listed(known.labels)}; record it so, or choose another name"
            )
        if edges not in (None, known.bounds):
            raise CatalogueError(f"{kind} {name!r} is the catalogue's and keeps its bounds {known.bounds}: give none")
        return known
    if not help.strip():
        raise CatalogueError(f"metric {name!r} has no help text; say in one sentence what it counts or measures")
    if edges is None:
        edges = _default_bounds(name) if kind is Kind.HISTOGRAM else ()
    closed = _check_values(name, names, values or {})
    return Metric(name, kind, _unit_of(name), names, help.strip(), per_node, edges, closed)


def _check_name(name: str, kind: Kind) -> None:
    says = f"metric name {name[:MAX_NAME]!r}"
    if len(name) > MAX_NAME:
        raise CatalogueError(f"{says}… has {len(name)} characters, the limit is {MAX_NAME}: shorten it")
    if not _NAME.match(name):
        raise CatalogueError(f"{says}: expected lower-case letters, digits and _, a letter first ([a-z][a-z0-9_]*)")
    if name.startswith(PREFIX):
        raise CatalogueError(f"{says}: {PREFIX} is put before every name; write {name.removeprefix(PREFIX)!r}")
    if kind is Kind.COUNTER and not name.endswith("_total"):
        raise CatalogueError(f"{says}: a counter's name ends with _total; call it {name + '_total'!r}")
    if kind is not Kind.COUNTER and name.endswith("_total"):
        raise CatalogueError(f"{says} of a {kind}: only a counter's ends with _total; drop that, or make it a counter")
    if name.endswith(_RESERVED_SUFFIXES):
        raise CatalogueError(
            f"{says}: {', '.join(_RESERVED_SUFFIXES)} end a histogram's series; choose another last word"
        )


def _check_labels(name: str, labels: tuple[str, ...], per_node: bool) -> None:
    if len(labels) > MAX_LABELS:
        raise CatalogueError(f"metric {name!r} has {len(labels)} labels, the limit is {MAX_LABELS}: drop some")
    for label in labels:
        says = f"metric {name!r}: label {label[:MAX_NAME]!r}"
        if len(label) > MAX_NAME:
            raise CatalogueError(f"{says}… has {len(label)} characters, the limit is {MAX_NAME}: shorten it")
        if not _LABEL.match(label):
            raise CatalogueError(f"{says}: expected letters, digits and _, a letter first ([a-zA-Z][a-zA-Z0-9_]*)")
        if label in _RESERVED_LABELS:
            raise CatalogueError(f"{says} is Prometheus's own in a histogram or summary; choose another name")
        if labels.count(label) > 1:
            raise CatalogueError(f"{says} is given {labels.count(label)} times; give it once")
    if "node" in labels and not per_node:
        raise CatalogueError(
            f"metric {name!r}: only a per-node metric has label 'node'; drop it, and set per_node=True"
        )


def _check_bounds(name: str, kind: Kind, bounds: tuple[float, ...]) -> tuple[float, ...]:
    if kind is not Kind.HISTOGRAM:
        raise CatalogueError(f"{kind} {name!r} has {len(bounds)} bounds, but only a histogram has buckets: drop them")
    if not 1 <= len(bounds) <= _MAX_BOUNDS:
        raise CatalogueError(f"histogram {name!r} has {len(bounds)} bounds, expected 1 to {_MAX_BOUNDS}")
    for below, bound in pairwise((0.0, *bounds)):
        if math.frexp(bound)[0] != 0.5:
            raise CatalogueError(
                f"histogram {name!r}: bound {bound!r} is no power of two, and others would need estimated counts; "
                "choose from …, 0.25, 0.5, 1, 2, 4, … (+Inf is added)"
            )
        if bound <= below:
            raise CatalogueError(
                f"histogram {name!r}: bound {bound!r} comes after {below!r}; put them in ascending order"
            )
    return tuple(float(bound) for bound in bounds)


def _default_bounds(name: str) -> tuple[float, ...]:
    return {"seconds": REQUEST_SECONDS, "bytes": SIZE_BYTES, "ratio": _RATIO}.get(_unit_of(name), _COUNT)


def _check_values(
    name: str, labels: tuple[str, ...], given: Mapping[str, Iterable[str]]
) -> Mapping[str, tuple[str, ...]]:
    values = {label: tuple(known) for label, known in given.items()}
    for label, known in values.items():
        if label not in labels:
            raise CatalogueError(f"metric {name!r}: values for label {label!r}, but its labels are {_listed(labels)}")
        for value in known:
            if (size := len(value.encode())) > MAX_VALUE:
                raise CatalogueError(
                    f"metric {name!r}: value {value[:80]!r}… of label {label!r} has {size} bytes, "
                    f"the limit is {MAX_VALUE}: shorten it"
                )
    return MappingProxyType(values)


def _listed(labels: Iterable[str]) -> str:
    return "{" + ", ".join(labels) + "}"


def markdown_table() -> str:
    """The catalogue as Markdown: a heading and a table for each group, with the names as they are exposed."""
    lines: list[str] = []
    for group, metrics in GROUPS.items():
        lines += [f"### {group}", "", "| metric | kind | labels | meaning |", "| --- | --- | --- | --- |"]
        lines += [f"| `{PREFIX}{m.name}` | {m.kind} | {_labels_markdown(m)} | {_meaning(m)} |" for m in metrics]
        lines.append("")
    return "\n".join(lines)


def _labels_markdown(metric: Metric) -> str:
    known = {label: f" ({', '.join(values)})" for label, values in metric.values.items()}
    return ", ".join(f"`{label}`{known.get(label, '')}" for label in metric.labels)


def _meaning(metric: Metric) -> str:
    if not metric.bounds:
        return metric.help
    lowest, highest = (math.frexp(bound)[1] - 1 for bound in (metric.bounds[0], metric.bounds[-1]))
    return f"{metric.help} Classic buckets: powers of two from 2^{lowest} to 2^{highest} {metric.unit}."
