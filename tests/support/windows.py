"""A WINDOWS log made by hand: parts and markers as no aggregator would send them, and a gateway's fold over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fleetmeter.gateway.state import GatewayFold
from fleetmeter.proto.bus import LogMessage
from fleetmeter.proto.exact import ONE, columns
from fleetmeter.proto.sketch import Sketch
from fleetmeter.proto.subjects import Subjects
from fleetmeter.proto.window import WindowCounters, WindowGauges, WindowSketches
from fleetmeter.proto.wire import Ledger, LogPosition, Part, Sealed, encode

#: A whole hour, so that windows of any length begin at it.
T0 = 1_699_999_200_000
STEP = 5000
SUBJECTS = Subjects("test")


def counters(totals: Mapping[bytes, float]) -> dict[str, list[bytes]]:
    """Columns of counters whose increment in the window is all that they ever had."""
    keys = sorted(totals)
    whole, fraction = columns([int(totals[key] * ONE) for key in keys])
    return {"counters": WindowCounters(keys, whole, fraction, whole, fraction).pack()}


def gauges(values: Mapping[bytes, float], nodes: int = 1) -> dict[str, list[bytes]]:
    """Columns of gauges that so many nodes have set to the same value."""
    keys = sorted(values)
    v = np.array([values[key] for key in keys])
    whole, fraction = columns([int(x * nodes * ONE) if np.isfinite(x) else 0 for x in v.tolist()])
    n = len(keys)
    made = WindowGauges(keys, whole, fraction, v, v, v, np.zeros(n, np.int64), np.full(n, nodes, np.uint32))
    return {"gauges": made.pack()}


def sketches(values: Mapping[bytes, Sequence[float]]) -> dict[str, list[bytes]]:
    """Columns of the distributions of recorded values."""
    keys = sorted(values)
    made = [Sketch() for _ in keys]
    for key, sketch in zip(keys, made, strict=True):
        for value in values[key]:
            sketch.record(value)
    whole, fraction = columns([s.units for s in made])
    indices = [sorted(s.buckets) for s in made]
    return {
        "sketches": WindowSketches(
            keys,
            np.array([s.zero for s in made]),
            whole,
            fraction,
            np.array([s.minimum for s in made]),
            np.array([s.maximum for s in made]),
            np.array([len(i) for i in indices], np.uint32),
            np.array([i for row in indices for i in row], np.int16),
            np.array([s.buckets[i] for s, row in zip(made, indices, strict=True) for i in row], np.int64),
        ).pack()
    }


@dataclass
class WindowLog:
    """Messages in the order in which they are put. `at` is where in the DELTAS log a publication comes from."""

    messages: list[LogMessage] = field(default_factory=list)

    def put(self, subject: str, payload: bytes) -> None:
        self.messages.append(LogMessage(subject, payload, len(self.messages) + 1, 0, 0, {}))

    def part(
        self,
        metric: str,
        content: Mapping[str, list[bytes]],
        *,
        at: int = 1,
        start_ms: int = T0,
        length_ms: int = STEP,
        revision: int = 0,
        partition: int = 0,
        piece: int = 0,
        pieces: int = 1,
    ) -> None:
        part = Part(
            metric=metric, partition=partition, resolution_ms=length_ms, start_ms=start_ms, end_ms=start_ms + length_ms,
            revision=revision, position=LogPosition(1, at), piece=piece, pieces=pieces, **content,
        )  # fmt: skip
        self.put(SUBJECTS.window(length_ms, metric, partition), encode(part))

    def seal(
        self, *, at: int = 1, start_ms: int = T0, length_ms: int = STEP, revision: int = 0, partition: int = 0
    ) -> None:
        marker = Sealed(
            partition=partition, resolution_ms=length_ms, start_ms=start_ms, end_ms=start_ms + length_ms,
            revision=revision, position=LogPosition(1, at), sealed_ms=start_ms + length_ms, cause="watermark",
            nodes_expected=1, nodes_heard=1, missing=[], gaps=0, metrics=[], ledger=Ledger(),
        )  # fmt: skip
        self.put(SUBJECTS.sealed(length_ms, partition), encode(marker))

    def fold(self) -> GatewayFold:
        """A gateway's fold after all of it."""
        return apply(GatewayFold(), self.messages)


def apply(fold: GatewayFold, messages: Sequence[LogMessage]) -> GatewayFold:
    for message in messages:
        fold.apply(message, LogPosition(1, message.sequence))
    return fold
