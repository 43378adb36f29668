"""Structured logs: an event is a constant phrase, and what varies are its fields.

    log = get_logger(__name__)
    log.info("stream created", stream=name, subjects=2)
    log.warning("frame rejected", every_s=10.0, key=reason, reason=reason, node=node)

On a terminal that is ``12:03:04 INFO  aggregator  stream created  stream=FM_x subjects=2``, elsewhere one JSON object
a line. Both are made so that nothing in a field can begin a line or move a terminal's cursor.

The library never configures logging: until somebody does, records go the standard library's way, under the logger
``fleetmeter``, with their fields in the message. `configure_logging` is for processes that are Fleetmeter's own.

Logging never raises and never blocks on anything but the stream it writes to.
"""

from __future__ import annotations

import json
import logging
import math
import numbers
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal, TextIO, TypeAlias

ExcInfo: TypeAlias = (
    bool
    | BaseException
    | tuple[type[BaseException], BaseException, TracebackType | None]
    | tuple[None, None, None]
    | None
)

ROOT = "fleetmeter"
#: Longest text of one field, in characters: a longer one is a payload, and belongs in no log.
MAX_TEXT = 2000
#: Deepest nesting and most items of a list or mapping that a field shows; past them it says only how many there are.
MAX_DEPTH = 4
MAX_ITEMS = 100
#: Most repeated warnings that are told apart at once; further ones of an event are counted together.
MAX_REPEATED = 1024

#: What a JSON line has of its own; a field of that name gets a ``_`` behind it.
_OWN = frozenset({"ts", "level", "logger", "event", "traceback"})

# Without this, an application that configures no logging would see our warnings on its standard error.
logging.getLogger(ROOT).addHandler(logging.NullHandler())


class Event:
    """What a log record has for its message: a phrase with fields, turned into text when somebody wants text."""

    __slots__ = ("fields", "name")

    def __init__(self, name: str, fields: Mapping[str, object]) -> None:
        self.name = name
        self.fields = fields

    def __str__(self) -> str:
        fields = " ".join(f"{_text(name)}={_text(value)}" for name, value in self.fields.items())
        return f"{_printable(self.name)}  {fields}" if fields else _printable(self.name)


class Repeats:
    """Lets the first of equal records through, and counts those that follow within a span.

    Thread-safe; of bounded size: at `MAX_REPEATED` keys those whose span is over are forgotten, with their counts, and
    when none is, new keys share one place.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        # Re-entrant, for a signal handler may log while its own thread is in here.
        self._lock = threading.RLock()
        self._open: dict[tuple[str, ...], tuple[float, int]] = {}  # end of the span (s), how many it hid

    def admit(self, logger: str, event: str, key: object, every_s: float) -> int | None:
        """None when the record is to be hidden, else how many like it were hidden since the last."""
        now = self._monotonic()
        place: tuple[str, ...] = (logger, event, str(key)[:200])
        with self._lock:
            if place not in self._open and len(self._open) >= MAX_REPEATED:
                self._open = {other: state for other, state in self._open.items() if state[0] > now}
                if len(self._open) >= MAX_REPEATED:
                    place = (logger, event)
            ends, hidden = self._open.get(place, (now, 0))
            if now < ends:
                self._open[place] = (ends, hidden + 1)
                return None
            self._open[place] = (now + every_s, 0)
            return hidden


class Logger:
    """Structured front of one standard logger. Every method takes an event and its fields, and never raises.

    every_s   send the first of the records with this event and `key` at once, then at most one in so many seconds,
              which says in the field `suppressed` how many were hidden since
    key       what tells repeated records apart, such as the reason; by default the event alone
    exc_info  as in the standard library: True for the exception being handled, or an exception
    """

    def __init__(self, logger: logging.Logger, repeats: Repeats) -> None:
        self._logger = logger
        self._repeats = repeats

    def debug(self, event: str, /, *, exc_info: ExcInfo = None, **fields: object) -> None:
        self._log(logging.DEBUG, event, fields, exc_info, 0.0, None)

    def info(self, event: str, /, *, exc_info: ExcInfo = None, **fields: object) -> None:
        self._log(logging.INFO, event, fields, exc_info, 0.0, None)

    def warning(
        self,
        event: str,
        /,
        *,
        every_s: float = 0.0,
        key: object = None,
        exc_info: ExcInfo = None,
        **fields: object,
    ) -> None:
        self._log(logging.WARNING, event, fields, exc_info, every_s, key)

    def error(
        self,
        event: str,
        /,
        *,
        every_s: float = 0.0,
        key: object = None,
        exc_info: ExcInfo = None,
        **fields: object,
    ) -> None:
        self._log(logging.ERROR, event, fields, exc_info, every_s, key)

    def _log(
        self, level: int, event: str, fields: dict[str, object], exc_info: ExcInfo, every_s: float, key: object
    ) -> None:
        # A log line is never worth a proxy's request, so somebody's broken handler or filter must not raise into it.
        with suppress(Exception):
            if not self._logger.isEnabledFor(level):
                return
            if every_s > 0:
                hidden = self._repeats.admit(self._logger.name, event, key, every_s)
                if hidden is None:
                    return
                if hidden:
                    fields["suppressed"] = hidden
            self._logger.log(level, Event(event, fields), exc_info=exc_info, stacklevel=3)


_REPEATS = Repeats()


def get_logger(name: str, *, repeats: Repeats = _REPEATS) -> Logger:
    """The logger of a module: ``get_logger(__name__)``. Always under ``fleetmeter``, whatever the package's name is."""
    inside = name == ROOT or name.startswith(f"{ROOT}.")
    return Logger(logging.getLogger(name if inside else f"{ROOT}.{name}"), repeats)


