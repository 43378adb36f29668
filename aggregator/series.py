"""Series tables: from the keys that frames carry to small integers that arrays are indexed by.

Resolving a frame's keys is the only work of a merge that touches each series in Python, so its result is remembered for
the exact bytes of the key column: nodes repeat them from window to window, and often have the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..proto.catalogue import GROUPS, Kind, get
from ..proto.columns import join_keys, split_keys
from ..proto.errors import FrameError, SeriesKeyError
from ..proto.exact import I64
from ..proto.keys import LABEL_SEP, VALUE_SEP, check_key, label_of, metric_of, other_key

#: What only the pipeline itself may report.
RESERVED = frozenset(metric.name for metric in GROUPS["Pipeline"])

#: Metrics that may exist beside the catalogue's, and further ``other`` series past the caps, of a metric (one for each
#: set of label names) and in all. A marker names every metric, and must fit into a message.
MAX_METRICS = 1000
_SPARE_OTHERS, _SPARE_SERIES = 16, 1000
#: What takes in the series that have not even an ``other`` of their own any more. Nothing is lost, not even then.
CATCH_ALL = {Kind.COUNTER: b"other_total", Kind.GAUGE: b"other", Kind.HISTOGRAM: b"other_values"}

_NODE_LABEL = LABEL_SEP + b"node" + VALUE_SEP

#: Bytes of key columns whose resolution is remembered.
_CACHE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Resolved:
    """`ids` (n × i64) of a key column. `distinct` is False when several keys fold into one ``other``. `node` is the
    name that the keys'
    ``node`` labels must all have, None when they have none. `overflow` counts folded keys by metric.
    """

    ids: I64
    distinct: bool
    node: str | None
    overflow: Mapping[str, int]


@dataclass(slots=True)
class SeriesTable:
    """The series of one kind. An id is a series' place in `keys`, for ever."""

    kind: Kind
    keys: list[bytes] = field(default_factory=list)
    ids: dict[bytes, int] = field(default_factory=dict)
    by_metric: dict[str, list[int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def add(self, key: bytes) -> int:
        """The id of a checked key, new or not."""
        found = self.ids.get(key)
        if found is None:
            found = self.ids[key] = len(self.keys)
            self.keys.append(key)
            self.by_metric.setdefault(metric_of(key), []).append(found)
        return found

    def pack(self) -> bytes:
        return join_keys(self.keys)

    def unpack(self, blob: bytes) -> None:
        for key in split_keys(blob):
            self.add(key)


class SeriesTables:
    """All series of a partition, with the caps on their number."""

    def __init__(self, max_per_metric: int, max_series: int) -> None:
        self.max_per_metric = max_per_metric
        self.max_series = max_series
        self.tables = {kind: SeriesTable(kind) for kind in Kind}
        self._kinds = {metric_of(key): kind for kind, key in CATCH_ALL.items()}
        self._cache: dict[tuple[Kind, bytes], Resolved] = {}
        self._cached_bytes = 0
        self._newest: dict[tuple[Kind, str], tuple[bytes, Resolved]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.tables.values()))

    def set_caps(self, max_per_metric: int, max_series: int) -> None:
        """Change the caps from here on; series that exist stay."""
        self.max_per_metric, self.max_series = max_per_metric, max_series
        self.forget_cache()

    def forget_cache(self) -> None:
        self._cache.clear()
        self._newest.clear()
        self._cached_bytes = 0

    def resolve(self, columns: Mapping[Kind, tuple[bytes, int]], node: str) -> dict[Kind, Resolved]:
        """Ids for the key columns of one frame, each with its expected number of keys; unknown series are added.

        Raises FrameError (``key``, ``duplicate_key``, ``length``, ``node_claim``, ``kind`` or ``reserved``) before
        anything is added.
        """
        found: dict[Kind, Resolved] = {}
        fresh: dict[Kind, list[bytes]] = {}
        kinds: dict[str, Kind] = {}  # of the metrics that are new with this frame
        for kind, (blob, n) in columns.items():
            resolved = self._remembered(kind, blob, node)
            if resolved is None:
                fresh[kind] = self._checked(kind, blob, n, node, kinds)
            elif len(resolved.ids) != n:
                raise FrameError("length", f"{len(resolved.ids)} keys for {n} {kind} values")
            elif resolved.node not in (None, node):
                raise FrameError("node_claim", f"node {node!r} reports series of node {resolved.node!r}")
            else:
                found[kind] = resolved
        for kind, keys in fresh.items():
            blob = columns[kind][0]
            found[kind] = self._assign(kind, keys, node if _NODE_LABEL in blob else None)
            self._remember(kind, blob, found[kind], node)
        return found

    def _checked(self, kind: Kind, blob: bytes, n: int, node: str, kinds: dict[str, Kind]) -> list[bytes]:
        keys = split_keys(blob)
        if len(keys) != n:
            raise FrameError("length", f"{len(keys)} keys for {n} {kind} values")
        if len(set(keys)) != n:
            raise FrameError("duplicate_key", f"a {kind} column of {n} keys has {n - len(set(keys))} repeated")
        known = self.tables[kind].ids
        claimed = node.encode()
        for key in keys:
            if key not in known:
                try:
                    check_key(key)
                except SeriesKeyError as error:
                    raise FrameError("key", str(error)) from error
                self._check_kind(kind, metric_of(key), kinds)
        if _NODE_LABEL in blob:  # one search, where most columns have no such label in a thousand keys
            for key in keys:
                of = label_of(key, b"node")
                if of is not None and of != claimed:
                    raise FrameError("node_claim", f"node {node!r} reports a series of node {of[:80]!r}")
        return keys

    def _check_kind(self, kind: Kind, metric: str, kinds: dict[str, Kind]) -> None:
        if metric in RESERVED:
            raise FrameError("reserved", f"{metric} is reported by the pipeline itself, not by nodes")
        listed = get(metric)
        expected = listed.kind if listed is not None else self._kinds.get(metric) or kinds.setdefault(metric, kind)
        if expected != kind:
            raise FrameError("kind", f"{metric} came as a {kind}, it is a {expected}")

    def _assign(self, kind: Kind, keys: list[bytes], node: str | None) -> Resolved:
        table = self.tables[kind]
        overflow: dict[str, int] = {}
        known = table.ids.get
        ids = [i if (i := known(key)) is not None else self._add(table, key, overflow) for key in keys]
        array = np.array(ids, np.int64)
        return Resolved(array, not overflow or len(np.unique(array)) == len(array), node, overflow)

    def _add(self, table: SeriesTable, key: bytes, overflow: dict[str, int]) -> int:
        """The id for a new key."""
        home = self._home(table, key)
        metric = metric_of(home)
        self._kinds[metric] = table.kind
        if home != key:
            overflow[metric] = overflow.get(metric, 0) + 1
        return table.add(home)

    def _home(self, table: SeriesTable, key: bytes) -> bytes:
        """The series that a new key adds to: its own, or past the caps one that many share."""
        metric = metric_of(key)
        members = len(table.by_metric.get(metric, ()))
        if not members and get(metric) is None and sum(len(t.by_metric) for t in self.tables.values()) >= MAX_METRICS:
            return CATCH_ALL[table.kind]
        if members < self.max_per_metric and len(self) < self.max_series:
            return key
        other = other_key(key)
        room = members < self.max_per_metric + _SPARE_OTHERS and len(self) < self.max_series + _SPARE_SERIES
        return other if room or other in table.ids else CATCH_ALL[table.kind]

    def _remembered(self, kind: Kind, blob: bytes, node: str) -> Resolved | None:
        # A node's last column first: comparing is a memcmp, hashing reads the bytes with more care.
        newest = self._newest.get((kind, node))
        if newest is not None and newest[0] == blob:
            return newest[1]
        resolved = self._cache.get((kind, blob))
        if resolved is not None:
            self._newest[kind, node] = (blob, resolved)
        return resolved

    def _remember(self, kind: Kind, blob: bytes, resolved: Resolved, node: str) -> None:
        if self._cached_bytes + len(blob) > _CACHE_BYTES:
            self.forget_cache()
        self._cached_bytes += len(blob)
        self._cache[kind, blob] = resolved
        self._newest[kind, node] = (blob, resolved)

    def pack(self) -> dict[str, bytes]:
        return {kind.value: table.pack() for kind, table in self.tables.items()}

    def unpack(self, packed: Mapping[str, bytes]) -> None:
        for kind, table in self.tables.items():
            table.unpack(packed[kind.value])
            for metric in table.by_metric:
                self._kinds[metric] = kind
