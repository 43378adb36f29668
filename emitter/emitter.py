"""`Emitter`: what a proxy process creates once. It records, cuts a frame at each window's edge, and sends it.

async with Emitter(node="proxy-7") as meter:      # in an asyncio program: the sender is a task in its loop
    meter.record_request("openai", "gpt-4o", response_time=0.42, input_tokens=310, output_tokens=95, cost=0.0017)

with Emitter(node="worker-3") as meter:           # in any other: the sender has a loop in a thread of its own
    ...
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ..proto.clock import Clock, SystemClock
from ..proto.config import Config
from ..proto.logs import get_logger
from ..proto.streams import bus_options, settings_of
from ..proto.subjects import MAX_NODE, Subjects
from ..proto.wire import FrameKind, Settings
from .host import HostSampler
from .instruments import Counter, Gauge, Histogram
from .outbox import Outbox
from .recorder import Recorder
from .sender import Sender
from .tally import Tally

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EmitterStats:
    """What an emitter has done since it was made."""

    requests: int
    frames_cut: int
    frames_acked: int
    frames_merged: int
    pending_frames: int
    pending_bytes: int
    connected: bool
    invalid: dict[str, int]


def new_incarnation() -> int:
    """A number that is new for each process start and grows with its time: start in ms, then 16 random bits."""
    return (time.time_ns() // 1_000_000) << 16 | int.from_bytes(os.urandom(2), "little")


class Emitter:
    """Records in any thread; sends from one loop. Create it in the process that uses it (after a fork, not before).

    `node` names this process in the cluster, by default host name and process id; it must be unique among those that
    live. `clock` is the system's, or a manual one whose driver calls `cut` after each step.
    """

    def __init__(self, config: Config | None = None, *, node: str | None = None, clock: Clock | None = None) -> None:
        self._config = config or Config()
        self._clock: Clock = clock or SystemClock()
        name = node or self._config.emitter.node or f"{socket.gethostname()}-{os.getpid()}"
        self.node = name.encode("utf-8", "replace")[:MAX_NODE].decode("utf-8", "ignore")
        emitter = self._config.emitter
        self._recorder = Recorder(self.node, emitter.max_series_per_metric, self._clock.now_ms)
        self.record_request = self._recorder.record_request  # bound once: the call costs no further step
        self._outbox = Outbox(self.node, new_incarnation(), emitter.queue_bytes, emitter.ring_bytes)
        self._settings = settings_of(self._config)
        self._edge_ms = self._floor(self._clock.now_ms())
        self._cut_lock = threading.RLock()
        self._greeted = 0  # partitions that have had their hello
        self._closed = False
        self._host = HostSampler(self._recorder) if emitter.host_metrics else None
        self._sender: Sender | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._thread: threading.Thread | None = None
        self._sigterm: Any = None
        self._flushing: asyncio.Task[None] | None = None
        with self._cut_lock:
            self._greet()

    # Recording

    def counter(self, name: str, **labels: object) -> Counter:
        """A counter series, to keep: ``meter.counter("fallbacks_total", from_model=…).add()``."""
        return self._recorder.counter(name, **labels)

    def gauge(self, name: str, **labels: object) -> Gauge:
        """A gauge series, to keep. Per-node metrics get this node's name by themselves."""
        return self._recorder.gauge(name, **labels)

    def histogram(self, name: str, **labels: object) -> Histogram:
        """A histogram series, to keep."""
        return self._recorder.histogram(name, **labels)

    def stats(self) -> EmitterStats:
        """What happened so far."""
        outbox = self._outbox
        return EmitterStats(
            requests=self._recorder.recorded,
            frames_cut=outbox.cut,
            frames_acked=outbox.acked,
            frames_merged=outbox.merged,
            pending_frames=outbox.pending_frames,
            pending_bytes=outbox.pending_bytes,
            connected=self._sender is not None and self._sender.connected,
            invalid=dict(self._recorder.invalid.counts),
        )

    # Cutting

    def cut(self) -> None:
        """Fold and queue the window that has ended by the clock, if one has. The sender does this at each edge by
        itself.
        """
        with self._cut_lock:
            now_ms = self._clock.now_ms()
            if self._closed or now_ms < self._next_edge_ms:
                return
            # A process that was stopped for a while has one frame for several windows: when what happened is not known
            # any more.
            end_ms = self._floor(now_ms)
            self._queue(FrameKind.DATA, self._edge_ms, end_ms)
            self._edge_ms = end_ms

    def _queue(self, kind: FrameKind, start_ms: int, end_ms: int) -> None:
        tallies = self._recorder.fold().split(self._settings.partitions)
        for partition, tally in enumerate(tallies):
            self._outbox.put(kind, partition, start_ms, end_ms, tally)
        self._notify()

    def _greet(self) -> None:
        while self._greeted < self._settings.partitions:
            self._outbox.put(FrameKind.HELLO, self._greeted, self._edge_ms, self._edge_ms, Tally())
            self._greeted += 1

    def _adopt(self, settings: Settings) -> None:
        """Follow the cluster's settings from the next window on."""
        with self._cut_lock:
            if settings == self._settings:
                return
            if (settings.interval_ms, settings.partitions) != (self._settings.interval_ms, self._settings.partitions):
                log.info(
                    "following the cluster's settings", interval_ms=settings.interval_ms, partitions=settings.partitions
                )
            self._settings = settings
            self._greet()
        self._notify()

    def _floor(self, at_ms: int) -> int:
        return at_ms - at_ms % self._settings.interval_ms

    @property
    def _next_edge_ms(self) -> int:
        # Of the grid: where the interval has just changed, the window that ends there is a shorter one.
        return self._floor(self._edge_ms) + self._settings.interval_ms

    # Running

    async def start(self) -> None:
        """Start the sender in the running loop. `async with` does."""
        self._loop = asyncio.get_running_loop()
        self._sender = Sender(
            bus_options(self._config),
            Subjects(self._config.cluster),
            self._outbox,
            self._clock,
            self._adopt,
            self._config.emitter.jitter_ms / 1000,
        )
        self._tasks = [
            self._loop.create_task(self._guard(self._sender.run), name="fleetmeter sender"),
            self._loop.create_task(self._guard(self._cut_at_edges), name="fleetmeter cutter"),
        ]
        if self._host is not None:
            self._host.start()
        self._on_sigterm()
        self._notify()

    async def close(self, timeout_s: float = 10.0) -> bool:
        """Send everything that was recorded, say goodbye, and stop. True when the broker has stored it all within the
        time.
        """
        if self._closed:
            return True
        if self._host is not None:
            self._host.stop()
        with self._cut_lock:
            self.cut()
            self._queue(FrameKind.BYE, self._edge_ms, self._next_edge_ms)
            self._closed = True
        flushed = False
        try:
            async with asyncio.timeout(timeout_s):
                if self._sender is not None:
                    self._sender.hurry()
                await self.drained()
                flushed = True
        except TimeoutError:
            pending = self._outbox.pending_frames
            log.error("closing with frames that the broker has not stored", frames=pending, timeout_s=timeout_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._restore_sigterm()
        return flushed

    async def hello_acked(self) -> None:
        """Return once the cluster knows of this node: the broker has stored its first frame."""
        assert self._sender is not None, "start the emitter first"
        await self._sender.wait_pending(lambda: self._outbox.acked > 0)

    async def drained(self, max_bytes: int = 0) -> None:
        """Return once at most `max_bytes` of frames are not stored yet."""
        assert self._sender is not None, "start the emitter first"
        self._sender.wake()
        await self._sender.wait_pending(lambda: self._outbox.pending_bytes <= max_bytes)

    async def __aenter__(self) -> Emitter:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __enter__(self) -> Emitter:
        self.start_thread()
        return self

    def __exit__(self, *_: object) -> None:
        self.close_thread()

    def start_thread(self) -> None:
        """Start the sender in a daemon thread with a loop of its own. `with` does."""
        started = threading.Event()

        async def main() -> None:
            try:
                await self.start()
            finally:
                started.set()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        self._thread = threading.Thread(target=lambda: asyncio.run(main()), name="fleetmeter-emitter", daemon=True)
        self._thread.start()
        started.wait()
        self._on_sigterm()

    def close_thread(self, timeout_s: float = 10.0) -> bool:
        """`close` for an emitter that runs in a thread."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None or not thread.is_alive():
            return self._outbox.pending_frames == 0
        future = asyncio.run_coroutine_threadsafe(self.close(timeout_s), loop)
        try:
            return future.result(timeout_s + 5.0)
        except Exception as problem:
            log.error("closing the emitter failed", reason=str(problem))
            return False
        finally:
            thread.join(timeout=5.0)
            self._restore_sigterm()

    async def _cut_at_edges(self) -> None:
        while True:
            await self._clock.sleep_until_ms(self._next_edge_ms)
            self.cut()
            # Not at once again when a manual clock's driver was faster.
            await asyncio.sleep(0)

    async def _guard(self, run: Any) -> None:
        """Keep a background task going: it must not end while the emitter lives, whatever happens in it."""
        while True:
            try:
                await run()
            except asyncio.CancelledError:
                raise
            except Exception:
                log.error("background task failed; starting it again", every_s=10.0, task=run.__name__, exc_info=True)
            await asyncio.sleep(1.0)

    def _notify(self) -> None:
        loop, sender = self._loop, self._sender
        if loop is None or sender is None or loop.is_closed():
            return
        try:
            loop.call_soon_threadsafe(sender.wake)
        except RuntimeError:
            log.debug("the emitter's loop is closing")

    # SIGTERM: a container that is stopped loses nothing. Only where the program has no handler of its own.

    def _on_sigterm(self) -> None:
        if self._sigterm is not None or threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self._sigterm = self._flush_and_die
            signal.signal(signal.SIGTERM, self._sigterm)

    def _restore_sigterm(self) -> None:
        if self._sigterm is None or threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) == self._sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._sigterm = None

    def _flush_and_die(self, number: int, _: FrameType | None) -> None:
        def die() -> None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

        if self._thread is not None:
            self.close_thread(5.0)
            die()
        elif self._loop is not None:
            loop = self._loop

            async def flush() -> None:
                await self.close(5.0)
                die()

            def begin() -> None:
                # Not one of `_tasks`: `close` cancels those, and would cancel itself.
                self._flushing = loop.create_task(flush(), name="fleetmeter flush")

            loop.call_soon_threadsafe(begin)
