"""The aggregator's fold: frames in, exact windows out. A deterministic function of the DELTAS log of one partition.

The way of a frame, in `apply`: header → subject and sequence checks (nodes) → columns → keys to ids (series) → its
window → added (kernel). Then whatever is due is published: corrected windows, and windows that every live node has
passed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from ..proto.bus import LogMessage
from ..proto.catalogue import Kind
from ..proto.errors import FrameError
from ..proto.exact import I64, MAX_TOTAL
from ..proto.fold import Output
from ..proto.logs import get_logger
from ..proto.subjects import Subjects, node_of_token
from ..proto.wire import (
    MAX_PAYLOAD,
    SENT_HEADER,
    Frame,
    FrameKind,
    FrameWire,
    LogPosition,
    Sealed,
    Settings,
    decode,
    decode_header,
    frame_of,
)
from . import snapshot
from .grid import Grid, Span
from .kernel import CounterSums, SketchLayout, bucket_ranges, check_sums
from .ledger import Ledgers
from .nodes import Incarnation, Node, NodeTable, Verdict
from .parts import Place, counter_columns, gauge_columns, publications, sealed_output, sketch_columns
from .pipeline import pipeline_columns
from .series import Resolved, SeriesTables
from .windows import Window

log = get_logger(__name__)

#: A frame may lie this far ahead of the broker's clock, in intervals, after its clock's error is taken out.
_FUTURE_INTERVALS = 2
#: Corrected windows are published together once the first correction is this old, ms of broker time.
_REVISION_DELAY_MS = 1000
#: Empty windows that are sealed one by one while nobody lives; a longer idle time is passed over in one step.
_MAX_IDLE_WINDOWS = 720
#: Nodes that a marker names as missing.
_MAX_NAMED = 32


class AggregatorFold:
    """State of one partition. See `proto.fold.Fold` for the contract."""

    version = 1

    def __init__(self, cluster: str, partition: int, settings: Settings) -> None:
        self.subjects = Subjects(cluster)
        self.partition = partition
        self.settings = settings
        self.grid = Grid.of(settings.interval_ms)
        self.nodes = NodeTable()
        self.ledger = Ledgers()
        self.series = SeriesTables(settings.max_series_per_metric, settings.max_series)
        self.totals = CounterSums()
        self.layout = SketchLayout()
        self.windows: dict[int, Window] = {}
        #: Broker time of the newest message, ms.
        self.now_ms = 0
        #: Start of the first window that is not sealed; None before the first frame.
        self.next_start: int | None = None
        # A node that the next window waits for. Only saves looking at all nodes for each frame; not a part of the
        # state.
        self._laggard: Node | None = None
        # No total is above this, with all that open windows will add: only absurd increments take it past the limit,
        # and only then sums are looked at. Not a part of the state.
        self._ceiling = 0
        self._tick_subject = self.subjects.tick(partition)
        self._delta_prefix = self.subjects.delta(partition, "")

    # The fold

    def apply(self, message: LogMessage, position: LogPosition) -> Sequence[Output]:
        """Take one frame, tick or settings message."""
        self.now_ms = max(self.now_ms, message.time_ms)
        outputs: list[Output] = []
        if message.subject.startswith(self._delta_prefix):
            try:
                outputs += self._frame(message, position)
            except FrameError as problem:
                self.ledger.reject(problem.reason)
                log.warning(
                    "frame rejected", every_s=10.0, key=problem.reason, reason=problem.reason, detail=problem.detail,
                    subject=message.subject, sequence=message.sequence,
                )  # fmt: skip
        elif message.subject == self.subjects.settings:
            self._settings(message)
        outputs += self._due(position)
        outputs.sort(key=lambda output: output.order)  # a late part may be of a later window than a correction
        return outputs

    def _settings(self, message: LogMessage) -> None:
        try:
            settings = decode(Settings, message.data)
        except FrameError as problem:
            log.warning("settings in the log can't be read; they are ignored", reason=str(problem))
            return
        if settings != self.settings:
            log.info("settings change", sequence=message.sequence, **msgspec.structs.asdict(settings))
            if self.next_start is None:
                self.grid = Grid.of(settings.interval_ms)
            elif settings.interval_ms != self.settings.interval_ms:
                # Windows that are open, and those that nodes are filling now, keep their length.
                begun_ms = max([self.next_start, *(self.grid.span(start_ms).end_ms for start_ms in self.windows)])
                self.grid.change(settings.interval_ms, max(begun_ms, self.now_ms if settings.clock == "broker" else 0))
            self.settings = settings
            self.series.set_caps(settings.max_series_per_metric, settings.max_series)

    def _frame(self, message: LogMessage, position: LogPosition) -> Iterator[Output]:
        self.ledger.received += 1
        wire = decode_header(message.data)
        node = node_of_token(message.subject[len(self._delta_prefix) :])
        if wire.node != node:
            raise FrameError("node_claim", f"a frame of node {wire.node[:80]!r} came on the subject of node {node!r}")
        if wire.partition != self.partition:
            raise FrameError("partition", f"a frame of partition {wire.partition} came on that of {self.partition}")
        sample_ms = _skew_sample(message)
        start_ms, end_ms = self._span(wire, sample_ms)
        verdict, missing, incarnation = self.nodes.admit(wire, self.now_ms, sample_ms)
        self.ledger.missed(missing)
        if verdict is Verdict.DUPLICATE:
            self.ledger.duplicate += 1
            return iter(())
        # The promise stands whatever the columns hold: nothing else will come with this sequence.
        span = self._promise(wire, start_ms, end_ms, incarnation)
        frame = frame_of(wire)
        outputs, late = self._merge(frame, span, position)
        self.ledger.applied += 1
        self.ledger.healed += verdict is Verdict.HEALED
        self.ledger.late += late
        return iter(outputs)

    def _span(self, wire: FrameWire, sample_ms: int | None) -> tuple[int, int]:
        """The frame's span in broker time: moved by whole intervals when the node's clock is wrong."""
        if self.settings.clock == "event":
            return wire.start_ms, wire.end_ms
        shift_ms = self.nodes.shift_ms(wire.node, sample_ms, self.settings.interval_ms, self.settings.seal_deadline_ms)
        start_ms, end_ms = max(0, wire.start_ms - shift_ms), max(0, wire.end_ms - shift_ms)
        longest_ms = self.grid.longest_ms  # a node may not have heard yet that windows are shorter now
        limit_ms = self.now_ms + _FUTURE_INTERVALS * longest_ms
        if start_ms > limit_ms or end_ms > limit_ms + longest_ms:
            raise FrameError(
                "future_window",
                f"node {wire.node!r} reports [{start_ms}, {end_ms}) at broker time {self.now_ms} ms; check its clock",
            )
        return start_ms, end_ms

    def _promise(self, wire: FrameWire, start_ms: int, end_ms: int, incarnation: Incarnation) -> Span:
        """Note what the frame promises; the window that it counts in."""
        incarnation.promise(start_ms if wire.kind in (FrameKind.MORE, FrameKind.HELLO) else end_ms)
        span = self.grid.of_frame(start_ms, end_ms)
        if self.next_start is None:
            self.next_start = span.start_ms
            if self.settings.clock == "broker":
                oldest_ms = max(0, self.now_ms - self.settings.lateness_ms)
                self.next_start = max(self.next_start, self.grid.span(oldest_ms).start_ms)
        return span

    def _merge(self, frame: Frame, span: Span, position: LogPosition) -> tuple[list[Output], bool]:
        """Add the frame's columns to its window, all or nothing. Returns what goes out at once, and whether it was
        late.
        """
        start_ms = span.start_ms
        columns = {
            kind: (c.keys, n)
            for kind, c, n in (
                (Kind.COUNTER, frame.counters, len(frame.counters.whole)),
                (Kind.GAUGE, frame.gauges, len(frame.gauges.values)),
                (Kind.HISTOGRAM, frame.sketches, len(frame.sketches.zero)),
            )
            if n or c.keys
        }
        if not columns:
            return [], False
        assert self.next_start is not None
        resolved = self.series.resolve(columns, frame.node)
        late = start_ms < self.next_start
        closed = start_ms < self.next_start - self.settings.lateness_ms and start_ms not in self.windows
        window = Window(start_ms) if closed else self.windows.get(start_ms) or Window(start_ms)
        self._check(frame, resolved, window)
        self._add(frame, resolved, window, late)
        for one in resolved.values():
            if one.overflow:
                self.ledger.overflowed(one.overflow)
        if closed:
            return self._totals_only(window, span, position), True
        self.windows[start_ms] = window
        if late:
            window.dirty_ms = window.dirty_ms or self.now_ms
            incarnation = self.nodes.nodes[frame.node].newest
            if incarnation.progress_ms >= span.end_ms:
                window.missing.discard(frame.node)
        return [], late

    def _check(self, frame: Frame, resolved: dict[Kind, Resolved], window: Window) -> None:
        """Raise FrameError if something would overflow. Makes room, but changes no sum."""
        tables = self.series.tables
        if (r := resolved.get(Kind.COUNTER)) is not None:
            self.totals.reserve(len(tables[Kind.COUNTER]))
            self._check_totals(r, frame.counters.whole)
            window.counters.reserve(len(tables[Kind.COUNTER]))
        if (r := resolved.get(Kind.HISTOGRAM)) is not None:
            used, first, last = bucket_ranges(frame.sketches.lengths, frame.sketches.indices)
            self._hold(len(tables[Kind.HISTOGRAM]), r.ids[used], first, last)
            window.check_sketches(frame, r, len(tables[Kind.HISTOGRAM]), self.layout)

    def _check_totals(self, resolved: Resolved, whole: I64) -> None:
        """Raise FrameError (``overflow``) if a total could pass 2^62 with these increments."""
        most = int(whole.max()) * (1 if resolved.distinct else len(whole))
        if self._ceiling + most > MAX_TOTAL:
            sums = self._open_sums()
            self._ceiling = sum(one.most for one in sums)
            if self._ceiling + most > MAX_TOTAL:
                check_sums(sums, resolved.ids, whole)
        self._ceiling += most

    def _open_sums(self) -> list[CounterSums]:
        """Totals, and what open windows will add to them."""
        return [self.totals, *(w.counters for start, w in self.windows.items() if start >= (self.next_start or 0))]

    def _hold(self, series: int, ids: I64, first: I64, last: I64) -> None:
        wider = self.layout.wider(series, ids, first, last)
        if wider is not None:
            for window in self.windows.values():
                window.relayout(self.layout, wider)
            self.layout = wider

    def _add(self, frame: Frame, resolved: dict[Kind, Resolved], window: Window, late: bool) -> None:
        if (r := resolved.get(Kind.COUNTER)) is not None:
            window.add_counters(frame, r, len(self.series.tables[Kind.COUNTER]))
            if late:  # totals hold what is sealed; an open window's part comes with its seal
                self.totals.add(r.ids, frame.counters.whole, frame.counters.fraction, r.distinct)
        if (r := resolved.get(Kind.GAUGE)) is not None:
            window.add_gauges(frame, r)
        if (r := resolved.get(Kind.HISTOGRAM)) is not None:
            window.add_sketches(frame, r, self.layout)

    # What is due

    def _due(self, position: LogPosition) -> list[Output]:
        outputs: list[Output] = []
        if self.next_start is None:
            return outputs
        sealing = self._cause_to_seal()
        outputs += self._revisions(position, at_once=bool(sealing))
        while sealing:
            outputs.append(self._seal(sealing, position))
            sealing = self._cause_to_seal()
        return outputs

    def _cause_to_seal(self) -> str:
        """Why the next window is to be sealed now; empty when it is not."""
        assert self.next_start is not None
        settings = self.settings
        end_ms = self.grid.span(self.next_start).end_ms
        laggard = self._laggard
        overdue = settings.clock == "broker" and self.now_ms >= end_ms + settings.seal_deadline_ms
        if (
            laggard is not None
            and not overdue
            and not laggard.newest.left
            and laggard.newest.progress_ms < end_ms
            and self.now_ms - laggard.newest.last_seen_ms <= settings.node_timeout_ms
        ):
            return ""
        live = self.nodes.live(self.now_ms, settings.node_timeout_ms)
        # Of several that are behind the last is kept: frames tend to come in the order of names.
        behind = [node for node in live if node.newest.progress_ms < end_ms]
        self._laggard = behind[-1] if behind else None
        if live and not behind:
            return "watermark"
        if overdue:
            return "deadline"
        if not live and settings.clock == "event" and any(start >= self.next_start for start in self.windows):
            return "watermark"
        return ""

    def _seal(self, cause: str, position: LogPosition) -> Output:
        assert self.next_start is not None
        settings = self.settings
        start_ms, end_ms, _ = self.grid.span(self.next_start)
        live = self.nodes.live(self.now_ms, settings.node_timeout_ms)
        window = self.windows.pop(start_ms, None) or Window(start_ms)
        window.cause = cause
        window.expected = {node.name for node in live} | set(window.gauges.by_node)
        window.missing = {node.name for node in live if node.newest.progress_ms < end_ms}
        cells = window.counter_cells()
        self.totals.add(cells.ids, cells.whole, cells.fraction, distinct=True)
        self.next_start = end_ms
        self._laggard = None
        delay_ms = self.now_ms - end_ms if settings.clock == "broker" else None
        output = self._publish(window, position, own=True, delay_ms=delay_ms)
        window.freeze(self.layout)
        self.windows[start_ms] = window
        self._forget(live)
        return output

    def _forget(self, live: list[Node]) -> None:
        assert self.next_start is not None
        horizon = self.next_start - self.settings.lateness_ms
        for start_ms in [s for s, w in self.windows.items() if s < horizon and not w.dirty_ms]:
            del self.windows[start_ms]
        self.grid.forget(min([horizon, *self.windows]))
        self.nodes.forget(self.now_ms)
        # After a long time without anybody do not seal the night window by window.
        reached = [s for s in self.windows if s >= self.next_start]
        if self.settings.clock == "broker":
            reached.append(self.now_ms)
        else:
            reached += [node.newest.progress_ms for node in live]
        oldest_ms = min(reached, default=0) - _MAX_IDLE_WINDOWS * self.settings.interval_ms
        if oldest_ms > self.next_start:
            self.next_start = self.grid.span(oldest_ms).start_ms

    def _revisions(self, position: LogPosition, at_once: bool) -> list[Output]:
        """Sealed windows that late frames have corrected, together rather than once a frame."""
        dirty = sorted(
            start
            for start, window in self.windows.items()
            if window.dirty_ms and (at_once or self.now_ms - window.dirty_ms >= _REVISION_DELAY_MS)
        )
        outputs = []
        for start_ms in dirty:
            window = self.windows[start_ms]
            window.dirty_ms = 0
            window.revision = max(window.revision, 0)
            window.cause = "late"
            outputs.append(self._publish(window, position, own=False, delay_ms=None))
            window.freeze(self.layout)
        return outputs

    def _publish(self, window: Window, position: LogPosition, own: bool, delay_ms: int | None) -> Output:
        window.revision += 1
        settings = self.settings
        start_ms, end_ms, resolution_ms = self.grid.span(window.start_ms)
        place = Place(self.partition, resolution_ms, start_ms, end_ms, window.revision, position)
        columns = list(self._columns(window))
        heard = len(window.expected) - len(window.missing)
        if own:
            live = self.nodes.live(self.now_ms, settings.node_timeout_ms)
            stale = self.nodes.stale(self.now_ms, settings.node_timeout_ms)
            completeness = heard / len(window.expected) if window.expected else 1.0
            columns += pipeline_columns(
                self.ledger,
                live,
                stale,
                completeness,
                len(self.series),
                delay_ms,
                end_ms,
                with_nodes=self.partition == 0,
            )
        parts, metrics = publications(self.subjects, place, columns, MAX_PAYLOAD)
        marker = Sealed(
            partition=self.partition,
            resolution_ms=resolution_ms,
            start_ms=start_ms,
            end_ms=end_ms,
            revision=window.revision,
            position=position,
            sealed_ms=self.now_ms,
            cause=window.cause,
            nodes_expected=len(window.expected),
            nodes_heard=heard,
            missing=sorted(window.missing)[:_MAX_NAMED],
            gaps=min(self.nodes.missing, MAX_TOTAL),
            metrics=metrics,
            ledger=self.ledger.message(),
            lateness_ms=settings.lateness_ms,
        )
        return sealed_output(self.subjects, parts, marker, place)

    def _totals_only(self, window: Window, span: Span, position: LogPosition) -> list[Output]:
        """What came after its window was closed for good: it counts in totals, and is said apart."""
        place = Place(self.partition, 0, span.start_ms, span.end_ms, 0, position)
        stages, _ = publications(self.subjects, place, self._columns(window, gauges=False), MAX_PAYLOAD)
        return [Output((position, span.start_ms), stages)] if stages else []

    def _columns(self, window: Window, gauges: bool = True) -> Iterator[tuple[Kind, str, list[bytes]]]:
        tables = self.series.tables
        counters = window.counter_cells()
        for metric, columns in counter_columns(tables[Kind.COUNTER], counters, self.totals.at(counters.ids)):
            yield Kind.COUNTER, metric, columns
        if gauges:
            for metric, columns in gauge_columns(tables[Kind.GAUGE], window.gauges.cells()):
                yield Kind.GAUGE, metric, columns
        for metric, columns in sketch_columns(tables[Kind.HISTOGRAM], window.sketch_cells(self.layout)):
            yield Kind.HISTOGRAM, metric, columns

    # Snapshots

    def snapshot(self) -> bytes:
        """The whole state. Equal states give equal bytes."""
        return snapshot.pack(self)

    def restore(self, data: bytes) -> None:
        """Become what `snapshot` wrote. Raises SnapshotError."""
        fresh = AggregatorFold(self.subjects.cluster, self.partition, self.settings)
        snapshot.unpack(fresh, data)
        fresh._ceiling = sum(sums.most for sums in fresh._open_sums())
        self.__dict__.update(fresh.__dict__)


def _skew_sample(message: LogMessage) -> int | None:
    """How far the sender's clock was ahead when it sent this, ms, less the delay; None without a usable header."""
    text = message.headers.get(SENT_HEADER, "")
    return int(text) - message.time_ms if text.isascii() and text.isdigit() and len(text) <= 15 else None
