from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetmeter.proto import logs
from fleetmeter.proto.config import Nats, Secret
from fleetmeter.proto.logs import Event, JsonFormatter, Repeats, TextFormatter, configure_logging, get_logger


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Ticks:
    """A monotonic clock that a test moves."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture(autouse=True)
def _as_before():
    """Logging is global: a test leaves it as it was."""
    root, ours = logging.getLogger(), logging.getLogger(logs.ROOT)
    before = root.handlers[:], ours.handlers[:], ours.level
    yield
    root.handlers[:], ours.handlers[:] = before[0], before[1]
    ours.setLevel(before[2])


@pytest.fixture
def ticks():
    return Ticks()


@pytest.fixture
def log(ticks):
    return get_logger("fleetmeter.test", repeats=Repeats(ticks))


@pytest.fixture
def lines():
    """lines() is what was logged as JSON since the start of the test."""
    stream = io.StringIO()
    configure_logging("debug", "json", stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture
def text():
    """text() is what was logged as text since the start of the test."""
    stream = io.StringIO()
    configure_logging("debug", "text", stream)
    return stream.getvalue


# ---- The two forms


def test_text(log, text):
    """A line of text is the time of day, level, logger, event and fields."""
    log.info("stream created", stream="FM_x", subjects=2)
    log.warning("slow")

    first, second = text().splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d INFO  test  stream created  stream=FM_x subjects=2", first)
    assert re.fullmatch(r"\d\d:\d\d:\d\d WARN  test  slow", second)


def test_json(log, lines):
    """A line of JSON has the time in UTC, level, logger, event and the fields with their types."""
    log.error("stream created", stream="FM_x", subjects=2, share=0.5, new=True, old=None)

    [line] = lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("ts"))
    assert line == {
        "level": "error",
        "logger": "test",
        "event": "stream created",
        "stream": "FM_x",
        "subjects": 2,
        "share": 0.5,
        "new": True,
        "old": None,
    }


def test_time_is_the_records():
    """The time in JSON is that of the record, in UTC."""
    record = logging.makeLogRecord({"msg": "x", "created": 1_700_000_000.25, "levelname": "INFO", "name": "n"})

    assert json.loads(JsonFormatter().format(record))["ts"] == "2023-11-14T22:13:20.250Z"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("fm.x.delta.>", "fm.x.delta.>"),
        ("größe", "größe"),
        ("two words", '"two words"'),
        ("größe 3", '"größe 3"'),
        ("", '""'),
        ('say "x"', r'"say \"x\""'),
        ("a=b", '"a=b"'),
        ("a\nb", r'"a\nb"'),
        ("\x1b[31m", r'"\u001b[31m"'),
        ("a\x85b\u2028c\u202ed\u00a0e", r'"a\u0085b\u2028c\u202ed\u00a0e"'),
        ("\udcff", r'"\udcff"'),
        (b"\xffab", r"\xffab"),
        (1.5, "1.5"),
        (float("nan"), "nan"),
        (True, "true"),
        (None, "null"),
        (["a b", 1], '["a b", 1]'),
        ({"a": {"b": Decimal("1.5")}}, '{"a": {"b": "1.5"}}'),
        (ValueError("no\nway"), r'"ValueError: no\nway"'),
        (Path("/x/y"), "/x/y"),
        (np.int64(3), "3"),
        (np.float32(0.5), "0.5"),
        (Secret("hunter2"), "<secret>"),
    ],
    ids=range(24),
)
def test_values_in_text(value, shown, log, text):
    """A plain word is bare; whatever could be taken for something else, or move a cursor, is quoted and escaped."""
    log.info("event", field=value)

    assert text().rstrip("\n").endswith(f"  event  field={shown}")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (float("inf"), "inf"),
        ([float("nan")], ["nan"]),
        (10**5000, "<int without text>"),
        (2**64, str(2**64)),
        ((1, {"a": {1: b"x"}}), [1, {"a": {"1": "x"}}]),
        ([[[[[1]]]]], [[[["<list of 1>"]]]]),
        (range(3), "range(0, 3)"),
        (list(range(101)), "<list of 101>"),
        ("x" * 3000, "x" * 2000 + "… (3000 characters)"),
        ("\ud800", "\ud800"),
        (np.arange(2), "[0 1]"),
    ],
    ids=range(11),
)
def test_values_in_json(value, shown, log, lines):
    """Whatever a field holds, its line is valid JSON of bounded size, and what JSON lacks is text."""
    log.info("event", field=value)

    assert lines()[0]["field"] == shown


def test_a_list_inside_of_itself(log, lines):
    """A value that contains itself is shown to a certain depth."""
    loop: list[object] = []
    loop.append(loop)

    log.info("event", field=loop)

    assert lines()[0]["field"] == [[[["<list of 1>"]]]]


def test_fields_named_as_the_lines_own(log, lines):
    """A field cannot take the place of the time, level, logger, event or traceback of a line."""
    log.info("event", event="x", level="y", ts="z", logger="w", traceback="v", self="u")

    [line] = lines()
    assert (line["event"], line["level"], line["logger"]) == ("event", "info", "test")
    assert [line[f"{name}_"] for name in ("event", "level", "ts", "logger", "traceback")] == [*"xyzwv"]
    assert line["self"] == "u"


ANY_TEXT = st.text(st.characters(), max_size=30)


@given(name=ANY_TEXT, event=ANY_TEXT, field=ANY_TEXT, value=ANY_TEXT, exception=ANY_TEXT)
def test_no_injection(name, event, field, value, exception):
    """Whatever text gets into a record, it begins no line of its own and holds no control character."""
    try:
        raise ValueError(exception)
    except ValueError:
        info = sys.exc_info()
    record = logging.makeLogRecord({"msg": Event(event, {field: value}), "name": name, "exc_info": info})

    as_text, as_json = TextFormatter().format(record), JsonFormatter().format(record)

    first, *rest = as_text.split("\n")
    assert all(line.isprintable() for line in [first, *rest, as_json])
    assert all(line.startswith("    ") for line in rest)
    assert json.loads(as_json)["event"] == event


def test_other_libraries(text):
    """Records of other libraries take the same form, from warning up, and cannot break out of their line either."""
    other = logging.getLogger("other.library")

    other.info("hidden")
    other.warning("failed: %s", "x\n12:00:00 ERROR forged")

    [line] = text().splitlines()
    assert line.endswith(r"WARN  other.library  failed: x\n12:00:00 ERROR forged")


@pytest.mark.parametrize("format", ["text", "json"])
def test_no_secret_in_a_section(format, log):
    """Settings that are logged whole show no secret."""
    stream = io.StringIO()
    configure_logging("info", format, stream)

    log.info("connecting", nats=Nats(url=("nats://me:hunter2@h",), token=Secret("hunter2")))

    assert "nats://<secret>@h" in stream.getvalue() and "hunter2" not in stream.getvalue()


# ---- Exceptions


def fail():
    raise ValueError("no way")


def test_exception_in_json(log, lines):
    """With exc_info, a line of JSON has the traceback as one field."""
    try:
        fail()
    except ValueError:
        log.error("failed", exc_info=True)

    trace = lines()[0]["traceback"]
    assert trace.startswith("Traceback (most recent call last):\n") and trace.endswith("ValueError: no way")


def test_exception_object_in_text(log, text):
    """An exception given as exc_info is shown below its line, indented."""
    try:
        fail()
    except ValueError as error:
        caught = error
    log.error("failed", exc_info=caught)

    first, *rest = text().splitlines()
    assert first.endswith("ERROR test  failed")
    assert rest[0] == "    Traceback (most recent call last):" and rest[-1] == "    ValueError: no way"


def test_exc_info_without_exception(log, lines):
    """With exc_info and no exception there is nothing to show."""
    log.error("failed", exc_info=True)

    assert "traceback" not in lines()[0]


# ---- Repeated records


def test_repeated_warnings(log, ticks, lines):
    """The first warning goes out at once; those within the span are counted, and the next says how many."""
    for now in (100.0, 100.0, 105.0, 109.9, 110.0, 115.0, 120.0, 140.0):
        ticks.now = now
        log.warning("frame rejected", every_s=10.0, key="gap", at=now)

    assert [(line["at"], line.get("suppressed")) for line in lines()] == [
        (100.0, None),
        (110.0, 3),
        (120.0, 1),
        (140.0, None),
    ]


def test_repeats_are_told_apart(log, ticks, lines):
    """Another key, event or logger is not a repetition, and neither is a warning without `every_s`."""
    other = get_logger("fleetmeter.other", repeats=log._repeats)
    for _ in range(2):
        log.warning("a", every_s=10.0, key=1)
        log.warning("a", every_s=10.0, key=2)
        log.warning("a", every_s=10.0)
        log.error("b", every_s=10.0, key=1)
        other.warning("a", every_s=10.0, key=1)
        log.warning("c")

    assert [line["event"] for line in lines()] == ["a", "a", "a", "b", "a", "c", "c"]


def test_a_level_that_is_off_counts_nothing(log, lines):
    """A record that would not be shown anyway does not open a span."""
    logging.getLogger(logs.ROOT).setLevel("ERROR")
    log.warning("a", every_s=10.0)
    logging.getLogger(logs.ROOT).setLevel("INFO")
    log.warning("a", every_s=10.0)

    assert len(lines()) == 1


def test_repeats_are_bounded(ticks):
    """A flood of different keys takes bounded memory, and is held back as one once the places are taken."""
    repeats = Repeats(ticks)

    admitted = [repeats.admit("l", "e", key, 10.0) for key in range(logs.MAX_REPEATED * 3)]

    assert len(repeats._open) <= logs.MAX_REPEATED + 1
    assert sum(a is not None for a in admitted) == logs.MAX_REPEATED + 1
    ticks.now += 11.0
    assert repeats.admit("l", "e", "new", 10.0) == 0
    assert len(repeats._open) == 1


def test_repeats_from_many_threads(ticks):
    """However many threads warn at once, one record goes out, and every other one is counted."""
    repeats = Repeats(ticks)
    admitted = []

    def warn():
        for _ in range(200):
            admitted.append(repeats.admit("l", "e", None, 10.0))

    threads = [threading.Thread(target=warn) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [a for a in admitted if a is not None] == [0]
    ticks.now += 10.0
    assert repeats.admit("l", "e", None, 10.0) == 8 * 200 - 1


# ---- How it is configured


@pytest.mark.parametrize(
    ("stream", "format", "is_json"),
    [
        (io.StringIO, "auto", True),
        (Terminal, "auto", False),
        (io.StringIO, "text", False),
        (Terminal, "json", True),
    ],
)
def test_auto_format(stream, format, is_json):
    """Logs are text on a terminal and JSON elsewhere, unless one of them is asked for."""
    out = stream()
    configure_logging("info", format, out)

    get_logger("x").info("event")

    assert out.getvalue().startswith("{") is is_json


def test_standard_error_by_default(capsys):
    """Logs go to standard error; standard output is for results."""
    configure_logging()

    get_logger("x").info("event")

    out, err = capsys.readouterr()
    assert out == "" and json.loads(err)["event"] == "event"


def test_level():
    """Records below the level are not shown."""
    stream = io.StringIO()
    configure_logging("warning", "json", stream)
    log = get_logger("x")

    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")

    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["c", "d"]


def test_configured_twice():
    """A second configuration takes the place of the first, so that no record is shown twice."""
    first, second = io.StringIO(), io.StringIO()
    configure_logging("info", "json", first)
    configure_logging("info", "json", second)

    get_logger("x").info("event")

    assert first.getvalue() == "" and len(second.getvalue().splitlines()) == 1


@pytest.mark.parametrize("name", ["fleetmeter", "fleetmeter.a.b", "a.b", "__main__", "fleetmeters"])
def test_logger_names(name, lines):
    """Every logger is under `fleetmeter`, whatever name the package was loaded as."""
    get_logger(name).info("event")

    assert lines()[0]["logger"] == name.removeprefix("fleetmeter.")


# ---- In somebody else's process


def test_silent_until_configured():
    """In a process that configures no logging, nothing is written, not even a warning."""
    code = "from fleetmeter.proto.logs import get_logger; get_logger('x').error('event', field=1)"

    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert (run.stdout, run.stderr) == ("", "")


def test_standard_logging(caplog):
    """In a process with logging of its own, records are standard ones: fields in the message, and the caller's line."""
    with caplog.at_level("INFO"):
        get_logger("x").info("stream created", stream="FM x", subjects=2)

    [record] = caplog.records
    assert record.name == "fleetmeter.x"
    assert record.getMessage() == 'stream created  stream="FM x" subjects=2'
    assert (record.funcName, record.filename) == ("test_standard_logging", "test_logs.py")


class Hostile:
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


def test_hostile_values(log, lines):
    """A value whose text raises is named by its type, and so is one inside of another."""
    log.info("event", field=Hostile(), inner=[Hostile()], error=ValueError(Hostile()))

    [line] = lines()
    assert line["field"] == "<Hostile without text>" and line["inner"] == ["<Hostile without text>"]
    assert line["error"] == "<ValueError without text>"


@pytest.mark.parametrize("key", [["unhashable"], ("a", ["b"]), 1])
def test_any_key(key, log, lines):
    """A key may be anything that has a text."""
    log.warning("event", every_s=10.0, key=key)
    log.warning("event", every_s=10.0, key=key)

    assert len(lines()) == 1


def test_broken_surroundings(log):
    """Neither a filter nor a handler that raises, nor a key without text, is raised into the caller."""

    def refuse(record):
        raise RuntimeError("a filter of the application")

    ours = logging.getLogger("fleetmeter.test")
    ours.addFilter(refuse)
    try:
        log.error("event")
        log.error("event", every_s=1.0, key=Hostile())
    finally:
        ours.removeFilter(refuse)
