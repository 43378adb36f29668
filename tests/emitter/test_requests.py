"""What a request's row adds to which metrics."""

from __future__ import annotations

import math

import pytest
from support.frames import key

from fleetmeter.emitter.instruments import Invalid
from fleetmeter.emitter.requests import ERROR_TYPES, ROW, RequestColumn, fold_requests, other_labels, request_column
from fleetmeter.emitter.tally import Tally
from fleetmeter.proto.exact import ONE

NAN = math.nan
CALL = {"provider": "openai", "model": "gpt-4o"}
SUCCESS = ("openai", "gpt-4o", True, None, "chat", False)


def column(*rows: tuple[float, float, float, float], labels: tuple[object, ...] = SUCCESS) -> RequestColumn:
    made = request_column(labels, Invalid())  # type: ignore[arg-type]
    for row in rows:
        made.rows.extend(ROW.pack(*row))
    return made


def folded(*columns: RequestColumn) -> tuple[Tally, Invalid, int]:
    tally, invalid = Tally(), Invalid()
    return tally, invalid, fold_requests(list(columns), tally, invalid)


def outcome(outcome: str, stream: str = "false") -> bytes:
    return key("requests_total", **CALL, operation="chat", outcome=outcome, stream=stream)


def test_row_of_a_success() -> None:
    """Count, latency, tokens and cost of one request, exactly."""
    tally, invalid, n = folded(column((0.5, 300, 20, 0.25)))
    assert n == 1 and invalid.total == 0
    assert tally.counters[outcome("success")] == ONE
    assert tally.counters[key("tokens_total", **CALL, type="input")] == 300 * ONE
    assert tally.counters[key("tokens_total", **CALL, type="output")] == 20 * ONE
    assert tally.counters[key("cost_usd_total", **CALL)] == ONE // 4
    assert key("unpriced_requests_total", **CALL, reason="no_cost") not in tally.counters
    latency = tally.sketches[key("request_duration_seconds", **CALL, operation="chat")]
    assert (latency.units, latency.minimum, latency.maximum) == (ONE // 2, 0.5, 0.5)


def test_row_of_a_failure() -> None:
    """A failure counts by its type, with its latency, and is not missed in the cost."""
    failed = column((2.0, 0, 0, NAN), labels=("openai", "gpt-4o", False, "timeout", "chat", False))
    tally, _, _ = folded(failed)
    assert tally.counters[outcome("error")] == ONE
    assert tally.counters[key("request_errors_total", **CALL, operation="chat", error_type="timeout")] == ONE
    assert key("unpriced_requests_total", **CALL, reason="no_cost") not in tally.counters
    assert len(tally.sketches) == 1


def test_series_exist_from_the_first_request_on() -> None:
    """The other outcome and every error type start at 0, once."""
    one = column((0.5, 0, 0, 0))
    tally, _, _ = folded(one)
    assert tally.counters[outcome("error")] == 0
    errors = [key("request_errors_total", **CALL, operation="chat", error_type=kind) for kind in ERROR_TYPES]
    assert [tally.counters[series] for series in errors] == [0] * len(ERROR_TYPES)
    again, _, n = folded(one)
    assert (n, again.series) == (0, 0)


def test_values_that_are_not_given() -> None:
    """Without a response time there is no latency; a success without cost is counted as unpriced."""
    tally, invalid, _ = folded(column((NAN, 0, 0, NAN), (0.5, 0, 0, 1.0)))
    assert tally.counters[key("unpriced_requests_total", **CALL, reason="no_cost")] == ONE
    assert tally.counters[key("cost_usd_total", **CALL)] == ONE
    assert int(next(iter(tally.sketches.values())).counts.sum()) == 1
    assert invalid.total == 0


@pytest.mark.parametrize("wrong", [-1.0, math.inf, -math.inf, 2.0**41])
def test_values_that_cannot_be_are_left_out_and_counted(wrong: float) -> None:
    """A wrong number is left out of its own metric, and the request still counts."""
    tally, invalid, n = folded(column((wrong, wrong, wrong, wrong), (1.0, 1, 1, 1.0)))
    assert n == 2
    assert invalid.counts == {"response_time": 1, "tokens": 2, "cost": 1}
    assert tally.counters[outcome("success")] == 2 * ONE
    assert tally.counters[key("tokens_total", **CALL, type="input")] == ONE
    assert tally.counters[key("cost_usd_total", **CALL)] == ONE
    assert next(iter(tally.sketches.values())).units == ONE


def test_undefined_tokens_are_invalid() -> None:
    """NaN as a number of tokens is counted as invalid: unlike a cost, it can't be left out."""
    _, invalid, _ = folded(column((1.0, NAN, 5, 1.0)))
    assert invalid.counts == {"tokens": 1}


def test_columns_of_one_latency_series_are_one_distribution() -> None:
    """Successes, failures and streams of one call share the latency, and its values are not counted twice."""
    labels = [
        SUCCESS,
        ("openai", "gpt-4o", False, "server", "chat", False),
        ("openai", "gpt-4o", True, None, "chat", True),
    ]
    other = column((8.0, 0, 0, 0), labels=("openai", "gpt-4o", True, None, "embeddings", False))
    columns = [column((float(i + 1), 0, 0, 0), (NAN, 0, 0, 0), labels=of) for i, of in enumerate(labels)]
    tally, _, n = folded(columns[0], other, *columns[1:])
    latency = tally.sketches[key("request_duration_seconds", **CALL, operation="chat")]
    assert n == 7
    assert (latency.units, int(latency.counts.sum())) == (6 * ONE, 3)
    assert tally.sketches[key("request_duration_seconds", **CALL, operation="embeddings")].units == 8 * ONE
    assert tally.counters[outcome("success", stream="true")] == 2 * ONE


def test_column_whose_values_are_all_missing_makes_no_distribution() -> None:
    """A series without a single latency is not in the frame's sketches."""
    tally, _, n = folded(column((NAN, 0, 0, NAN), (NAN, 0, 0, NAN)))
    assert (n, tally.sketches) == (2, {})


def test_rows_appended_meanwhile_stay() -> None:
    """A row that is not whole, or comes after the fold, is left for the next window."""
    one = column((1.0, 0, 0, 0))
    one.rows.extend(ROW.pack(2.0, 0, 0, 0)[:8])
    _, _, n = folded(one)
    one.rows.extend(ROW.pack(2.0, 0, 0, 0)[8:])
    tally, _, later = folded(one)
    assert (n, later) == (1, 1)
    assert next(iter(tally.sketches.values())).units == 2 * ONE


def test_unknown_error_type_counts_as_server() -> None:
    """An error type that is none of the known ones is a server error, and counted as invalid."""
    invalid = Invalid()
    made = request_column(("p", "m", False, "gremlins", "chat", False), invalid)
    assert made.errors == key("request_errors_total", provider="p", model="m", operation="chat", error_type="server")
    assert invalid.counts == {"error_type": 1}
    assert request_column(("p", "m", False, None, "chat", False), Invalid()).errors == made.errors


def test_labels_become_text() -> None:
    """Any object is a label by its text, cut at the limit, with lone surrogates replaced."""
    made = request_column((None, 5, True, None, "x" * 300, 1), Invalid())
    expected = key("requests_total", provider="None", model="5", operation="x" * 256, outcome="success", stream="true")
    assert made.requests == expected
    assert b"?" in request_column(("\ud800", "m", True, None, "chat", False), Invalid()).requests


def test_requests_over_the_cap_keep_outcome_and_error_type() -> None:
    """What is folded still counts as success or by its error."""
    assert other_labels(SUCCESS) == ("other", "other", True, None, "other", False)
    assert other_labels(("a", "b", False, "timeout", "c", 1)) == ("other", "other", False, "timeout", "other", True)
    assert other_labels(("a", "b", False, "gremlins", "c", 0)) == ("other", "other", False, None, "other", False)
