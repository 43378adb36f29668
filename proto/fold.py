"""The Fold runner: a deterministic function over a log, kept alive.

A fold is `apply(message)`, `snapshot()` and `restore(bytes)`. The runner reads the log from the newest snapshot on,
publishes what the fold puts out, in order, and stores a snapshot only when everything before it has been stored by the
broker. So killing it at any moment loses nothing, and running it twice publishes the same messages under the same ids,
of which JetStream keeps the first.

Aggregator, alerter and gateway are folds; nothing in here knows what they compute.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from .bus import Bus, LogMessage, LogReader, StreamSpec
from .clock import Clock
from .errors import BusError, SnapshotError, StreamMissing
from .logs import get_logger
from .wire import LogPosition

log = get_logger(__name__)

_SNAPSHOT_MAGIC = b"FMS1"
#: How many snapshots of a fold are kept: the newest may have been cut short by a kill.
KEEP_SNAPSHOTS = 3
#: How long after a stream went missing it is made anew, seconds.
_DELETION_S = 0.25
#: How long a fold may compute before the event loop gets a turn, seconds.
_SLICE_S = 0.02


@dataclass(frozen=True, slots=True)
class Publication:
    """One message to store. `message_id` is a function of its content's place, so that every replica gives the same."""

    subject: str
    payload: bytes
    message_id: str


@dataclass(frozen=True, slots=True)
class Output:
    """What a fold puts out at one place: `stages` one after another, the publications of a stage at once.

    `order` grows strictly from output to output of a fold.
    """

    order: tuple[LogPosition, int]
    stages: list[list[Publication]]


class Fold(Protocol):
    """A deterministic function of a log. It reads no clock, no random number, and nothing but what it is given."""

    #: Changes whenever `snapshot` writes something that the `restore` of before could not read.
    version: int

    def apply(self, message: LogMessage, position: LogPosition) -> Sequence[Output]:
        """Take one message of the log; never raises for what a message holds."""
        ...

    def snapshot(self) -> bytes:
        """The whole state."""
        ...

    def restore(self, data: bytes) -> None:
        """Become what `snapshot` wrote. Raises SnapshotError and leaves the fold as it was made."""
        ...


class _Snapshot(msgspec.Struct, array_like=True, frozen=True):
    version: int
    position: LogPosition
    state: bytes


def pack_snapshot(version: int, position: LogPosition, state: bytes) -> bytes:
    """A snapshot as it is stored: magic, CRC-32 of the rest, version, position, state."""
    body = msgspec.msgpack.encode(_Snapshot(version, position, state))
    return _SNAPSHOT_MAGIC + zlib.crc32(body).to_bytes(4, "little") + body


def unpack_snapshot(data: bytes, version: int) -> tuple[LogPosition, bytes]:
    """Position and state. Raises SnapshotError when it is corrupt or of another version."""
    if data[:4] != _SNAPSHOT_MAGIC or len(data) < 8:
        raise SnapshotError(
            f"{len(data)} bytes that start with {data[:4]!r} are no snapshot; expected {_SNAPSHOT_MAGIC!r}"
        )
    if zlib.crc32(data[8:]) != int.from_bytes(data[4:8], "little"):
        raise SnapshotError(f"the checksum of a snapshot of {len(data)} bytes is wrong")
    try:
        snapshot = msgspec.msgpack.decode(data[8:], type=_Snapshot)
    except msgspec.DecodeError as error:
        raise SnapshotError(f"a snapshot of {len(data)} bytes can't be decoded: {error}") from error
    if snapshot.version != version:
        raise SnapshotError(f"a snapshot of version {snapshot.version}; this build reads {version}")
    return snapshot.position, snapshot.state


