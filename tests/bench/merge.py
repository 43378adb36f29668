"""Decode and merge on one core: frames of 1,000 series as bytes, through the aggregator's fold, seals included.

The peer does the same with dictionaries and objects, written as plain Python is: the same bytes in, the same checks,
the same sums by window out. Its sums are floats, which ours are not.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Sequence

import msgspec
from bench.frames import Fleet
from bench.measure import Figure, best, seconds

from fleetmeter.aggregator.fold import AggregatorFold
from fleetmeter.proto.bus import LogMessage
from fleetmeter.proto.keys import KEY_SEP
from fleetmeter.proto.wire import FrameWire, LogPosition, Settings, decode_header

SERIES = 1000
NODES = 100
#: Windows that are measured, after one in which all is new.
WINDOWS = 4
ROUNDS = 6
CLUSTER = "bench"


class Frames:
    """One fleet's log: `first` is what makes it known, `steady` what is measured."""

    def __init__(self, counters: int, sketches: int) -> None:
        fleet = Fleet(CLUSTER, NODES, counters, sketches, Settings().interval_ms)
        self.first = [*fleet.hellos(), *fleet.window(0)]
        self.steady = [message for number in range(1, WINDOWS + 1) for message in fleet.window(number)]
        fleet.shuffle()
        self.reordered = list(fleet.window(WINDOWS + 1))

    def ours(self) -> float:
        """Seconds a frame, in which each node's key columns are those of the window before."""
        return self._measured(self.first, self.steady)

    def ours_reordered(self) -> float:
        """Seconds a frame, of frames whose key columns were never seen."""
        return self._measured([*self.first, *self.steady], self.reordered)

    def peers(self) -> float:
        """Seconds a frame with dictionaries; of one window's frames, as it takes its time."""
        merge = DictMerge()
        for message in self.first:
            merge.apply(message)
        window = self.steady[:NODES]
        return seconds(lambda: [merge.apply(message) for message in window]) / len(window)

    def _measured(self, before: Sequence[LogMessage], frames: Sequence[LogMessage]) -> float:
        fold = AggregatorFold(CLUSTER, 0, Settings())
        sealed = 0

        def apply(messages: Sequence[LogMessage]) -> None:
            nonlocal sealed
            for message in messages:
                sealed += len(fold.apply(message, LogPosition(1, message.sequence)))

        apply(before)
        took = seconds(lambda: apply(frames))
        assert sealed == (len(before) + len(frames)) // NODES - 1, "each window seals with its last frame"
        assert fold.ledger.applied == len(before) + len(frames), "no frame is refused"
        return took / len(frames)


class Distribution(msgspec.Struct):
    """A histogram as an object."""

    zero: int = 0
    sum: float = 0.0
    minimum: float = float("inf")
    maximum: float = float("-inf")
    buckets: dict[int, int] = {}

    def merge(
        self, zero: int, total: float, minimum: float, maximum: float, indices: Sequence[int], counts: Sequence[int]
    ) -> None:
        self.zero += zero
        self.sum += total
        if minimum < self.minimum:
            self.minimum = minimum
        if maximum > self.maximum:
            self.maximum = maximum
        buckets = self.buckets
        for index, count in zip(indices, counts, strict=True):
            buckets[index] = buckets.get(index, 0) + count


