"""``GET /health``: the guide's checks, from what the newest window says. Pure: view and clock in, document out."""

from __future__ import annotations

from typing import Any

from .metrics_json import rfc3339
from .view import View

Json = dict[str, Any]
HEALTHY, DEGRADED, UNHEALTHY = "healthy", "degraded", "unhealthy"

#: A provider is degraded above this share of failed requests in the window, or this average latency; unhealthy when
#: half fail.
DEGRADED_ERROR_RATE = 0.05
UNHEALTHY_ERROR_RATE = 0.5
DEGRADED_RESPONSE_MS = 5000.0
#: Memory in use, percent, averaged over nodes: the thresholds of the guide's system dashboard.
DEGRADED_MEMORY_PERCENT = 80.0
UNHEALTHY_MEMORY_PERCENT = 90.0
#: The guide's threshold for a low hit rate.
DEGRADED_HIT_RATE = 0.6
#: Without a new window for so many intervals (and never less than ten seconds) the numbers are stale.
STALE_INTERVALS = 4
STALE_LEAST_MS = 10_000


def health(
    view: View, metrics: Json, now_ms: int, uptime_s: float, version: str, connected: bool, event_time: bool
) -> tuple[int, Json]:
    """HTTP status (200, or 503 when unhealthy) and body. Only what there is data of is checked.

    `metrics` are those of `metrics_json.document`, made once a window.
    `event_time`: the cluster replays old time, so a window's age says nothing.
    """
    checks: Json = {"pipeline": _pipeline(view, now_ms, connected, event_time, metrics["nodes"])}
    if metrics["providers"]:
        checks["providers"] = _providers(metrics["providers"])
    if metrics["system"]["memory_percent"] is not None:
        checks["memory"] = _memory(metrics["system"])
    if metrics["cache"]["hit_rate"] is not None:
        cache = metrics["cache"]
        checks["cache"] = {
            "status": HEALTHY if cache["hit_rate"] >= DEGRADED_HIT_RATE else DEGRADED,
            "hit_rate": cache["hit_rate"],
            "memory_usage_mb": cache["memory_usage_mb"],
        }
    if metrics["connections"]["active"] is not None:
        connections = metrics["connections"]
        checks["connections"] = {
            "status": HEALTHY,
            "active": connections["active"],
            "pending": connections["pending"],
        }
    status = worst([check["status"] for check in checks.values()])
    body = {
        "status": status,
        "timestamp": rfc3339(now_ms),
        "version": version,
        "uptime_seconds": round(uptime_s, 3),
        "checks": checks,
        "overall_status": status,
    }
    return (503 if status == UNHEALTHY else 200), body


def worst(statuses: list[str]) -> str:
    """The worst of several; healthy when there are none."""
    return max(statuses, key=(HEALTHY, DEGRADED, UNHEALTHY).index, default=HEALTHY)


def _pipeline(view: View, now_ms: int, connected: bool, event_time: bool, nodes: Json) -> Json:
    """Whether the numbers themselves can be trusted: fresh, complete, and still coming."""
    age_ms = now_ms - view.end_ms if view.end_ms is not None else None
    stale_ms = max(STALE_LEAST_MS, STALE_INTERVALS * round(view.seconds * 1000))
    fresh = age_ms is not None and (event_time or age_ms <= stale_ms)
    complete = view.completeness is None or view.completeness == 1.0
    status = HEALTHY if fresh and complete and connected else DEGRADED
    return {
        "status": status,
        "nats_connected": connected,
        "window_age_seconds": age_ms / 1000 if age_ms is not None and not event_time else None,
        "completeness": view.completeness,
        "missing_nodes": view.missing,
        "nodes": nodes,
    }


def _providers(providers: Json) -> Json:
    details = {}
    for name, provider in providers.items():
        rate, latency_ms = provider["error_rate"], provider["avg_response_time_ms"]
        if rate is not None and rate > UNHEALTHY_ERROR_RATE:
            status = UNHEALTHY
        elif (rate or 0) > DEGRADED_ERROR_RATE or (latency_ms or 0) > DEGRADED_RESPONSE_MS:
            status = DEGRADED
        else:
            status = HEALTHY
        details[name] = {"status": status, "response_time_ms": latency_ms, "error_rate": rate}
    statuses = [detail["status"] for detail in details.values()]
    # One provider that is down is what a proxy with fallbacks is for; all of them down is not.
    overall = (
        UNHEALTHY if all(s == UNHEALTHY for s in statuses) else DEGRADED if set(statuses) != {HEALTHY} else HEALTHY
    )
    return {
        "status": overall,
        "total": len(statuses),
        **{status: statuses.count(status) for status in (HEALTHY, DEGRADED, UNHEALTHY)},
        "details": details,
    }


def _memory(system: Json) -> Json:
    percent = system["memory_percent"]
    if percent > UNHEALTHY_MEMORY_PERCENT:
        status = UNHEALTHY
    else:
        status = DEGRADED if percent > DEGRADED_MEMORY_PERCENT else HEALTHY
    return {"status": status, "usage_percent": percent, "available_mb": system["memory_available_mb"]}
