"""Frames, logs and folds for tests: build a log by hand, run an `AggregatorFold` over it, read what it published.

log = Log()
a = log.node("a")
a.hello(T0)
a.data(T0, counters={key("hits_total"): 3})
published = run(fold(), log.messages)
published.counters["hits_total", T0] == {key("hits_total"): 3}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from fleetmeter.aggregator.fold import AggregatorFold
from fleetmeter.emitter.tally import Tally
from fleetmeter.proto import exact
from fleetmeter.proto.bus import LogMessage
from fleetmeter.proto.exact import ONE
from fleetmeter.proto.fold import Output
from fleetmeter.proto.keys import encode_key
from fleetmeter.proto.sketch import Sketch
from fleetmeter.proto.subjects import Subjects
from fleetmeter.proto.window import window_counters, window_gauges, window_sketches
from fleetmeter.proto.wire import (
    SENT_HEADER,
    Frame,
    FrameKind,
    LogPosition,
    Part,
    Sealed,
    Settings,
    Tick,
    decode,
    encode,
    encode_frame,
)

#: A whole hour, so that windows of any length begin at it.
T0 = 1_699_999_200_000
#: Window length of `Log` and `fold` unless said otherwise, ms.
STEP = 5000
CLUSTER = "test"
SUBJECTS = Subjects(CLUSTER)
CREATED = 1_600_000_000_000

Values = Mapping[bytes, Sequence[float]]


def key(metric: str, **labels: str) -> bytes:
    """The key of a series."""
    return encode_key(metric, labels)


def tally(
    counters: Mapping[bytes, float] | None = None,
    gauges: Mapping[bytes, tuple[float, int]] | None = None,
    values: Values | None = None,
) -> Tally:
    """Increments, gauges as (value, set at ms), and recorded values, by key."""
    made = Tally()
    for series, increment in (counters or {}).items():
        made.count(series, int(Fraction(increment) * ONE))
    made.gauges.update(gauges or {})
    for series, recorded in (values or {}).items():
        made.observe(series, [np.array(recorded, np.float64)])
    return made


def frame(
    node: str,
    sequence: int,
    start_ms: int,
    end_ms: int,
    content: Tally | None = None,
    *,
    kind: FrameKind = FrameKind.DATA,
    incarnation: int = 1,
    partition: int = 0,
    sent_ms: int | None = None,
) -> bytes:
    """A frame's bytes."""
    content = content or Tally()
    return encode_frame(
        Frame(
            kind=kind,
            node=node,
            incarnation=incarnation,
            partition=partition,
            sequence=sequence,
            start_ms=start_ms,
            end_ms=end_ms,
            sent_ms=end_ms if sent_ms is None else sent_ms,
            counters=content.counter_columns(),
            gauges=content.gauge_columns(),
            sketches=content.sketch_columns(),
        )
    )


@dataclass
class Log:
    """Messages in the order in which they are put, each at a broker time; sequences count from 1."""

    messages: list[LogMessage] = field(default_factory=list)
    now_ms: int = T0

    def put(
        self, subject: str, payload: bytes, at_ms: int | None = None, headers: Mapping[str, str] | None = None
    ) -> LogMessage:
        """Append a message; without `at_ms` at the time of the one before."""
        self.now_ms = self.now_ms if at_ms is None else at_ms
        message = LogMessage(subject, payload, len(self.messages) + 1, self.now_ms, 0, headers or {})
        self.messages.append(message)
        return message

    def raw(self, payload: bytes, node: str = "a", at_ms: int | None = None, partition: int = 0) -> LogMessage:
        """Any bytes on a node's subject."""
        return self.put(SUBJECTS.delta(partition, node), payload, at_ms)

    def again(self, message: LogMessage, at_ms: int | None = None) -> LogMessage:
        """The same frame, sent later: by default now."""
        at_ms = self.now_ms if at_ms is None else at_ms
        sent_ms = int(message.headers[SENT_HEADER]) + at_ms - message.time_ms
        return self.put(message.subject, message.data, at_ms, {SENT_HEADER: str(sent_ms)})

    def tick(self, at_ms: int) -> LogMessage:
        return self.put(SUBJECTS.tick(0), encode(Tick(0)), at_ms)

    def settings(self, settings: Settings, at_ms: int | None = None) -> LogMessage:
        return self.put(SUBJECTS.settings, encode(settings), at_ms)

    def node(self, name: str, incarnation: int = 1, skew_ms: int = 0) -> Writer:
        return Writer(self, name, incarnation, skew_ms)


