"""The recording API: instruments by name, and `record_request`. Nothing here raises into the proxy, blocks it or does
I/O.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from ..proto.catalogue import GROUPS, Kind, define, get
from ..proto.errors import CatalogueError
from ..proto.exact import F64, I64, MAX_DELTA, ONE
from ..proto.keys import OTHER, encode_key
from ..proto.logs import get_logger
from .instruments import Counter, Gauge, Histogram, Invalid, take
from .labels import label
from .requests import DURATIONS, NAN, ROW, RequestColumn, RequestLabels, fold_requests, other_labels, request_column
from .tally import Tally, distributions, totals, valid

log = get_logger(__name__)

I = TypeVar("I", Counter, Gauge, Histogram)  # noqa: E741
_pack = ROW.pack
_RESERVED = frozenset(metric.name for metric in GROUPS["Pipeline"])


class Recorder:
    """All instruments of one process.

    `node` fills the label of that name on per-node metrics. At most `max_series` series of a metric are kept apart;
    further ones add to the one whose label values are all ``other``.
    """

    def __init__(self, node: str, max_series: int, now_ms: Callable[[], int]) -> None:
        self.invalid = Invalid()
        self._node = node
        self._max_series = max_series
        self._now_ms = now_ms
        self._lock = threading.Lock()  # guards making a series, never recording into one
        self._counters: dict[bytes, Counter] = {}
        self._gauges: dict[bytes, Gauge] = {}
        self._histograms: dict[bytes, Histogram] = {}
        self._by_name: dict[tuple[object, ...], Counter | Gauge | Histogram] = {}
        self._per_metric: dict[str, int] = {}
        self._kinds: dict[str, Kind] = {}
        #: Appends a row to the column of these labels.
        self._requests: dict[RequestLabels, Callable[[bytes], None]] = {}
        self._columns: dict[RequestLabels, RequestColumn] = {}
        self._recorded = 0
        self._announced: set[bytes] = set()

    @property
    def recorded(self) -> int:
        """Requests folded so far."""
        return self._recorded

    # Hot path. The dict's key is what was given, untouched; anything out of the ordinary is settled in `_unusual`.
    def record_request(
        self,
        provider: str,
        model: str,
        success: bool = True,
        response_time: float = NAN,
        input_tokens: float = 0,
        output_tokens: float = 0,
        cost: float = NAN,
        error_type: str | None = None,
        operation: str = "chat",
        stream: bool = False,
        time_to_first_token: float | None = None,
        time_per_output_token: float | None = None,
        upstream_time: float | None = None,
        overhead_time: float | None = None,
        queue_time: float | None = None,
    ) -> None:
        """Record one request that has ended: its count, latency, tokens and cost, in one row.

        Times in seconds, cost in USD. Without `cost` a success counts in ``unpriced_requests_total``; without
        `response_time` it is left out of the latencies. `error_type` of a failure is one of connection, timeout,
        rate_limit, authentication, server, client. A value that is negative, not finite or no number is counted in
        ``stats().invalid`` and left out; the request still counts.
        """
        try:
            self._requests[provider, model, success, error_type, operation, stream](
                _pack(response_time, input_tokens, output_tokens, cost)
            )
        except Exception:
            self._unusual(
                (provider, model, success, error_type, operation, stream),
                response_time,
                input_tokens,
                output_tokens,
                cost,
            )
        if time_to_first_token is not None:
            self._duration("time_to_first_token", time_to_first_token, provider, model, operation)
        if time_per_output_token is not None:
            self._duration("time_per_output_token", time_per_output_token, provider, model, operation)
        if upstream_time is not None:
            self._duration("upstream_time", upstream_time, provider, model, operation)
        if overhead_time is not None:
            self._duration("overhead_time", overhead_time, provider, model, operation)
        if queue_time is not None:
            self._duration("queue_time", queue_time, provider, model, operation)

    def counter(self, name: str, **labels: object) -> Counter:
        """The counter of these labels; the same object each time. A name or label that can't be is logged, and counts
        nowhere.
        """
        return self._instrument(Kind.COUNTER, name, labels, self._counters, lambda key: Counter(key, self.invalid))

    def gauge(self, name: str, **labels: object) -> Gauge:
        """The gauge of these labels, as for `counter`."""
        return self._instrument(
            Kind.GAUGE, name, labels, self._gauges, lambda key: Gauge(key, self.invalid, self._now_ms)
        )

    def histogram(self, name: str, **labels: object) -> Histogram:
        """The histogram of these labels, as for `counter`."""
        return self._instrument(
            Kind.HISTOGRAM, name, labels, self._histograms, lambda key: Histogram(key, self.invalid)
        )

    def fold(self) -> Tally:
        """Everything recorded since the last call. One caller at a time."""
        tally = Tally()
        with self._lock:
            columns = list(self._columns.values())
            counters = list(self._counters.values())
            histograms = list(self._histograms.values())
            gauges = list(self._gauges.values())
        self._recorded += fold_requests(columns, tally, self.invalid)
        for counter in counters:
            if counter.key not in self._announced:
                self._announced.add(counter.key)
                tally.count(counter.key, 0)
        keys, values, lengths = self._take(counters, "counter_value")
        for key, units in zip(keys, totals(values, lengths), strict=True):
            tally.count(key, units)
        keys, values, lengths = self._take(histograms, "histogram_value")
        for key, new in zip(keys, distributions(values, lengths), strict=True):
            tally.add(key, new)
        for gauge in gauges:
            if gauge.current is not None:
                tally.gauges[gauge.key] = gauge.current
        self._refuse_oversized(tally)
        return tally

    def _take(self, instruments: Sequence[Counter | Histogram], invalid: str) -> tuple[list[bytes], F64, I64]:
        """What `instruments` recorded: keys of those with valid values, their values in turn, and how many of each."""
        used = [one for one in instruments if one.column]
        columns = [take(one.column) for one in used]
        values = np.concatenate([np.zeros(0), *columns])
        owner = np.repeat(np.arange(len(used)), [len(column) for column in columns])
        good = valid(values)
        if not good.all():
            self.invalid.add(invalid, len(good) - int(good.sum()))
            values, owner = values[good], owner[good]
        lengths = np.bincount(owner, minlength=len(used))
        return [used[i].key for i in np.flatnonzero(lengths)], values, lengths[lengths > 0]

    def _refuse_oversized(self, tally: Tally) -> None:
        # A sum over a frame's limit would make aggregators refuse the whole frame; only absurd values get there.
        for key in [key for key, units in tally.counters.items() if units > MAX_DELTA * ONE]:
            del tally.counters[key]
            self.invalid.add("overflow")
        for key in [key for key, sketch in tally.sketches.items() if sketch.units > MAX_DELTA * ONE]:
            del tally.sketches[key]
            self.invalid.add("overflow")

    def _duration(self, argument: str, value: float, provider: object, model: object, operation: object) -> None:
        try:
            histogram = self._by_name[argument, provider, model, operation]
        except Exception:
            histogram = self.histogram(DURATIONS[argument], provider=provider, model=model, operation=operation)
            try:
                if len(self._by_name) < 10 * self._max_series:
                    self._by_name[argument, provider, model, operation] = histogram
            except TypeError:
                pass  # unhashable, so not to be remembered
        if isinstance(histogram, Histogram):
            histogram.record(value)

    def _unusual(
        self, labels: RequestLabels, response_time: object, input_tokens: object, output_tokens: object, cost: object
    ) -> None:
        """A request whose column does not exist yet, or whose arguments are not what they should be."""
        try:
            row = _pack(
                self._number(response_time, NAN, "response_time"),
                self._number(input_tokens, 0.0, "tokens"),
                self._number(output_tokens, 0.0, "tokens"),
                self._number(cost, NAN, "cost"),
            )
            provider, model, success, error_type, operation, stream = labels
            plain = (label(provider), label(model), bool(success), error_type, label(operation), bool(stream))
            if not isinstance(error_type, str | None):
                plain = (*plain[:3], label(error_type), *plain[4:])
            self._column(plain)(row)
        except Exception:  # whatever is left must not reach the proxy
            self.invalid.add("request")
            log.error("request could not be recorded", every_s=60.0, exc_info=True)

    def _column(self, labels: RequestLabels) -> Callable[[bytes], None]:
        with self._lock:
            if labels not in self._requests:
                if len(self._columns) >= self._max_series:
                    labels = other_labels(labels)
                if labels not in self._columns:
                    self._columns[labels] = request_column(labels, self.invalid)
                self._requests[labels] = self._columns[labels].rows.extend
            return self._requests[labels]

    def _number(self, value: object, missing: float, reason: str) -> float:
        if value is None:
            return missing
        try:
            return float(value)  # type: ignore[arg-type]
        except Exception:
            self.invalid.add(reason)
            return missing

    def _instrument(
        self, kind: Kind, name: str, labels: dict[str, object], known: dict[bytes, I], make: Callable[[bytes], I]
    ) -> I:
        try:
            text = {of: label(value) for of, value in labels.items()}
            self._check(kind, name, text)
            series = encode_key(name, text)
        except Exception as problem:  # a label's own __str__ may raise anything
            self.invalid.add("instrument")
            log.error(
                "instrument can't be used; it counts nowhere", every_s=60.0, key=(kind, str(name)), reason=str(problem)
            )
            return make(b"")
        with self._lock:
            if series not in known:  # type: ignore[used-before-def]  # mypy loses it in the `except` of a generic method
                if self._per_metric.get(name, 0) >= self._max_series:
                    # The node stays: a frame with series of another one is refused.
                    series = encode_key(name, {n: value if n == "node" else OTHER for n, value in text.items()})
                if series not in known:
                    known[series] = make(series)
                    self._per_metric[name] = self._per_metric.get(name, 0) + 1
            return known[series]

    def _check(self, kind: Kind, name: str, text: dict[str, str]) -> None:
        """Raise CatalogueError for what would make aggregators refuse this node's frames. Fills in the node's name."""
        if name in _RESERVED:
            raise CatalogueError(f"metric {name!r} is the pipeline's own; choose another name")
        metric = get(name)
        if metric is None or metric.kind != kind:
            metric = define(name, kind, tuple(text), "A metric of the program's own.", per_node="node" in text)
        if metric.per_node and text.setdefault("node", self._node) != self._node:
            raise CatalogueError(
                f"metric {name!r}: label node is {text['node']!r}, this is node {self._node!r}; leave it out"
            )
        if self._kinds.setdefault(name, kind) is not kind:
            raise CatalogueError(f"metric {name!r} is a {self._kinds[name]} already, and can't be a {kind} as well")
