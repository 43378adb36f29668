"""`fleetmeter tail`: one metric's windows as they seal, as tables or as JSON lines."""

from __future__ import annotations

import asyncio
import difflib
import json
import math
from collections.abc import Callable
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from ..proto import window
from ..proto.bus import Bus, LogReader
from ..proto.catalogue import CATALOGUE, PREFIX
from ..proto.config import Config
from ..proto.errors import BusError, FrameError, StreamMissing
from ..proto.keys import MAX_NAME, encode_key
from ..proto.streams import bus_options, read_settings
from ..proto.subjects import Subjects, resolution_name
from ..proto.wire import Part, decode
from .terminal import plain

Print = Callable[[Part], None]
Say = Callable[[str], None]

#: How long to wait before asking again for what is not there yet, seconds.
_RETRY_S = 0.25


def metric_name(given: str) -> tuple[str, str]:
    """The name as windows have it, and a warning (or an empty text) for one that the catalogue does not know.

    Raises ValueError for what can't be a name.
    """
    name = given.removeprefix(PREFIX)
    try:
        encode_key(name, {})
    except ValueError:
        raise ValueError(
            f"{given[:MAX_NAME]!r} is no metric's name: expected [a-z][a-z0-9_]* of at most {MAX_NAME} characters"
        ) from None
    if name in CATALOGUE:
        return name, ""
    near = difflib.get_close_matches(name, CATALOGUE, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    return name, f"{name} is not in the catalogue{hint} Waiting for it as a metric of your own."


def printer(output: str, echo: Callable[[str], None]) -> Print:
    """What prints a part: ``json`` or ``table``."""

    def print_json(part: Part) -> None:
        for line in json_lines(part):
            echo(line)

    return print_json if output == "json" else _print_table


def json_lines(part: Part) -> list[str]:
    """One JSON object for each series. What is not finite, as the quantile of nothing, is null."""
    head = {
        "metric": part.metric,
        "start": _time(part.start_ms),
        "end": _time(part.end_ms),
        "resolution": resolution_name(part.resolution_ms),
        "revision": part.revision,
    }
    return [json.dumps(head | {name: _finite(value) for name, value in row.items()}) for row in window.rows(part)]


def _print_table(part: Part) -> None:
    rows = list(window.rows(part))
    labels = sorted({label for row in rows for label in _labels(row)})
    numbers = [name for name in (rows[0] if rows else {}) if name not in ("labels", "relative_error")]
    revision = f"  revision {part.revision}" if part.revision > 1 else ""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for label in labels:
        table.add_column(label, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            *(plain(_labels(row).get(label, "")) for label in labels), *(_number(row[name]) for name in numbers)
        )
    console = Console()
    title = f"{part.metric}  {_time(part.start_ms)}  {resolution_name(part.resolution_ms)}{revision}"
    console.print(title, style="bold", markup=False, highlight=False)
    # A file or a pipe has no width to fit into.
    console.print(table, markup=False, width=None if console.is_terminal else 1000)
    console.print()


def _labels(row: window.Row) -> dict[str, str]:
    labels = row["labels"]
    assert isinstance(labels, dict)
    return labels


async def follow(
    config: Config, metric: str, show: Print, resolution_ms: int | None, count: int | None, say: Say
) -> None:
    """Show each window of `metric` that is published from now on; return after `count` of them.

    A window comes in as many parts as the cluster has partitions with series of the metric, and a revision of it comes
    again; `count` goes by what is shown. Raises BusUnreachable when NATS can't be reached at the start; later it waits.
    """
    subjects = Subjects(config.cluster)
    async with await Bus.connect(bus_options(config), name="fleetmeter tail") as bus:
        wanted_ms = resolution_ms or await _interval_ms(bus, subjects, config.pipeline.interval_ms)
        reader = LogReader(
            bus, subjects.windows_stream, [subjects.windows_of(metric)], await _next_sequence(bus, subjects)
        )
        say(f"Waiting for windows of {metric}, {resolution_name(wanted_ms)} each; Ctrl-C stops.")
        complained, shown = "", 0
        while True:
            try:
                batch = await reader.batch(5.0)
                complained = ""
            except BusError as problem:
                waiting = (
                    f"Cluster {config.cluster} has no windows yet; waiting for an aggregator."
                    if isinstance(problem, StreamMissing)
                    else f"Windows can't be read now; trying again: {problem}"
                )
                if waiting != complained:
                    say(complained := waiting)
                await asyncio.sleep(_RETRY_S)
                continue
            for message in batch:
                try:
                    part = decode(Part, message.data)
                    if part.resolution_ms != wanted_ms:
                        continue
                    show(part)
                except FrameError as problem:
                    say(f"A window can't be read: {problem}")
                    continue
                shown += 1
                if shown == count:
                    return


async def _interval_ms(bus: Bus, subjects: Subjects, configured_ms: int) -> int:
    try:
        settings = await read_settings(bus, subjects)
    except StreamMissing:
        settings = None
    return settings.interval_ms if settings is not None else configured_ms


async def _next_sequence(bus: Bus, subjects: Subjects) -> int:
    try:
        return (await bus.stream_state(subjects.windows_stream)).last_sequence + 1
    except StreamMissing:
        return 1


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
