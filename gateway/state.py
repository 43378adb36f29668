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
from ..proto.catalogue import Kind
from ..proto.errors import FrameError, SnapshotError
from ..proto.exact import to_float
from ..proto.fold import Output
from ..proto.logs import get_logger
from ..proto.subjects import SEALED
from ..proto.window import WindowCounters, WindowGauges, window_counters, window_gauges, window_sketches
from ..proto.wire import LogPosition, Part, Sealed, decode
from .cumulative import CumulativeSketches

log = get_logger(__name__)

#: Windows of sketches are kept for a revision to replace them: as long as one may come, and at most so many bytes of
#: them.
KEEP_BYTES = 256 * 1024 * 1024

_Place = tuple[LogPosition, int, int]


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

    version = 1

    def __init__(self) -> None:
        self.kinds: dict[str, Kind] = {}
        self.totals: dict[str, Totals] = {}
        self.cumulative: dict[str, CumulativeSketches] = {}
        #: The newest sealed marker of each partition, at the base resolution.
        self.sealed: dict[int, Sealed] = {}
        #: The parts of that window, by (metric, partition).
        self.current: dict[tuple[str, int], list[Part]] = {}
        #: Grows with each change that a reader can see.
        self.generation = 0
        self.repetitions = 0
        self.malformed: dict[str, int] = {}
        self._newest: dict[tuple[str, int, int], _Place] = {}
        self._pending: dict[tuple[int, int, int], list[Part]] = {}
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
                self._part(decode(Part, message.data))
        except (FrameError, IndexError) as problem:
            reason = problem.reason if isinstance(problem, FrameError) else "subject"
            self.malformed[reason] = self.malformed.get(reason, 0) + 1
            log.warning("window can't be read", every_s=10.0, key=reason, subject=message.subject, reason=str(problem))
        return ()

    def _part(self, part: Part) -> None:
        _check(part)
        source = (part.metric, part.resolution_ms, part.partition)
        place = (part.position, part.start_ms, part.piece)
        newest = self._newest.get(source)
        if newest is not None and place <= newest:
            self.repetitions += 1
            return
        self._newest[source] = place
        if part.resolution_ms == 0:
            self._take_totals(part)
            if part.sketches:
                self.cumulative.setdefault(part.metric, CumulativeSketches()).add(window_sketches(part))
            self.generation += 1
            return
        self._pending.setdefault((part.partition, part.start_ms, part.revision), []).append(part)

    def _seal(self, marker: Sealed) -> None:
        source = (SEALED, marker.resolution_ms, marker.partition)
        place = (marker.position, marker.start_ms, 0)
        newest = self._newest.get(source)
        if newest is not None and place <= newest:
            self.repetitions += 1
            return
        self._newest[source] = place
        parts = self._pending.pop((marker.partition, marker.start_ms, marker.revision), [])
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
            self.totals.setdefault(part.metric, Totals()).take(window_counters(part))

    def _replace_sketches(self, parts: list[Part]) -> None:
        for key in {(part.start_ms, part.metric, part.partition) for part in parts}:
            for old in self._kept.pop(key, ()):
                self._kept_bytes -= _size(old)
                self.cumulative[old.metric].subtract(window_sketches(old))
        for part in parts:
            self.cumulative.setdefault(part.metric, CumulativeSketches()).add(window_sketches(part))
            self._kept.setdefault((part.start_ms, part.metric, part.partition), []).append(part)
            self._kept_bytes += _size(part)

    def _forget(self, marker: Sealed) -> None:
        horizon = marker.end_ms - marker.lateness_ms - 2 * marker.resolution_ms
        for key in list(self._kept):
            if key[0] >= horizon and self._kept_bytes <= KEEP_BYTES:
                break  # insertion follows time closely enough: what is younger comes later
            self._kept_bytes -= sum(map(_size, self._kept.pop(key)))
        for place in [place for place in self._pending if place[1] < horizon]:
            del self._pending[place]

    def snapshot(self) -> bytes:
        """The whole state."""
        return msgspec.msgpack.encode(
            {
                "kinds": self.kinds,
                "totals": {metric: totals.values for metric, totals in self.totals.items()},
                "cumulative": {metric: sums.pack() for metric, sums in self.cumulative.items()},
                "sealed": self.sealed,
                "current": [part for parts in self.current.values() for part in parts],
                "newest": [[*source, *place] for source, place in self._newest.items()],
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
        for metric, values in state["totals"].items():
            self.totals[metric] = Totals()
            self.totals[metric].values = dict(values)
        self.cumulative = {metric: CumulativeSketches.unpack(packed) for metric, packed in state["cumulative"].items()}
        self.sealed = msgspec.convert(state["sealed"], dict[int, Sealed])
        for part in msgspec.convert(state["current"], list[Part]):
            self.current.setdefault((part.metric, part.partition), []).append(part)
        for metric, resolution_ms, partition, position, start_ms, piece in state["newest"]:
            place = (msgspec.convert(position, LogPosition), start_ms, piece)
            self._newest[metric, resolution_ms, partition] = place
        for part in msgspec.convert(state["pending"], list[Part]):
            self._pending.setdefault((part.partition, part.start_ms, part.revision), []).append(part)
        for part in msgspec.convert(state["kept"], list[Part]):
            self._kept.setdefault((part.start_ms, part.metric, part.partition), []).append(part)
            self._kept_bytes += _size(part)
        self.generation, self.repetitions = state["counts"]
        self.malformed = dict(state["malformed"])

    def gauges_of(self, metric: str) -> list[WindowGauges]:
        """A gauge metric's columns of the newest window, one for each part."""
        return [
            window_gauges(p) for (name, _), parts in self.current.items() if name == metric for p in parts if p.gauges
        ]


def _check(part: Part) -> None:
    """Raise FrameError unless the part's columns fit together: after that nothing of it can fail."""
    kinds = [bool(part.counters), bool(part.gauges), bool(part.sketches)]
    if sum(kinds) != 1:
        raise FrameError("malformed", f"part of {part.metric[:80]!r} has {sum(kinds)} kinds of columns, expected 1")
    if part.counters:
        window_counters(part)
    elif part.gauges:
        window_gauges(part)
    else:
        sketches = window_sketches(part)
        if len(sketches.counts) and int(np.abs(sketches.counts).max()) > 1 << 53:
            raise FrameError("range", f"part of {part.metric[:80]!r} has a bucket count over 2^53")


def _kind(part: Part) -> Kind:
    return Kind.COUNTER if part.counters else Kind.GAUGE if part.gauges else Kind.HISTOGRAM


def _size(part: Part) -> int:
    return 200 + sum(map(len, part.sketches))
