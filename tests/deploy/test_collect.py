"""Reading windows back: the newest revision counts, repetitions do not, and the end is known."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from fleetmeter.deploy.replay.collect import Collector
from fleetmeter.deploy.replay.verify import series
from fleetmeter.proto.bus import LogMessage
from fleetmeter.proto.keys import encode_key
from fleetmeter.proto.subjects import Subjects
from fleetmeter.proto.window import WindowCounters
from fleetmeter.proto.wire import Ledger, LogPosition, Part, Sealed, encode

T0 = 1_700_000_000_000
SUBJECTS = Subjects("test")
LABELS = {"provider": "openai", "model": "gpt-4o", "type": "input"}
TOKENS = series("tokens_total", **LABELS)


def collector(*, partitions: int = 1, only_span: bool = False) -> Collector:
    return Collector(5000, partitions, T0, T0 + 10_000, only_span)


def message(subject: str, payload: bytes) -> LogMessage:
    return LogMessage(subject, payload, 1, 0, 0, {})


def part(start_ms: int, tokens: int, *, at: int, revision: int = 1, resolution_ms: int = 5000) -> LogMessage:
    one = np.array([tokens])
    none = np.zeros(1, np.uint64)
    columns = WindowCounters([encode_key("tokens_total", LABELS)], one, none, one, none).pack()
    return message(
        SUBJECTS.window(resolution_ms, "tokens_total", 0) if resolution_ms else SUBJECTS.late("tokens_total", 0),
        encode(
            Part(
                metric="tokens_total",
                partition=0,
                resolution_ms=resolution_ms,
                start_ms=start_ms,
                end_ms=start_ms + resolution_ms,
                revision=revision,
                position=LogPosition(1, at),
                counters=columns,
            )
        ),
    )


def sealed(start_ms: int, partition: int = 0, resolution_ms: int = 5000, heard: int = 2) -> LogMessage:
    return message(
        SUBJECTS.sealed(resolution_ms, partition),
        encode(
            Sealed(
                partition=partition,
                resolution_ms=resolution_ms,
                start_ms=start_ms,
                end_ms=start_ms + resolution_ms,
                revision=1,
                position=LogPosition(1, 1),
                sealed_ms=0,
                cause="watermark",
                nodes_expected=2,
                nodes_heard=heard,
                missing=[],
                gaps=0,
                metrics=[],
                ledger=Ledger(),
            )
        ),
    )


def test_increments_by_window():
    """Each window's increment is kept apart; their sum is the total."""
    c = collector()

    for one in (part(T0, 7, at=1), sealed(T0), part(T0 + 5000, 5, at=2), sealed(T0 + 5000)):
        c.take(one)

    result = c.result()
    assert result.counters == {(T0, TOKENS): 7, (T0 + 5000, TOKENS): 5}
    assert result.total("tokens_total", type="input") == 12
    assert result.windows == [T0, T0 + 5000]


def test_revision_replaces():
    """A later revision of a window stands for it."""
    c = collector()

    for one in (part(T0, 7, at=1), part(T0 + 5000, 5, at=2), part(T0, 9, at=3, revision=2)):
        c.take(one)

    assert c.result().counters == {(T0, TOKENS): 9, (T0 + 5000, TOKENS): 5}


@pytest.mark.parametrize("again", [1, 2])
def test_repetition_is_skipped(again):
    """A part that is not newer than the last one of its kind changes nothing."""
    c = collector()

    for one in (part(T0, 7, at=2), part(T0, 1, at=again)):
        c.take(one)

    assert c.result().counters == {(T0, TOKENS): 7}


def test_totals_only_parts_are_strays():
    """Increments that belong to no window count in the total, and show as such."""
    c = collector()

    for one in (part(T0, 7, at=1), part(T0, 2, at=2, resolution_ms=0), part(T0, 2, at=2, resolution_ms=0)):
        c.take(one)

    result = c.result()
    assert result.strays == {TOKENS: Fraction(2)}
    assert result.total("tokens_total") == 9


def test_rollups_are_left_out():
    """Longer windows hold the same numbers again, and do not count twice."""
    c = collector()

    for one in (part(T0, 7, at=1), part(T0, 7, at=1, resolution_ms=60_000), sealed(T0, resolution_ms=60_000)):
        c.take(one)

    assert c.result().total("tokens_total") == 7
    assert c.result().windows == []


def test_windows_of_others_are_left_out():
    """In a cluster that is in use, only the replay's span counts."""
    c = collector(only_span=True)

    for start in (T0 - 5000, T0, T0 + 10_000):
        c.take(part(start, 7, at=start))
        c.take(sealed(start))

    assert c.result().windows == [T0]
    assert c.result().total("tokens_total") == 7


def test_complete_when_every_partition_has_sealed_the_last_window():
    """One partition's marker is not enough."""
    c = collector(partitions=2)

    c.take(sealed(T0 + 5000, partition=0))
    before = c.complete
    c.take(sealed(T0 + 5000, partition=1))

    assert (before, c.complete) == (False, True)
    assert c.result().windows == [T0 + 5000]


def test_corrected_once_every_window_has_all_its_nodes():
    """A window that was sealed without a node is waited for until its revision has it."""
    c = collector()

    c.take(sealed(T0, heard=1))
    before = c.corrected
    c.take(sealed(T0, heard=2))

    assert (before, c.corrected) == (False, True)
