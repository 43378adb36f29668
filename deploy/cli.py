"""The command line, `fleetmeter`: what it takes, what it prints and what it exits with. What it does is elsewhere.

Results go to standard output, logs and progress to standard error. Exit codes: 0 ok, 1 failed, 2 usage, 3 invalid
configuration, 4 NATS unreachable, 130 interrupted. Imports are inside the commands, so that each pays for no more than
it uses.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import __version__
from ..proto.errors import BusUnreachable, ConfigError, FleetmeterError

if TYPE_CHECKING:
    from ..proto.config import Config

OK, FAILED, USAGE, BAD_CONFIG, NATS_UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 4, 130


def exit_code(problem: FleetmeterError) -> int:
    """What the command ends with after this error."""
    if isinstance(problem, ConfigError):
        return BAD_CONFIG
    if isinstance(problem, BusUnreachable):
        return NATS_UNREACHABLE
    return int(getattr(problem, "exit_code", FAILED))


class _Main(click.Group):
    """Turns our errors into one message and an exit code; a traceback is for mistakes of ours alone."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except FleetmeterError as problem:
            click.echo(f"Error: {problem}", err=True)
            ctx.exit(exit_code(problem))
        except BaseExceptionGroup as group:
            ours, others = group.split(FleetmeterError)
            if ours is None or others is not None:
                raise
            first = _first(ours)
            click.echo(f"Error: {first}", err=True)
            ctx.exit(exit_code(first))


def _first(group: BaseExceptionGroup[FleetmeterError]) -> FleetmeterError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


_existing = click.Path(dir_okay=False, path_type=Path)
_config = click.option(
    "--config", "config_file", type=_existing, envvar="FLEETMETER_CONFIG", metavar="FILE",
    help="YAML configuration; FLEETMETER_CONFIG names it as well.",
)  # fmt: skip
_nats_url = click.option("--nats-url", metavar="URL", help="NATS server, instead of the configured one.")
_cluster = click.option("--cluster", metavar="NAME", help="Name of the fleet, instead of the configured one.")
_host = click.option("--host", metavar="ADDRESS", help="Address that the gateway listens on.  [default: 127.0.0.1]")
_port = click.option("--port", type=click.IntRange(0, 65535), help="Its port; 0 takes a free one.  [default: 8000]")


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Cluster-wide metrics for a fleet of LLM proxy nodes."""


@main.command()
def version() -> None:
    """Print the version."""
    click.echo(f"fleetmeter {__version__}")


@main.command()
@click.argument("config_file", type=_existing, metavar="CONFIG")
@click.option("--print-effective", is_flag=True, help="Print all settings, as file and environment make them.")
def check(config_file: Path, print_effective: bool) -> None:
    """Check a configuration file, with the environment's settings on top; 3 is the exit code for an invalid one."""
    from ..proto.config import dump_effective

    config = _load(config_file)
    if print_effective:
        click.echo(dump_effective(config), nl=False)
    else:
        click.echo(f"{config_file}: ok")


@main.command()
@click.option("--demo", type=click.IntRange(0, 100), default=3, show_default=True, help="Demo proxies to run.")
@_host
@_port
@_config
@click.option(
    "--data-dir", type=click.Path(file_okay=False, path_type=Path),
    help="Directory of the embedded NATS server.  [default: storage.data_dir, or .fleetmeter here]",
)  # fmt: skip
@_nats_url
@click.option(
    "--nats-port", type=click.IntRange(0, 65535), default=4222, show_default=True,
    help="Port of the embedded NATS server; 0 takes a free one.",
)  # fmt: skip
def up(
    demo: int,
    host: str | None,
    port: int | None,
    config_file: Path | None,
    data_dir: Path | None,
    nats_url: str | None,
    nats_port: int,
) -> None:
    """Run a whole cluster on this machine: NATS, aggregator, gateway and demo proxies. Ctrl-C stops it.

    Without --nats-url (or a nats.url of your own in the configuration) a NATS server comes with it and keeps its data
    in --data-dir.
    """
    from .up import Options, run_up

    config = _load(config_file, {"nats.url": nats_url, "gateway.host": host, "gateway.port": port})
    options = Options(config=config, config_file=config_file, demo=demo, data_dir=data_dir, nats_port=nats_port)
    code = asyncio.run(run_up(options))
    if code:
        raise click.exceptions.Exit(code)


@main.group()
def run() -> None:
    """Run one part of a cluster in the foreground."""


@run.command()
@_config
@_nats_url
@_cluster
def aggregator(config_file: Path | None, nats_url: str | None, cluster: str | None) -> None:
    """Fold frames into windows. Prints `ready` once it has caught up with the log."""
    config = _load(config_file, {"nats.url": nats_url, "cluster": cluster})
    from ..aggregator.service import run as serve

    _serve(config, serve(config, on_ready=lambda: click.echo("ready")))


