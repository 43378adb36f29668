"""The outbox: frames between the cut and the broker's acknowledgement. Pure; the sender moves it on.

    cut ──▶ drafts (no sequence yet; the two oldest merge past the byte limit) ──▶ in flight (bytes fixed) ──▶ ring
    (acknowledged)

A frame gets its sequence and its bytes when it is first sent. Only frames that were never sent are merged: one that was
may already be stored, though its acknowledgement got lost, and would then count twice.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ..proto.wire import MAX_PAYLOAD, Frame, FrameKind, encode_frame
from .tally import Tally


@dataclass(slots=True)
class Draft:
    """A frame that was not sent yet. `size` in bytes, as estimated."""

    kind: FrameKind
    partition: int
    start_ms: int
    end_ms: int
    tally: Tally
    size: int


@dataclass(frozen=True, slots=True)
class Sent:
    """A frame with its sequence and final bytes."""

    partition: int
    sequence: int
    payload: bytes


@dataclass
class Outbox:
    """All frames of one incarnation of a node."""

    node: str
    incarnation: int
    queue_bytes: int
    ring_bytes: int
    max_payload: int = MAX_PAYLOAD
    merged: int = field(default=0, init=False)
    cut: int = field(default=0, init=False)
    acked: int = field(default=0, init=False)
    _drafts: deque[Draft] = field(default_factory=deque, init=False)
    _draft_bytes: int = field(default=0, init=False)
    _in_flight: dict[tuple[int, int], Sent] = field(default_factory=dict, init=False)
    _flight_bytes: int = field(default=0, init=False)
    _ring: dict[tuple[int, int], Sent] = field(default_factory=dict, init=False)
    _ring_size: int = field(default=0, init=False)
    _sequences: dict[int, int] = field(default_factory=dict, init=False)

    @property
    def pending_bytes(self) -> int:
        """What is not acknowledged yet, in bytes."""
        return self._draft_bytes + self._flight_bytes

    @property
    def has_drafts(self) -> bool:
        """Whether there is something that was not sent yet."""
        return bool(self._drafts)

    @property
    def pending_frames(self) -> int:
        return len(self._drafts) + len(self._in_flight)

    @property
    def in_flight(self) -> list[Sent]:
        return list(self._in_flight.values())

    def put(self, kind: FrameKind, partition: int, start_ms: int, end_ms: int, tally: Tally) -> None:
        """Queue what was cut. Past `queue_bytes` the oldest drafts merge: time resolution is lost, counts are not."""
        draft = Draft(kind, partition, start_ms, end_ms, tally, tally.size())
        self._drafts.append(draft)
        self._draft_bytes += draft.size
        self.cut += 1
        while self.pending_bytes > self.queue_bytes and self._merge_oldest():
            pass

    def next(self, sent_ms: int) -> Sent | None:
        """Give the oldest draft its sequence and bytes; it is in flight from now on. None when there is no draft."""
        if not self._drafts:
            return None
        draft = self._drafts.popleft()
        self._draft_bytes -= draft.size
        sequence = self._sequences.get(draft.partition, 0) + 1
        payload = self._encode(draft, sequence, sent_ms)
        while len(payload) > self.max_payload and draft.tally.series > 1:
            # Too large for one message: send half as MORE, which promises nothing, and the other half after it.
            first, second = draft.tally.halves()
            rest = Draft(draft.kind, draft.partition, draft.start_ms, draft.end_ms, second, second.size())
            self._drafts.appendleft(rest)
            self._draft_bytes += rest.size
            draft = Draft(FrameKind.MORE, draft.partition, draft.start_ms, draft.end_ms, first, first.size())
            payload = self._encode(draft, sequence, sent_ms)
        self._sequences[draft.partition] = sequence
        sent = Sent(draft.partition, sequence, payload)
        self._in_flight[draft.partition, sequence] = sent
        self._flight_bytes += len(payload)
        return sent

    def ack(self, sent: Sent) -> None:
        """The broker has stored a frame: keep it in the ring, for an aggregator that misses it."""
        if self._in_flight.pop((sent.partition, sent.sequence), None) is None:
            return
        self._flight_bytes -= len(sent.payload)
        self.acked += 1
        self._ring[sent.partition, sent.sequence] = sent
        self._ring_size += len(sent.payload)
        while self._ring_size > self.ring_bytes and self._ring:
            oldest = next(iter(self._ring))
            self._ring_size -= len(self._ring.pop(oldest).payload)

    def again(self, partition: int, first: int, last: int) -> list[Sent]:
        """The acknowledged frames of a range that are still in the ring."""
        span = range(max(first, 1), min(last, self._sequences.get(partition, 0)) + 1)
        if len(span) > len(self._ring):
            return [sent for (p, sequence), sent in self._ring.items() if p == partition and first <= sequence <= last]
        return [self._ring[partition, s] for s in span if (partition, s) in self._ring]

    def _encode(self, draft: Draft, sequence: int, sent_ms: int) -> bytes:
        tally = draft.tally
        return encode_frame(
            Frame(
                kind=draft.kind,
                node=self.node,
                incarnation=self.incarnation,
                partition=draft.partition,
                sequence=sequence,
                start_ms=draft.start_ms,
                end_ms=draft.end_ms,
                sent_ms=sent_ms,
                counters=tally.counter_columns(),
                gauges=tally.gauge_columns(),
                sketches=tally.sketch_columns(),
            )
        )

    def _merge_oldest(self) -> bool:
        """Merge the oldest draft with the next of its partition; False when no two can be."""
        for i, older in enumerate(self._drafts):
            if older.kind == FrameKind.HELLO:
                continue
            for j in range(i + 1, len(self._drafts)):
                newer = self._drafts[j]
                if newer.partition != older.partition:
                    continue
                if newer.kind not in (FrameKind.DATA, FrameKind.BYE) or not older.tally.fits_u32(newer.tally):
                    break
                older.tally.merge(newer.tally)
                self._draft_bytes -= older.size + newer.size
                older.size = older.tally.size()
                older.end_ms = newer.end_ms
                older.kind = newer.kind
                self._draft_bytes += older.size
                del self._drafts[j]
                self.merged += 1
                return True
        return False
