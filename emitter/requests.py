"""Requests: one call records everything about a request, as one row of doubles.

A row is packed first and appended in one C call, so that it is recorded whole or not at all, by any number of threads.
What the rows mean (which metrics they add to) is decided at the window's edge, for all rows of a column at once.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..proto.exact import ONE, total
from ..proto.keys import OTHER, encode_key
from .instruments import Invalid
from .labels import label
from .tally import Tally, valid

ERROR_TYPES = ("connection", "timeout", "rate_limit", "authentication", "server", "client")
#: Durations beside the request's own, by the name of `record_request`'s argument (seconds).
DURATIONS: Mapping[str, str] = {
    "time_to_first_token": "time_to_first_token_seconds",
    "time_per_output_token": "time_per_output_token_seconds",
    "upstream_time": "upstream_duration_seconds",
    "overhead_time": "overhead_duration_seconds",
    "queue_time": "queue_duration_seconds",
}

#: response time (s), input tokens, output tokens, cost (USD); NaN where not given.
ROW = struct.Struct("=4d")
NAN = math.nan

#: provider, model, success, error type, operation, stream
RequestLabels = tuple[object, object, object, object, object, object]


@dataclass(slots=True)
class RequestColumn:
    """The rows of one combination of labels, and the keys of the series that they add to."""

    rows: bytearray
    requests: bytes
    errors: bytes | None
    known: list[bytes]  # series that exist from the first request on, at 0
    duration: bytes
    tokens_in: bytes
    tokens_out: bytes
    cost: bytes
    unpriced: bytes
    announced: bool = False


def request_column(labels: RequestLabels, invalid: Invalid) -> RequestColumn:
    """The column of one combination. Values that are no text become text; an unknown error type counts as ``server``."""
    provider, model, success, error_type, operation, stream = labels
    model_labels = {"provider": label(provider), "model": label(model)}
    call = {**model_labels, "operation": label(operation)}
    streamed = label(bool(stream))

    def requests(outcome: str) -> bytes:
        return encode_key("requests_total", {**call, "outcome": outcome, "stream": streamed})

    def errors(kind: str) -> bytes:
        return encode_key("request_errors_total", {**call, "error_type": kind})

    failed: bytes | None = None
    if not success:
        kind = error_type if error_type in ERROR_TYPES else "server"
        if error_type is not None and kind != error_type:
            invalid.add("error_type")
        failed = errors(str(kind))
    return RequestColumn(
        rows=bytearray(),
        requests=requests("success" if success else "error"),
        errors=failed,
        known=[requests("success"), requests("error"), *map(errors, ERROR_TYPES)],
        duration=encode_key("request_duration_seconds", call),
        tokens_in=encode_key("tokens_total", {**model_labels, "type": "input"}),
        tokens_out=encode_key("tokens_total", {**model_labels, "type": "output"}),
        cost=encode_key("cost_usd_total", model_labels),
        unpriced=encode_key("unpriced_requests_total", {**model_labels, "reason": "no_cost"}),
    )


#: Where requests go whose combination is over the cap: totals stay exact, under the label value ``other``.
def other_labels(labels: RequestLabels) -> RequestLabels:
    _, _, success, error_type, _, stream = labels
    return OTHER, OTHER, bool(success), error_type if error_type in ERROR_TYPES else None, OTHER, bool(stream)


def fold_requests(columns: list[RequestColumn], tally: Tally, invalid: Invalid) -> int:
    """Move all rows into `tally`; returns how many there were."""
    recorded = 0
    durations: dict[bytes, list[np.ndarray[tuple[int], np.dtype[np.float64]]]] = {}
    for column in columns:
        if not column.announced:
            column.announced = True
            for key in column.known:
                tally.count(key, 0)
        size = len(column.rows) // ROW.size * ROW.size
        if size:
            rows = np.frombuffer(bytes(column.rows[:size])).reshape(-1, 4).T
            del column.rows[:size]  # a prefix, as in `take`: rows appended meanwhile stay
            n = rows.shape[1]
            recorded += n
            tally.count(column.requests, n * ONE)
            if column.errors is not None:
                tally.count(column.errors, n * ONE)
            times, inputs, outputs, costs = (np.ascontiguousarray(row) for row in rows)
            for key, values in ((column.tokens_in, inputs), (column.tokens_out, outputs)):
                good = valid(values)
                invalid.add("tokens", n - len(good)) if len(good) < n else None
                tally.count(key, total(good))
            priced = valid(costs)
            given = n - int(np.isnan(costs).sum())
            if given > len(priced):
                invalid.add("cost", given - len(priced))
            tally.count(column.cost, total(priced))
            if column.errors is None and given < n:
                tally.count(column.unpriced, (n - given) * ONE)
            good = valid(times)
            timed = n - int(np.isnan(times).sum())
            if timed > len(good):
                invalid.add("response_time", timed - len(good))
            durations.setdefault(column.duration, []).append(good)
    for key, parts in durations.items():
        tally.observe(key, parts)
    return recorded
