"""Series tables: keys to ids, checked and capped, the same from a cache or not."""

from __future__ import annotations

import pytest
from support.frames import key

from fleetmeter.aggregator import series
from fleetmeter.aggregator.series import CATCH_ALL, SeriesTables
from fleetmeter.proto.catalogue import Kind
from fleetmeter.proto.columns import join_keys
from fleetmeter.proto.errors import FrameError
from fleetmeter.proto.keys import encode_key

COUNTER, GAUGE, HISTOGRAM = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM
A, B, C = key("a_total"), key("a_total", x="1"), key("b_total")


def tables(max_per_metric: int = 100, max_series: int = 1000) -> SeriesTables:
    return SeriesTables(max_per_metric, max_series)


def resolve(of: SeriesTables, *keys: bytes, kind: Kind = COUNTER, node: str = "a", n: int | None = None) -> list[int]:
    columns = {kind: (join_keys(keys), len(keys) if n is None else n)}
    ids: list[int] = of.resolve(columns, node)[kind].ids.tolist()
    return ids


def reason(of: SeriesTables, *keys: bytes, kind: Kind = COUNTER, node: str = "a", n: int | None = None) -> str:
    before = of.pack()
    with pytest.raises(FrameError) as caught:
        resolve(of, *keys, kind=kind, node=node, n=n)
    assert of.pack() == before, "a refused frame added a series"
    return caught.value.reason


def test_ids_are_given_in_order_and_kept() -> None:
    """A key has one id for ever, whatever else comes with it; kinds have tables of their own."""
    made = tables()
    assert resolve(made, A, B) == [0, 1]
    assert resolve(made, C, B, A) == [2, 1, 0]
    assert resolve(made, key("depth"), kind=GAUGE) == [0]
    assert len(made) == 4


def test_repeated_column_resolves_the_same() -> None:
    """From the cache, for any node, the answer is that of the first time."""
    made = tables()
    first = made.resolve({COUNTER: (join_keys([A, B]), 2)}, "a")[COUNTER]
    assert made.resolve({COUNTER: (join_keys([A, B]), 2)}, "a")[COUNTER] is first
    assert made.resolve({COUNTER: (join_keys([A, B]), 2)}, "b")[COUNTER] is first


@pytest.mark.parametrize("known", [False, True])
def test_number_of_keys_must_fit(known: bool) -> None:
    """Keys and values must be as many, also when the keys are known."""
    made = tables()
    if known:
        resolve(made, A, B)
    assert reason(made, A, B, n=3) == "length"
    assert reason(made, A, B, n=1) == "length"
    assert reason(made, n=1) == "length"


def test_what_is_no_key_or_twice_is_refused() -> None:
    """Keys are checked once, when they are new, and repetitions always."""
    made = tables()
    assert reason(made, A, b"Bad") == "key"
    assert reason(made, A, A) == "duplicate_key"
    resolve(made, A)
    assert reason(made, A, A) == "duplicate_key"


def test_node_label_is_checked_in_new_known_and_cached_keys() -> None:
    """A series of node a can't come from node b, however often a has sent it."""
    made, mine = tables(), key("depth", node="a")
    assert reason(made, mine, kind=GAUGE, node="b") == "node_claim"
    assert resolve(made, mine, kind=GAUGE, node="a") == [0]
    assert reason(made, mine, kind=GAUGE, node="b") == "node_claim"
    assert reason(made, mine, key("other"), kind=GAUGE, node="b") == "node_claim"
    assert reason(made, key("depth", node="a"), key("depth", node="b"), kind=GAUGE, node="a") == "node_claim"
    assert resolve(made, mine, kind=GAUGE, node="a") == [0]


def test_metric_has_one_kind() -> None:
    """The catalogue's kind, that of the first report, and one within a frame."""
    made = tables()
    assert reason(made, key("requests_total"), kind=GAUGE) == "kind"
    resolve(made, A)
    assert reason(made, A, kind=GAUGE) == "kind"
    assert reason(made, key("other_total"), kind=HISTOGRAM) == "kind"
    both = {COUNTER: (key("jobs"), 1), GAUGE: (key("jobs", x="1"), 1)}
    with pytest.raises(FrameError, match="jobs came as a gauge, it is a counter"):
        made.resolve(both, "a")
    assert resolve(made, key("jobs"), kind=GAUGE) == [0]


def test_refused_frame_does_not_fix_a_kind() -> None:
    """A metric of a frame that was refused is free."""
    made = tables()
    assert reason(made, C, b"Bad") == "key"
    assert resolve(made, C, kind=GAUGE) == [0]


