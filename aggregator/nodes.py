"""Nodes: whose frames have come, which are missing, who lives, and whose clock is wrong. Pure; time is the broker's."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from ..proto.errors import FrameError
from ..proto.wire import FrameKind, FrameWire

#: Incarnations are remembered so long after their last frame, ms: an emitter may repeat a frame whose acknowledgement
#: it lost.
REMEMBER_MS = 24 * 3600 * 1000
#: Clock samples a node's skew is estimated from.
_SKEW_SAMPLES = 8
#: No delivery takes so long, ms: the broker's answer is waited for five seconds, then the frame is sent anew. A sample
#: that much smaller than those before is a clock that was put back, and they say nothing any more.
_CLOCK_STEP_MS = 10_000
#: A clock error below an interval is corrected once so many samples agree: a single one may be a slow delivery.
_SAMPLES_FOR_SMALL_SKEW = 3
#: A gap is waited for so long, ms of broker time, before its node's progress counts without it.
GAP_PATIENCE_MS = 10_000
#: Gaps of one process that may still heal; of more, the oldest counts as lost. Bounds what nonsense can make us keep.
MAX_GAPS = 1000
#: Incarnations of one name that are remembered: a process that is restarted every ten seconds for a day.
MAX_INCARNATIONS = 10_000
#: Names that are remembered; further ones are refused.
MAX_NODES = 50_000


class Verdict(StrEnum):
    """What a frame's sequence says of it."""

    NEW = "new"
    HEALED = "healed"  # it was missing
    DUPLICATE = "duplicate"


class Gap(msgspec.Struct, array_like=True):
    """Sequences `first`…`last` had not come when a later one did, at `since_ms`. It holds the node's progress until
    `given_up`.
    """

    first: int
    last: int
    since_ms: int
    given_up: bool = False


class Incarnation(msgspec.Struct, kw_only=True):
    """One process: everything up to `top` has come, but for `gaps`. Nothing more is to come before `progress_ms`."""

    number: int
    top: int = 0
    gaps: list[Gap] = []
    progress_ms: int = 0  # what is promised with no gap before it
    top_progress_ms: int = 0  # what the frame at `top` promises, gaps or not
    last_seen_ms: int = 0
    left: bool = False

    def admit(self, sequence: int, now_ms: int) -> tuple[Verdict, int]:
        """Note a sequence; returns the verdict and how many sequences are newly missing.

        Gaps older than `GAP_PATIENCE_MS` are given up: only a process that goes on sending has to be freed of them.
        """
        self.last_seen_ms = now_ms
        for gap in self.gaps:
            gap.given_up = gap.given_up or now_ms - gap.since_ms > GAP_PATIENCE_MS
        if sequence > self.top:
            missing = sequence - self.top - 1
            if missing:
                self.gaps.append(Gap(self.top + 1, sequence - 1, now_ms))
                del self.gaps[:-MAX_GAPS]
            self.top = sequence
            return Verdict.NEW, missing
        for i, gap in enumerate(self.gaps):
            if gap.first <= sequence <= gap.last:
                rest = [
                    Gap(gap.first, sequence - 1, gap.since_ms, gap.given_up),
                    Gap(sequence + 1, gap.last, gap.since_ms, gap.given_up),
                ]
                self.gaps[i : i + 1] = [g for g in rest if g.first <= g.last]
                return Verdict.HEALED, 0
        return Verdict.DUPLICATE, 0

    def promise(self, until_ms: int) -> None:
        """Nothing more before `until_ms`, from the frame just admitted."""
        self.top_progress_ms = max(self.top_progress_ms, until_ms)
        self.settle()

    def settle(self) -> None:
        """Let progress catch up when no gap holds it."""
        if all(gap.given_up for gap in self.gaps):
            self.progress_ms = max(self.progress_ms, self.top_progress_ms)

    @property
    def missing(self) -> int:
        return sum(gap.last - gap.first + 1 for gap in self.gaps)