@dataclass
class Writer:
    """One process, whose clock is `skew_ms` ahead: its frames go into the log with the next sequence.

    Times that are given are true; the frames say what the process's clock does. A frame arrives at its end unless
    `at_ms` says otherwise, in true time.
    """

    log: Log
    name: str
    incarnation: int = 1
    skew_ms: int = 0
    sequence: int = 0
    step_ms: int = STEP

    def hello(self, start_ms: int, at_ms: int | None = None) -> LogMessage:
        return self.send(FrameKind.HELLO, start_ms, start_ms, None, start_ms if at_ms is None else at_ms)

    def data(
        self,
        start_ms: int,
        counters: Mapping[bytes, float] | None = None,
        gauges: Mapping[bytes, tuple[float, int]] | None = None,
        values: Values | None = None,
        *,
        at_ms: int | None = None,
        end_ms: int | None = None,
        kind: FrameKind = FrameKind.DATA,
    ) -> LogMessage:
        end = start_ms + self.step_ms if end_ms is None else end_ms
        return self.send(kind, start_ms, end, tally(counters, gauges, values), end if at_ms is None else at_ms)

    def bye(self, start_ms: int, at_ms: int) -> LogMessage:
        return self.send(FrameKind.BYE, start_ms, start_ms + self.step_ms, None, at_ms)

    def skip(self, frames: int = 1) -> None:
        """Lose frames."""
        self.sequence += frames

    def send(self, kind: FrameKind, start_ms: int, end_ms: int, content: Tally | None, at_ms: int) -> LogMessage:
        self.sequence += 1
        skew = self.skew_ms
        payload = frame(
            self.name, self.sequence, start_ms + skew, end_ms + skew, content,
            kind=kind, incarnation=self.incarnation, sent_ms=at_ms + skew,
        )  # fmt: skip
        return self.log.put(SUBJECTS.delta(0, self.name), payload, at_ms, {SENT_HEADER: str(at_ms + skew)})


def fold(settings: Settings | None = None) -> AggregatorFold:
    return AggregatorFold(CLUSTER, 0, settings or Settings())


@dataclass(frozen=True, slots=True)
class GaugeRow:
    sum: float
    average: float
    minimum: float
    maximum: float
    last: float
    last_ms: int
    nodes: int


@dataclass
class Published:
    """What a fold put out, as a reader understands it: of each window and metric the newest revision.

    Increments and totals are exact numbers. `columns` are the bytes of each window's columns by (metric, start, piece),
    without running totals, which depend on when a window was published.
    """

    outputs: list[Output] = field(default_factory=list)
    markers: list[Sealed] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    counters: dict[tuple[str, int], dict[bytes, Fraction]] = field(default_factory=dict)
    gauges: dict[tuple[str, int], dict[bytes, GaugeRow]] = field(default_factory=dict)
    sketches: dict[tuple[str, int], dict[bytes, Sketch]] = field(default_factory=dict)
    totals: dict[bytes, Fraction] = field(default_factory=dict)
    columns: dict[tuple[str, int, int], tuple[bytes, ...]] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)

    @property
    def stored(self) -> list[tuple[str, bytes, str]]:
        """Subject, bytes and message id of all publications, in order."""
        return [
            (p.subject, p.payload, p.message_id) for output in self.outputs for stage in output.stages for p in stage
        ]

    def marker(self, start_ms: int, revision: int = 0) -> Sealed:
        return next(m for m in self.markers if m.start_ms == start_ms and m.revision == revision)

    def add(self, outputs: Iterable[Output]) -> None:
        for output in outputs:
            assert not self.outputs or output.order > self.outputs[-1].order, "an output's order does not grow"
            self.outputs.append(output)
            for stage in output.stages:
                for publication in stage:
                    assert publication.message_id not in self.ids, f"message id {publication.message_id} twice"
                    self.ids.add(publication.message_id)
                    if "._sealed." in publication.subject:
                        self.markers.append(decode(Sealed, publication.payload))
                    else:
                        self._part(decode(Part, publication.payload))

    def _part(self, part: Part) -> None:
        self.parts.append(part)
        place = (part.metric, part.start_ms)
        in_window = part.resolution_ms > 0
        if part.counters:
            c = window_counters(part)
            increments = dict(zip(c.keys, fractions(c.whole, c.fraction), strict=True))
            totals = dict(zip(c.keys, fractions(c.total_whole, c.total_fraction), strict=True))
            for series, total in totals.items():
                assert total >= self.totals.get(series, 0), f"the total of {series!r} decreased"
            self.totals.update(totals)
            if in_window:
                self.counters[place] = {**(self.counters[place] if part.piece else {}), **increments}
        if part.gauges and in_window:
            g = window_gauges(part)
            sums = exact.to_float(g.whole, g.fraction).tolist()
            columns = (sums, *(a.tolist() for a in (g.average(), g.minimum, g.maximum, g.last, g.last_ms, g.nodes)))
            rows = {series: GaugeRow(*row) for series, *row in zip(g.keys, *columns, strict=True)}
            self.gauges[place] = {**(self.gauges[place] if part.piece else {}), **rows}
        if part.sketches and in_window:
            s = window_sketches(part)
            sketches = dict(zip(s.keys, s.sketches(), strict=True))
            self.sketches[place] = {**(self.sketches[place] if part.piece else {}), **sketches}
        if in_window:
            self.columns[*place, part.piece] = (*part.counters[:3], *part.gauges, *part.sketches)


def run(into: AggregatorFold, messages: Iterable[LogMessage], published: Published | None = None) -> Published:
    """Apply messages, and read what comes out."""
    published = published or Published()
    for message in messages:
        published.add(into.apply(message, LogPosition(CREATED, message.sequence)))
        check_ledger(into)
    return published


def check_ledger(of: AggregatorFold) -> None:
    """Every frame received is accounted for."""
    ledger = of.ledger.message()
    assert ledger.received == ledger.applied + ledger.duplicate + sum(ledger.rejected.values())
    assert ledger.late + ledger.healed <= 2 * ledger.applied


def fractions(whole: exact.I64, fraction: exact.U64) -> list[Fraction]:
    """A column of numbers, exactly."""
    return [Fraction(units, ONE) for units in exact.to_units(whole, fraction)]
