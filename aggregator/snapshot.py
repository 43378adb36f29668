"""The state of an aggregator's fold as bytes, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from ..proto.catalogue import Kind
from ..proto.errors import SnapshotError
from ..proto.wire import Settings
from .grid import Grid
from .nodes import Node
from .series import SeriesTables
from .windows import Window

if TYPE_CHECKING:
    from .fold import AggregatorFold


def pack(fold: AggregatorFold) -> bytes:
    """The whole state. Equal states give equal bytes."""
    totals, layout = fold.totals.cells(), fold.layout
    return msgspec.msgpack.encode(
        {
            "settings": fold.settings,
            "grid": fold.grid,
            "now_ms": fold.now_ms,
            "next_start": fold.next_start,
            "nodes": [node for _, node in sorted(fold.nodes.nodes.items())],
            "ledger": fold.ledger.pack(),
            "series": fold.series.pack(),
            "totals": [a.tobytes() for a in (totals.ids, totals.whole, totals.fraction)],
            "layout": [a.tobytes() for a in (layout.low, layout.width)],
            "windows": [window.pack(layout) for _, window in sorted(fold.windows.items())],
        }
    )


def unpack(fold: AggregatorFold, data: bytes) -> None:
    """Fill a new fold with what `pack` wrote. Raises SnapshotError, and leaves the fold half filled then."""
    try:
        _fill(fold, msgspec.msgpack.decode(data))
    except (msgspec.DecodeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise SnapshotError(f"aggregator state of {len(data)} bytes can't be read: {error}") from error


def _fill(fold: AggregatorFold, state: dict[str, Any]) -> None:
    fold.settings = msgspec.convert(state["settings"], Settings)
    fold.grid = msgspec.convert(state["grid"], Grid)
    fold.now_ms = state["now_ms"]
    fold.next_start = state["next_start"]
    for node in msgspec.convert(state["nodes"], list[Node]):
        fold.nodes.nodes[node.name] = node
    fold.ledger.unpack(state["ledger"])
    fold.series = SeriesTables(fold.settings.max_series_per_metric, fold.settings.max_series)
    fold.series.unpack(state["series"])
    counters = len(fold.series.tables[Kind.COUNTER])
    ids, whole, fraction = (
        np.frombuffer(raw, t) for raw, t in zip(state["totals"], ("<i8", "<i8", "<u8"), strict=True)
    )
    fold.totals.reserve(counters)
    fold.totals.add(ids, whole, fraction, distinct=True)
    layout = fold.layout
    layout.low, layout.width = (np.frombuffer(raw, "<i8").copy() for raw in state["layout"])
    ends = np.cumsum(layout.width)
    layout.slots = int(ends[-1]) if len(ends) else 0
    layout.offset = ends - layout.width
    for packed in state["windows"]:
        window = Window.unpack(packed, counters)
        fold.windows[window.start_ms] = window
