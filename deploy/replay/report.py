"""What a replay shows: its progress on standard error, its summary and differences on standard output."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from ..terminal import plain
from .progress import Progress
from .run import Summary
from .verify import Difference

#: Differences that are listed; a cluster that is wrong in one place is mostly wrong in many.
MAX_LISTED = 30


class _BarProgress(Progress):
    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=None)

    def phase(self, text: str) -> None:
        self._bar.update(self._task, description=text)

    def rows(self, done: int, of: int) -> None:
        self._bar.update(self._task, completed=done, total=of)

    def words(self, name: str, line: str) -> None:
        self._bar.console.print(f"{name} | {plain(line)}", markup=False, highlight=False)


class _PlainProgress(Progress):
    """Off a terminal: each phase once, and what processes say."""

    def __init__(self) -> None:
        self._last = ""

    def phase(self, text: str) -> None:
        if text != self._last:
            self._last = text
            click.echo(text, err=True)

    def words(self, name: str, line: str) -> None:
        click.echo(f"{name} | {plain(line)}", err=True)


@contextlib.contextmanager
def progress_on() -> Iterator[Progress]:
    """Progress on standard error: a bar on a terminal, plain lines elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _PlainProgress()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        yield _BarProgress(bar)


def print_summary(summary: Summary, as_json: bool) -> None:
    """The summary; with `as_json` one object, and the differences on standard error."""
    if as_json:
        fields = asdict(summary)
        del fields["differences"]
        click.echo(json.dumps(fields))
    else:
        click.echo(f"requests       {summary.requests:,}")
        click.echo(f"input tokens   {summary.input_tokens:,}")
        click.echo(f"output tokens  {summary.output_tokens:,}")
        click.echo(f"cost           {summary.cost_usd:,.6f} USD")
        click.echo(f"windows        {summary.windows:,}")
        click.echo(f"seconds        {summary.seconds:.1f}")
        if summary.match is not None:
            found = len(summary.differences or ())
            verdict = "yes, in every number" if summary.match else f"no: {found:,} differences"
            click.echo(f"as computed    {verdict}; largest error of a percentile {summary.max_quantile_error:.2%}")
    if summary.differences:
        _print_differences(summary.differences, Console(stderr=as_json))


def _print_differences(found: list[Difference], console: Console) -> None:
    rest = len(found) - MAX_LISTED
    table = Table(caption=f"… and {rest:,} more" if rest > 0 else None)
    for title in ("what", "window", "expected", "got"):
        table.add_column(title, overflow="fold")
    for one in found[:MAX_LISTED]:
        table.add_row(plain(one.what), one.where, one.expected, one.got)
    console.print(table, markup=False)