@run.command()
@_config
@_nats_url
@_cluster
@_host
@_port
def gateway(
    config_file: Path | None, nats_url: str | None, cluster: str | None, host: str | None, port: int | None
) -> None:
    """Serve health, metrics and Prometheus over HTTP. Prints its URL once it is bound."""
    config = _load(config_file, {"nats.url": nats_url, "cluster": cluster, "gateway.host": host, "gateway.port": port})
    from ..gateway.service import run as serve

    _serve(config, serve(config, on_ready=click.echo))


@main.command()
@click.argument("metric")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@_config
@_nats_url
@_cluster
@click.option(
    "--resolution", metavar="LENGTH", help="Windows of this length, such as 1m.  [default: the cluster's interval]"
)
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many windows.")
def tail(
    metric: str,
    output: str,
    config_file: Path | None,
    nats_url: str | None,
    cluster: str | None,
    resolution: str | None,
    count: int | None,
) -> None:
    """Print a metric's windows as they seal; -o json prints one object a series and line.

    METRIC is a name of the catalogue or your own, such as requests_total, with or without the prefix llmproxy_.
    """
    from ..proto.config import parse_duration_ms
    from .tail import follow, metric_name, printer

    config = _load(config_file, {"nats.url": nats_url, "cluster": cluster})
    try:
        name, warning = metric_name(metric)
        resolution_ms = parse_duration_ms(resolution) if resolution else None
    except (ValueError, ConfigError) as problem:
        raise click.UsageError(str(problem)) from None
    if warning:
        click.echo(f"Warning: {warning}", err=True)
    asyncio.run(
        follow(config, name, printer(output, click.echo), resolution_ms, count, lambda text: click.echo(text, err=True))
    )


class _Speed(click.ParamType[float]):
    """``60x``, ``1.5x`` or ``max``, as times real time; 0 for max."""

    name = "speed"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)x?", value.strip())
        if value == "max":
            return 0.0
        if match is None or not float(match[1]):
            self.fail(f"{value!r} is no speed; expected a multiple of real time such as 60x, or max", param, ctx)
        return float(match[1])


@main.command()
@click.argument("trace", type=_existing, metavar="TRACE.csv")
@click.option("--nodes", type=click.IntRange(1, 256), default=8, show_default=True, help="Emitter processes.")
@click.option(
    "--speed", type=_Speed(), default="max", show_default=True, help="Multiple of real time, such as 60x, or max."
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=1, show_default=True, help="Seed of the rule.")
@_nats_url
@_cluster
@_config
@click.option("--verify", is_flag=True, help="Compute what must come out from the file, and compare.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def replay(
    trace: Path,
    nodes: int,
    speed: float,
    seed: int,
    nats_url: str | None,
    cluster: str | None,
    config_file: Path | None,
    verify: bool,
    as_json: bool,
) -> None:
    """Replay recorded requests through a fleet of emitters, and sum up what the cluster makes of them.

    TRACE.csv has a header and the columns TIMESTAMP (UTC), ContextTokens and GeneratedTokens. Rows out of order of time
    are sorted. Provider, model, outcome, latency and cost, which a trace does not have, follow from the row's number
    and --seed by a documented rule.

    Without --nats-url a NATS server and an aggregator are started for the replay alone. With it, the replay joins that
    cluster: one that goes by the broker's clock gets the trace as from now, in real time (--speed 1x); a name that is
    new founds a cluster that goes by the trace's own time, at any speed.
    """
    from .replay.report import print_summary, progress_on
    from .replay.run import Options
    from .replay.run import replay as play

    options = Options(
        trace=trace,
        nodes=nodes,
        speed=speed,
        seed=seed,
        nats_url=nats_url,
        cluster=cluster,
        config=config_file,
        verify=verify,
    )
    _load(
        config_file, {"nats.url": nats_url, "cluster": cluster}
    )  # so that a mistake in it is told before anything starts
    with progress_on() as progress:
        summary = asyncio.run(play(options, progress))
    print_summary(summary, as_json)
    if summary.match is False:
        raise click.exceptions.Exit(FAILED)


def _load(config_file: Path | None, flags: dict[str, object] | None = None) -> Config:
    from ..proto.config import load_config

    return load_config(config_file, environ=os.environ, flags=flags or {})


def _serve(config: Config, service: Coroutine[Any, Any, None]) -> None:
    """Run a part until it is told to stop: SIGTERM is an orderly end (exit code 0), Ctrl-C an interrupt (130)."""
    from ..proto.logs import configure_logging
    from .tasks import end

    configure_logging(config.log.level, config.log.format)

    async def until_told() -> None:
        told = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
        serving, waiting = asyncio.create_task(service), asyncio.create_task(told.wait())
        try:
            await asyncio.wait([serving, waiting], return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
        finally:
            await end([serving, waiting])

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(until_told())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not on this platform: asyncio's own is slower, and does
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    main()
