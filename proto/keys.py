"""Series keys: the identity of a series as bytes.

    key = metric ( 0xFE label-name 0xFF label-value )*      label names in ascending order, each once

0xFD, 0xFE and 0xFF never occur in UTF-8, so any label value (newlines, quotes, emoji) is carried unescaped and a key
can be split without looking at lengths. Frames join the keys of a column with 0xFD for the same reason: splitting a
thousand keys is one call into C.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping

from .errors import SeriesKeyError

KEY_SEP = b"\xfd"
LABEL_SEP = b"\xfe"
VALUE_SEP = b"\xff"

#: The label value into which series beyond a cap are folded.
OTHER = "other"

#: Longest metric or label name, in characters.
MAX_NAME = 128
#: Longest label value, in bytes of UTF-8. A value that names a thing is shorter; a longer one is a prompt or a dump.
MAX_VALUE = 256
#: Most labels a series may have.
MAX_LABELS = 16

_METRIC = re.compile(rb"[a-z][a-z0-9_]{0,127}\Z")
_LABEL = re.compile(rb"[a-zA-Z][a-zA-Z0-9_]{0,127}\Z")


def encode_key(metric: str, labels: Mapping[str, str]) -> bytes:
    """The key of a series. Raises SeriesKeyError for a name or value that a key cannot hold."""
    key = metric.encode("utf-8", "replace")
    if labels:
        try:
            key += b"".join(
                LABEL_SEP + name.encode() + VALUE_SEP + value.encode() for name, value in sorted(labels.items())
            )
        except (UnicodeEncodeError, AttributeError) as error:
            raise SeriesKeyError(f"labels {dict(labels)!r} of {metric!r} are not all text that UTF-8 holds") from error
    check_key(key)
    return key


def check_key(key: bytes) -> None:
    """Raise SeriesKeyError unless `key` is a well-formed, canonical series key within the limits."""
    metric, *pairs = key.split(LABEL_SEP)
    if not _METRIC.match(metric):
        raise SeriesKeyError(f"metric name {metric[:80]!r} is not [a-z][a-z0-9_]* of at most {MAX_NAME} characters")
    if len(pairs) > MAX_LABELS:
        raise SeriesKeyError(f"{len(pairs)} labels on {metric.decode()}, the limit is {MAX_LABELS}")
    before = b""
    for pair in pairs:
        name, found, value = pair.partition(VALUE_SEP)
        if not found or not _LABEL.match(name):
            raise SeriesKeyError(f"label name {name[:80]!r} on {metric.decode()} is not [a-zA-Z][a-zA-Z0-9_]*")
        if name <= before:
            raise SeriesKeyError(f"label {name.decode()!r} on {metric.decode()} is repeated or out of order")
        if len(value) > MAX_VALUE:
            raise SeriesKeyError(
                f"label {name.decode()!r} on {metric.decode()} has a value of {len(value)} bytes, "
                f"the limit is {MAX_VALUE}"
            )
        if VALUE_SEP in value or KEY_SEP in value or not _is_utf8(value):
            raise SeriesKeyError(f"label {name.decode()!r} on {metric.decode()} has the value {value[:80]!r}, no UTF-8")
        before = name


def decode_key(key: bytes) -> tuple[str, dict[str, str]]:
    """Metric name and labels (in ascending order of name) of a key. Raises SeriesKeyError when it is none."""
    check_key(key)
    metric, *pairs = key.split(LABEL_SEP)
    return metric.decode(), dict(_pair(pair) for pair in pairs)


def metric_of(key: bytes) -> str:
    """The metric's name of a key that `check_key` has passed."""
    return key.partition(LABEL_SEP)[0].decode()


def label_of(key: bytes, name: bytes) -> bytes | None:
    """The value of one label of a checked key, as UTF-8 bytes; None without it."""
    _, found, rest = key.partition(LABEL_SEP + name + VALUE_SEP)
    return rest.partition(LABEL_SEP)[0] if found else None


def other_key(key: bytes) -> bytes:
    """The key that takes in `key` when its metric has too many series: every label's value is ``other``."""
    metric, *pairs = key.split(LABEL_SEP)
    other = OTHER.encode()
    return metric + b"".join(LABEL_SEP + pair.partition(VALUE_SEP)[0] + VALUE_SEP + other for pair in pairs)


def partition_of(key: bytes, partitions: int) -> int:
    """The partition that owns a series: CRC-32 (IEEE, as in zlib and PNG) of its key, modulo `partitions`."""
    return zlib.crc32(key) % partitions


def _pair(pair: bytes) -> tuple[str, str]:
    name, _, value = pair.partition(VALUE_SEP)
    return name.decode(), value.decode()


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
