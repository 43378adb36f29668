"""The Fold runner on a real NATS server: what it restores, what it stores, and what a kill at a bad moment leaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest

from fleetmeter.deploy.nats_server import NatsServer
from fleetmeter.proto.bus import Bus, BusOptions, LogMessage, LogReader, StreamSpec
from fleetmeter.proto.clock import ManualClock, SystemClock
from fleetmeter.proto.errors import BusError, SnapshotError
from fleetmeter.proto.fold import KEEP_SNAPSHOTS, FoldRunner, Output, Publication, pack_snapshot, unpack_snapshot
from fleetmeter.proto.wire import LogPosition

IN = StreamSpec("IN", ("in.*",), max_age_s=3600, max_bytes=1 << 24)
OUT = StreamSpec("OUT", ("out.*",), max_age_s=3600, max_bytes=1 << 24)
BUCKET = "SNAPSHOTS"


class Sum:
    """A fold that adds the numbers it reads, and puts each sum out. It fails on a message that says so."""

    version = 1

    def __init__(self) -> None:
        self.total = 0
        self.applied: list[int] = []

    def apply(self, message: LogMessage, position: LogPosition) -> Sequence[Output]:
        if message.data == b"fail":
            raise ValueError("told to")
        self.total += int(message.data)
        self.applied.append(int(message.data))
        place = f"{position.created_ms}.{position.sequence}"
        parts = [Publication("out.part", str(self.total).encode(), f"part.{place}.{i}") for i in range(2)]
        mark = f"{self.total} {position.created_ms} {position.sequence}".encode()
        return [Output((position, 0), [parts, [Publication("out.mark", mark, f"mark.{place}")]])]

    def snapshot(self) -> bytes:
        return str(self.total).encode()

    def restore(self, data: bytes) -> None:
        if not data.isdigit():
            raise SnapshotError(f"{data!r} is no number")
        self.total = int(data)


@dataclass
class Rig:
    """A bus and what a test asks of it."""

    bus: Bus
    batch: asyncio.Event = field(default_factory=asyncio.Event)
    added: int = 0

    def runner(self, fold: Sum, *, snapshots: bool = True, replica: str = "r1", **settings: object) -> FoldRunner:
        """A runner that stores a snapshot after each batch, or none."""
        return FoldRunner(
            bus=self.bus, fold=fold, name="sum", replica=replica, source="IN", subjects=["in.*"], streams=[IN, OUT],
            bucket=BUCKET, on_batch=self.batch.set, snapshot_interval_s=0.0 if snapshots else 1e9,
            **{"clock": SystemClock(), **settings},  # type: ignore[arg-type]
        )  # fmt: skip

    @contextlib.asynccontextmanager
    async def running(self, runner: FoldRunner, total: int | None = None) -> AsyncIterator[FoldRunner]:
        """The runner as a task, killed in the end. With `total`: once the fold has that and all is stored."""
        task = asyncio.create_task(runner.run())
        try:
            if total is not None:
                await self.settled(runner, total)
            yield runner
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def settled(self, runner: FoldRunner, total: int) -> None:
        fold = runner.fold
        assert isinstance(fold, Sum)
        async with asyncio.timeout(15):
            while fold.total != total or not runner.caught_up.is_set():
                self.batch.clear()
                await self.batch.wait()
            await runner.flushed()

    async def add(self, *numbers: object) -> None:
        """Store numbers in the log, each once, however often it takes."""
        for number in numbers:
            self.added += 1
            async with asyncio.timeout(15):
                while True:
                    try:
                        await self.bus.publish("in.a", str(number).encode(), message_id=str(self.added))
                        break
                    except BusError:
                        await asyncio.sleep(0.02)  # the server is away, or the stream: so until the runner made it

    async def out(self) -> list[tuple[str, str]]:
        """The output stream."""
        state = await self.bus.stream_state("OUT")
        reader = LogReader(self.bus, "OUT", ["out.*"], 1)
        found: list[tuple[str, str]] = []
        try:
            while len(found) < state.messages:
                found += [(m.subject, m.data.decode().split()[0]) for m in await reader.batch(1.0)]
        finally:
            await reader.close()
        return found


@pytest.fixture
async def rig(nats: NatsServer) -> AsyncIterator[Rig]:
    async with await Bus.connect(BusOptions((nats.url,)), name="test") as bus:
        await bus.ensure_stream(IN)
        await bus.ensure_stream(OUT)
        yield Rig(bus)


def published(*sums: int) -> list[tuple[str, str]]:
    """What the output stream holds after these sums: two parts, then a mark."""
    return [(subject, str(s)) for s in sums for subject in ("out.part", "out.part", "out.mark")]


async def test_outputs_are_stored_in_order(rig: Rig) -> None:
    """Each message's outputs are stored once, stage after stage, and streams that are missing are made."""
    await rig.add(1, 2, 3)
    async with rig.running(rig.runner(Sum()), 6) as runner:
        assert runner.caught_up.is_set()
    assert await rig.out() == published(1, 3, 6)


