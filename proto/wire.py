"""Every message that crosses the bus, and its bytes.

A message is an envelope of four bytes, ``F M <version> <encoding>``, and a msgpack body (array-like structs: fields by
position; new ones are only ever appended, with a default). `PROTOCOL.md` describes the same for writers in other
languages, with test vectors. Times are ms since the Unix epoch; window spans are half-open ``[start_ms, end_ms)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from . import columns
from .columns import CounterColumns, GaugeColumns, SketchColumns
from .errors import FrameError
from .subjects import MAX_NODE

VERSION = 1
MAGIC = b"FM"
PLAIN = 0  # the only encoding of version 1; others are reserved for compression
_HEADER = MAGIC + bytes([VERSION, PLAIN])

#: Largest message that is sent, bytes: NATS' default limit is 1 MiB for payload and headers.
MAX_PAYLOAD = 1_000_000

#: Header with the sender's wall clock (ms) at this very transmission. The frame's own `sent_ms` is the same in every
#: retry, so only this tells a wrong clock from a long wait in the queue.
SENT_HEADER = "Fm-Sent"


class FrameKind(IntEnum):
    """What a frame says beside its columns."""

    DATA = 0
    HELLO = 1  # the first of an incarnation: the node exists and has nothing from before `start_ms`
    BYE = 2  # the last of an incarnation: nothing more will come, do not wait for this node
    MORE = 3  # data like DATA, but another frame of the same span follows: no promise yet


class FrameWire(msgspec.Struct, array_like=True, frozen=True):
    """A frame's body; `Frame` is its checked form. `version` stands in the envelope."""

    kind: int
    node: str
    incarnation: int
    partition: int
    sequence: int
    start_ms: int
    end_ms: int
    sent_ms: int
    counters: list[bytes] = []
    gauges: list[bytes] = []
    sketches: list[bytes] = []


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """What one node has counted in one span, for one partition.

    `incarnation` is new for each process start and grows with its start time; `sequence` counts 1, 2, 3… without a gap
    per incarnation and partition. The span is one window, or several when a node's queue was full and frames were
    merged; what it holds counts in the window that `window_start` gives. Its arrival is the promise that nothing more
    comes from this incarnation and partition for times before `end_ms` (but for MORE). `sent_ms` is the node's wall
    clock when the frame was first sent.
    """

    kind: FrameKind
    node: str
    incarnation: int
    partition: int
    sequence: int
    start_ms: int
    end_ms: int
    sent_ms: int
    counters: CounterColumns = columns.NO_COUNTERS
    gauges: GaugeColumns = columns.NO_GAUGES
    sketches: SketchColumns = columns.NO_SKETCHES


def window_start(start_ms: int, end_ms: int, interval_ms: int) -> int:
    """The start of the window that a frame of this span counts in: the last one that the span touches."""
    last_ms = max(start_ms, end_ms - 1)
    return last_ms - last_ms % interval_ms


