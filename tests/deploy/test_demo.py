"""The demo proxy's made-up traffic: seeded, plausible, and all of it countable by an emitter."""

from __future__ import annotations

from collections import Counter

import pytest

from fleetmeter.deploy.demo import RATE, TROUBLE_EVERY_S, Traffic, record
from fleetmeter.deploy.replay.rule import ERRORS, MODELS
from fleetmeter.emitter import Emitter
from fleetmeter.proto.clock import ManualClock
from fleetmeter.proto.config import load_config


def test_same_seed_same_traffic():
    """A demo sees the same requests again, as far as no provider has had trouble, whatever steps its time goes in."""
    fine, coarse = Traffic(3), Traffic(3)

    ended = [call for step in range(1, 101) for call in fine.advance(step / 10)[0]]

    assert len(ended) > 20
    assert coarse.advance(10.0)[0] == ended


def test_other_seed_other_traffic():
    """Two demos don't show the same requests."""
    assert Traffic(1).advance(60.0)[0] != Traffic(2).advance(60.0)[0]


def test_traffic_is_plausible():
    """An hour has about the rate's requests, over all models, with every type of error."""
    calls, hits, misses = Traffic(1).advance(3600.0)

    assert hits + misses == pytest.approx(3600 * RATE, rel=0.1)
    assert len(calls) == pytest.approx(misses, rel=0.05)
    assert {c["model"] for c in calls} == {m.name for m in MODELS}
    assert {c.get("error_type") for c in calls} == {None, *(e.error_type for e in ERRORS)}
    assert 0.02 < sum("error_type" in c for c in calls) / len(calls) < 0.15


def test_requests_end_when_they_have_taken_their_time():
    """A request is under way from its arrival to its end, and only then recorded."""
    traffic = Traffic(1)

    ended, _, misses = traffic.advance(10.0)

    assert misses == len(ended) + len(traffic.under_way)
    assert all(call.ends_s > 10.0 for call in traffic.under_way)


def test_trouble_comes_and_goes():
    """Now and then a provider has trouble, for a while."""
    traffic = Traffic(1)

    seen = Counter(traffic.advance(float(second)) and traffic.troubled for second in range(int(10 * TROUBLE_EVERY_S)))

    assert set(seen) - {None} <= {m.provider for m in MODELS}
    assert 0 < sum(n for provider, n in seen.items() if provider) < 0.4 * seen[None]


def test_emitter_takes_all_of_it():
    """Nothing that the demo records is refused: names, labels and values are the catalogue's."""
    config = load_config(None, environ={}, flags={"emitter.host_metrics": "false"})
    emitter = Emitter(config, node="demo-1", clock=ManualClock(1_700_000_000_000))
    traffic = Traffic(1)

    for second in range(120):
        record(emitter, traffic, *traffic.advance(float(second)))
    tally = emitter._recorder.fold()

    assert emitter.stats().invalid == {}
    assert len(tally.counters) > 20
    assert len(tally.gauges) > 20
