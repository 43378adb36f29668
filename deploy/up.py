"""`fleetmeter up`: a whole cluster on one machine, and what one sees of it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from ..proto.bus import hide_userinfo
from ..proto.config import Config, Nats
from ..proto.errors import FleetmeterError
from . import children, summary
from .nats_server import START_TIMEOUT_S, NatsServer
from .supervisor import Part, Supervisor
from .tasks import end
from .terminal import plain

#: Where the embedded NATS server keeps its data when nothing else is said.
DATA_DIR = Path(".fleetmeter")
#: How often the summary is renewed on a terminal, and how often a line is written elsewhere; seconds.
LIVE_S, LINE_S = 1.0, 10.0
INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to run. Without a `data_dir` that of the configuration counts, then `DATA_DIR`."""

    config: Config
    config_file: Path | None = None
    demo: int = 3
    data_dir: Path | None = None
    nats_port: int = 4222


@dataclass(frozen=True, slots=True)
class _Places:
    """Where things listen. `nats` is None when the NATS server is not ours."""

    nats: NatsServer | None
    nats_url: str
    host: str
    port: int


class Screen:
    """All that goes to standard error: lines of the parts with their names before them, and the summary below."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def say(self, name: str, line: str) -> None:
        text = Text(f"{name:<10} | ", style="dim")
        self.console.print(text.append(plain(line.expandtabs()), style="not dim"), soft_wrap=True)

    def show(self, tree: summary.Tree) -> None:
        """Renew the summary on the terminal; elsewhere write its line."""
        if self.live is not None:
            self.live.update(summary.screen(tree), refresh=True)
        else:
            self.say("cluster", summary.line(tree))


async def run_up(options: Options) -> int:
    """Run the cluster until a signal; the exit code: 130 after Ctrl-C, 0 after SIGTERM.

    Raises FleetmeterError, with nothing left running, when something can't be started or kept alive.
    """
    screen = Screen(Console(stderr=True))
    stop = _Signals()
    with contextlib.ExitStack() as stack:
        places = _claim(options, stack)
        supervisor = Supervisor(screen.say)
        stop.on_second = supervisor.kill
        running = asyncio.create_task(_run(options, places, supervisor, screen), name="up")
        told = asyncio.create_task(stop.told.wait(), name="signals")
        try:
            await asyncio.wait([running, told], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end([running, told])
            if screen.live is not None:
                screen.live.stop()
            screen.say("up", "stopping; once more to stop at once")
            await supervisor.stop()
    if not running.cancelled() and (problem := running.exception()) is not None:
        raise problem
    return stop.code


class _Signals:
    """SIGINT, SIGTERM and SIGHUP set `told`; a second one calls `on_second`, since somebody is out of patience."""

    def __init__(self) -> None:
        self.told = asyncio.Event()
        self.code = 0
        self.on_second: Callable[[], None] = lambda: None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._hear, number)

    def _hear(self, number: int) -> None:
        if self.told.is_set():
            self.on_second()
        else:
            self.code = INTERRUPTED if number == signal.SIGINT else 0
            self.told.set()


async def _run(options: Options, places: _Places, supervisor: Supervisor, screen: Screen) -> None:
    """Start everything, say where it is, and show the summary for ever. Raises FleetmeterError."""
    environment = _environment(options, places)
    if places.nats is not None:
        await _start_nats(places.nats, supervisor)
    config_file = ["--config", str(options.config_file)] if options.config_file is not None else []
    command = [sys.executable, "-m", "fleetmeter.deploy.cli", "run"]
    _, url = await supervisor.start(
        Part("aggregator", [*command, "aggregator", *config_file], environment),
        Part(
            "gateway",
            [*command, "gateway", *config_file, "--host", places.host, "--port", str(places.port)],
            environment,
        ),
    )
    demo = [sys.executable, "-m", "fleetmeter.deploy.demo", *config_file]
    await supervisor.start(
        *(
            Part(f"demo-{i}", [*demo, "--node", f"demo-{i}", "--seed", str(i)], environment)
            for i in range(1, options.demo + 1)
        )
    )
    for name, where in (
        ("gateway", url),
        ("metrics", f"{url}/metrics"),
        ("health", f"{url}/health"),
        ("NATS", ", ".join(hide_userinfo(one) for one in places.nats_url.split(","))),
    ):
        click.echo(f"{name:<8} {where}")
    if screen.live is not None:
        screen.live.start()
    showing = asyncio.create_task(_show(url, screen), name="summary")
    try:
        await supervisor.failure
        supervisor.raise_failure()
    finally:
        await end([showing])


async def _show(url: str, screen: Screen) -> None:
    every_s = LIVE_S if screen.live is not None else LINE_S
    reachable = url.replace("//0.0.0.0", "//127.0.0.1").replace("//[::]", "//[::1]")
    async with aiohttp.ClientSession(
        headers={"Accept": "application/json"}, timeout=aiohttp.ClientTimeout(total=2.0)
    ) as session:
        while True:
            await asyncio.sleep(every_s)
            # A gateway that is away is restarted, and the supervisor says so.
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
                async with session.get(f"{reachable}/metrics") as answer:
                    screen.show(await answer.json())


async def _start_nats(server: NatsServer, supervisor: Supervisor) -> None:
    """Start the embedded server under supervision, and wait for its port. Raises FleetmeterError."""
    # Its log is a file, for it says much, and what it says is of no use but to those who look for it.
    log = server.store_dir / "nats-server.log"
    argv = [*server.argv(), "--log", str(log), "--log_size_limit", str(10 * 1024 * 1024)]
    # A server that has lost its connections needs no long goodbye; parts have flushed by then.
    await supervisor.start(Part("nats", argv, os.environ, grace_s=5.0, reports=False))
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        supervisor.raise_failure()
        try:
            _, writer = await asyncio.open_connection(server.host, server.port)
        except OSError:
            await asyncio.sleep(0.02)  # the server offers nothing to wait on
            continue
        writer.close()
        return
    raise FleetmeterError(f"nats-server did not open {server.host}:{server.port} in {START_TIMEOUT_S:g} s; see {log}")


def _environment(options: Options, places: _Places) -> dict[str, str]:
    """What every part is told by environment: by arguments, a URL's password would be seen by all on the machine."""
    changes = {"FLEETMETER_NATS__URL": places.nats_url}
    if options.config.log.format == "auto":
        # Parts write to a pipe, but a person reads it.
        changes["FLEETMETER_LOG__FORMAT"] = "text"
    return children.environment(changes, os.environ)


