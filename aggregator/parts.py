"""From a window's sums to what is published: one `Part` per metric, and the `Sealed` marker after them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..proto import exact, window
from ..proto.catalogue import Kind
from ..proto.exact import I64
from ..proto.fold import Output, Publication
from ..proto.subjects import Subjects
from ..proto.window import WindowCounters, WindowGauges, WindowSketches
from ..proto.wire import LogPosition, Part, Sealed, encode
from .kernel import CounterCells, GaugeCells, SketchCells
from .series import SeriesTable

#: Room that the other fields of a Part and the message's headers need, bytes.
_OVERHEAD = 1024


@dataclass(frozen=True, slots=True)
class Place:
    """Which window a publication belongs to, and where in the log it comes from."""

    partition: int
    resolution_ms: int
    start_ms: int
    end_ms: int
    revision: int
    position: LogPosition

    @property
    def id(self) -> str:
        """Message id without the metric: the same in every replica, for the same publication."""
        p = self.position
        return f"{self.partition}.{self.resolution_ms}.{self.start_ms}.{self.revision}.{p.created_ms}.{p.sequence}"


def counter_columns(table: SeriesTable, cells: CounterCells, totals: CounterCells) -> Iterator[tuple[str, list[bytes]]]:
    """Columns by metric, metrics in ascending order; `totals` are those of the ids of `cells`."""
    for metric, at in _by_metric(table, cells.ids):
        keys, order = _sorted(table, cells.ids[at])
        at = at[order]
        columns = WindowCounters(keys, cells.whole[at], cells.fraction[at], totals.whole[at], totals.fraction[at])
        yield metric, columns.pack()


def gauge_columns(table: SeriesTable, cells: GaugeCells) -> Iterator[tuple[str, list[bytes]]]:
    """Columns by metric, metrics in ascending order."""
    c = cells
    for metric, at in _by_metric(table, c.ids):
        keys, order = _sorted(table, c.ids[at])
        at = at[order]
        columns = WindowGauges(
            keys, c.whole[at], c.fraction[at], c.minimum[at], c.maximum[at], c.last[at], c.last_ms[at], c.nodes[at]
        )
        yield metric, columns.pack()


def sketch_columns(table: SeriesTable, cells: SketchCells) -> Iterator[tuple[str, list[bytes]]]:
    """Columns by metric, metrics in ascending order."""
    c = cells
    ends = np.cumsum(c.lengths, dtype=np.int64)
    starts = ends - c.lengths
    for metric, at in _by_metric(table, c.ids):
        keys, order = _sorted(table, c.ids[at])
        at = at[order]
        lengths = c.lengths[at]
        buckets = np.repeat(starts[at] - (np.cumsum(lengths, dtype=np.int64) - lengths), lengths)
        buckets += np.arange(len(buckets))
        columns = WindowSketches(
            keys, c.zero[at], c.whole[at], c.fraction[at], c.minimum[at], c.maximum[at], lengths,
            c.indices[buckets], c.counts[buckets],
        )  # fmt: skip
        yield metric, columns.pack()


def _by_metric(table: SeriesTable, ids: I64) -> Iterator[tuple[str, I64]]:
    """Each metric with the places of its series in `ids` (ascending)."""
    for metric in sorted(table.by_metric):
        members = np.array(table.by_metric[metric], np.int64)
        at = np.searchsorted(ids, members)
        inside = at < len(ids)
        inside[inside] = ids[at[inside]] == members[inside]
        if inside.any():
            yield metric, at[inside]


def _sorted(table: SeriesTable, ids: I64) -> tuple[list[bytes], list[int]]:
    """Keys in ascending order, and the order: ids are given by arrival, which readers should not have to know."""
    keys = [table.keys[i] for i in ids.tolist()]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return [keys[i] for i in order], order


def publications(
    subjects: Subjects, place: Place, columns: Iterable[tuple[Kind, str, list[bytes]]], max_payload: int
) -> tuple[list[list[Publication]], list[str]]:
    """One message a metric (more, numbered, when it is too large for one), and the metrics' names.

    In stages: the pieces of a metric must be stored in their order, or a reader would take the earlier for a
    repetition.
    """
    stages: list[list[Publication]] = []
    metrics: list[str] = []
    for kind, metric, packed in columns:
        subject = (
            subjects.window(place.resolution_ms, metric, place.partition)
            if place.resolution_ms
            else subjects.late(metric, place.partition)
        )
        metrics.append(metric)
        pieces = list(_pieces(kind, packed, max_payload - _OVERHEAD))
        for i, piece in enumerate(pieces):
            part = Part(
                metric=metric,
                partition=place.partition,
                resolution_ms=place.resolution_ms,
                start_ms=place.start_ms,
                end_ms=place.end_ms,
                revision=place.revision,
                position=place.position,
                counters=piece if kind is Kind.COUNTER else [],
                gauges=piece if kind is Kind.GAUGE else [],
                sketches=piece if kind is Kind.HISTOGRAM else [],
                piece=i,
                pieces=len(pieces),
            )
            if i == len(stages):
                stages.append([])
            stages[i].append(Publication(subject, encode(part), f"{metric}.{place.id}.{i}"))
    return stages, metrics


def sealed_output(subjects: Subjects, parts: list[list[Publication]], marker: Sealed, place: Place) -> Output:
    """The parts, then the marker that says they are all."""
    subject = subjects.sealed(place.resolution_ms, place.partition)
    seal = Publication(subject, encode(marker), f"_sealed.{place.id}")
    return Output((place.position, place.start_ms), [*parts, [seal]])


def _pieces(kind: Kind, packed: list[bytes], limit: int) -> Iterator[list[bytes]]:
    """The columns as they are, or cut by series until each piece is within `limit` bytes."""
    if sum(map(len, packed)) <= limit:
        yield packed
        return
    part = Part(metric="", partition=0, resolution_ms=0, start_ms=0, end_ms=0, revision=0, position=LogPosition(),
                counters=packed, gauges=packed, sketches=packed)  # fmt: skip
    for half in _halves(kind, part):
        yield from _pieces(kind, half, limit)


def _halves(kind: Kind, part: Part) -> Sequence[list[bytes]]:
    if kind is Kind.COUNTER:
        c = window.window_counters(part)
        cut = len(c.keys) // 2
        sides = (slice(None, cut), slice(cut, None))
        return [
            WindowCounters(c.keys[s], c.whole[s], c.fraction[s], c.total_whole[s], c.total_fraction[s]).pack()
            for s in sides
        ]
    if kind is Kind.GAUGE:
        g = window.window_gauges(part)
        cut = len(g.keys) // 2
        sides = (slice(None, cut), slice(cut, None))
        return [
            WindowGauges(
                g.keys[s], g.whole[s], g.fraction[s], g.minimum[s], g.maximum[s], g.last[s], g.last_ms[s], g.nodes[s]
            ).pack()
            for s in sides
        ]
    k = window.window_sketches(part)
    cut = len(k.keys) // 2
    bucket = int(k.lengths[:cut].sum())
    both = ((slice(None, cut), slice(None, bucket)), (slice(cut, None), slice(bucket, None)))
    return [
        WindowSketches(
            k.keys[s],
            k.zero[s],
            k.whole[s],
            k.fraction[s],
            k.minimum[s],
            k.maximum[s],
            k.lengths[s],
            k.indices[b],
            k.counts[b],
        ).pack()
        for s, b in both
    ]


def plain_counters(values: Mapping[bytes, tuple[int, int]]) -> list[bytes]:
    """Columns of counters given as key: (increment, total), in whole numbers."""
    keys = sorted(values)
    increments, totals = ([values[key][i] for key in keys] for i in (0, 1))
    zeros = np.zeros(len(keys), np.uint64)
    return WindowCounters(keys, np.array(increments, np.int64), zeros, np.array(totals, np.int64), zeros).pack()


def plain_gauges(values: Mapping[bytes, float], at_ms: int) -> list[bytes]:
    """Columns of gauges given as key: value."""
    keys = sorted(values)
    numbers = np.array([values[key] for key in keys], np.float64)
    whole, fraction = exact.split(numbers)
    n = len(keys)
    return WindowGauges(
        keys, whole, fraction, numbers, numbers, numbers, np.full(n, at_ms, np.int64), np.ones(n, np.uint32)
    ).pack()
