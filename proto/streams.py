"""The streams that a cluster lives in, and the settings that its log carries."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from .bus import Bus, BusOptions, StreamSpec
from .config import Config, Secret
from .errors import BusRefused, BusUnreachable, ConfigError, FrameError
from .logs import get_logger
from .subjects import Subjects
from .wire import Settings, decode, encode

log = get_logger(__name__)


def bus_options(config: Config) -> BusOptions:
    """How `config.nats` says to connect. Secrets are revealed here, and nowhere else. Raises ConfigError for a secret's
    file.
    """
    nats = config.nats
    return BusOptions(
        urls=nats.url,
        user=nats.user,
        password=_reveal(nats.password, nats.password_file),
        token=_reveal(nats.token, nats.token_file),
        credentials_file=nats.credentials_file,
        tls_ca_file=nats.tls_ca_file,
        tls_cert_file=nats.tls_cert_file,
        tls_key_file=nats.tls_key_file,
        connect_timeout_s=nats.connect_timeout_ms / 1000,
    )


async def connect(config: Config, part: str) -> Bus:
    """A connection, waited for as long as it takes. Raises BusRefused."""

    def heard(event: str, detail: str) -> None:
        if event == "error":
            log.warning("NATS connection", every_s=30.0, key=detail, reason=detail)
        elif event in ("disconnected", "reconnected"):
            log.info(f"NATS {event}")

    while True:
        try:
            return await Bus.connect(bus_options(config), name=f"fleetmeter {part}", on_event=heard)
        except BusUnreachable as problem:
            log.warning("NATS is not reachable; trying again", every_s=10.0, reason=str(problem))
            await asyncio.sleep(0.25)


def _reveal(secret: Secret | None, file: str | None) -> str | None:
    if file is not None:
        try:
            return Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeError) as problem:
            raise ConfigError(
                f"secret file {file} can't be read: {problem}; make it readable, or unset it"
            ) from problem
    return secret.reveal() if secret is not None else None


def stream_specs(config: Config) -> tuple[StreamSpec, StreamSpec]:
    """The DELTAS and the WINDOWS stream of `config.cluster`."""
    subjects = Subjects(config.cluster)
    storage = config.storage
    deltas = StreamSpec(
        subjects.deltas_stream,
        tuple(subjects.deltas_all),
        storage.deltas_max_age_ms / 1000,
        storage.deltas_max_bytes,
        storage.replicas,
    )
    windows = StreamSpec(
        subjects.windows_stream,
        tuple(subjects.windows_all),
        storage.windows_max_age_ms / 1000,
        storage.windows_max_bytes,
        storage.replicas,
    )
    return deltas, windows


def settings_of(config: Config) -> Settings:
    """The part of the configuration that changes results."""
    pipeline = config.pipeline
    return Settings(
        interval_ms=pipeline.interval_ms,
        lateness_ms=pipeline.lateness_ms,
        seal_deadline_ms=pipeline.seal_deadline_ms,
        node_timeout_ms=pipeline.node_timeout_ms,
        partitions=pipeline.partitions,
        clock=pipeline.clock,
        max_series_per_metric=pipeline.max_series_per_metric,
        max_series=pipeline.max_series,
    )


async def read_settings(bus: Bus, subjects: Subjects) -> Settings | None:
    """The cluster's settings; None when none were published, or what is there can't be read. Raises BusError."""
    message = await bus.last(subjects.deltas_stream, subjects.settings)
    if message is None:
        return None
    try:
        return decode(Settings, message.data)
    except FrameError:
        return None


async def settle_settings(bus: Bus, subjects: Subjects, wanted: Settings) -> Settings:
    """The cluster's settings, published as `wanted` if it had none: of several parts that start at once, the first
    decides.

    Raises BusError.
    """
    current = await read_settings(bus, subjects)
    if current is not None:
        return current
    with contextlib.suppress(BusRefused):  # another part was faster
        await bus.publish(subjects.settings, encode(wanted), headers={"Nats-Expected-Last-Subject-Sequence": "0"})
    return await read_settings(bus, subjects) or wanted
