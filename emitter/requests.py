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

from ..proto.exact import F64, I64, ONE
from ..proto.keys import OTHER, encode_key
from .instruments import Invalid
from .labels import label
from .tally import Tally, all_valid, distributions, totals, valid

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
    """The column of one combination. Values that are no text become text; an unknown error type is ``server``."""
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
    """Move all rows into `tally`; returns how many there were.

    All columns at once: the event loop waits meanwhile, and a column by itself would cost as much as a thousand rows.
    """
    by_duration: dict[bytes, list[RequestColumn]] = {}
    for column in columns:
        if not column.announced:
            column.announced = True
            for key in column.known:
                tally.count(key, 0)
        if len(column.rows) >= ROW.size:
            by_duration.setdefault(column.duration, []).append(column)
    used = [column for group in by_duration.values() for column in group]
    if not used:
        return 0
    taken = []
    for column in used:
        size = len(column.rows) // ROW.size * ROW.size
        taken.append(column.rows[:size])
        del column.rows[:size]  # a prefix, as in `take`: rows appended meanwhile stay
    tables = [np.frombuffer(rows).reshape(-1, 4) for rows in taken]
    lengths = np.array([len(table) for table in tables])
    times, inputs, outputs, costs = (np.concatenate([table[:, i] for table in tables]) for i in range(4))

    tokens_in = totals(_or_zero(inputs, invalid, "tokens"), lengths)
    tokens_out = totals(_or_zero(outputs, invalid, "tokens"), lengths)
    unpriced = [0] * len(used)
    if not all_valid(costs):
        no_cost = np.isnan(costs)
        unpriced = np.add.reduceat(no_cost, np.cumsum(lengths) - lengths, dtype=np.int64).tolist()
        costs = np.where(no_cost, 0.0, costs)
    priced = totals(_or_zero(costs, invalid, "cost"), lengths)
    for i, (column, n) in enumerate(zip(used, lengths.tolist(), strict=True)):
        tally.count(column.requests, n * ONE)
        if column.errors is not None:
            tally.count(column.errors, n * ONE)
        tally.count(column.tokens_in, tokens_in[i])
        tally.count(column.tokens_out, tokens_out[i])
        tally.count(column.cost, priced[i])
        if column.errors is None and unpriced[i]:
            tally.count(column.unpriced, unpriced[i] * ONE)

    ends = np.cumsum([len(group) for group in by_duration.values()])
    rows = np.add.reduceat(lengths, np.concatenate(([0], ends[:-1])))
    _fold_durations(list(by_duration), times, rows, tally, invalid)
    return int(lengths.sum())


def _fold_durations(keys: list[bytes], times: F64, lengths: I64, tally: Tally, invalid: Invalid) -> None:
    """Add `times` to the distributions `keys`, so many of `lengths` to each. NaN is a time that was not given."""
    if not all_valid(times):
        good = valid(times)
        if wrong := int((~(good | np.isnan(times))).sum()):
            invalid.add("response_time", wrong)
        lengths = np.bincount(np.repeat(np.arange(len(keys)), lengths)[good], minlength=len(keys))
        times = times[good]
    timed = np.flatnonzero(lengths)
    for i, new in zip(timed.tolist(), distributions(times, lengths[timed]), strict=True):
        tally.add(keys[i], new)


def _or_zero(values: F64, invalid: Invalid, reason: str) -> F64:
    """`values` with 0 for those that may not be recorded; they are counted."""
    if all_valid(values):
        return values
    good = valid(values)
    invalid.add(reason, len(good) - int(good.sum()))
    return np.where(good, values, 0.0)
