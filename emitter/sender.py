"""The sender: takes frames from the outbox to JetStream and brings the acknowledgements back. All of the emitter's
network I/O.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable

from ..proto.bus import Bus, BusOptions
from ..proto.clock import Clock
from ..proto.errors import BusError, BusRefused, FrameError
from ..proto.logs import get_logger
from ..proto.streams import read_settings
from ..proto.subjects import Subjects, frame_id
from ..proto.wire import MAX_PAYLOAD, SENT_HEADER, Resend, Settings, decode
from .outbox import Outbox, Sent

log = get_logger(__name__)

#: Frames that wait for an acknowledgement at a time: enough to fill the link, few enough to go out in order after a
#: break.
MAX_IN_FLIGHT = 32
_BACKOFF_S = (0.1, 2.0)
#: Room for a frame's headers, bytes: the message id holds the node's name.
_HEADERS = 1024


class Sender:
    """Runs in one event loop. `on_settings` hears of the cluster's settings, at connect and when they change."""

    def __init__(
        self,
        options: BusOptions,
        subjects: Subjects,
        outbox: Outbox,
        clock: Clock,
        on_settings: Callable[[Settings], None],
        jitter_s: float = 0.0,
    ) -> None:
        self._options = options
        self._subjects = subjects
        self._outbox = outbox
        self._clock = clock
        self._on_settings = on_settings
        self._bus: Bus | None = None
        self._wake = asyncio.Event()
        self._changed = asyncio.Condition()
        self._deliveries: set[asyncio.Task[None]] = set()
        self._random = random.Random()
        # One place in the spread for the whole life of the process: windows stay evenly apart.
        self._spread_s = jitter_s * self._random.random()
        self._hurry = asyncio.Event()

    @property
    def connected(self) -> bool:
        return self._bus is not None and self._bus.connected

    def hurry(self) -> None:
        """Send at once from now on: the process is about to end."""
        self._hurry.set()
        self._wake.set()

    def wake(self) -> None:
        """There is something new in the outbox. Call it in the sender's loop."""
        self._wake.set()

    async def run(self) -> None:
        """Connect, and send until cancelled."""
        try:
            self._bus = await self._connect()
            # The server's limit is for payload and headers.
            self._outbox.max_payload = min(MAX_PAYLOAD, self._bus.max_payload - _HEADERS)
            for sent in self._outbox.in_flight:  # of a run before this one, that an error has ended
                self._start(self._bus, sent)
            while True:
                await self._spread()
                await self._send_all(self._bus)
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await self._wake.wait()
        finally:
            for task in self._deliveries:
                task.cancel()
            await asyncio.gather(*self._deliveries, return_exceptions=True)
            if self._bus is not None:
                await self._bus.close()

    async def wait_pending(self, condition: Callable[[], bool]) -> None:
        """Return once `condition` holds; it is looked at after each acknowledgement."""
        async with self._changed:
            await self._changed.wait_for(condition)

    async def _connect(self) -> Bus:
        backoff_s = _BACKOFF_S[0]
        while True:
            try:
                bus = await Bus.connect(
                    self._options, name=f"fleetmeter emitter {self._outbox.node}", on_event=self._heard
                )
                await self._subscribe(bus)
                return bus
            except BusError as problem:
                log.warning("NATS is not reachable; frames are kept", every_s=30.0, reason=str(problem))
                # Spread out: a fleet that lost its broker should not return in one instant.
                await asyncio.sleep(backoff_s * self._random.uniform(0.5, 1.0))
                backoff_s = min(backoff_s * 2, _BACKOFF_S[1])

    async def _subscribe(self, bus: Bus) -> None:
        async def settings(_: str, payload: bytes) -> None:
            with contextlib.suppress(FrameError):
                self._on_settings(decode(Settings, payload))

        async def resend(_: str, payload: bytes) -> None:
            try:
                wanted = decode(Resend, payload)
            except FrameError as problem:
                log.warning("request to send again can't be read", every_s=60.0, reason=str(problem))
                return
            if wanted.incarnation != self._outbox.incarnation:
                return
            again = self._outbox.again(wanted.partition, wanted.first, wanted.last)
            log.info("sending frames again", first=wanted.first, last=wanted.last, found=len(again))
            for sent in again[: 4 * MAX_IN_FLIGHT]:
                self._start(bus, sent)

        await bus.subscribe(self._subjects.settings, settings)
        await bus.subscribe(self._subjects.resend(self._outbox.node), resend)
        with contextlib.suppress(BusError):
            current = await read_settings(bus, self._subjects)
            if current is not None:
                self._on_settings(current)

    async def _spread(self) -> None:
        """Wait this node's share of the jitter, so that a large fleet does not publish in one instant."""
        if self._spread_s and self._outbox.has_drafts and not self._hurry.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._spread_s):
                    await self._hurry.wait()

    async def _send_all(self, bus: Bus) -> None:
        while bus.connected and len(self._deliveries) < MAX_IN_FLIGHT:
            sent = self._outbox.next(self._clock.now_ms())
            if sent is None:
                return
            self._start(bus, sent)
            await asyncio.sleep(0)  # lets the delivery write its bytes, so that frames go out in sequence

    def _start(self, bus: Bus, sent: Sent) -> None:
        task = asyncio.get_running_loop().create_task(self._deliver(bus, sent), name=f"frame {sent.sequence}")
        self._deliveries.add(task)
        task.add_done_callback(self._delivered)

    def _delivered(self, task: asyncio.Task[None]) -> None:
        self._deliveries.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            log.error("delivery ended in an error; the frame stays", every_s=10.0, exc_info=problem)
        self._wake.set()

    async def _deliver(self, bus: Bus, sent: Sent) -> None:
        """Publish the same bytes under the same id until they are stored."""
        outbox = self._outbox
        subject = self._subjects.delta(sent.partition, outbox.node)
        message_id = frame_id(outbox.node, outbox.incarnation, sent.partition, sent.sequence)
        backoff_s = _BACKOFF_S[0]
        while True:
            try:
                await bus.publish(
                    subject, sent.payload, message_id=message_id, headers={SENT_HEADER: str(self._clock.now_ms())}
                )
                break
            except BusRefused as problem:
                log.error(
                    "NATS refuses a frame; it is kept and tried again",
                    every_s=30.0,
                    subject=subject,
                    reason=str(problem),
                )
                backoff_s = _BACKOFF_S[1]
            except BusError as problem:
                log.warning("frame is not stored yet; it is tried again", every_s=30.0, reason=str(problem))
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, _BACKOFF_S[1])
        outbox.ack(sent)
        async with self._changed:
            self._changed.notify_all()

    def _heard(self, event: str, detail: str) -> None:
        if event == "reconnected":
            log.info("NATS is back", pending_frames=self._outbox.pending_frames)
            self._wake.set()
        elif event == "disconnected":
            log.warning("NATS is away; frames are kept", every_s=30.0)
        elif event == "error":
            log.warning("NATS connection", every_s=30.0, key=detail, reason=detail)
