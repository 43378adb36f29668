"""The bus: all that Fleetmeter asks of NATS JetStream, and the only module that imports nats.

A `Bus` is one connection that reconnects for ever. `publish` returns when a stream has stored the message; `LogReader`
delivers a stream's messages in order, each once, across reconnects, server kills and a stream that is deleted and made
anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import api
from nats.js.client import JetStreamContext

from .errors import BusError, BusRefused, BusUnreachable, StreamMissing

T = TypeVar("T")

#: How long a publish or request waits for its answer, seconds. A server that restarts takes about two.
REQUEST_TIMEOUT_S = 5.0
_RECONNECT_WAIT_S = 0.25
#: Event names that `on_event` gets.
EVENTS = ("disconnected", "reconnected", "closed", "error")


@dataclass(frozen=True, slots=True)
class BusOptions:
    """Where NATS is and who we are there. Secrets are left out of repr()."""

    urls: tuple[str, ...] = ("nats://127.0.0.1:4222",)
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    credentials_file: str | None = None
    tls_ca_file: str | None = None
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    connect_timeout_s: float = 5.0


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """A stream as it should be: limits retention, file storage, discard old, dedup by ``Nats-Msg-Id``."""

    name: str
    subjects: tuple[str, ...]
    max_age_s: float
    max_bytes: int
    replicas: int = 1
    dedup_window_s: float = 120.0


@dataclass(frozen=True, slots=True)
class StreamState:
    """What a stream holds now. `created_ms` tells a stream from one that was made anew under its name."""

    created_ms: int
    first_sequence: int
    last_sequence: int
    messages: int


@dataclass(frozen=True, slots=True)
class Published:
    """A stored message: its sequence, and whether the stream had it already."""

    sequence: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class LogMessage:
    """A message as a log has it. `time_ms` is the broker's clock when it was stored; `pending` how many are still to
    come.
    """

    subject: str
    data: bytes
    sequence: int
    time_ms: int
    pending: int
    headers: Mapping[str, str]


class Bus:
    """One connection. Create it with `Bus.connect`; close it with `close`, or use it as an async context manager."""

    def __init__(self, client: Client, on_event: Callable[[str, str], None]) -> None:
        self._client = client
        self._js: JetStreamContext = client.jetstream(timeout=REQUEST_TIMEOUT_S)
        self._on_event = on_event
        self._reconnected: set[Callable[[], None]] = set()
        # Acks come to one inbox of ours rather than through the client's request(): so that a lost connection ends
        # every wait at once, and what was in flight goes out again as soon as a server is back instead of after a
        # time-out.
        self._inbox = client.new_inbox() + "."
        self._next_reply = 0
        self._closing = False
        self._replies: dict[str, asyncio.Future[Msg]] = {}

    @classmethod
    async def connect(
        cls, options: BusOptions, *, name: str, on_event: Callable[[str, str], None] = lambda event, detail: None
    ) -> Bus:
        """Connect within ``options.connect_timeout_s``.

        `on_event(event, detail)` hears of `EVENTS` later on. Raises BusUnreachable when no server answers, BusRefused
        when one answers but does not let us in.
        """
        client = Client()
        bus = cls(client, on_event)
        seen: list[BaseException] = []
        refused = asyncio.Event()

        async def error(problem: Exception) -> None:
            seen.append(problem)
            del seen[:-1]
            if isinstance(problem, nats.errors.AuthorizationError) or "authoriz" in str(problem).lower():
                refused.set()
            on_event("error", _say(problem))

        async def disconnected() -> None:
            bus._fail_waiting()
            if not bus._closing:
                on_event("disconnected", "")

        async def reconnected() -> None:
            on_event("reconnected", "")
            for callback in list(bus._reconnected):
                callback()

        async def closed() -> None:
            on_event("closed", "")

        where = ", ".join(hide_userinfo(url) for url in options.urls)
        # As a task of its own: nats-py would try for ever, and may swallow our own cancellation while it connects.
        attempt = asyncio.create_task(
            client.connect(
                list(options.urls),
                name=name,
                error_cb=error,
                disconnected_cb=disconnected,
                reconnected_cb=reconnected,
                closed_cb=closed,
                user=options.user,
                password=options.password,
                token=options.token,
                user_credentials=options.credentials_file,
                tls=_tls(options),
                max_reconnect_attempts=-1,
                reconnect_time_wait=_RECONNECT_WAIT_S,  # type: ignore[arg-type]  # any number of seconds does
                connect_timeout=max(1, round(options.connect_timeout_s)),
                ping_interval=5,
                max_outstanding_pings=2,
                # Unsent data is the caller's: a frame waits in the emitter's queue, not in the client's buffer.
                pending_size=16 * 1024 * 1024,
            ),
            name="NATS connect",
        )
        waiting = asyncio.create_task(refused.wait(), name="NATS refusal")
        try:
            await asyncio.wait(
                {attempt, waiting}, timeout=options.connect_timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            problem = attempt.exception() if attempt.done() else TimeoutError()
        except asyncio.CancelledError:
            await _abandon(client, attempt)
            raise
        finally:
            waiting.cancel()
        if problem is not None:
            await _abandon(client, attempt)
            last = _say(seen[-1] if seen else problem)
            if refused.is_set():
                raise BusRefused(
                    f"NATS at {where} refused the connection: {last}; check nats.user and secrets"
                ) from problem
            if not isinstance(problem, OSError | nats.errors.Error):
                raise problem
            raise BusUnreachable(
                f"no NATS server answers at {where} within {options.connect_timeout_s:g} s ({last}); "
                "start one, or set nats.url"
            ) from problem
        await client.subscribe(bus._inbox + "*", cb=bus._acknowledged, pending_msgs_limit=0, pending_bytes_limit=0)
        return bus

    async def __aenter__(self) -> Bus:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Flush what is written and close; never raises, takes at most two seconds."""
        self._closing = True
        with contextlib.suppress(Exception):
            async with asyncio.timeout(1.0):
                if self._client.is_connected:
                    await self._client.flush()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(1.0):
                await self._client.close()

    @property
    def connected(self) -> bool:
        return self._client.is_connected

    @property
    def max_payload(self) -> int:
        """The server's limit for one message, bytes."""
        return self._client.max_payload

    async def publish(
        self, subject: str, payload: bytes, *, message_id: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Published:
        """Store a message; of several with the same `message_id` the stream keeps the first.

        Raises BusUnreachable while there is no connection, StreamMissing when no stream takes the subject, BusRefused
        when the server says no for good, BusError for anything that may pass. After an error the message may or may not
        be stored: publish it again under the same id.
        """
        self._require_connection()
        all_headers = dict(headers or {})
        if message_id is not None:
            all_headers[api.Header.MSG_ID.value] = message_id
        doing = f"publishing {len(payload)} bytes to {subject}"
        self._next_reply += 1
        token = str(self._next_reply)
        waiter: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._replies[token] = waiter
        try:
            await self._client.publish(subject, payload, reply=self._inbox + token, headers=all_headers or None)
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                reply = await waiter
            if reply.headers and reply.headers.get("Status") == "503":
                raise StreamMissing(f"{doing}: no stream takes this subject")
            answer = json.loads(reply.data)
            if "error" in answer:
                raise nats.js.errors.APIError.from_error(answer["error"])
            return Published(answer["seq"], bool(answer.get("duplicate", False)))
        except Exception as problem:
            raise _translate(problem, doing) from problem
        finally:
            self._replies.pop(token, None)

    async def send(self, subject: str, payload: bytes) -> None:
        """Publish without a stream: to whoever listens now. Raises BusError."""
        self._require_connection()
        try:
            await self._client.publish(subject, payload)
        except Exception as problem:
            raise _translate(problem, f"sending {len(payload)} bytes to {subject}") from problem

    async def subscribe(
        self, subject: str, callback: Callable[[str, bytes], Awaitable[None]]
    ) -> Callable[[], Awaitable[None]]:
        """Call `callback(subject, payload)` for each message from now on; returns what ends it."""

        async def deliver(message: Msg) -> None:
            await callback(message.subject, message.data)

        subscription = await self._client.subscribe(subject, cb=deliver)
        return lambda: _unsubscribe(subscription)

    async def ensure_stream(self, spec: StreamSpec) -> StreamState:
        """Create the stream unless it exists, with these subjects and limits. Raises BusError."""
        config = api.StreamConfig(
            name=spec.name,
            subjects=list(spec.subjects),
            retention=api.RetentionPolicy.LIMITS,
            storage=api.StorageType.FILE,
            discard=api.DiscardPolicy.OLD,
            max_age=spec.max_age_s,
            max_bytes=spec.max_bytes,
            num_replicas=spec.replicas,
            duplicate_window=spec.dedup_window_s,
            allow_direct=True,
        )
        try:
            try:
                return _state(await _settled(self._js.add_stream(config)))
            except nats.js.errors.BadRequestError as problem:
                if problem.err_code != 10058:  # stream name already in use with a different configuration
                    raise
                return _state(await _settled(self._js.update_stream(config)))
        except Exception as problem:
            raise _translate(problem, f"creating stream {spec.name}") from problem

    async def stream_state(self, stream: str) -> StreamState:
        """Raises StreamMissing, BusError."""
        try:
            return _state(await _settled(self._js.stream_info(stream)))
        except Exception as problem:
            raise _translate(problem, f"looking at stream {stream}") from problem

    async def last(self, stream: str, subject: str) -> LogMessage | None:
        """The newest message of `subject` (wildcards allowed), or None. Raises StreamMissing, BusError."""
        try:
            raw = await _settled(self._js.get_last_msg(stream, subject))
        except nats.js.errors.NotFoundError as problem:
            if problem.err_code == 10059:
                raise _translate(problem, f"reading {subject}") from problem
            return None
        except Exception as problem:
            raise _translate(problem, f"reading the last message of {subject}") from problem
        time_ms = int(raw.time.timestamp() * 1000) if raw.time else 0
        return LogMessage(raw.subject or "", raw.data or b"", raw.seq or 0, time_ms, 0, raw.headers or {})

    async def put_object(self, bucket: str, name: str, data: bytes, *, replicas: int = 1) -> None:
        """Store `data` under a name that was not used before. Raises BusError."""
        try:
            store = await _settled(self._js.create_object_store(bucket, api.ObjectStoreConfig(replicas=replicas)))
            await _settled(store.put(name, data))
        except Exception as problem:
            raise _translate(problem, f"storing object {name} of {len(data)} bytes") from problem

    async def get_object(self, bucket: str, name: str) -> bytes:
        """Raises BusError when it is not there or its digest is wrong."""
        try:
            store = await _settled(self._js.object_store(bucket))
            return (await _settled(store.get(name))).data or b""
        except Exception as problem:
            raise _translate(problem, f"reading object {name}") from problem

    async def object_names(self, bucket: str) -> list[str]:
        """Names in a bucket, in no order; empty when there is no bucket. Raises BusError."""
        try:
            store = await _settled(self._js.object_store(bucket))
            return [info.name for info in await _settled(store.list()) if not info.deleted]
        except nats.js.errors.NotFoundError:
            return []
        except Exception as problem:
            raise _translate(problem, f"listing bucket {bucket}") from problem

    async def delete_object(self, bucket: str, name: str) -> None:
        """Delete an object; one that is gone already is fine. Raises BusError."""
        try:
            store = await _settled(self._js.object_store(bucket))
            await _settled(store.delete(name))
        except nats.js.errors.NotFoundError:
            pass
        except Exception as problem:
            raise _translate(problem, f"deleting object {name}") from problem

    async def _acknowledged(self, message: Msg) -> None:
        waiter = self._replies.get(message.subject[len(self._inbox) :])
        if waiter is not None and not waiter.done():
            waiter.set_result(message)

    def _fail_waiting(self) -> None:
        for waiter in self._replies.values():
            if not waiter.done():
                waiter.set_exception(BusUnreachable("the connection to NATS was lost before the answer came"))

    def _require_connection(self) -> None:
        if not self._client.is_connected:
            raise BusUnreachable("the connection to NATS is down; it is being re-established")


#: A pull asks for this many messages, and for no more bytes than this, before the next one.
_PULL_MESSAGES = 512
_PULL_BYTES = 32 * 1024 * 1024
_HEARTBEAT_S = 1.0


class LogReader:
    """Reads a stream's messages on `subjects` in order from a sequence on, each exactly once.

    It pulls through an ephemeral consumer that acknowledges nothing. The consumer's own delivery count shows a lost
    message; then, and after a missed heartbeat, a reconnect or a refusal, a new consumer is made at the next sequence.
    """

    def __init__(
        self, bus: Bus, stream: str, subjects: Sequence[str], next_sequence: int, created_ms: int | None = None
    ) -> None:
        self.next_sequence = max(1, next_sequence)
        self.created_ms = created_ms
        #: Messages that the log had dropped before we came to read them.
        self.trimmed = 0
        #: Messages that the log lost after we had read them.
        self.lost = 0
        self._bus = bus
        self._stream = stream
        self._subjects = list(subjects)
        self._buffer: list[LogMessage] = []
        self._wake = asyncio.Event()
        self._subscription: Subscription | None = None
        self._consumer = ""
        self._inbox = ""
        self._delivered = 0
        self._asked = 0
        self._broken = True
        bus._reconnected.add(self._break)

    async def batch(self, timeout_s: float) -> list[LogMessage]:
        """The messages that are there, at least one unless `timeout_s` passes first.

        Raises StreamMissing when the stream is gone, and BusError when it can't be read now; the next call tries again.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while not self._buffer:
            if self._broken:
                await self._open()
            elif self._asked < _PULL_MESSAGES // 2:
                await self._pull()
            self._wake.clear()
            if self._buffer or self._broken:
                continue
            try:
                async with asyncio.timeout(min(max(deadline - loop.time(), 0.0), 3 * _HEARTBEAT_S)):
                    await self._wake.wait()
            except TimeoutError:
                if loop.time() >= deadline:
                    self._check_silence(loop.time())
                    return []
                self._check_silence(loop.time())
        taken, self._buffer = self._buffer, []
        self.next_sequence = taken[-1].sequence + 1
        if self._asked < _PULL_MESSAGES // 2 and not self._broken:
            await self._pull()
        return taken

    async def close(self) -> None:
        self._bus._reconnected.discard(self._break)
        await self._drop()

    async def _open(self) -> None:
        await self._drop()
        state = await self._bus.stream_state(self._stream)
        if self.created_ms not in (None, state.created_ms):
            self.next_sequence = 1  # another stream under the same name: from its beginning
        elif state.last_sequence + 1 < self.next_sequence:
            # A server that was cut off before it wrote to disk: what it lost has been read here, and goes on counting.
            self.lost += self.next_sequence - 1 - state.last_sequence
            self.next_sequence = state.last_sequence + 1
        self.created_ms = state.created_ms
        if state.first_sequence > self.next_sequence:
            self.trimmed += state.first_sequence - self.next_sequence
            self.next_sequence = state.first_sequence
        self._buffer.clear()
        client = self._bus._client
        self._inbox = client.new_inbox()
        try:
            self._subscription = await client.subscribe(
                self._inbox, cb=self._receive, pending_msgs_limit=0, pending_bytes_limit=0
            )
            request = self._bus._js.add_consumer(
                self._stream,
                api.ConsumerConfig(
                    deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
                    opt_start_seq=self.next_sequence,
                    ack_policy=api.AckPolicy.NONE,
                    filter_subjects=self._subjects,
                    inactive_threshold=30.0,
                    mem_storage=True,
                    num_replicas=1,
                ),
            )
            info = await _settled(request)
        except Exception as problem:
            raise _translate(problem, f"reading stream {self._stream}") from problem
        self._consumer = info.name
        self._delivered = 0
        self._asked = 0
        self._broken = False
        self._heard_at = asyncio.get_running_loop().time()
        await self._pull()

    async def _pull(self) -> None:
        more = _PULL_MESSAGES - self._asked
        request = {
            "batch": more,
            "max_bytes": _PULL_BYTES,
            "expires": 30_000_000_000,
            "idle_heartbeat": int(_HEARTBEAT_S * 1e9),
        }
        try:
            await self._bus._client.publish(
                f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}",
                json.dumps(request).encode(),
                reply=self._inbox,
            )
        except Exception as problem:
            self._break()
            raise _translate(problem, f"pulling from stream {self._stream}") from problem
        self._asked += more

    async def _receive(self, message: Msg) -> None:
        if message.subject != self._inbox and not message.reply.startswith("$JS.ACK."):
            return
        self._heard_at = asyncio.get_running_loop().time()
        if not message.reply.startswith("$JS.ACK."):
            self._status(message)
            return
        # $JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<times>.<stream seq>.<consumer seq>.<ns>.<pending>[.<token>]
        tokens = message.reply.split(".")
        at = 2 if len(tokens) < 11 else 4
        if tokens[at + 1] != self._consumer or self._broken:
            return
        self._asked -= 1
        self._delivered += 1
        if int(tokens[at + 4]) != self._delivered:
            self._break()
            return
        self._buffer.append(
            LogMessage(
                message.subject,
                message.data,
                int(tokens[at + 3]),
                int(tokens[at + 5]) // 1_000_000,
                int(tokens[at + 6]),
                message.headers or {},
            )
        )
        self._wake.set()

    def _status(self, message: Msg) -> None:
        headers = message.headers or {}
        status = headers.get("Status", "")
        if status == "100":
            return
        if status in ("404", "408") or (status == "409" and "max" in headers.get("Description", "").lower()):
            # This pull has ended, with so many messages not delivered: they may be asked for again.
            self._asked = max(0, self._asked - int(headers.get("Nats-Pending-Messages", _PULL_MESSAGES)))
            self._wake.set()
            return
        self._break()

    def _check_silence(self, now: float) -> None:
        if now - self._heard_at > 3 * _HEARTBEAT_S:
            self._break()

    def _break(self) -> None:
        self._broken = True
        self._wake.set()

    async def _drop(self) -> None:
        self._broken = True
        subscription, self._subscription = self._subscription, None
        consumer, self._consumer = self._consumer, ""
        if subscription is not None:
            await _unsubscribe(subscription)
        if consumer and self._bus.connected:
            with contextlib.suppress(Exception):
                await self._bus._client.publish(f"$JS.API.CONSUMER.DELETE.{self._stream}.{consumer}", b"")


async def _settled(answer: Awaitable[T]) -> T:
    """The answer of one of nats-py's requests, or our cancellation: in Python 3.11 `asyncio.wait_for`, which they use,
    forgets a cancellation that comes in the same turn of the loop as the answer.
    """
    result = await answer
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
    return result


async def _abandon(client: Client, attempt: asyncio.Task[None]) -> None:
    """Stop connecting, within two seconds."""
    attempt.cancel()
    with contextlib.suppress(Exception):
        async with asyncio.timeout(1.0):
            await client.close()
    await asyncio.wait({attempt}, timeout=1.0)


async def _unsubscribe(subscription: Subscription) -> None:
    with contextlib.suppress(Exception):
        await subscription.unsubscribe()


def _state(info: api.StreamInfo) -> StreamState:
    created = info.created
    created_ms = int(created.timestamp() * 1000) if created is not None else 0
    state = info.state
    return StreamState(created_ms, state.first_seq, state.last_seq, state.messages)


def _translate(problem: BaseException, doing: str) -> BusError:
    """Our error for one of nats-py's."""
    if isinstance(problem, BusError):
        return problem
    if isinstance(problem, TimeoutError):
        return BusError(f"{doing}: no answer within {REQUEST_TIMEOUT_S:g} s")
    text = f"{doing}: {_say(problem)}"
    if isinstance(problem, nats.errors.NoRespondersError | nats.js.errors.NoStreamResponseError):
        return StreamMissing(f"{text}; no stream takes this subject")
    if isinstance(problem, nats.js.errors.NotFoundError) and problem.err_code == 10059:
        return StreamMissing(f"{text}; the stream does not exist")
    if isinstance(problem, nats.errors.MaxPayloadError | nats.js.errors.BadRequestError):
        return BusRefused(text)
    if isinstance(problem, nats.errors.ConnectionClosedError | nats.errors.ConnectionReconnectingError | OSError):
        return BusUnreachable(text)
    return BusError(text)


def _say(problem: BaseException) -> str:
    return str(problem) or type(problem).__name__


def hide_userinfo(url: str) -> str:
    """`url` with any user and password shown as ``<secret>``."""
    scheme, found, rest = url.partition("://")
    if not found or "@" not in rest:
        return url
    return f"{scheme}://<secret>@{rest.rpartition('@')[2]}"


def _tls(options: BusOptions) -> ssl.SSLContext | None:
    if not (
        options.tls_ca_file or options.tls_cert_file or any(u.startswith(("tls://", "wss://")) for u in options.urls)
    ):
        return None
    context = ssl.create_default_context(cafile=options.tls_ca_file)
    if options.tls_cert_file:
        context.load_cert_chain(
            Path(options.tls_cert_file), Path(options.tls_key_file) if options.tls_key_file else None
        )
    return context
