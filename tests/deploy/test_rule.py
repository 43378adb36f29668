"""The rule that completes a trace: a pure function of row and seed, with the shares that it documents."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fleetmeter.deploy.replay import rule
from fleetmeter.deploy.replay.trace import Trace

N = 20_000


def trace_of(n: int) -> Trace:
    row = np.arange(n)
    return Trace(row, row * 100, row % 4000, row % 900)


def uniform_by_hand(seed: int, row: int, k: int) -> float:
    """The draw as the module's docstring writes it, in Python integers."""
    golden, mask = 0x9E3779B97F4A7C15, 2**64 - 1

    def mix(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
        return x ^ x >> 31

    bits = mix(mix(mix(seed + golden & mask) + golden * (row + 1) & mask) + golden * (k + 1) & mask)
    return (bits >> 11) / 2**53


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_draws_are_as_documented(seed):
    """A writer in another language can follow the docstring and gets the same draws."""
    rows = np.array([0, 1, 19_365, 2**40])

    for k in (0, 6):
        assert rule.uniform(seed, rows, k).tolist() == [uniform_by_hand(seed, int(row), k) for row in rows]


def test_known_answer():
    """The requests of seed 1 never change: recorded results refer to them."""
    assert list(rule.requests(trace_of(3), 1))[2] == rule.Request(
        at_ms=200,
        input_tokens=2,
        output_tokens=2,
        model=rule.MODELS[0],
        operation="completion",
        stream=True,
        failure=None,
        latency=0.550421,
        first_token=0.525579,
        cost_nusd=25_000,
    )


def test_same_seed_same_requests():
    """The rule is a function: twice the same input gives the same requests."""
    assert list(rule.requests(trace_of(500), 7)) == list(rule.requests(trace_of(500), 7))


def test_another_seed_other_requests():
    """The seed decides."""
    assert list(rule.requests(trace_of(500), 7)) != list(rule.requests(trace_of(500), 8))


@pytest.mark.parametrize("nodes", [1, 3, 8])
def test_independent_of_nodes(nodes):
    """However many nodes share a trace, together they play the same requests."""
    trace = trace_of(500)

    shares = [list(rule.requests(trace.part(rule.node_of(trace.row, nodes) == i), 1)) for i in range(nodes)]

    assert sorted((r for share in shares for r in share), key=lambda r: r.at_ms) == list(rule.requests(trace, 1))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_shares():
    """Models, operations, streams, failures and their types come in the shares that are documented."""
    columns = rule.complete(trace_of(N), 1)

    failed = columns.failure >= 0
    for i, model in enumerate(rule.MODELS):
        assert np.mean(columns.model == i) == pytest.approx(model.share, abs=0.012)
    for i, failure in enumerate(rule.ERRORS):
        assert np.mean(columns.failure[failed] == i) == pytest.approx(failure.share, abs=0.08)
    assert np.mean(failed) == pytest.approx(rule.ERROR_SHARE, abs=0.005)
    assert np.mean(columns.stream) == pytest.approx(rule.STREAM_SHARE, abs=0.012)
    assert np.mean(columns.operation == 0) == pytest.approx(rule.CHAT_SHARE, abs=0.012)


def test_shares_add_up():
    """The documented shares are shares of one whole."""
    assert math.isclose(sum(m.share for m in rule.MODELS), 1.0)
    assert math.isclose(sum(e.share for e in rule.ERRORS), 1.0)


def test_latencies():
    """Times are positive whole microseconds, and the first token comes before the whole answer."""
    for request in rule.requests(trace_of(2000), 1):
        assert request.latency > 0
        assert round(request.latency * 1e6) / 1e6 == request.latency
        if request.first_token is not None:
            assert 0 < request.first_token <= request.latency


def test_first_token_only_of_successful_streams():
    """Time to first token is recorded for what was streamed and succeeded, for nothing else."""
    for request in rule.requests(trace_of(2000), 1):
        assert (request.first_token is not None) == (request.stream and request.failure is None)


def test_cost_is_tokens_times_price():
    """Cost is exact in nano-dollars, for failures as well."""
    for request in rule.requests(trace_of(2000), 1):
        model = request.model
        assert request.cost_nusd == request.input_tokens * model.input_nusd + request.output_tokens * model.output_nusd
