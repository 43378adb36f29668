"""Series keys: one spelling for each series, for any label values."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetmeter.proto.errors import SeriesKeyError
from fleetmeter.proto.keys import (
    MAX_LABELS,
    MAX_VALUE,
    check_key,
    decode_key,
    encode_key,
    label_of,
    metric_of,
    other_key,
    partition_of,
)

few = settings(max_examples=200, deadline=None, derandomize=True)
names = st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True)
texts = st.text(max_size=60).filter(lambda text: len(text.encode("utf-8", "replace")) <= MAX_VALUE)
utf8 = texts.filter(lambda text: not any(0xD800 <= ord(c) < 0xE000 for c in text))
labels = st.dictionaries(st.from_regex(r"[a-zA-Z][a-zA-Z0-9_]{0,20}", fullmatch=True), utf8, max_size=MAX_LABELS)


@few
@given(names, labels)
def test_key_and_back(metric: str, given_labels: dict[str, str]) -> None:
    """Metric and labels with any text as values survive, and the order in which labels are given does not matter."""
    key = encode_key(metric, given_labels)
    assert decode_key(key) == (metric, given_labels)
    assert encode_key(metric, dict(reversed(given_labels.items()))) == key
    assert metric_of(key) == metric
    for name, value in given_labels.items():
        assert label_of(key, name.encode()) == value.encode()


@few
@given(st.binary(max_size=40))
def test_bytes_are_a_key_or_refused(raw: bytes) -> None:
    """Any bytes either are the one spelling of a series or raise SeriesKeyError."""
    try:
        metric, given_labels = decode_key(raw)
    except SeriesKeyError:
        return
    assert encode_key(metric, given_labels) == raw


@few
@given(names, labels, names, labels)
def test_different_series_have_different_keys(m1: str, l1: dict[str, str], m2: str, l2: dict[str, str]) -> None:
    """No two series share a key."""
    assert (encode_key(m1, l1) == encode_key(m2, l2)) == ((m1, l1) == (m2, l2))


@pytest.mark.parametrize(
    ("metric", "given_labels", "says"),
    [
        ("", {}, "metric name"),
        ("9lives", {}, "metric name"),
        ("Requests", {}, "metric name"),
        ("a-b", {}, "metric name"),
        ("a\n", {}, "metric name"),
        ("a" * 129, {}, "metric name"),
        ("a", {"": "x"}, "label name"),
        ("a", {"_x": "y"}, "label name"),
        ("a", {"x-y": "y"}, "label name"),
        ("a", {"x" * 129: "y"}, "label name"),
        ("a", {"x": "y" * 257}, "257 bytes, the limit is 256"),
        ("a", {"x": "ü" * 129}, "258 bytes"),
        ("a", {"x": "\ud800"}, "not all text"),
        ("a", {f"l{i:02}": "" for i in range(17)}, "17 labels on a, the limit is 16"),
    ],
)
def test_what_no_key_can_hold_is_refused(metric: str, given_labels: dict[str, str], says: str) -> None:
    """Names outside the alphabet, and names and values over their limits, raise with the value and the limit."""
    with pytest.raises(SeriesKeyError, match=says):
        encode_key(metric, given_labels)


def test_label_that_is_no_text_is_refused() -> None:
    """A number as a label's value is an error, not a guess."""
    with pytest.raises(SeriesKeyError, match="not all text"):
        encode_key("a", {"x": 5})  # type: ignore[dict-item]


@pytest.mark.parametrize("raw", [b"a\xfeb\xffx\xfea\xffx", b"a\xfeb\xff1\xfeb\xff2", b"a\xfeb", b"a\xfe\xfd\xffx"])
def test_other_spellings_are_refused(raw: bytes) -> None:
    """Labels out of order, repeated or without value are no key."""
    with pytest.raises(SeriesKeyError):
        check_key(raw)


def test_label_of_takes_whole_names_only() -> None:
    """A label is found by its whole name, and not in another's value."""
    key = encode_key("a", {"node": "n", "nodes": "m", "x": "node"})
    assert (label_of(key, b"node"), label_of(key, b"nodes"), label_of(key, b"de")) == (b"n", b"m", None)


def test_other_key_keeps_metric_and_label_names() -> None:
    """A folded series has the same metric and label names, "other" for each value; folding twice changes nothing."""
    key = other_key(encode_key("a", {"x": "1", "y": "\n"}))
    assert decode_key(key) == ("a", {"x": "other", "y": "other"})
    assert other_key(key) == key
    assert other_key(b"a") == b"a"


def test_partition_is_the_crc() -> None:
    """The partition is CRC-32 modulo the number of partitions, which any language has."""
    assert partition_of(b"123456789", 1000) == 0xCBF43926 % 1000
    assert {partition_of(f"m{i}".encode(), 7) for i in range(100)} == set(range(7))
    assert partition_of(b"x", 1) == zlib.crc32(b"x") % 1 == 0
