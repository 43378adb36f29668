"""The pipeline's own metrics: what the ledger, the nodes and the tables say, as parts of each sealed window."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..proto.catalogue import Kind
from ..proto.keys import encode_key
from ..proto.sketch import Sketch
from ..proto.window import WindowSketches
from .ledger import Ledgers
from .nodes import Node
from .parts import plain_counters, plain_gauges


def pipeline_columns(
    ledger: Ledgers,
    live: list[Node],
    stale: list[Node],
    completeness: float,
    series: int,
    seal_delay_ms: int | None,
    at_ms: int,
    with_nodes: bool,
) -> Iterator[tuple[Kind, str, list[bytes]]]:
    """Columns by metric. `with_nodes`: one partition of a cluster reports on nodes, since all of them see the same."""
    for metric, counters in ledger.take().items():
        yield Kind.COUNTER, metric, plain_counters(counters)
    gauges: dict[str, dict[bytes, float]] = {"series": {b"series": series}}
    if with_nodes:
        gauges["window_completeness_ratio"] = {b"window_completeness_ratio": completeness}
        gauges["cluster_nodes"] = {
            encode_key("cluster_nodes", {"state": state}): len(nodes)
            for state, nodes in (("live", live), ("stale", stale))
        }
        for metric, attribute in (
            ("node_last_seen_timestamp_seconds", "last_seen_ms"),
            ("clock_skew_seconds", "skew_ms"),
        ):
            gauges[metric] = {
                encode_key(metric, {"node": node.name}): getattr(node, attribute) / 1000 for node in (*live, *stale)
            }
    for metric, values in gauges.items():
        if values:
            yield Kind.GAUGE, metric, plain_gauges(values, at_ms)
    if seal_delay_ms is not None:
        yield (
            Kind.HISTOGRAM,
            "window_seal_delay_seconds",
            _one(b"window_seal_delay_seconds", max(seal_delay_ms, 0) / 1000),
        )


def _one(key: bytes, value: float) -> list[bytes]:
    """Columns of a sketch of one value."""
    sketch = Sketch()
    sketch.record(value)
    return WindowSketches(
        [key],
        np.array([sketch.zero]),
        np.array([sketch.units >> 64]),
        np.array([sketch.units & ((1 << 64) - 1)], np.uint64),
        np.array([value]),
        np.array([value]),
        np.array([len(sketch.buckets)], np.uint32),
        np.array(list(sketch.buckets), np.int16),
        np.array(list(sketch.buckets.values()), np.int64),
    ).pack()
