"""Durations and sizes as people write them (``1m30s``, ``64MiB``), held as integers: milliseconds and bytes.

Parsing raises ConfigError with "expected …, got …" and no place: whoever knows the place puts it in front.
Formatting is the inverse: what it writes parses to the same integer.
"""

from __future__ import annotations

import re
from decimal import Decimal

from .errors import ConfigError

_UNITS_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,9})?"
# Descending units, each once: `1m30s` is one, and `30s1m`, which is likelier a slip than a wish, is none.
_DURATION = re.compile("".join(f"(?:({_NUMBER}){unit})?" for unit in _UNITS_MS))
_PLAIN = re.compile(_NUMBER)

_UNITS_BYTES = {f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", 1)}
_UNITS_BYTES |= {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)}
_SIZE = re.compile(rf"({_NUMBER})\s*([KMGT]i?B|B?)", re.IGNORECASE)
_BYTES_BY_NAME = {name.lower(): factor for name, factor in _UNITS_BYTES.items()} | {"b": 1, "": 1}


def show(text: str) -> str:
    """A value in an error message: one line, at most 80 characters, bare when it begins as a number, else quoted."""
    short = text if len(text) <= 80 else text[:79] + "…"
    return short if re.fullmatch(r"-?[0-9][0-9A-Za-z._+-]*", short) else repr(short)


def parse_duration_ms(value: str | int | float, *, unit: str = "s") -> int:
    """`value` in milliseconds: ``250ms``, ``5s``, ``2m``, ``1h``, ``7d``, ``1m30s``, or a plain number of `unit`.

    Raises ConfigError for anything else, for negative durations and for what is finer than a millisecond.
    """
    text = str(value).strip()
    if _PLAIN.fullmatch(text):
        total = Decimal(text) * _UNITS_MS[unit]
    elif text and (match := _DURATION.fullmatch(text)):
        parts = zip(match.groups(), _UNITS_MS.values(), strict=True)
        total = sum((Decimal(number) * unit_ms for number, unit_ms in parts if number), Decimal())
    else:
        raise ConfigError(f"expected a duration such as 250ms, 5s, 1m30s, 1h or 7d, got {show(text)}")
    return _whole(total, f"expected a duration of whole milliseconds, got {show(text)}")


def format_duration_ms(duration_ms: int) -> str:
    """``5s``, ``1m30s``, ``250ms``, ``0s``: the shortest text that `parse_duration_ms` reads as `duration_ms` (≥ 0)."""
    parts = []
    rest = duration_ms
    for name, unit_ms in _UNITS_MS.items():
        count, rest = divmod(rest, unit_ms)
        if count:
            parts.append(f"{count}{name}")
    return "".join(parts) or "0s"


def parse_size(value: str | int | float) -> int:
    """`value` in bytes: ``64MiB``, ``1GiB`` (powers of 1024), ``512KB`` (powers of 1000), or a plain number of bytes.

    Upper and lower case are the same. Raises ConfigError for anything else, ``64M`` among it, which could be either.
    """
    text = str(value).strip()
    match = _SIZE.fullmatch(text)
    if not match:
        raise ConfigError(f"expected a size such as 64MiB, 10GiB, 512KB or a number of bytes, got {show(text)}")
    total = Decimal(match[1]) * _BYTES_BY_NAME[match[2].lower()]
    return _whole(total, f"expected a size of whole bytes, got {show(text)}")


def format_size(size: int) -> str:
    """``64MiB``, ``512KB``, ``1000``: the largest unit that holds `size` bytes (≥ 0) a whole number of times."""
    for name, factor in sorted(_UNITS_BYTES.items(), key=lambda item: -item[1]):
        if size and size % factor == 0:
            return f"{size // factor}{name}"
    return str(size)


def _whole(number: Decimal, message: str) -> int:
    if number != number.to_integral_value():
        raise ConfigError(message)
    return int(number)
