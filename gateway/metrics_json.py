"""``GET /metrics`` as JSON, with the guide's field names.

Totals are running ones, since the cluster began: `total_requests`, tokens, costs, errors by type, and the ratios that
stand beside them (`success_rate`, `error_rate_percent`). What changes from moment to moment is of the newest sealed
window: `requests_per_second` (increment / interval), latencies (merged sketch, in ms), `error_rate`. What nothing is
known of is null.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from ..proto.sketch import RELATIVE_ERROR, Sketch
from .view import Labels, View

Json = dict[str, Any]
ERROR_TYPES = ("connection", "timeout", "rate_limit", "authentication", "server", "client")
_MIB = 1024 * 1024


def document(view: View, now_ms: int) -> Json:
    """The body as plain values, without NaN or infinity. Who renders it sets `collection_duration_ms`."""
    calls = _Calls(view)
    return {
        "timestamp": rfc3339(now_ms),
        "collection_duration_ms": None,
        "window": _window(view),
        "metrics": {
            "application": calls.application(),
            "providers": calls.providers(),
            "models": calls.models(),
            "system": _system(view),
            "cache": _cache(view),
            "connections": _connections(view),
            "nodes": {state: _whole(view.gauge("cluster_nodes", state=state)) for state in ("live", "stale")},
            "completeness": view.completeness,
        },
    }


def _window(view: View) -> Json | None:
    if view.start_ms is None or view.end_ms is None:
        return None
    return {
        "start": rfc3339(view.start_ms),
        "end": rfc3339(view.end_ms),
        "interval_seconds": view.seconds,
        "completeness": view.completeness,
        "missing_nodes": view.missing,
        "quantile_relative_error": RELATIVE_ERROR,
    }


class _Groups:
    """A metric's series, and those of each provider and of each model: so that one of them costs only its own."""

    def __init__(self, series: Iterable[tuple[Labels, Any]]) -> None:
        self.all = list(series)
        self.by: dict[str, dict[str, list[tuple[Labels, Any]]]] = {"provider": {}, "model": {}}
        for labels, value in self.all:
            for name, groups in self.by.items():
                if name in labels:
                    groups.setdefault(labels[name], []).append((labels, value))

    def of(self, wanted: Labels) -> list[tuple[Labels, Any]]:
        """The series of a provider or a model, as ``{"model": …}``; all for no label."""
        for name, value in wanted.items():
            return self.by[name].get(value, [])
        return self.all


