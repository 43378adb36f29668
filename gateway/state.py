"""The gateway's fold: from the WINDOWS log to what readers see. Deterministic, so all gateways of a cluster answer
alike.

Parts wait until their `Sealed` marker has come, and then become visible together. Counters bring their running totals
along; those of sketches are added up here, and when a revision replaces a window, what the window had added before is
taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from ..proto.bus import LogMessage
from ..proto.catalogue import CATALOGUE, Kind, define
from ..proto.errors import CatalogueError, FrameError, SeriesKeyError, SnapshotError
from ..proto.exact import to_float
from ..proto.fold import Output
from ..proto.keys import LABEL_SEP, check_key
from ..proto.logs import get_logger
from ..proto.subjects import SEALED, resolution_name
from ..proto.window import (
    WindowCounters,
    WindowGauges,
    WindowSketches,
    window_counters,
    window_gauges,
    window_sketches,
)
from ..proto.wire import LogPosition, Part, Sealed, decode
from .cumulative import CumulativeSketches

log = get_logger(__name__)

#: Windows of sketches are kept for a revision to replace them: as long as one may come, and at most so many bytes of
#: them.
KEEP_BYTES = 256 * 1024 * 1024

_Place = tuple[LogPosition, int]


class Totals:
    """A counter metric's running totals by key: `whole` and `fraction` as Python integers keep them exact."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        #: key → total, a float where it has a fraction, an int where it has none
        self.values: dict[bytes, int | float] = {}

    def take(self, columns: WindowCounters) -> None:
        """The totals of a newer part."""
        whole = columns.total_whole.tolist()
        if columns.total_fraction.any():
            floats = to_float(columns.total_whole, columns.total_fraction).tolist()
            has_fraction = columns.total_fraction.astype(bool).tolist()
            numbers = [f if part else w for w, f, part in zip(whole, floats, has_fraction, strict=True)]
            self.values.update(zip(columns.keys, numbers, strict=True))
        else:
            self.values.update(zip(columns.keys, whole, strict=True))


