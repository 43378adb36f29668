"""The gateway as a process: the Fold runner over the WINDOWS log, and the HTTP server, side by side."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable

from aiohttp import web

from .. import __version__
from ..proto.bus import Bus
from ..proto.clock import Clock, SystemClock
from ..proto.config import Config
from ..proto.errors import BusError, ConfigError
from ..proto.fold import FoldRunner
from ..proto.logs import get_logger
from ..proto.streams import connect, read_settings, stream_specs
from ..proto.subjects import Subjects
from .http import Gateway
from .state import GatewayFold

log = get_logger(__name__)


async def run(config: Config, *, on_ready: Callable[[str], None] | None = None, clock: Clock | None = None) -> None:
    """Serve until cancelled. `on_ready` gets the bound URL once requests are taken; `/readyz` tells when they are
    answered right.

    Raises ConfigError when the port can't be bound, BusRefused when NATS does not let us in.
    """
    clock = clock or SystemClock()
    state = _State(config, clock)
    gateway = Gateway(
        state.fold,
        clock=clock,
        version=__version__,
        connected=lambda: state.bus is not None and state.bus.connected,
        not_ready=state.not_ready,
        event_time=lambda: state.event_time,
    )
    # Paths are logged as they came, percent-encoded, so that none can forge a line.
    access_log = logging.getLogger("fleetmeter.gateway.access") if config.gateway.access_log else None
    runner = web.AppRunner(gateway.application(), access_log=access_log, keepalive_timeout=75.0, handle_signals=False)
    await runner.setup()
    try:
        url = await _listen(runner, config)
        log.info("serving", url=url)
        if on_ready is not None:
            on_ready(url)
        await state.follow()
    finally:
        await runner.cleanup()


class _State:
    """The fold, and what it takes to keep it current."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self.fold = GatewayFold()
        self.bus: Bus | None = None
        self.event_time = config.pipeline.clock == "event"
        self._config = config
        self._clock = clock
        self._runner: FoldRunner | None = None

    def not_ready(self) -> str:
        """Why answers would not be right yet; empty when they are."""
        if self.bus is None or not self.bus.connected:
            return "NATS is not connected"
        if self._runner is None or not self._runner.caught_up.is_set():
            return "still reading the windows that were published"
        return ""

    async def follow(self) -> None:
        """Connect, and fold until cancelled."""
        subjects = Subjects(self._config.cluster)
        async with await connect(self._config, "gateway") as bus:
            self.bus = bus
            with contextlib.suppress(BusError):
                settings = await read_settings(bus, subjects)
                self.event_time = settings.clock == "event" if settings is not None else self.event_time
            self._runner = FoldRunner(
                bus=bus,
                fold=self.fold,
                name="gateway",
                replica=f"{socket.gethostname()}-{os.getpid()}".replace("@", "_"),
                source=subjects.windows_stream,
                subjects=subjects.windows_all,
                streams=stream_specs(self._config),
                bucket=subjects.snapshots_bucket,
                clock=self._clock,
                snapshot_interval_s=self._config.aggregator.snapshot_interval_ms / 1000,
            )
            await self._runner.run()


async def _listen(runner: web.AppRunner, config: Config) -> str:
    host, port = config.gateway.host, config.gateway.port
    try:
        await web.TCPSite(runner, host, port, backlog=256).start()
    except OSError as refused:
        raise ConfigError(
            f"gateway.port: can't listen on {host}:{port} ({os.strerror(refused.errno or 0)}); "
            "stop what listens there, or set another --port (0 takes a free one)"
        ) from refused
    await asyncio.sleep(0)
    bound = runner.addresses[0]
    shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
    return f"http://{shown}:{bound[1]}"