def configure_logging(
    level: Literal["debug", "info", "warning", "error"] = "info",
    format: Literal["auto", "text", "json"] = "auto",
    stream: TextIO | None = None,
) -> None:
    """Send this process's logs, those of other libraries from `warning` up, to `stream` (standard error by default).

    `auto` is text when the stream is a terminal, else JSON. A second call replaces the first.
    """
    stream = stream if stream is not None else sys.stderr
    as_text = format == "text" or (format == "auto" and stream.isatty())
    handler = _Handler(stream)
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    logging.getLogger(ROOT).setLevel(level.upper())


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, so that `configure_logging` finds it again."""


class TextFormatter(logging.Formatter):
    """One line for a person; a traceback follows with every line indented, so that none of it passes for a record."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        event = str(record.msg) if isinstance(record.msg, Event) else _printable(record.getMessage())
        level = "WARN" if record.levelno == logging.WARNING else record.levelname
        line = f"{at} {level:<5} {_short(record.name)}  {event}"
        if record.exc_info and record.exc_info[0]:
            trace = self.formatException(record.exc_info)
            line += "".join(f"\n    {_printable(row)}" for row in trace.split("\n"))
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII: ts (RFC 3339, UTC), level, logger, event, the fields, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "ts": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": _short(record.name),
        }
        if isinstance(record.msg, Event):
            line["event"] = record.msg.name
            for name, value in record.msg.fields.items():
                line[f"{name}_" if name in _OWN else name] = _plain(value)
        else:
            line["event"] = record.getMessage()
        if record.exc_info and record.exc_info[0]:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _short(logger: str) -> str:
    return _printable(logger.removeprefix(f"{ROOT}."))


def _printable(text: str) -> str:
    """`text` without what ends a line or moves a cursor; these and other invisible characters are escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _text(value: object) -> str:
    """A field's value in a line of text: bare when it is one plain word, else as JSON."""
    plain = _plain(value)
    if isinstance(plain, str):
        if plain and plain.isprintable() and not any(c in ' "=' for c in plain):
            return plain
        # Readable text of any language stays readable; one invisible character (U+202E, a newline) and all is escaped.
        return json.dumps(plain, ensure_ascii=not plain.isprintable())
    return json.dumps(plain)


def _plain(value: object, depth: int = 0) -> Any:
    """`value` as what JSON can hold. Never raises; what has no text becomes a note of its type."""
    try:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return str(value) if len(value) <= MAX_TEXT else f"{value[:MAX_TEXT]}… ({len(value)} characters)"
        if isinstance(value, numbers.Integral):
            whole = int(value)
            return whole if abs(whole) < 1 << 64 else str(whole)  # text, for no JSON reader keeps such a number exact
        if isinstance(value, numbers.Real):
            return float(value) if math.isfinite(value) else str(float(value))
        if isinstance(value, BaseException):
            return _plain(f"{type(value).__name__}: {value}")
        if isinstance(value, bytes | bytearray | memoryview):
            return _plain(bytes(value[:MAX_TEXT]).decode("utf-8", "backslashreplace"))
        if isinstance(value, Mapping | list | tuple | set | frozenset):
            if depth == MAX_DEPTH or len(value) > MAX_ITEMS:
                return f"<{type(value).__name__} of {len(value)}>"
            if isinstance(value, Mapping):
                return {str(key): _plain(item, depth + 1) for key, item in value.items()}
            return [_plain(item, depth + 1) for item in value]
        return _plain(str(value))
    except Exception:
        return f"<{type(value).__name__} without text>"
