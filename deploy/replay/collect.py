"""Reading a replay's windows back off the bus: the published parts, put together to a `Result`."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from ...proto import exact
from ...proto.bus import LogMessage
from ...proto.keys import decode_key
from ...proto.subjects import SEALED
from ...proto.window import window_counters, window_sketches
from ...proto.wire import LogPosition, Part, Sealed, decode
from .verify import PERCENTS, Cell, Result, Series, Spread

#: The metrics that a replay records.
METRICS = (
    "requests_total",
    "request_errors_total",
    "tokens_total",
    "cost_usd_total",
    "request_duration_seconds",
    "time_to_first_token_seconds",
)

_Newest = dict[tuple[str, int, int], tuple[LogPosition, int]]


@dataclass
class Collector:
    """Takes messages of the WINDOWS log in order. Of a window's revisions the last counts; repetitions are skipped.

    `first_ms` and `end_ms` bound the windows of the replay; with `only_span` others are left out, because a cluster
    that is in use has them.
    """

    interval_ms: int
    partitions: int
    first_ms: int
    end_ms: int
    only_span: bool
    _newest: _Newest = field(default_factory=dict, init=False)
    _parts: dict[tuple[int, str, int], Part] = field(default_factory=dict, init=False)
    _late: list[Part] = field(default_factory=list, init=False)
    _sealed: dict[int, set[int]] = field(default_factory=dict, init=False)
    _sealed_end: dict[int, int] = field(default_factory=dict, init=False)
    _lacking: set[tuple[int, int]] = field(default_factory=set, init=False)

    def take(self, message: LogMessage) -> None:
        """Raises FrameError when a part can't be read."""
        metric = message.subject.split(".")[-2]
        if metric == SEALED:
            sealed = decode(Sealed, message.data)
            if sealed.resolution_ms == self.interval_ms and self._inside(sealed.start_ms):
                self._sealed.setdefault(sealed.start_ms, set()).add(sealed.partition)
                self._sealed_end[sealed.partition] = max(self._sealed_end.get(sealed.partition, 0), sealed.end_ms)
                lacks = sealed.nodes_heard < sealed.nodes_expected
                (self._lacking.add if lacks else self._lacking.discard)((sealed.start_ms, sealed.partition))
        elif metric in METRICS:
            part = decode(Part, message.data)
            if part.resolution_ms in (0, self.interval_ms) and self._inside(part.start_ms) and self._is_new(part):
                if part.resolution_ms:
                    self._parts[part.start_ms, metric, part.partition] = part
                else:
                    self._late.append(part)

    @property
    def sealed_ms(self) -> int:
        """The end of the newest window that every partition has sealed; the start of the first before that."""
        if len(self._sealed_end) < self.partitions:
            return self.first_ms
        return min(self._sealed_end.values())

    @property
    def complete(self) -> bool:
        """Whether the replay's last window is sealed."""
        return self.sealed_ms >= self.end_ms

    @property
    def corrected(self) -> bool:
        """Whether no window lacks a node; one that was sealed without a late node is published again with it."""
        return not self._lacking

    def result(self) -> Result:
        """What all windows say. Raises FrameError when a part's columns do not fit together."""
        counters: dict[Cell, Fraction] = {}
        histograms: dict[Cell, Spread] = {}
        strays: dict[Series, Fraction] = {}
        for (start_ms, _, _), part in self._parts.items():
            counters |= {(start_ms, key): n for key, n in _increments(part).items() if n}
            histograms |= {(start_ms, key): spread for key, spread in _spreads(part).items()}
        for part in self._late:
            for key, n in _increments(part).items():
                strays[key] = strays.get(key, Fraction(0)) + n
        return Result(
            windows=sorted(start for start, who in self._sealed.items() if len(who) == self.partitions),
            counters=counters,
            histograms=histograms,
            strays=strays,
        )

    def _inside(self, start_ms: int) -> bool:
        return not self.only_span or self.first_ms <= start_ms < self.end_ms

    def _is_new(self, part: Part) -> bool:
        which = (part.metric, part.resolution_ms, part.partition)
        place = (part.position, part.start_ms)
        if which in self._newest and place <= self._newest[which]:
            return False
        self._newest[which] = place
        return True


def _increments(part: Part) -> dict[Series, Fraction]:
    if not part.counters:
        return {}
    columns = window_counters(part)
    units = exact.to_units(columns.whole, columns.fraction)
    return {_series(key): Fraction(n, exact.ONE) for key, n in zip(columns.keys, units, strict=True)}


def _spreads(part: Part) -> dict[Series, Spread]:
    if not part.sketches:
        return {}
    columns = window_sketches(part)
    return {
        _series(key): Spread(
            sketch.count, sketch.minimum, sketch.maximum, tuple(sketch.quantile(p / 100) for p in PERCENTS)
        )
        for key, sketch in zip(columns.keys, columns.sketches(), strict=True)
        if sketch.count
    }


def _series(key: bytes) -> Series:
    metric, labels = decode_key(key)
    return metric, tuple(labels.items())
