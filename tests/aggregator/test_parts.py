"""From sums to messages: sorted, cut to size, and with ids that every replica gives."""

from __future__ import annotations

import pytest
from support.frames import STEP, SUBJECTS, T0, Log, fold, key, run

from fleetmeter.aggregator.parts import Place, plain_counters, plain_gauges, publications, sealed_output
from fleetmeter.proto.catalogue import Kind
from fleetmeter.proto.window import window_counters, window_gauges, window_sketches
from fleetmeter.proto.wire import MAX_PAYLOAD, Ledger, LogPosition, Part, Sealed, decode

PLACE = Place(3, STEP, T0, T0 + STEP, 1, LogPosition(5, 7))
HITS = plain_counters({key("hits_total", user=str(i)): (i, 10 * i) for i in range(300)})


def parts_of(kind: Kind, packed: list[bytes], limit: int) -> list[Part]:
    stages, metrics = publications(SUBJECTS, PLACE, [(kind, "m", packed)], limit)
    assert metrics == ["m"]
    for stage in stages:
        assert len(stage) == 1  # of one metric one piece at a time
    return [decode(Part, publication.payload) for stage in stages for publication in stage]


def test_metric_that_fits_is_one_message() -> None:
    """The message says where it belongs, and its id is that place."""
    stages, _ = publications(SUBJECTS, PLACE, [(Kind.COUNTER, "hits_total", HITS)], MAX_PAYLOAD)
    ((publication,),) = stages
    part = decode(Part, publication.payload)
    assert publication.subject == "fm.test.window.5s.hits_total.3"
    assert publication.message_id == f"hits_total.3.{STEP}.{T0}.1.5.7.0"
    assert (part.piece, part.pieces, part.revision, part.position) == (0, 1, 1, LogPosition(5, 7))
    assert part.counters == HITS and not part.gauges and not part.sketches


def test_totals_go_to_the_late_subject() -> None:
    """What belongs to no window any more has a subject of its own."""
    place = Place(0, 0, T0, T0 + STEP, 0, LogPosition(5, 7))
    stages, _ = publications(SUBJECTS, place, [(Kind.COUNTER, "hits_total", HITS)], MAX_PAYLOAD)
    assert stages[0][0].subject == "fm.test.late.hits_total.0"


@pytest.mark.parametrize("limit", [1500, 3000, 8000])
def test_counters_too_large_for_one_message_come_in_pieces(limit: int) -> None:
    """The pieces are numbered, within the limit, in order of keys, and together the whole."""
    parts = parts_of(Kind.COUNTER, HITS, limit)
    assert [part.piece for part in parts] == list(range(len(parts))) and {part.pieces for part in parts} == {len(parts)}
    assert all(sum(map(len, part.counters)) <= limit - 1024 for part in parts)
    columns = [window_counters(part) for part in parts]
    keys = [series for c in columns for series in c.keys]
    assert keys == sorted(keys) and len(set(keys)) == 300
    totals = {series: total for c in columns for series, total in zip(c.keys, c.total_whole.tolist(), strict=True)}
    assert totals == {key("hits_total", user=str(i)): 10 * i for i in range(300)}


def test_gauges_and_sketches_come_in_pieces() -> None:
    """Pieces of gauges and of sketches keep each series' numbers together."""
    gauges = plain_gauges({key("depth", q=str(i)): i - 50.5 for i in range(100)}, T0)
    found = [window_gauges(part) for part in parts_of(Kind.GAUGE, gauges, 2500)]
    assert len(found) > 1
    assert {series: v for g in found for series, v in zip(g.keys, g.last.tolist(), strict=True)} == {
        key("depth", q=str(i)): i - 50.5 for i in range(100)
    }
    assert sum(float(g.average().sum()) for g in found) == sum(i - 50.5 for i in range(100))
    log = Log()
    a = log.node("a")
    a.hello(T0)
    recorded = {key("wait_seconds", q=str(i)): [0.0, 1.2**i, 1.5**i] for i in range(60)}
    a.data(T0, values=recorded)
    published = run(fold(), log.messages)
    (whole,) = [part for part in published.parts if part.metric == "wait_seconds"]
    pieces = parts_of(Kind.HISTOGRAM, whole.sketches, 2500)
    assert len(pieces) > 1
    found_sketches: dict[bytes, object] = {}
    for part in pieces:
        s = window_sketches(part)
        found_sketches.update(zip(s.keys, s.sketches(), strict=True))
    assert found_sketches == published.sketches["wait_seconds", T0]


def test_pieces_of_many_metrics_go_out_one_after_the_other() -> None:
    """A stage holds at most one piece of each metric: they must be stored in their order."""
    columns = [(Kind.COUNTER, f"m{i}_total", HITS if i % 2 else HITS[:]) for i in range(4)]
    stages, metrics = publications(SUBJECTS, PLACE, columns, 3000)
    assert metrics == [f"m{i}_total" for i in range(4)]
    for number, stage in enumerate(stages):
        parts = [decode(Part, publication.payload) for publication in stage]
        assert {part.piece for part in parts} == {number}
        assert [part.metric for part in parts] == metrics


def test_marker_comes_last() -> None:
    """The output's last stage is the marker alone; without parts it is the only one."""
    marker = Sealed(
        partition=3, resolution_ms=STEP, start_ms=T0, end_ms=T0 + STEP, revision=1, position=LogPosition(5, 7),
        sealed_ms=T0, cause="late", nodes_expected=0, nodes_heard=0, missing=[], gaps=0, metrics=[], ledger=Ledger(),
    )  # fmt: skip
    stages, _ = publications(SUBJECTS, PLACE, [(Kind.COUNTER, "m", HITS)], MAX_PAYLOAD)
    output = sealed_output(SUBJECTS, stages, marker, PLACE)
    assert output.stages[:-1] == stages and output.order == (LogPosition(5, 7), T0)
    (seal,) = output.stages[-1]
    assert (seal.subject, seal.message_id) == ("fm.test.window.5s._sealed.3", f"_sealed.3.{STEP}.{T0}.1.5.7")
    assert sealed_output(SUBJECTS, [], marker, PLACE).stages == [[seal]]


def test_keys_of_a_part_ascend_whatever_their_order_of_arrival() -> None:
    """Readers see no trace of the ids that series were given."""
    bytes_of = []
    for order in (1, -1):
        log = Log()
        a = log.node("a")
        a.hello(T0)
        keys = [key("hits_total", user=f"{i:02}") for i in range(30)][::order]
        a.data(
            T0,
            {k: i for i, k in enumerate(keys[::order])},
            values={k.replace(b"hits_total", b"w"): [1.0] for k in keys},
        )
        published = run(fold(), log.messages)
        bytes_of.append((published.columns["hits_total", T0, 0], published.columns["w", T0, 0]))
    assert bytes_of[0] == bytes_of[1]