class GatewayFold:
    """State of a whole cluster. See `proto.fold.Fold` for the contract; it has no output."""

    version = 2

    def __init__(self) -> None:
        self.kinds: dict[str, Kind] = {}
        #: By metric, then partition: the aggregator's own metrics have the same keys in each, and so has a series that
        #: moved when the number of partitions changed. Their sum is right for both.
        self.totals: dict[str, dict[int, Totals]] = {}
        self.cumulative: dict[str, CumulativeSketches] = {}
        #: The newest sealed marker of each partition, at the base resolution.
        self.sealed: dict[int, Sealed] = {}
        #: The parts of that window, by (metric, partition).
        self.current: dict[tuple[str, int], list[Part]] = {}
        #: Grows with each change that a reader can see.
        self.generation = 0
        self.repetitions = 0
        self.malformed: dict[str, int] = {}
        #: The newest place of each (metric, resolution, partition), and the pieces seen of it. Pieces are published at
        #: once, so a retry may put them into the log in any order.
        self._newest: dict[tuple[str, int, int], tuple[_Place, set[int]]] = {}
        #: By (resolution, partition, start, revision).
        self._pending: dict[tuple[int, int, int, int], list[Part]] = {}
        #: End of the newest window, and minus its length: what is shorter ends first, so a rollup is never the newest.
        self._base = (0, 0)
        #: Start of the newest window that was dropped because of KEEP_BYTES; -1 for none.
        self._dropped_ms = -1
        # Key columns that have passed, only to save looking at them again; not a part of the state.
        self._passed: dict[tuple[str, int, int], bytes] = {}
        #: Parts of sketches that count in `cumulative`, by (start, metric, partition): oldest first.
        self._kept: dict[tuple[int, str, int], list[Part]] = {}
        self._kept_bytes = 0

    def apply(self, message: LogMessage, position: LogPosition) -> Sequence[Output]:
        """Take one part or marker; what can't be read is counted and changes nothing."""
        try:
            tokens = message.subject.split(".")
            if tokens[2] == "window" and tokens[4] == SEALED:
                self._seal(decode(Sealed, message.data))
            elif tokens[2] in ("window", "late"):
                part = decode(Part, message.data)
                place = ["late"] if part.resolution_ms == 0 else ["window", resolution_name(part.resolution_ms)]
                if tokens[2:] != [*place, part.metric, str(part.partition)]:
                    raise FrameError("subject", f"a part of {part.metric[:80]!r} came on {message.subject[:200]!r}")
                self._part(part)
        except (FrameError, IndexError) as problem:
            reason = problem.reason if isinstance(problem, FrameError) else "subject"
            self._count(reason, str(problem), message.subject)
        return ()

    def _count(self, reason: str, detail: str, subject: str = "") -> None:
        self.malformed[reason] = self.malformed.get(reason, 0) + 1
        log.warning("window can't be read", every_s=10.0, key=reason, subject=subject, reason=reason, detail=detail)

    def _part(self, part: Part) -> None:
        self._check(part)
        if self._repeated((part.metric, part.resolution_ms, part.partition), part.position, part.start_ms, part.piece):
            return
        if part.resolution_ms == 0:
            self._take_totals(part)
            if part.sketches:
                self.cumulative.setdefault(part.metric, CumulativeSketches()).add(window_sketches(part))
            self.generation += 1
            return
        self._wait(part)

    def _repeated(self, source: tuple[str, int, int], position: LogPosition, start_ms: int, piece: int) -> bool:
        """Whether this is not newer than what came before; if it is newer, it is noted."""
        place = (position, start_ms)
        newest, pieces = self._newest.get(source, (None, set()))
        if newest is not None and (place < newest or (place == newest and piece in pieces)):
            self.repetitions += 1
            return True
        if place == newest:
            pieces.add(piece)
        else:
            self._newest[source] = (place, {piece})
        return False

    def _wait(self, part: Part) -> None:
        key = (part.resolution_ms, part.partition, part.start_ms, part.revision)
        self._pending.setdefault(key, []).append(part)

    def _seal(self, marker: Sealed) -> None:
        if self._repeated((SEALED, marker.resolution_ms, marker.partition), marker.position, marker.start_ms, 0):
            return
        waited = (marker.resolution_ms, marker.partition, marker.start_ms, marker.revision)
        parts = self._pending.pop(waited, [])
        self._base = max(self._base, (marker.end_ms, -marker.resolution_ms))
        if marker.resolution_ms != -self._base[1]:
            return  # a rollup: made of windows that have been counted
        before = self.sealed.get(marker.partition)
        is_current = before is None or marker.start_ms >= before.start_ms
        if is_current:
            if before is not None and marker.start_ms > before.start_ms:
                self.current = {k: v for k, v in self.current.items() if k[1] != marker.partition}
            for key in {(part.metric, part.partition) for part in parts}:
                self.current.pop(key, None)
            self.sealed[marker.partition] = marker
        # The aggregator's own metrics come with the first publication of a window only; a revision leaves them.
        for part in parts:
            self.kinds[part.metric] = _kind(part)
            self._take_totals(part)
            if is_current:
                self.current.setdefault((part.metric, part.partition), []).append(part)
        self._replace_sketches([part for part in parts if part.sketches])
        self._forget(marker)
        self.generation += 1

    def _take_totals(self, part: Part) -> None:
        if part.counters:
            self.kinds[part.metric] = Kind.COUNTER
            self.totals.setdefault(part.metric, {}).setdefault(part.partition, Totals()).take(window_counters(part))

    def _replace_sketches(self, parts: list[Part]) -> None:
        for key in {(part.start_ms, part.metric, part.partition) for part in parts}:
            if key in self._kept:
                for old in self._kept.pop(key):
                    self._kept_bytes -= _size(old)
                    self.cumulative[old.metric].subtract(window_sketches(old))
            elif key[0] <= self._dropped_ms:
                # What it had added is not known any more: better without the correction than with all of it twice.
                self._count("forgotten_window", f"window {key[0]} of {key[1]} was dropped to save memory")
                parts = [part for part in parts if (part.start_ms, part.metric, part.partition) != key]
        for part in parts:
            self.cumulative.setdefault(part.metric, CumulativeSketches()).add(window_sketches(part))
            self._kept.setdefault((part.start_ms, part.metric, part.partition), []).append(part)
            self._kept_bytes += _size(part)

    def _forget(self, marker: Sealed) -> None:
        horizon = marker.end_ms - marker.lateness_ms - 2 * marker.resolution_ms
        for key in list(self._kept):
            if key[0] >= horizon and self._kept_bytes <= KEEP_BYTES:
                break  # insertion follows time closely enough: what is younger comes later
            if key[0] >= horizon:
                self._dropped_ms = max(self._dropped_ms, key[0])
            self._kept_bytes -= sum(map(_size, self._kept.pop(key)))
        for place in [place for place in self._pending if place[2] < horizon]:
            for part in self._pending.pop(place):
                self._count("no_marker", f"part of {part.metric[:80]!r} for window {part.start_ms} was never sealed")

    def snapshot(self) -> bytes:
        """The whole state."""
        return msgspec.msgpack.encode(
            {
                "kinds": self.kinds,
                "totals": {m: {p: t.values for p, t in shards.items()} for m, shards in self.totals.items()},
                "cumulative": {metric: sums.pack() for metric, sums in self.cumulative.items()},
                "sealed": self.sealed,
                "current": [part for parts in self.current.values() for part in parts],
                "newest": [[*source, *place, sorted(seen)] for source, (place, seen) in self._newest.items()],
                "places": [*self._base, self._dropped_ms],
                "pending": [part for parts in self._pending.values() for part in parts],
                "kept": [part for parts in self._kept.values() for part in parts],
                "counts": [self.generation, self.repetitions],
                "malformed": self.malformed,
            }
        )

    def restore(self, data: bytes) -> None:
        """Become what `snapshot` wrote. Raises SnapshotError."""
        fresh = GatewayFold()
        try:
            fresh._unpack(msgspec.msgpack.decode(data))
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise SnapshotError(f"gateway state of {len(data)} bytes can't be read: {error}") from error
        self.__dict__.update(fresh.__dict__)

    def _unpack(self, state: dict[str, Any]) -> None:
        self.kinds = {metric: Kind(kind) for metric, kind in state["kinds"].items()}
        for metric, shards in state["totals"].items():
            for partition, values in shards.items():
                totals = self.totals.setdefault(metric, {})[partition] = Totals()
                totals.values = dict(values)
        self.cumulative = {metric: CumulativeSketches.unpack(packed) for metric, packed in state["cumulative"].items()}
        self.sealed = msgspec.convert(state["sealed"], dict[int, Sealed])
        for part in msgspec.convert(state["current"], list[Part]):
            self.current.setdefault((part.metric, part.partition), []).append(part)
        for metric, resolution_ms, partition, position, start_ms, pieces in state["newest"]:
            place = (msgspec.convert(position, LogPosition), start_ms)
            self._newest[metric, resolution_ms, partition] = (place, set(pieces))
        end_ms, minus_resolution, self._dropped_ms = state["places"]
        self._base = (end_ms, minus_resolution)
        for part in msgspec.convert(state["pending"], list[Part]):
            self._wait(part)
        for part in msgspec.convert(state["kept"], list[Part]):
            self._kept.setdefault((part.start_ms, part.metric, part.partition), []).append(part)
            self._kept_bytes += _size(part)
        self.generation, self.repetitions = state["counts"]
        self.malformed = dict(state["malformed"])

    def totals_of(self, metric: str) -> dict[bytes, int | float]:
        """Running totals by key, over all partitions."""
        shards = list(self.totals.get(metric, {}).values())
        if len(shards) == 1:
            return shards[0].values
        found: dict[bytes, int | float] = {}
        for shard in shards:
            for key, value in shard.values.items():
                found[key] = found.get(key, 0) + value
        return found

    def _check(self, part: Part) -> None:
        """Raise FrameError unless all of the part can be taken and shown: after that nothing of it can fail."""
        kinds = [bool(part.counters), bool(part.gauges), bool(part.sketches)]
        if sum(kinds) != 1:
            raise FrameError("malformed", f"part of {part.metric[:80]!r} has {sum(kinds)} kinds of columns, expected 1")
        columns: WindowCounters | WindowGauges | WindowSketches
        if part.counters:
            columns = window_counters(part)
        elif part.gauges:
            columns = gauges = window_gauges(part)
            if not gauges.nodes.all():
                raise FrameError("range", f"part of {part.metric[:80]!r} has a gauge of no nodes")
            if not all(np.isfinite(a).all() for a in (gauges.minimum, gauges.maximum, gauges.last)):
                raise FrameError("not_finite", f"part of {part.metric[:80]!r} has a gauge that is NaN or infinite")
        else:
            columns = sketches = window_sketches(part)
            if len(sketches.counts) and int(np.abs(sketches.counts).max()) > 1 << 53:
                raise FrameError("range", f"part of {part.metric[:80]!r} has a bucket count over 2^53")
        self._check_kind(part)
        self._check_keys(part, columns.keys)

    def _check_kind(self, part: Part) -> None:
        kind, metric = _kind(part), part.metric
        listed = CATALOGUE.get(metric)
        expected = listed.kind if listed is not None else self.kinds.get(metric)
        if expected is None:
            try:
                define(metric, kind, help="?")  # only for what it refuses
            except CatalogueError as error:
                raise FrameError("catalogue", str(error)) from error
        elif expected != kind:
            raise FrameError("kind", f"{metric} came as a {kind}, it is a {expected}")

    def _check_keys(self, part: Part, keys: list[bytes]) -> None:
        blob = (part.counters or part.gauges or part.sketches)[0]
        source = (part.metric, part.partition, part.piece)
        if self._passed.get(source) == blob:
            return
        if len(set(keys)) != len(keys):
            raise FrameError("duplicate_key", f"part of {part.metric} repeats a key")
        name = part.metric.encode()
        for key in keys:
            if key.partition(LABEL_SEP)[0] != name:
                raise FrameError("key", f"part of {part.metric} has a key of another metric: {key[:80]!r}")
            try:
                check_key(key)
            except SeriesKeyError as error:
                raise FrameError("key", str(error)) from error
        self._passed[source] = blob

    def gauges_of(self, metric: str) -> list[WindowGauges]:
        """A gauge metric's columns of the newest window, one for each part."""
        return [
            window_gauges(p) for (name, _), parts in self.current.items() if name == metric for p in parts if p.gauges
        ]


def _kind(part: Part) -> Kind:
    return Kind.COUNTER if part.counters else Kind.GAUGE if part.gauges else Kind.HISTOGRAM


def _size(part: Part) -> int:
    return 200 + sum(map(len, part.sketches))
