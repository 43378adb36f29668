"""Nodes: whose frames have come, which are missing, who is alive, and whose clock is wrong. Pure; time is the broker's."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from ..proto.wire import FrameKind, FrameWire

#: Incarnations are remembered so long after their last frame, ms: an emitter may repeat a frame whose acknowledgement
#: it lost.
REMEMBER_MS = 24 * 3600 * 1000
#: Clock samples a node's skew is estimated from.
_SKEW_SAMPLES = 8


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
    """One process: everything up to `top` has come, but for `gaps`. It has promised nothing more before `progress_ms`."""

    number: int
    top: int = 0
    gaps: list[Gap] = []
    progress_ms: int = 0  # what is promised with no gap before it
    top_progress_ms: int = 0  # what the frame at `top` promises, gaps or not
    last_seen_ms: int = 0
    left: bool = False

    def admit(self, sequence: int, now_ms: int) -> tuple[Verdict, int]:
        """Note a sequence; returns the verdict and how many sequences are newly missing."""
        self.last_seen_ms = now_ms
        if sequence > self.top:
            missing = sequence - self.top - 1
            if missing:
                self.gaps.append(Gap(self.top + 1, sequence - 1, now_ms))
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
    """All incarnations of a name, oldest first. `skew_ms` is how far its clock is ahead of the broker's."""

    name: str
    incarnations: list[Incarnation] = []
    last_seen_ms: int = 0
    samples: list[int] = []

    @property
    def newest(self) -> Incarnation:
        return self.incarnations[-1]

    @property
    def skew_ms(self) -> int:
        # Delay makes a sample too small, never too large; so the largest of several is the best.
        return max(self.samples, default=0)

    def incarnation(self, number: int) -> Incarnation:
        for one in self.incarnations:
            if one.number == number:
                return one
        new = Incarnation(number=number)
        self.incarnations.append(new)
        self.incarnations.sort(key=lambda one: one.number)
        return new


class NodeTable:
    """Every node that was ever heard of, until it is forgotten."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}

    def admit(self, frame: FrameWire, now_ms: int, sent_ms: int | None) -> tuple[Verdict, int, Incarnation]:
        """Note a frame's sequence and its sender's clock."""
        node = self.nodes.get(frame.node)
        if node is None:
            node = self.nodes[frame.node] = Node(name=frame.node)
        node.last_seen_ms = now_ms
        if sent_ms is not None:
            node.samples = [*node.samples[1 - _SKEW_SAMPLES :], sent_ms - now_ms]
        incarnation = node.incarnation(frame.incarnation)
        verdict, missing = incarnation.admit(frame.sequence, now_ms)
        if verdict is not Verdict.DUPLICATE and frame.kind == FrameKind.BYE:
            incarnation.left = True
        return verdict, missing, incarnation

    def skew_ms(self, name: str) -> int:
        node = self.nodes.get(name)
        return node.skew_ms if node is not None else 0

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

    def give_up(self, now_ms: int, after_ms: int) -> None:
        """Stop waiting for gaps that are older than `after_ms`; should one heal later, it counts as late."""
        for node in self.nodes.values():
            for one in node.incarnations:
                for gap in one.gaps:
                    if not gap.given_up and now_ms - gap.since_ms > after_ms:
                        gap.given_up = True
                        one.settle()

    def forget(self, now_ms: int) -> None:
        """Drop what was last heard more than `REMEMBER_MS` ago."""
        for name, node in list(self.nodes.items()):
            node.incarnations = [one for one in node.incarnations if now_ms - one.last_seen_ms <= REMEMBER_MS]
            if not node.incarnations:
                del self.nodes[name]
