"""The gateway's fold over windows of a real aggregator's fold."""

from __future__ import annotations

import pytest
from support.frames import STEP, T0, Log, key
from support.gateway import fed, windows_of

from fleetmeter.gateway.exposition import TextExposition
from fleetmeter.gateway.state import GatewayFold
from fleetmeter.gateway.view import View
from fleetmeter.proto.bus import LogMessage
from fleetmeter.proto.errors import SnapshotError

REQUESTS = key("requests_total", provider="openai", model="gpt-4o", operation="chat", outcome="success", stream="false")
LATENCY = key("request_duration_seconds", provider="openai", model="gpt-4o", operation="chat")
COST = key("cost_usd_total", provider="openai", model="gpt-4o")
ENTRIES = key("cache_entries")


def eventful() -> Log:
    """Two nodes over six windows: a late frame that revises a window, one so late that only totals take it, a silent
    node.
    """
    log = Log()
    a, b = log.node("a"), log.node("b")
    a.hello(T0)
    b.hello(T0)
    for i in range(6):
        start = T0 + i * STEP
        a.data(start, {REQUESTS: 3, COST: 0.125}, {ENTRIES: (5.0 + i, start)}, {LATENCY: [0.1, 0.2, 0.4]})
        if i not in (1, 3):
            b.data(start, {REQUESTS: 2}, {ENTRIES: (7.0, start)}, {LATENCY: [0.8, 1.6]})
        elif i == 1:
            b.data(start, {REQUESTS: 2}, {}, {LATENCY: [3.2, 6.4]}, at_ms=start + STEP + 3500)
    for i in range(6, 30):
        log.tick(T0 + (i + 1) * STEP + 2500)
    late = log.node("c")
    late.data(T0, {REQUESTS: 100}, {}, {LATENCY: [0.5] * 100}, at_ms=log.now_ms)
    log.tick(log.now_ms + 2 * STEP)
    return log


def test_totals_and_cumulative_sketches_hold_everything_that_was_recorded() -> None:
    """Revisions replace what their window had added, and frames that came far too late count in totals once."""
    gateway = fed(windows_of(eventful()))
    view = View(gateway)
    assert view.total("requests_total") == 6 * 3 + 5 * 2 + 100
    assert view.total("cost_usd_total") == 0.75
    sums = gateway.cumulative["request_duration_seconds"]
    assert int(sums.counts.sum() + sums.zero.sum()) == 6 * 3 + 5 * 2 + 100
    seconds = float(sums.whole[0]) + float(sums.fraction[0]) / 2**64
    assert seconds == pytest.approx(6 * 0.7 + 4 * 2.4 + 9.6 + 50.0, rel=1e-12)


def test_repeated_messages_change_nothing() -> None:
    """Every message of the log a second time, as after a replica's restart, leaves the same state."""
    messages = windows_of(eventful())
    once = fed(messages)
    twice = fed([m for message in messages for m in (message, message)])
    again = fed(messages, fed(messages))
    assert TextExposition().render(once) == TextExposition().render(twice) == TextExposition().render(again)
    assert twice.repetitions == len(messages)


def test_a_window_is_seen_only_once_it_is_complete() -> None:
    """Parts wait for their marker: readers never see half a window."""
    messages = windows_of(eventful())
    first_marker = next(i for i, message in enumerate(messages) if "._sealed." in message.subject)
    before = fed(messages[:first_marker])
    assert View(before).end_ms is None and before.kinds == {}
    after = fed(messages[first_marker : first_marker + 1], before)
    assert View(after).end_ms == T0 + STEP


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
def test_a_restored_snapshot_goes_on_exactly(share: float) -> None:
    """Snapshot anywhere, restore, and the rest of the log: the state is that of one that was never stopped."""
    messages = windows_of(eventful())
    cut = int(len(messages) * share)
    restored = GatewayFold()
    restored.restore(fed(messages[:cut]).snapshot())
    assert fed(messages[cut:], restored).snapshot() == fed(messages).snapshot()


@pytest.mark.parametrize("state", [b"", b"\xc1", b"\x80", b"\x81\xa5kinds\xc0"])
def test_a_snapshot_that_is_none_is_refused(state: bytes) -> None:
    """Bytes that are no state raise SnapshotError and leave the fold as it was."""
    gateway = fed(windows_of(eventful()))
    before = gateway.snapshot()
    with pytest.raises(SnapshotError):
        gateway.restore(state)
    assert gateway.snapshot() == before


@pytest.mark.parametrize(
    ("payload", "reason"),
    [(b"", "truncated"), (b"FM\x01\x00", "truncated"), (b"XX\x01\x00\x90", "magic"), (b"FM\x09\x00\x90", "version")],
)
def test_what_cannot_be_read_is_counted_and_changes_nothing(payload: bytes, reason: str) -> None:
    """A broken window message ends in a counter with its reason."""
    gateway = fed(windows_of(eventful()))
    before = TextExposition().render(gateway)
    fed([LogMessage("fm.test.window.5s.requests_total.0", payload, 10_000, 0, 0, {})], gateway)
    assert gateway.malformed == {reason: 1}
    assert TextExposition().render(gateway) == before


def test_gauges_of_the_newest_window_are_merged_by_their_rule() -> None:
    """Cache entries of two nodes add up; a node that reports no more is gone with its window."""
    log = Log()
    a, b = log.node("a"), log.node("b")
    a.hello(T0)
    b.hello(T0)
    a.data(T0, {}, {ENTRIES: (5.0, T0)})
    b.data(T0, {}, {ENTRIES: (7.0, T0)})
    gateway = fed(windows_of(log))
    assert View(gateway).gauge("cache_entries") == 12.0
    a.data(T0 + STEP, {}, {ENTRIES: (6.0, T0 + STEP)})
    b.bye(T0 + STEP, T0 + STEP + 1)
    log.tick(T0 + 2 * STEP + 3000)
    assert View(fed(windows_of(log))).gauge("cache_entries") == 6.0