class _Calls:
    """The request metrics of a view, read once and grouped as needed."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._requests = _Groups(view.totals("requests_total"))
        self._increments = _Groups(view.increments("requests_total"))
        self._errors = list(view.totals("request_errors_total"))
        self._tokens = _Groups(view.totals("tokens_total"))
        self._costs = _Groups(view.totals("cost_usd_total"))
        self._latencies = _Groups(view.sketches("request_duration_seconds"))
        self._first_tokens = list(view.sketches("time_to_first_token_seconds"))
        self._remaining = _Groups(view.gauges("ratelimit_remaining_requests"))

    def application(self) -> Json:
        errors = {kind: _total(self._errors, error_type=kind) for kind in ERROR_TYPES}
        calls = self._calls({})
        return {
            **calls,
            "error_rate_percent": _percent(_ratio(calls["failed_requests"], calls["total_requests"])),
            **self._tokens_of({}),
            "total_errors": calls["failed_requests"],
            **{f"{kind}_errors": count for kind, count in errors.items()},
            "ttft_ms": _percentiles(_merged(self._first_tokens, {})),
            "output_tokens_per_second": _rate(self._view.increment("tokens_total", type="output"), self._view.seconds),
        }

    def providers(self) -> dict[str, Json]:
        found: dict[str, Json] = {}
        for provider in sorted(self._requests.by["provider"]):
            wanted = {"provider": provider}
            calls = self._calls(wanted)
            models = sorted({own["model"] for own, _ in self._requests.of(wanted) if "model" in own})
            remaining = [value for _, value in self._remaining.of(wanted)]
            found[provider] = {
                "requests": calls["total_requests"],
                **calls,
                **self._tokens_of(wanted),
                "rate_limit_remaining": sum(remaining) / len(remaining) if remaining else None,
                "models_used": models,
            }
        return found

    def models(self) -> dict[str, Json]:
        found: dict[str, Json] = {}
        for model in sorted(self._requests.by["model"]):
            wanted = {"model": model}
            calls = self._calls(wanted)
            tokens = self._tokens_of(wanted)
            found[model] = {
                **calls,
                **tokens,
                "avg_tokens_per_request": _ratio(tokens["total_tokens"], calls["total_requests"]),
                "cost_per_request_usd": _ratio(tokens["cost_usd"], calls["total_requests"]),
            }
        return found

    def _calls(self, wanted: Labels) -> Json:
        requests = _total(self._requests.of(wanted))
        failed = _total(self._requests.of(wanted), outcome="error")
        in_window = _total(self._increments.of(wanted))
        latency = _merged(self._latencies.of(wanted), wanted)
        percentiles = _percentiles(latency)
        return {
            "total_requests": requests,
            "successful_requests": requests - failed,
            "failed_requests": failed,
            "success_rate": _ratio(requests - failed, requests),
            "error_rate": _ratio(_total(self._increments.of(wanted), outcome="error"), in_window),
            "avg_response_time_ms": _finite(latency.mean * 1000),
            **{f"{name}_response_time_ms": value for name, value in percentiles.items()},
            "requests_per_second": _rate(in_window, self._view.seconds),
        }

    def _tokens_of(self, wanted: Labels) -> Json:
        tokens_in = _total(self._tokens.of(wanted), type="input")
        tokens_out = _total(self._tokens.of(wanted), type="output")
        return {
            "input_tokens": tokens_in,
            "output_tokens": tokens_out,
            "total_tokens": tokens_in + tokens_out,
            "cost_usd": _total(self._costs.of(wanted)),
        }


def _system(view: View) -> Json:
    """Averages over nodes; load and capacity of the host as the nodes see it."""
    used, total = view.gauge("node_memory_used_bytes"), view.gauge("node_memory_total_bytes")
    disk_used, disk_total = view.gauge("node_disk_used_bytes"), view.gauge("node_disk_total_bytes")
    return {
        "cpu_percent": _percent(view.gauge("node_cpu_usage_ratio")),
        "memory_percent": _percent(_ratio(used, total)),
        "memory_used_mb": _mebi(used),
        "memory_available_mb": _mebi(view.gauge("node_memory_available_bytes")),
        "disk_percent": _percent(_ratio(disk_used, disk_total)),
        "load_average": [view.gauge("node_load_average", span=span) for span in ("1m", "5m", "15m")],
    }


def _cache(view: View) -> Json:
    hits = view.total("cache_requests_total", result="hit")
    misses = view.total("cache_requests_total", result="miss")
    both = (hits or 0) + (misses or 0) if hits is not None or misses is not None else None
    used, limit = view.gauge_sum("cache_used_bytes"), view.gauge_sum("cache_limit_bytes")
    evictions = (view.total("cache_evictions_total") or 0) if both is not None else None
    return {
        "hit_rate": _ratio(hits or 0, both),
        "total_requests": both,
        "cache_hits": hits,
        "cache_misses": misses,
        "entries": _whole(view.gauge_sum("cache_entries")),
        "memory_usage_mb": _mebi(used),
        "max_memory_mb": _mebi(limit),
        "memory_utilization_percent": _percent(_ratio(used, limit)),
        "evictions": evictions,
        "eviction_rate": _ratio(evictions, both),
    }


def _connections(view: View) -> Json:
    created = view.total("pool_connections_created_total")
    return {
        "active": _whole(view.gauge_sum("pool_connections", state="active")),
        "idle": _whole(view.gauge_sum("pool_connections", state="idle")),
        "pending": _whole(view.gauge_sum("pool_pending_requests")),
        "error_rate": _ratio(view.total("pool_connection_errors_total") or 0, created),
    }


def _merged(sketches: Iterable[tuple[Labels, Sketch]], wanted: Labels) -> Sketch:
    whole = Sketch()
    for own, sketch in sketches:
        if _has(own, wanted):
            whole.merge(sketch)
    return whole


def _percentiles(sketch: Sketch) -> Json:
    return {f"p{q}": _finite(sketch.quantile(q / 100) * 1000) for q in (50, 95, 99)}


def _total(values: Iterable[tuple[Labels, Any]], **wanted: str) -> Any:
    return sum(value for own, value in values if _has(own, wanted))


def _has(own: Labels, wanted: Labels) -> bool:
    return all(own.get(name) == value for name, value in wanted.items())


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _rate(increment: float | None, seconds: float) -> float | None:
    return increment / seconds if increment is not None and seconds else None


def _percent(ratio: float | None) -> float | None:
    return ratio * 100 if ratio is not None else None


def _mebi(size: float | None) -> float | None:
    return size / _MIB if size is not None else None


def _whole(value: float | None) -> int | None:
    return round(value) if value is not None else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def rfc3339(at_ms: int) -> str:
    """Milliseconds since the epoch as RFC 3339 in UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