async def test_restart_goes_on_from_the_snapshot(rig: Rig) -> None:
    """A new process restores the newest snapshot and reads only what came after it."""
    await rig.add(1, 2, 3)
    async with rig.running(rig.runner(Sum()), 6) as runner:
        assert runner.snapshots_stored > 0
    await rig.add(10)
    again = Sum()
    async with rig.running(rig.runner(again), 16) as runner:
        assert again.applied == [10]
    assert await rig.out() == published(1, 3, 6, 16)


async def test_kill_between_output_and_snapshot_stores_nothing_twice(rig: Rig) -> None:
    """A process killed after publishing and before its snapshot publishes again, and the log keeps one of each."""
    await rig.add(1, 2, 3)
    async with rig.running(rig.runner(Sum(), snapshots=False), 6):
        pass
    again = Sum()
    async with rig.running(rig.runner(again, snapshots=False), 6):
        assert again.applied == [1, 2, 3]
    assert await rig.out() == published(1, 3, 6)


async def test_outputs_that_are_known_are_not_published_again(rig: Rig) -> None:
    """Long after, when the broker's own dedup has forgotten, what it is known to have is left out."""
    await rig.add(1, 2, 3)
    async with rig.running(rig.runner(Sum(), snapshots=False), 6):
        pass
    newest_mark = await rig.bus.last("OUT", "out.mark")
    assert newest_mark is not None
    _, created, sequence = newest_mark.data.split()
    known = LogPosition(int(created), int(sequence) - 1), 0  # all but the last

    async def newest() -> tuple[LogPosition, int]:
        return known

    await rig.bus._js.delete_stream("OUT")  # and with it the broker's memory of ids
    later = ManualClock(SystemClock().now_ms() + 3600 * 1000)
    async with rig.running(rig.runner(Sum(), snapshots=False, newest_output=newest, clock=later), 6):
        pass
    assert await rig.out() == published(6)


async def test_two_replicas_store_each_output_once(rig: Rig) -> None:
    """Two processes over one log publish the same under the same ids."""
    await rig.add(1, 2)
    first, second = rig.runner(Sum(), replica="r1"), rig.runner(Sum(), replica="r2")
    async with rig.running(first, 3) as one, rig.running(second, 3) as two:
        await rig.add(3)
        await rig.settled(one, 6)
        await rig.settled(two, 6)
    assert await rig.out() == published(1, 3, 6)


@pytest.mark.parametrize("broken", ["bytes", "checksum", "short", "state", "version"])
async def test_snapshot_that_cannot_be_used_falls_back_to_the_one_before(rig: Rig, broken: str) -> None:
    """A snapshot that is cut short, corrupt, unreadable or of another version is passed over, and nothing is lost."""
    await rig.add(1, 2)
    async with rig.running(rig.runner(Sum()), 3) as runner:
        position = runner.position
    good = pack_snapshot(1, LogPosition(position.created_ms, 99), b"3")
    data = {
        "bytes": b"not a snapshot",
        "checksum": good[:-1] + bytes([good[-1] ^ 1]),
        "short": good[:6],
        "state": pack_snapshot(1, LogPosition(position.created_ms, 99), b"three"),
        "version": pack_snapshot(2, LogPosition(position.created_ms, 99), b"3"),
    }[broken]
    await rig.bus.put_object(BUCKET, f"sum@{position.created_ms}-99@r9", data)
    await rig.add(10)
    again = Sum()
    async with rig.running(rig.runner(again), 13):
        assert again.applied == [10]


