"""The whole exception tree of Fleetmeter, in one place.

Every message says what was wrong (the value), what would be right (the limit), where, and what to do about it.
None of them is ever raised into the proxy that an emitter lives in: the emitter counts and logs instead.
"""

from __future__ import annotations


class FleetmeterError(Exception):
    """Root of everything that Fleetmeter raises on purpose."""


class ConfigError(FleetmeterError):
    """A configuration that cannot be used; the message reads ``file:line:column: key: what, got what``. Exit code 3."""


class CatalogueError(FleetmeterError):
    """A metric that is used otherwise than the catalogue, or its own definition, says."""


class SeriesKeyError(FleetmeterError, ValueError):
    """Bytes that are no series key, or a name or label that cannot be in one."""


class SketchError(FleetmeterError, ValueError):
    """A value, quantile or bucket that a sketch cannot hold."""


class FrameError(FleetmeterError):
    """A frame that must not be applied.

    `reason` is the constant, low-cardinality word that counts it in ``frames_total{result="rejected", reason=…}``.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class SnapshotError(FleetmeterError):
    """A snapshot that cannot be restored: corrupt, or of another version."""


class BusError(FleetmeterError):
    """Something the message bus could not do now; trying again may help."""


class BusUnreachable(BusError):
    """No NATS server answers at the configured URL. Exit code 4."""


class BusRefused(BusError):
    """NATS answered and said no: authorization, a limit, a message over its maximum. Trying again does not help."""


class StreamMissing(BusError):
    """A JetStream stream that should be there is not; whoever owns it creates it again."""


class TraceError(FleetmeterError):
    """A replay trace with a row that cannot be read; names file, line and value."""
