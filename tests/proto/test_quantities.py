from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetmeter.proto.errors import ConfigError
from fleetmeter.proto.quantities import format_duration_ms, format_size, parse_duration_ms, parse_size


@pytest.mark.parametrize(
    ("text", "duration_ms"),
    [
        ("250ms", 250),
        ("5s", 5000),
        ("2m", 120_000),
        ("1h", 3_600_000),
        ("7d", 604_800_000),
        ("1m30s", 90_000),
        ("1d2h3m4s5ms", 93_784_005),
        ("1.5h", 5_400_000),
        (" 5s ", 5000),
        ("5", 5000),
        (0.25, 250),
        (0, 0),
    ],
)
def test_duration_text(text, duration_ms):
    """A duration is a number with a unit, several with descending units, or a plain number of seconds."""
    assert parse_duration_ms(text) == duration_ms


@pytest.mark.parametrize(("unit", "duration_ms"), [("ms", 5), ("s", 5000), ("m", 300_000), ("d", 432_000_000)])
def test_duration_plain_number(unit, duration_ms):
    """A plain number is in the unit that the caller names."""
    assert parse_duration_ms("5", unit=unit) == duration_ms


@pytest.mark.parametrize(
    "text", ["", " ", "s", "5x", "-5s", "5 s", "30s1m", "1m1m", "1e3", "5S", "5M", "٥s", "nan", "9" * 99]
)
def test_duration_refused(text):
    """What is no duration is refused with the value and with examples of what would be one."""
    with pytest.raises(ConfigError, match=r"expected a duration such as 250ms, 5s, 1m30s, 1h or 7d, got "):
        parse_duration_ms(text)


@pytest.mark.parametrize("text", ["0.5ms", "0.0001"])
def test_duration_too_fine(text):
    """A fraction of a millisecond is refused rather than rounded."""
    with pytest.raises(ConfigError, match=rf"whole milliseconds, got {text}"):
        parse_duration_ms(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64MiB", 64 << 20),
        ("1GiB", 1 << 30),
        ("512KB", 512_000),
        ("512kb", 512_000),
        ("1.5 KiB", 1536),
        ("2TB", 2 * 10**12),
        ("10B", 10),
        ("1000", 1000),
        (1000, 1000),
    ],
)
def test_size_text(text, size):
    """A size is in powers of 1024 (KiB …) or of 1000 (KB …), or a plain number of bytes."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "64M", "1G", "-1", "MiB", "1XiB", "1e3", "64MiB!"])
def test_size_refused(text):
    """What is no size, or could be either of two, is refused with the value and with examples."""
    with pytest.raises(ConfigError, match=r"expected a size such as 64MiB, 10GiB, 512KB or a number of bytes, got "):
        parse_size(text)


def test_size_too_fine():
    """A fraction of a byte is refused rather than rounded."""
    with pytest.raises(ConfigError, match=r"whole bytes, got 0\.5B"):
        parse_size("0.5B")


@given(st.integers(0, 10**15))
def test_round_trip(number):
    """What is written is read as the same number, so that a dump loads to an equal configuration."""
    assert parse_duration_ms(format_duration_ms(number)) == number
    assert parse_size(format_size(number)) == number


@pytest.mark.parametrize(("number", "text"), [(0, "0s"), (5000, "5s"), (90_000, "1m30s"), (250, "250ms")])
def test_duration_format(number, text):
    """Durations are written in the units that a person would take."""
    assert format_duration_ms(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (1000, "1KB"), (1024, "1KiB"), (64 << 20, "64MiB"), (1001, "1001")]
)
def test_size_format(number, text):
    """Sizes are written in the largest unit that fits a whole number of times."""
    assert format_size(number) == text
