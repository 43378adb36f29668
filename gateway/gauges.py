"""How a gauge that several nodes report becomes one number: one rule for each metric, used by every format."""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from ..proto.exact import F64, to_float
from ..proto.window import WindowGauges


class Merge(StrEnum):
    """What of a gauge's aggregates over nodes is shown."""

    AVERAGE = "average"
    SUM = "sum"
    NEWEST = "newest"


#: Each node holds its own share of these.
_SUM = frozenset({"cache_entries", "cache_used_bytes", "cache_limit_bytes", "requests_in_flight", "series"})
#: All nodes look at the same thing outside; who looked last knows best. Adding these up would be wrong.
_NEWEST_PREFIXES = ("ratelimit_", "budget_", "provider_health", "cooldown_until")


def merge_of(metric: str) -> Merge:
    """The rule for a gauge: the sum of shares, the newest of what all see alike, and the average of anything else."""
    if metric in _SUM:
        return Merge.SUM
    if metric.startswith(_NEWEST_PREFIXES) or metric.endswith("_timestamp_seconds"):
        return Merge.NEWEST
    return Merge.AVERAGE


def merged(metric: str, gauges: WindowGauges) -> F64:
    """One value per series of a gauge metric, by its rule."""
    match merge_of(metric):
        case Merge.SUM:
            return _as_set(gauges, to_float(gauges.whole, gauges.fraction))
        case Merge.NEWEST:
            return gauges.last
        case Merge.AVERAGE:
            return _as_set(gauges, gauges.average())


def _as_set(gauges: WindowGauges, values: F64) -> F64:
    """What a single node has set is shown as it set it: a sum is rounded down to 2^-64, which shows below 2^-12."""
    shown: F64 = np.where(gauges.nodes == 1, gauges.last, values)
    return shown
