"""A gateway's fold, filled from a hand-made log by way of a real aggregator's fold."""

from __future__ import annotations

from collections.abc import Iterable

from support.frames import Log, fold, run

from fleetmeter.gateway.state import GatewayFold
from fleetmeter.proto.bus import LogMessage
from fleetmeter.proto.wire import LogPosition

CREATED = 1_700_000_000_000


def windows_of(log: Log) -> list[LogMessage]:
    """What an aggregator publishes of a log of frames, as messages of the WINDOWS log."""
    stored = run(fold(), log.messages).stored
    return [LogMessage(subject, payload, i, 0, 0, {}) for i, (subject, payload, _) in enumerate(stored, start=1)]


def fed(messages: Iterable[LogMessage], into: GatewayFold | None = None) -> GatewayFold:
    """A gateway's fold after these messages."""
    gateway = into or GatewayFold()
    for message in messages:
        gateway.apply(message, LogPosition(CREATED, message.sequence))
    return gateway