_Span = Annotated[int, Meta(ge=0, le=24 * 3600 * 1000)]
_Some = Annotated[int, Meta(ge=1, le=100_000_000)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that change results. They travel in the log, so every replica changes at the same message.

    `decode` refuses what is out of range: anybody may have put it there, and no fold must stumble over it.
    """

    interval_ms: Annotated[int, Meta(ge=1, le=3600 * 1000)] = 5000
    lateness_ms: _Span = 60_000
    seal_deadline_ms: _Span = 2000
    node_timeout_ms: _Span = 15_000
    partitions: Annotated[int, Meta(ge=1, le=1024)] = 1
    #: "broker": windows are checked against the broker's clock. "event": a replay; time is what the frames say.
    clock: Literal["broker", "event"] = "broker"
    max_series_per_metric: _Some = 10_000
    max_series: _Some = 200_000


class Tick(msgspec.Struct, array_like=True, frozen=True):
    """Nothing but its timestamp in the log: it lets time pass while no frames come."""

    partition: int


class Resend(msgspec.Struct, array_like=True, frozen=True):
    """Asks a node for frames `first`…`last` (inclusive) of an incarnation and partition again."""

    incarnation: int
    partition: int
    first: int
    last: int


class LogPosition(msgspec.Struct, array_like=True, frozen=True, order=True):
    """A place in a log: when its stream was created (ms), and the sequence in it. A stream made anew starts again at 1,
    later.
    """

    created_ms: int = 0
    sequence: int = 0


class Part(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """One metric's series of one window and partition, merged over all nodes.

    Exactly one of `counters`, `gauges`, `sketches` is non-empty; see `window` for their columns. `position` is the
    message of the DELTAS log that caused the publication: of two parts with the same metric, resolution and partition
    the one with the greater
    ``(position, start_ms, piece)`` is newer, and one that is not newer than the last applied is a repetition.
    `resolution_ms` 0 marks the totals of a frame that came after its window was closed for good: they count in totals
    only.
    """

    metric: str
    partition: int
    resolution_ms: int
    start_ms: int
    end_ms: int
    revision: int
    position: LogPosition
    counters: list[bytes] = []
    gauges: list[bytes] = []
    sketches: list[bytes] = []
    #: A metric with too many series for one message comes as `pieces` messages; this is number `piece`, from 0.
    piece: int = 0
    pieces: int = 1


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """Accounts for every frame ever received: ``received = applied + duplicate + rejected``, always."""

    received: int = 0
    applied: int = 0
    duplicate: int = 0
    late: int = 0  # of the applied: after their window had sealed
    healed: int = 0  # of the applied: they closed a gap
    gap: int = 0  # sequence numbers that were missing when a later one came
    rejected: dict[str, int] = {}


class Sealed(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """Published after all parts of a window's revision: they are complete, and this is what they are made of."""

    partition: int
    resolution_ms: int
    start_ms: int
    end_ms: int
    revision: int
    position: LogPosition
    #: Broker time of the message that sealed it.
    sealed_ms: int
    #: "watermark": every live node has passed the end. "deadline": some had not in time; `missing` names up to 32 of
    #: them. "late": a revision.
    cause: str
    nodes_expected: int
    nodes_heard: int
    missing: list[str]
    gaps: int
    metrics: list[str]
    ledger: Ledger
    #: How long after its end a window may still be revised: how long a reader has to keep it.
    lateness_ms: int = 60_000


T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


def encode(message: FrameWire | Settings | Tick | Resend | Part | Sealed) -> bytes:
    """Envelope and body of a message."""
    return _HEADER + _encoder.encode(message)


def decode(kind: type[T], payload: bytes) -> T:
    """The message in `payload`. Raises FrameError (``truncated``, ``magic``, ``version``, ``encoding`` or
    ``malformed``).
    """
    if payload[:4] != _HEADER:
        _refuse_header(payload)
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        return decoder.decode(memoryview(payload)[4:])  # type: ignore[no-any-return]
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        reason = "truncated" if "truncated" in str(error) else "malformed"
        raise FrameError(reason, f"{kind.__name__} of {len(payload)} bytes: {error}") from error


def _refuse_header(payload: bytes) -> None:
    if len(payload) < 4:
        raise FrameError("truncated", f"{len(payload)} bytes, an envelope has 4")
    if payload[:2] != MAGIC:
        raise FrameError("magic", f"starts with {payload[:2]!r}, expected {MAGIC!r}")
    if payload[2] != VERSION:
        raise FrameError("version", f"version {payload[2]}, this build reads {VERSION}")
    raise FrameError("encoding", f"encoding {payload[3]}, this build reads {PLAIN}")


def encode_frame(frame: Frame) -> bytes:
    """The bytes of a frame. Nothing is checked: the emitter builds only right ones."""
    return encode(
        FrameWire(
            int(frame.kind),
            frame.node,
            frame.incarnation,
            frame.partition,
            frame.sequence,
            frame.start_ms,
            frame.end_ms,
            frame.sent_ms,
            columns.pack_counters(frame.counters) if frame.counters.keys else [],
            columns.pack_gauges(frame.gauges) if frame.gauges.keys else [],
            columns.pack_sketches(frame.sketches) if frame.sketches.keys else [],
        )
    )


def decode_header(payload: bytes) -> FrameWire:
    """A frame's body with its scalar fields checked, its columns not yet. Raises FrameError."""
    wire = decode(FrameWire, payload)
    if not 0 <= wire.kind <= 3:
        raise FrameError("malformed", f"frame kind {wire.kind}, expected 0, 1, 2 or 3")
    if not 0 < len(wire.node.encode()) <= MAX_NODE:
        raise FrameError("malformed", f"node name {wire.node[:80]!r} has not 1…{MAX_NODE} bytes of UTF-8")
    if not 0 < wire.incarnation < 1 << 63 or not 0 < wire.sequence < 1 << 53:
        raise FrameError(
            "malformed", f"incarnation {wire.incarnation} is not below 2^63, or sequence {wire.sequence} not below 2^53"
        )
    if not 0 <= wire.start_ms <= wire.end_ms <= columns.MAX_TIME_MS or not 0 <= wire.sent_ms <= columns.MAX_TIME_MS:
        raise FrameError(
            "malformed", f"span [{wire.start_ms}, {wire.end_ms}) sent at {wire.sent_ms}: not ascending ms below 2^48"
        )
    return wire


def decode_frame(payload: bytes) -> Frame:
    """A whole frame, checked but for its keys. Raises FrameError with the reason."""
    return frame_of(decode_header(payload))


def frame_of(wire: FrameWire) -> Frame:
    """The checked columns of a header that `decode_header` has passed. Raises FrameError with the reason."""
    return Frame(
        kind=FrameKind(wire.kind),
        node=wire.node,
        incarnation=wire.incarnation,
        partition=wire.partition,
        sequence=wire.sequence,
        start_ms=wire.start_ms,
        end_ms=wire.end_ms,
        sent_ms=wire.sent_ms,
        counters=columns.unpack_counters(wire.counters),
        gauges=columns.unpack_gauges(wire.gauges),
        sketches=columns.unpack_sketches(wire.sketches),
    )