class Node(msgspec.Struct, kw_only=True):
    """All incarnations of a name, in the order in which they were first heard of.

    The last one is the process that lives. Its number would say the same, were it not made from a clock that may have
    been put back. `samples` are the newest readings of its clock, less the broker's.
    """

    name: str
    incarnations: list[Incarnation] = []
    last_seen_ms: int = 0
    samples: list[int] = []

    @property
    def newest(self) -> Incarnation:
        return self.incarnations[-1]

    @property
    def skew_ms(self) -> int:
        """How far the node's clock is ahead of the broker's: delay makes a sample too small, never too large."""
        return max(self.samples, default=0)

    def samples_with(self, sample_ms: int | None) -> list[int]:
        """The samples after one more."""
        if sample_ms is None:
            return self.samples
        if sample_ms < self.skew_ms - _CLOCK_STEP_MS:
            return [sample_ms]
        return [*self.samples[1 - _SKEW_SAMPLES :], sample_ms]

    def incarnation(self, number: int) -> Incarnation:
        for one in reversed(self.incarnations):
            if one.number == number:
                return one
        new = Incarnation(number=number)
        self.incarnations.append(new)
        del self.incarnations[:-MAX_INCARNATIONS]
        return new


class NodeTable:
    """Every node that was ever heard of, until it is forgotten."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}

    def admit(self, frame: FrameWire, now_ms: int, sample_ms: int | None) -> tuple[Verdict, int, Incarnation]:
        """Note a frame's sequence, and how far its sender's clock was ahead. Raises FrameError (``nodes``)."""
        node = self.nodes.get(frame.node)
        if node is None:
            if len(self.nodes) >= MAX_NODES:
                raise FrameError("nodes", f"{MAX_NODES} names in a day are the limit; node {frame.node!r} is a new one")
            node = self.nodes[frame.node] = Node(name=frame.node)
        node.last_seen_ms = now_ms
        node.samples = node.samples_with(sample_ms)
        incarnation = node.incarnation(frame.incarnation)
        verdict, missing = incarnation.admit(frame.sequence, now_ms)
        if verdict is not Verdict.DUPLICATE and frame.kind == FrameKind.BYE:
            incarnation.left = True
        return verdict, missing, incarnation

    def shift_ms(self, name: str, sample_ms: int | None, interval_ms: int, deadline_ms: int) -> int:
        """By how much to move the frame that `sample_ms` came with back in time: whole intervals, so that a window of
        the node's is a window here.

        Rounded so that a frame arrives at most the tolerance after its window's end, and not past the deadline, from
        every window.
        """
        node = self.nodes.get(name) or Node(name=name)
        samples = node.samples_with(sample_ms)
        skew_ms = max(samples, default=0)
        if abs(skew_ms) <= interval_ms and len(samples) < _SAMPLES_FOR_SMALL_SKEW:
            return 0
        tolerance_ms = min(interval_ms, max(deadline_ms, 1000)) // 2
        return (skew_ms + tolerance_ms) // interval_ms * interval_ms

    def live(self, now_ms: int, timeout_ms: int) -> list[Node]:
        """Nodes whose newest process has not left and was heard within the time-out, by name."""
        return [
            node
            for _, node in sorted(self.nodes.items())
            if not node.newest.left and now_ms - node.newest.last_seen_ms <= timeout_ms
        ]

    def stale(self, now_ms: int, timeout_ms: int) -> list[Node]:
        """Nodes that fell silent without saying goodbye, and were heard within `REMEMBER_MS`."""
        return [
            node
            for _, node in sorted(self.nodes.items())
            if not node.newest.left and now_ms - node.newest.last_seen_ms > timeout_ms
        ]

    @property
    def missing(self) -> int:
        """Sequences that are missing now, over all."""
        return sum(one.missing for node in self.nodes.values() for one in node.incarnations)

    def forget(self, now_ms: int) -> None:
        """Drop what was last heard more than `REMEMBER_MS` ago."""
        for name, node in list(self.nodes.items()):
            node.incarnations = [one for one in node.incarnations if now_ms - one.last_seen_ms <= REMEMBER_MS]
            if not node.incarnations:
                del self.nodes[name]