class DictMerge:
    """The aggregator's work with a dictionary for counters and one of objects for histograms, by window."""

    def __init__(self) -> None:
        self.totals: dict[bytes, float] = {}
        self._counters: dict[int, dict[bytes, float]] = {}
        self._sketches: dict[int, dict[bytes, Distribution]] = {}
        self._waiting: dict[int, set[str]] = {}
        self._nodes: set[str] = set()
        self._seen: set[tuple[str, int, int]] = set()

    def apply(self, message: LogMessage) -> bytes | None:
        """Take a frame; the sealed window when it was the last one that the window waited for."""
        wire = decode_header(message.data)
        identity = (wire.node, wire.incarnation, wire.sequence)
        if identity in self._seen:
            return None
        self._seen.add(identity)
        self._nodes.add(wire.node)
        start_ms = wire.start_ms
        if wire.counters:
            self._merge_counters(wire, self._counters.setdefault(start_ms, {}))
        if wire.sketches:
            self._merge_sketches(wire, self._sketches.setdefault(start_ms, {}))
        if wire.end_ms == start_ms:
            return None
        waiting = self._waiting.setdefault(start_ms, set(self._nodes))
        waiting.discard(wire.node)
        return self._seal(start_ms) if not waiting else None

    def _merge_counters(self, wire: FrameWire, window: dict[bytes, float]) -> None:
        keys_raw, whole_raw, fraction_raw = wire.counters
        keys = keys_raw.split(KEY_SEP)
        whole = _numbers("q", 8, whole_raw, len(keys))
        fraction = _numbers("Q", 8, fraction_raw, len(keys)) if fraction_raw else (0,) * len(keys)
        if min(whole) < 0 or max(whole) > 1 << 53:
            raise ValueError("counters out of range")
        for key, w, f in zip(keys, whole, fraction, strict=True):
            window[key] = window.get(key, 0.0) + w + f / 2**64

    def _merge_sketches(self, wire: FrameWire, window: dict[bytes, Distribution]) -> None:
        keys_raw, zero_raw, whole_raw, fraction_raw, min_raw, max_raw, len_raw, index_raw, count_raw = wire.sketches
        keys = keys_raw.split(KEY_SEP)
        n = len(keys)
        lengths = _numbers("I", 4, len_raw, n)
        buckets = sum(lengths)
        indices, counts = _numbers("h", 2, index_raw, buckets), _numbers("I", 4, count_raw, buckets)
        fraction = _numbers("Q", 8, fraction_raw, n) if fraction_raw else (0,) * n
        if min(counts) < 1:
            raise ValueError("sketches with an empty bucket")
        at = 0
        for key, zero, w, f, minimum, maximum, length in zip(
            keys, _numbers("q", 8, zero_raw, n), _numbers("q", 8, whole_raw, n), fraction,
            _numbers("d", 8, min_raw, n), _numbers("d", 8, max_raw, n), lengths, strict=True,
        ):  # fmt: skip
            end = at + length
            own = indices[at:end]
            if not 0 <= minimum <= maximum or zero < 0 or w < 0 or any(map(operator.ge, own, own[1:])):
                raise ValueError("a sketch out of range or order")
            distribution = window.get(key)
            if distribution is None:
                distribution = window[key] = Distribution()
            distribution.merge(zero, w + f / 2**64, minimum, maximum, own, counts[at:end])
            at = end

    def _seal(self, start_ms: int) -> bytes:
        counters, sketches = self._counters.pop(start_ms, {}), self._sketches.pop(start_ms, {})
        for key, value in counters.items():
            self.totals[key] = self.totals.get(key, 0.0) + value
        rows = [(key, value, self.totals[key]) for key, value in sorted(counters.items())]
        return msgspec.msgpack.encode((rows, sorted(sketches.items(), key=lambda item: item[0])))


def _numbers(code: str, size: int, raw: bytes, n: int) -> tuple[int, ...]:
    if len(raw) != n * size:
        raise ValueError(f"{len(raw)} bytes for {n} numbers")
    return struct.unpack(f"<{n}{code}", raw)


def run() -> list[Figure]:
    counters, sketches = Frames(SERIES, 0), Frames(0, SERIES)
    s = best(
        ROUNDS, counters=counters.ours, sketches=sketches.ours, dict_counters=counters.peers,
        dict_sketches=sketches.peers, counters_new=counters.ours_reordered, sketches_new=sketches.ours_reordered,
    )  # fmt: skip
    ours, peers = s["counters"] + s["sketches"], s["dict_counters"] + s["dict_sketches"]
    return [
        Figure("merge.counter_deltas_per_s", SERIES / s["counters"], "a second", 5e6),
        Figure("merge.sketch_deltas_per_s", SERIES / s["sketches"], "a second", 2e6),
        Figure(
            "merge.ratio_dict", peers / ours, "×", 20.0,
            peer=f"dicts and objects: {peers / SERIES * 1e9:.0f} ns a counter and a sketch; "
            f"ours {ours / SERIES * 1e9:.0f} ns",
        ),
        Figure("merge, counters, new key columns", SERIES / s["counters_new"], "a second"),
        Figure("merge, sketches, new key columns", SERIES / s["sketches_new"], "a second"),
    ]  # fmt: skip