def test_pipeline_metrics_are_reserved() -> None:
    """What the pipeline reports itself can't be reported by nodes."""
    assert reason(tables(), key("frames_total", result="applied")) == "reserved"


def test_series_past_the_cap_share_other() -> None:
    """New series of a full metric have one id, and how many they were is told; those that exist keep theirs."""
    made = tables(max_per_metric=2)
    keys = [key("a_total", x=str(i)) for i in range(5)]
    resolved = made.resolve({COUNTER: (join_keys(keys), 5)}, "a")[COUNTER]
    assert resolved.ids.tolist() == [0, 1, 2, 2, 2]
    assert not resolved.distinct
    assert resolved.overflow == {"a_total": 3}
    assert made.tables[COUNTER].keys[2] == key("a_total", x="other")
    one_folded = made.resolve({COUNTER: (join_keys([keys[0], keys[4]]), 2)}, "a")[COUNTER]
    assert one_folded.ids.tolist() == [0, 2] and one_folded.distinct
    assert resolve(made, C) == [3]


def test_other_itself_and_what_folds_into_it_are_one() -> None:
    """A series whose value is "other" already is the one that takes others in."""
    made = tables(max_per_metric=1)
    keys = [key("a_total", x=value) for value in ("1", "other", "2")]
    resolved = made.resolve({COUNTER: (join_keys(keys), 3)}, "a")[COUNTER]
    assert resolved.ids.tolist() == [0, 1, 1] and not resolved.distinct


def test_cap_over_all_metrics() -> None:
    """When all series together are too many, new ones fold, of each metric apart."""
    made = tables(max_series=2)
    resolve(made, A, B)
    assert resolve(made, key("c_total", x="1"), key("c_total", x="2"), key("d_total", y="1")) == [2, 2, 3]
    assert made.tables[COUNTER].keys[2:] == [key("c_total", x="other"), key("d_total", y="other")]


def test_endless_label_names_do_not_pass_the_cap() -> None:
    """Each set of label names has its own "other", up to a number; then one series takes in all."""
    made = tables(max_per_metric=5)
    keys = [encode_key("a_total", {f"l{i:03}": "x"}) for i in range(100)]
    ids = resolve(made, *keys)
    assert len(made) == 5 + series._SPARE_OTHERS + 1
    assert made.tables[COUNTER].keys[ids[-1]] == CATCH_ALL[COUNTER]


def test_endless_metrics_do_not_pass_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit of metrics new ones add to one of their kind; the catalogue's always have a place."""
    monkeypatch.setattr(series, "MAX_METRICS", 10)
    made = tables()
    resolve(made, *(key(f"m{i}_total") for i in range(50)))
    assert len(made) == 11
    assert made.tables[COUNTER].keys[-1] == CATCH_ALL[COUNTER]
    resolve(made, key("g"), kind=GAUGE), resolve(made, key("h"), kind=HISTOGRAM)
    assert [made.tables[kind].keys for kind in (GAUGE, HISTOGRAM)] == [[CATCH_ALL[GAUGE]], [CATCH_ALL[HISTOGRAM]]]
    resolve(made, key("requests_total"))
    assert made.tables[COUNTER].keys[-1] == key("requests_total")


def test_changed_caps_hold_for_known_columns_too() -> None:
    """When caps are raised, a column that was folded before is resolved anew."""
    made = tables(max_per_metric=1)
    keys = [key("a_total", x=str(i)) for i in range(3)]
    assert resolve(made, *keys) == [0, 1, 1]
    made.set_caps(100, 1000)
    assert resolve(made, *keys) == [0, 2, 3]


def test_full_cache_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is bounded by bytes, and what it forgot resolves the same."""
    monkeypatch.setattr(series, "_CACHE_BYTES", 100)
    made = tables()
    keys = [key("a_total", x=str(i)) for i in range(100)]
    first = [resolve(made, one) for one in keys]
    assert sum(len(blob) for _, blob in made._cache) <= 100
    assert [resolve(made, one) for one in keys] == first


def test_packed_tables_go_on_as_before() -> None:
    """Restored tables give the same ids, caps and kinds."""
    made = tables(max_per_metric=2)
    resolve(made, A, B, key("a_total", x="2")), resolve(made, key("g"), kind=GAUGE)
    again = tables(max_per_metric=2)
    again.unpack(made.pack())
    for one in (made, again):
        assert resolve(one, C, B, key("a_total", x="3"), A) == [3, 1, 2, 0]
        assert reason(one, key("g")) == "kind"
    assert again.pack() == made.pack()