def _claim(options: Options, stack: contextlib.ExitStack) -> _Places:
    """Make sure that data directory and ports are ours, before anything starts. Raises FleetmeterError."""
    gateway = options.config.gateway
    nats_url, nats = ",".join(options.config.nats.url), None
    if options.config.nats.url == Nats().url:
        directory = options.data_dir or Path(options.config.storage.data_dir or DATA_DIR)
        stack.enter_context(_locked(directory))
        host = "127.0.0.1"
        nats = NatsServer(directory / "nats", port=free_port(host, options.nats_port, "--nats-port"), host=host)
        nats.store_dir.mkdir(parents=True, exist_ok=True)
        nats_url = nats.url
    return _Places(nats, nats_url, gateway.host, free_port(gateway.host, gateway.port, "--port"))


def free_port(host: str, port: int, option: str) -> int:
    """`port`, or a free one for 0. Raises FleetmeterError when it can't be had, naming the option to change."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As servers do, so that connections of a server just stopped don't count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as problem:
        remedy = f"choose another with {option}, or 0 for a free one"
        if option == "--nats-port":
            remedy += f"; or use the server that is there with --nats-url nats://{host}:{port}"
        raise FleetmeterError(
            f"{host}:{port} can't be listened on: {problem.strerror or problem}; {remedy}"
        ) from problem


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the directory for this process: two servers on one store would destroy it. Raises FleetmeterError."""
    path = directory / "lock"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as problem:
        raise FleetmeterError(
            f"data directory {directory}: {problem.strerror}; name another with --data-dir"
        ) from problem
    with file:
        try:
            # The kernel lets go of it however this process ends; children do not inherit it.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise FleetmeterError(
                f"data directory {directory} is in use by another `fleetmeter up` (process {holder}); "
                "stop that one, or name another with --data-dir"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
