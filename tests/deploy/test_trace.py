"""Reading a trace: what is accepted, and what each mistake in a file is told as."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleetmeter.deploy.replay.trace import Trace, read_trace
from fleetmeter.proto.errors import TraceError

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
GOOD = "2023-11-16 18:15:46.6805900,374,44\n"
#: 2023-11-16 18:15:46 UTC, ms since the epoch.
AT_MS = 1_700_158_546_000


def write(directory: Path, content: str | bytes) -> Path:
    path = directory / "trace.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_reads_time_and_tokens(tmp_path):
    """A row gives its time in whole milliseconds, rounded down, and its tokens."""
    trace = read_trace(write(tmp_path, HEADER + GOOD))

    assert trace.at_ms.tolist() == [AT_MS + 680]
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([374], [44])


@pytest.mark.parametrize(
    "content",
    [
        pytest.param((HEADER + GOOD).replace("\n", "\r\n"), id="CRLF"),
        pytest.param("\ufeff" + HEADER + GOOD, id="BOM"),
        pytest.param(HEADER + GOOD.rstrip(), id="no newline at the end"),
        pytest.param(HEADER + GOOD + "\n\n", id="blank lines at the end"),
        pytest.param(
            "x,GeneratedTokens,TIMESTAMP,ContextTokens\n\u2028é,44,2023-11-16 18:15:46.6805900,374\n",
            id="other columns",
        ),
        pytest.param(
            'TIMESTAMP,ContextTokens,GeneratedTokens\n"2023-11-16 18:15:46.6805900","374","44"\n', id="quotes"
        ),
    ],
)
def test_accepts_variants(tmp_path, content):
    """Line ends, a byte order mark, quotes and further columns do not change what is read."""
    trace = read_trace(write(tmp_path, content))

    assert trace.at_ms.tolist() == [AT_MS + 680]
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([374], [44])


@pytest.mark.parametrize("fraction", ["", ".6", ".123456789"])
def test_fraction_digits(tmp_path, fraction):
    """A time has no fraction digits, or up to nine."""
    trace = read_trace(write(tmp_path, f"{HEADER}2023-11-16 18:15:46{fraction},1,1\n"))

    assert trace.at_ms.tolist() == [AT_MS + int((fraction[1:] or "0").ljust(3, "0")[:3])]


def test_sorts_by_time(tmp_path):
    """Rows out of order are sorted, equal times keep the file's order, and each keeps its place in the file."""
    rows = ["2023-11-16 18:15:48,3,0", "2023-11-16 18:15:46,1,0", "2023-11-16 18:15:48,4,0", "2023-11-16 18:15:47,2,0"]

    trace = read_trace(write(tmp_path, HEADER + "\n".join(rows)))

    assert trace.input_tokens.tolist() == [1, 2, 3, 4]
    assert trace.row.tolist() == [1, 3, 0, 2]


def test_save_and_load(tmp_path):
    """What one process saves another loads."""
    trace = read_trace(write(tmp_path, HEADER + GOOD + GOOD))

    trace.save(tmp_path / "trace.npy")
    loaded = Trace.load(tmp_path / "trace.npy")

    for name in ("row", "at_ms", "input_tokens", "output_tokens"):
        assert getattr(loaded, name).tolist() == getattr(trace, name).tolist()


BAD_TIMES = [
    "", "now", "2023-11-16", "2023-13-16 18:15:46", "2023-11-16T18:15:46", "2023-11-16 18:15:46.1234567890",
    "2023-11-16 18:15:46Z", " 2023-11-16 18:15:46", "2023-11-16 25:15:46", "1969-12-31 23:59:59", "9999-01-01 00:00:00",
    "２０２３-11-16 18:15:46",
]  # fmt: skip
BAD_TOKENS = ["", "-1", "1.5", "1e3", " 1", "+1", "nan", "1_000", "1000000001", "9" * 30, "１"]


@pytest.mark.parametrize("value", BAD_TIMES)
def test_bad_time(tmp_path, value):
    """A time that is none is told with its line, column and value, and what was expected."""
    path = write(tmp_path, f"{HEADER}{GOOD}{value},1,1\n")

    with pytest.raises(TraceError) as caught:
        read_trace(path)

    assert str(caught.value).startswith(f"{path}:3: TIMESTAMP: value {value!r}, expected a UTC time")


@pytest.mark.parametrize("value", BAD_TOKENS)
@pytest.mark.parametrize("column", ["ContextTokens", "GeneratedTokens"])
def test_bad_tokens(tmp_path, column, value):
    """Tokens that are no whole number up to the limit are told with their line, column and value."""
    tokens = f"{value},1" if column == "ContextTokens" else f"1,{value}"
    path = write(tmp_path, f"{HEADER}{GOOD}2023-11-16 18:15:47,{tokens}\n")

    with pytest.raises(TraceError) as caught:
        read_trace(path)

    assert str(caught.value) == f"{path}:3: {column}: value {value!r}, expected a whole number from 0 to 1000000000"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ": an empty file, expected a header"),
        (HEADER, ": no requests after the header"),
        ("TIMESTAMP,ContextTokens\n", ":1: GeneratedTokens: 0 columns of this name"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens,TIMESTAMP\n", ":1: TIMESTAMP: 2 columns of this name"),
        (HEADER + "2023-11-16 18:15:46,1\n", ":2: GeneratedTokens: a row of 2 values, expected 3"),
        (HEADER + "2023-11-16 18:15:46,1,2,3\n", ":2: GeneratedTokens: a row of 4 values, expected 3"),
        (HEADER + "\n" + GOOD, ":2: TIMESTAMP: a row of 0 values, expected 3"),
        (HEADER + GOOD + "2023-11-16 18:15:46,1\0,2\n", ":3: ContextTokens: a NUL byte"),
        (HEADER.encode() + b"2023-11-16 18:15:46,1,\xff2\n", ":2: GeneratedTokens: a byte that is not UTF-8"),
        (HEADER + '"2023-11-16 18:15:46,1,2\n', ":2: TIMESTAMP: "),
        (HEADER + GOOD + "2032-11-16 18:15:46,1,1\n", ": TIMESTAMP: values from 2023-11-16T18:15:46 to 2032-11-16"),
    ],
)
def test_bad_file(tmp_path, content, message):
    """Each way in which a file can be wrong is told with its place."""
    path = write(tmp_path, content)

    with pytest.raises(TraceError) as caught:
        read_trace(path)

    assert str(caught.value).startswith(f"{path}{message}")


def test_missing_file(tmp_path):
    """A file that is not there is an error of the trace."""
    with pytest.raises(TraceError, match=r"none\.csv: can't be read: No such file"):
        read_trace(tmp_path / "none.csv")


def test_long_value_is_cut(tmp_path):
    """A value of megabytes does not end up in the message."""
    with pytest.raises(TraceError) as caught:
        read_trace(write(tmp_path, f"{HEADER}{'x' * 100_000},1,1\n"))

    assert len(str(caught.value)) < 500
    assert "(100000 characters)" in str(caught.value)