@dataclass
class FoldRunner:
    """Runs `fold` over the stream `source`.

    `streams` are created when they are missing. `newest_output` tells the order of the newest output that the broker is
    known to have, so that what was published before a restart is not published again (JetStream's own dedup forgets
    after two minutes); it is asked only while the fold reads messages older than `stale_s` seconds. `on_position` hears
    of each batch applied.
    """

    bus: Bus
    fold: Fold
    name: str
    replica: str
    source: str
    subjects: Sequence[str]
    streams: Sequence[StreamSpec]
    bucket: str
    clock: Clock
    snapshot_interval_s: float = 10.0
    newest_output: Callable[[], Awaitable[tuple[LogPosition, int] | None]] | None = None
    stale_s: float = 60.0
    on_batch: Callable[[], None] = lambda: None
    position: LogPosition = field(default_factory=LogPosition, init=False)
    #: Set once everything that the log held at the start has been applied.
    caught_up: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    #: Messages of the log that were gone before they were read; they are missing from the results.
    trimmed: int = field(default=0, init=False)
    #: Messages that the log lost after they were read; they are in the results.
    lost: int = field(default=0, init=False)
    snapshots_stored: int = field(default=0, init=False)

    async def run(self) -> None:
        """Run until cancelled."""
        self._outbox: asyncio.Queue[tuple[int, Output] | tuple[LogPosition, bytes]] = asyncio.Queue(maxsize=256)
        self._known: tuple[LogPosition, int] | None = None
        self._known_at = float("-inf")
        await self._retry("creating streams", self._ensure_streams)
        await self._retry("reading snapshots", self._restore)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._publish_all(), name=f"{self.name} publisher")
            tasks.create_task(self._read_all(), name=f"{self.name} reader")

    async def flushed(self) -> None:
        """Return once everything that was put out so far has been stored."""
        await self._outbox.join()

    async def _read_all(self) -> None:
        reader = LogReader(
            self.bus, self.source, self.subjects, self.position.sequence + 1, self.position.created_ms or None
        )
        snapshot_at = self.clock.monotonic() + self.snapshot_interval_s
        applied = 0
        try:
            while True:
                try:
                    batch = await reader.batch(0.5)
                except StreamMissing as problem:
                    log.warning(
                        "log is gone; making it anew and going on from the state in memory", reason=str(problem)
                    )
                    await self._retry("creating streams", self._make_anew)
                    continue
                except BusError as problem:
                    log.warning("log can't be read now", every_s=10.0, reason=str(problem))
                    await asyncio.sleep(0.25)
                    continue
                if reader.trimmed > self.trimmed:
                    log.error(
                        "log was trimmed before it was read", messages=reader.trimmed - self.trimmed, fold=self.name
                    )
                    self.trimmed = reader.trimmed
                if reader.lost > self.lost:
                    log.error("log lost messages that were read", messages=reader.lost - self.lost, fold=self.name)
                    self.lost = reader.lost
                await self._apply(batch, reader.created_ms or 0)
                applied += len(batch)
                if not batch or batch[-1].pending == 0:
                    self.caught_up.set()
                self.on_batch()
                if applied and self.clock.monotonic() >= snapshot_at:
                    await self._outbox.put((self.position, self.fold.snapshot()))
                    snapshot_at = self.clock.monotonic() + self.snapshot_interval_s
                    applied = 0
        finally:
            await reader.close()

    async def _apply(self, batch: list[LogMessage], created_ms: int) -> None:
        turn = self.clock.monotonic() + _SLICE_S
        for message in batch:
            position = LogPosition(created_ms, message.sequence)
            try:
                outputs = self.fold.apply(message, position)
            except Exception:
                # A fold does not raise for a message's content; if one does, skipping it beats dying on it again and
                # again.
                log.error("fold failed on a message", fold=self.name, sequence=message.sequence, exc_info=True)
                outputs = ()
            self.position = position
            for output in outputs:
                await self._outbox.put((message.time_ms, output))
            if self.clock.monotonic() >= turn:
                await asyncio.sleep(0)
                turn = self.clock.monotonic() + _SLICE_S

    async def _publish_all(self) -> None:
        while True:
            job = await self._outbox.get()
            try:
                if isinstance(job[1], Output):
                    time_ms = job[0]
                    assert isinstance(time_ms, int)
                    if not await self._is_known(time_ms, job[1]):
                        for stage in job[1].stages:
                            await self._publish_stage(stage)
                else:
                    position, state = job
                    assert isinstance(position, LogPosition)
                    await self._store_snapshot(position, state)
            finally:
                self._outbox.task_done()

    async def _publish_stage(self, stage: list[Publication]) -> None:
        waiting = stage
        backoff_s = 0.05
        while waiting:
            results = await asyncio.gather(
                *(self.bus.publish(p.subject, p.payload, message_id=p.message_id) for p in waiting),
                return_exceptions=True,
            )
            failed: list[Publication] = []
            for publication, result in zip(waiting, results, strict=True):
                if isinstance(result, BusError):
                    failed.append(publication)
                    log.warning("output is not stored yet", every_s=10.0, fold=self.name, reason=str(result))
                    if isinstance(result, StreamMissing):
                        with contextlib.suppress(BusError):
                            await self._make_anew()
                elif isinstance(result, BaseException):
                    raise result
            waiting = failed
            if waiting:
                await asyncio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, 2.0)

    async def _is_known(self, time_ms: int, output: Output) -> bool:
        """Whether the broker has this output already, by the newest one that it is known to have."""
        if self.newest_output is None or self.clock.now_ms() - time_ms < self.stale_s * 1000:
            return False
        if self.clock.monotonic() - self._known_at > 2.0:
            with contextlib.suppress(BusError):
                self._known = await self.newest_output()
                self._known_at = self.clock.monotonic()
        return self._known is not None and output.order <= self._known

    async def _ensure_streams(self) -> None:
        for spec in self.streams:
            await self.bus.ensure_stream(spec)

    async def _make_anew(self) -> None:
        # Once, under load, publishes to a stream made right after its deletion got no answer for 15 s. That the server
        # was still deleting is a guess; since this wait it was not seen again.
        await asyncio.sleep(_DELETION_S)
        await self._ensure_streams()

    async def _retry(self, doing: str, attempt: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await attempt()
                return
            except BusError as problem:
                log.warning("bus is not ready", every_s=10.0, doing=doing, reason=str(problem))
                await asyncio.sleep(0.25)

    async def _restore(self) -> None:
        for name in await self._snapshot_names():
            try:
                position, state = unpack_snapshot(await self.bus.get_object(self.bucket, name), self.fold.version)
                self.fold.restore(state)
            except (SnapshotError, BusError) as problem:
                log.warning("snapshot can't be used; trying the one before", snapshot=name, reason=str(problem))
                continue
            self.position = position
            log.info("snapshot restored", fold=self.name, sequence=position.sequence, bytes=len(state))
            return
        log.info("no snapshot; reading the log from its beginning", fold=self.name)

    async def _snapshot_names(self) -> list[str]:
        """This fold's snapshots, newest first; names are ``<fold>@<created>-<sequence>@<replica>``."""
        found: list[tuple[int, int, str]] = []
        for name in await self.bus.object_names(self.bucket):
            fold, _, rest = name.partition("@")
            place = rest.partition("@")[0].split("-")
            if fold == self.name and len(place) == 2 and all(part.isdigit() for part in place):
                found.append((int(place[0]), int(place[1]), name))
        return [name for *_, name in sorted(found, reverse=True)]

    async def _store_snapshot(self, position: LogPosition, state: bytes) -> None:
        name = f"{self.name}@{position.created_ms}-{position.sequence}@{self.replica}"
        replicas = self.streams[0].replicas if self.streams else 1
        try:
            await self.bus.put_object(
                self.bucket, name, pack_snapshot(self.fold.version, position, state), replicas=replicas
            )
            self.snapshots_stored += 1
            for old in (await self._snapshot_names())[KEEP_SNAPSHOTS:]:
                await self.bus.delete_object(self.bucket, old)
        except BusError as problem:
            log.warning(
                "snapshot is not stored; the next one will be", every_s=10.0, fold=self.name, reason=str(problem)
            )