async def test_without_a_usable_snapshot_the_log_is_read_from_its_beginning(rig: Rig) -> None:
    """When every snapshot is of another version, the fold starts anew and publishes nothing twice."""
    await rig.add(1, 2)
    async with rig.running(rig.runner(Sum()), 3):
        pass

    class Newer(Sum):
        version = 2

    again = Newer()
    async with rig.running(rig.runner(again), 3):
        assert again.applied == [1, 2]
    assert await rig.out() == published(1, 3)


async def test_old_snapshots_are_deleted(rig: Rig) -> None:
    """The newest few snapshots stay, and those of another fold are nobody else's."""
    await rig.bus.put_object(BUCKET, "other@1-1@r1", b"x")
    async with rig.running(rig.runner(Sum()), 0) as runner:
        for i in range(1, KEEP_SNAPSHOTS + 3):
            await rig.add(1)
            await rig.settled(runner, i)
    names = await rig.bus.object_names(BUCKET)
    assert "other@1-1@r1" in names
    assert sorted(int(name.split("@")[1].split("-")[1]) for name in names if name.startswith("sum@")) == [3, 4, 5]


async def test_deleted_log_is_made_anew_and_the_state_goes_on(rig: Rig) -> None:
    """The stream is deleted while the fold runs: it is created again, and the sum goes on, here and after a restart."""
    await rig.add(1, 2)
    async with rig.running(rig.runner(Sum()), 3) as runner:
        before = runner.position
        await rig.bus._js.delete_stream("IN")
        await rig.add(10)
        await rig.settled(runner, 13)
        assert runner.position > before
        assert runner.position.sequence == 1
    await rig.add(100)
    again = Sum()
    async with rig.running(rig.runner(again), 113):
        assert again.applied == [100]
    assert await rig.out() == published(1, 3, 13, 113)


async def test_deleted_output_stream_is_made_anew(rig: Rig) -> None:
    """The output stream is deleted: it is created again with the next output."""
    async with rig.running(rig.runner(Sum()), 0) as runner:
        await rig.add(1)
        await rig.settled(runner, 1)
        await rig.bus._js.delete_stream("OUT")
        await rig.add(2)
        await rig.settled(runner, 3)
    assert await rig.out() == published(3)


async def test_message_on_which_the_fold_fails_is_passed_over(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """An exception in a fold is logged with the message's place, and the fold goes on with the next message."""
    await rig.add(1, "fail", 2)
    async with rig.running(rig.runner(Sum()), 3):
        pass
    assert "fold failed on a message" in caplog.text
    assert await rig.out() == published(1, 3)


async def test_messages_gone_before_they_were_read_are_counted(rig: Rig) -> None:
    """What the log dropped before the fold came to it is counted, and the rest is read."""
    await rig.add(1, 2, 3, 4)
    await rig.bus._js.purge_stream("IN", seq=3)
    async with rig.running(rig.runner(Sum()), 7) as runner:
        assert runner.trimmed == 2


async def test_killed_server_loses_and_repeats_nothing(rig: Rig, nats: NatsServer) -> None:
    """The NATS server is killed while the fold runs: after its restart every message counts once."""
    async with rig.running(rig.runner(Sum()), 0) as runner:
        await rig.add(1, 2)
        await rig.settled(runner, 3)
        nats.kill()
        nats.start()
        await rig.add(10)
        await rig.settled(runner, 13)
    assert await rig.out() == published(1, 3, 13)


def test_snapshot_bytes_and_back() -> None:
    """Version, position and state survive, and any flipped bit or cut is noticed."""
    position = LogPosition(5, 7)
    packed = pack_snapshot(3, position, b"state")
    assert unpack_snapshot(packed, 3) == (position, b"state")
    for i in range(len(packed)):
        flipped = bytearray(packed)
        flipped[i] ^= 0x10
        for broken in (bytes(flipped), packed[:i]):
            with pytest.raises(SnapshotError):
                unpack_snapshot(broken, 3)


def test_snapshot_of_another_version_says_which() -> None:
    """The error names both versions."""
    with pytest.raises(SnapshotError, match="a snapshot of version 3; this build reads 4"):
        unpack_snapshot(pack_snapshot(3, LogPosition(), b""), 4)
