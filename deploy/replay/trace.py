"""Reading a trace: a CSV file of requests with TIMESTAMP, ContextTokens and GeneratedTokens, strictly.

The format is that of the Azure Public Dataset's LLM inference traces (2023). A header is required, in any order of
columns, and other columns are ignored. TIMESTAMP is UTC, ``2023-11-16 18:15:46.6805900``, with up to nine fraction
digits.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from ...proto.errors import TraceError
from ...proto.exact import I64

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
#: Most tokens of one request; a larger number is a mistake in the file.
MAX_TOKENS = 10**9
#: Longest time from a trace's first request to its last; more is a mistyped date, and millions of windows.
MAX_SPAN_DAYS = 31
#: Longest value that an error quotes, characters.
_QUOTED = 60

_TIMESTAMP = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?", re.ASCII)
_TIME = "a UTC time from 1970 to 2261 such as 2023-11-16 18:15:46.6805900"
_MAX_S = 9_200_000_000  # nanoseconds of what is before this fit an int64
_TOKENS = re.compile(r"[0-9]{1,18}", re.ASCII)


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Requests in order of time (those of one instant in the file's order).

    Four columns of n: `row` is the request's place in the file, from 0, which is what the rule goes by; `at_ms` is ms
    since the Unix epoch, rounded down; then the tokens of prompt and answer.
    """

    row: I64
    at_ms: I64
    input_tokens: I64
    output_tokens: I64

    def __len__(self) -> int:
        return len(self.row)

    def part(self, chosen: I64 | np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Trace:
        """The requests at these places, or where a mask is true."""
        return Trace(self.row[chosen], self.at_ms[chosen], self.input_tokens[chosen], self.output_tokens[chosen])

    def shifted(self, by_ms: int) -> Trace:
        """The same requests, so many ms later."""
        return Trace(self.row, self.at_ms + by_ms, self.input_tokens, self.output_tokens)

    def save(self, path: Path) -> None:
        """Write it for `load`, so that other processes need not read the CSV again."""
        np.save(path, np.stack([self.row, self.at_ms, self.input_tokens, self.output_tokens]))

    @classmethod
    def load(cls, path: Path) -> Trace:
        """What `save` wrote."""
        return cls(*np.load(path))


def read_trace(path: Path) -> Trace:
    """The requests of a file. Rows out of order of time are sorted.

    Raises TraceError, which reads ``file:line: column: value …, expected …``, for the first row that is not right, for
    a file that can't be read and for one without requests.
    """
    at_ns: list[int] = []
    tokens: list[tuple[int, int]] = []
    seconds: dict[str, int] = {}
    for where, (timestamp, context, generated) in _rows(path):
        at_ns.append(_instant_ns(timestamp, seconds, where))
        tokens.append((_count(context, COLUMNS[1], where), _count(generated, COLUMNS[2], where)))
    if not at_ns:
        raise TraceError(f"{path}: no requests after the header; expected at least one row")
    times = np.array(at_ns, np.int64)
    order = np.argsort(times, kind="stable")
    _check_span(path, times[order[0]], times[order[-1]])
    pairs = np.array(tokens, np.int64)[order]
    return Trace(order.astype(np.int64), times[order] // 1_000_000, pairs[:, 0].copy(), pairs[:, 1].copy())


def _check_span(path: Path, first_ns: np.int64, last_ns: np.int64) -> None:
    if last_ns - first_ns > MAX_SPAN_DAYS * 86_400 * 10**9:
        first, last = (str(np.datetime64(int(at), "ns"))[:19] for at in (first_ns, last_ns))
        raise TraceError(
            f"{path}: {COLUMNS[0]}: values from {first} to {last}, expected at most {MAX_SPAN_DAYS} days; "
            "is a date mistyped? Else split the file"
        )


def _rows(path: Path) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """Each row's place, as ``file:line``, and its three values."""
    lines = _lines(path)
    header = next(lines, None)
    if header is None:
        raise TraceError(f"{path}: an empty file, expected a header with {', '.join(COLUMNS)}")
    where, names = header
    for column in COLUMNS:
        if names.count(column) != 1:
            found = f"{names.count(column)} columns of this name in the header {_quote(','.join(names))}"
            raise TraceError(f"{where}: {column}: {found}, expected one")
    at = [names.index(column) for column in COLUMNS]
    for where, values in lines:
        if len(values) != len(names):
            missing = next((c for c, i in zip(COLUMNS, at, strict=True) if i >= len(values)), COLUMNS[-1])
            raise TraceError(
                f"{where}: {missing}: a row of {len(values)} values, expected {len(names)} as in the header"
            )
        yield where, (values[at[0]], values[at[1]], values[at[2]])


def _lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Each line's place and values; blank lines at the end of the file are none."""
    try:
        raw = path.read_bytes()
    except OSError as problem:
        raise TraceError(f"{path}: can't be read: {problem.strerror}; expected a CSV file") from problem
    for bad, what in ((raw.find(b"\0"), "a NUL byte"), (_not_utf8(raw), "a byte that is not UTF-8")):
        if bad >= 0:
            line = raw.count(b"\n", 0, bad) + 1
            raise TraceError(
                f"{path}:{line}: {_column_at(raw, bad)}: {what} ({raw[bad : bad + 1]!r}), expected text in UTF-8"
            )
    text = raw.decode("utf-8-sig").rstrip("\r\n")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for values in reader:
            yield f"{path}:{reader.line_num}", values
    except csv.Error as problem:
        raise TraceError(
            f"{path}:{reader.line_num}: {COLUMNS[0]}: {problem}, expected comma-separated values"
        ) from problem


def _not_utf8(raw: bytes) -> int:
    try:
        raw.decode()
    except UnicodeDecodeError as problem:
        return problem.start
    return -1


def _column_at(raw: bytes, offset: int) -> str:
    """The header's name for the column of the byte at `offset`, as well as a broken file allows."""
    names = raw.split(b"\n", 1)[0].removeprefix(b"\xef\xbb\xbf").strip().split(b",")
    column = raw[raw.rfind(b"\n", 0, offset) + 1 : offset].count(b",")
    name = names[column].decode("utf-8", "replace") if column < len(names) else ""
    return name if name.isidentifier() else f"column {column + 1}"


def _instant_ns(text: str, seconds: dict[str, int], where: str) -> int:
    """Nanoseconds since the epoch. `seconds` remembers the whole seconds that were seen: many requests share one."""
    match = _TIMESTAMP.fullmatch(text)
    if match is not None:
        whole = seconds.get(match[1])
        if whole is None:
            try:
                whole = int(datetime.fromisoformat(match[1]).replace(tzinfo=UTC).timestamp())
            except ValueError:
                whole = -1
            seconds[match[1]] = whole
        if 0 <= whole < _MAX_S:
            return whole * 10**9 + int((match[2] or "0").ljust(9, "0"))
    raise TraceError(f"{where}: {COLUMNS[0]}: value {_quote(text)}, expected {_TIME}")


def _count(text: str, column: str, where: str) -> int:
    if _TOKENS.fullmatch(text) and (number := int(text)) <= MAX_TOKENS:
        return number
    raise TraceError(f"{where}: {column}: value {_quote(text)}, expected a whole number from 0 to {MAX_TOKENS}")


def _quote(text: str) -> str:
    return repr(text) if len(text) <= _QUOTED else f"{text[:_QUOTED]!r}… ({len(text)} characters)"
