"""Frames as emitters send them, made up: many nodes, several windows, steady sets of series.

All nodes report the same series, each in an order of its own, as a fleet behind one load balancer does. A distribution
has `BUCKETS` buckets, which is what some 33 requests of one model give in a window (latencies are log-normal with a
sigma of 0.6); each series has its own median. One counter in five (cost) has a fraction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fleetmeter.emitter.tally import Distribution, Tally
from fleetmeter.proto.bus import LogMessage
from fleetmeter.proto.exact import ONE
from fleetmeter.proto.keys import encode_key
from fleetmeter.proto.sketch import midpoint
from fleetmeter.proto.subjects import Subjects
from fleetmeter.proto.wire import SENT_HEADER, Frame, FrameKind, encode_frame

#: Start of the first window, ms since the epoch; a multiple of every interval.
T0 = 1_700_000_000_000
BUCKETS = 30
#: Distributions' shapes are drawn from so many.
_SHAPES = 500
_SIGMA = 0.6 / np.log(2) * 32  # of latencies, in buckets
INCARNATION = 1


def series_keys(metric: str, n: int) -> list[bytes]:
    """Keys of `n` series of one metric, with labels as long as real ones."""
    return [
        encode_key(
            metric,
            {
                "provider": ("openai", "anthropic", "google", "mistral")[i % 4],
                "model": f"model-{i // 8}-2025-11-24",
                "operation": ("chat", "embedding")[i // 4 % 2],
            },
        )
        for i in range(n)
    ]


class Fleet:
    """`nodes` nodes that report so many `counters` and `sketches` each; everything is drawn from `seed`."""

    def __init__(self, cluster: str, nodes: int, counters: int, sketches: int, interval_ms: int, seed: int = 1) -> None:
        self.subjects = Subjects(cluster)
        self.nodes = [f"proxy-{i:03}" for i in range(nodes)]
        self.interval_ms = interval_ms
        self._draw = np.random.default_rng(seed)
        self._counters = series_keys("requests_total", counters)
        self._sketches = series_keys("request_duration_seconds", sketches)
        self._medians = self._draw.integers(-80, 80, sketches).tolist()  # bucket indices: 0.2 s to 6 s
        self._shapes = [self._shape() for _ in range(_SHAPES)]
        self._orders = [(self._draw.permutation(counters), self._draw.permutation(sketches)) for _ in self.nodes]
        self._sequence = 0

    def hellos(self) -> list[LogMessage]:
        """Every node's first frame."""
        return [self._message(node, FrameKind.HELLO, 1, T0, T0, Tally()) for node in self.nodes]

    def window(self, number: int) -> Iterator[LogMessage]:
        """Every node's frame of window `number`, from 0."""
        start_ms = T0 + number * self.interval_ms
        for node, order in zip(self.nodes, self._orders, strict=True):
            yield self._message(
                node, FrameKind.DATA, number + 2, start_ms, start_ms + self.interval_ms, self._tally(*order)
            )

    def shuffle(self) -> None:
        """Give each node another order of its series: its next key columns are new to the aggregator."""
        self._orders = [(self._draw.permutation(a), self._draw.permutation(b)) for a, b in self._orders]

    def _message(
        self, node: str, kind: FrameKind, sequence: int, start_ms: int, end_ms: int, tally: Tally
    ) -> LogMessage:
        payload = encode_frame(
            Frame(
                kind=kind, node=node, incarnation=INCARNATION, partition=0, sequence=sequence, start_ms=start_ms,
                end_ms=end_ms, sent_ms=end_ms, counters=tally.counter_columns(), sketches=tally.sketch_columns(),
            )
        )  # fmt: skip
        self._sequence += 1
        at_ms = end_ms + 10
        return LogMessage(
            self.subjects.delta(0, node), payload, self._sequence, at_ms, 0, {SENT_HEADER: str(at_ms - 5)}
        )

    def _tally(self, counters: Sequence[int], sketches: Sequence[int]) -> Tally:
        draw = self._draw
        tally = Tally()
        whole = draw.integers(0, 1000, len(counters)).tolist()
        fraction = draw.integers(0, 1 << 63, len(counters)).tolist()
        for i, w, f in zip(counters, whole, fraction, strict=True):
            tally.counters[self._counters[i]] = w * ONE + (f if i % 5 == 0 else 0)
        shapes = draw.integers(0, _SHAPES, len(sketches)).tolist()
        for i, shape in zip(sketches, shapes, strict=True):
            indices, counts, units, first, last = self._shapes[shape]
            median = self._medians[i]
            scale = 2.0 ** (median / 32)
            tally.sketches[self._sketches[i]] = Distribution(
                0, int(units * scale), first * scale, last * scale, indices + median, counts
            )
        return tally

    def _shape(self) -> tuple[np.ndarray, np.ndarray, int, float, float]:
        """Indices, counts, sum, minimum and maximum of a distribution whose median is 1."""
        counts: dict[int, int] = {}
        while len(counts) < BUCKETS:
            index = round(float(self._draw.normal(0.0, _SIGMA)))
            counts[index] = counts.get(index, 0) + 1
        indices = sorted(counts)
        values = [midpoint(index) for index in indices]
        units = sum(int(value * ONE) * counts[index] for index, value in zip(indices, values, strict=True))
        return np.array(indices), np.array([counts[i] for i in indices]), units, values[0], values[-1]
