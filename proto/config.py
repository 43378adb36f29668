"""Fleetmeter's configuration: what can be set, how it is loaded, and how it is shown.

One YAML file, then the environment, then flags; the later ones win, setting by setting. A variable is named
``FLEETMETER_SECTION__KEY`` (``FLEETMETER_PIPELINE__INTERVAL=10s``; ``FLEETMETER_CLUSTER`` for a key at the top), in
upper or lower case. A name with that prefix that is no setting is an error, for it is most likely a misspelt one; but
``FLEETMETER_CONFIG`` (the file, read by the command line) and the variables that Kubernetes makes of a Service's name
are left alone.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, TypeAlias

import msgspec
import yaml
from msgspec import Meta

from .errors import ConfigError
from .quantities import format_duration_ms, parse_duration_ms, parse_size, show
from .schema import Conflict, Secret, Section, build, key_paths, nearest, to_tree
from .subjects import MAX_NODE
from .yamlfile import KeyPath, Node, Place, Problem, dotted, escape, read_yaml

__all__ = [
    "Aggregator",
    "Config",
    "Emitter",
    "Gateway",
    "Log",
    "Nats",
    "Pipeline",
    "Secret",
    "Storage",
    "dump_effective",
    "load_config",
    "parse_duration_ms",
    "parse_partitions",
    "parse_size",
]

PREFIX = "FLEETMETER_"
#: Variables with our prefix that are no settings.
RESERVED = frozenset({"FLEETMETER_CONFIG"})
MAX_PARTITIONS = 1024
#: Most lines in one ConfigError: a file of another kind has more unknown keys than anyone reads.
MAX_PROBLEMS = 50

_PARTITIONS = r"^([0-9]{1,4}(-[0-9]{1,4})?( *, *[0-9]{1,4}(-[0-9]{1,4})?)*)?\Z"
#: What Kubernetes sets for a Service whose name begins with `fleetmeter`.
_KUBERNETES = re.compile(r"(?!.*__).*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_KUBERNETES_URL = re.compile(r"(tcp|udp|sctp)://.*")

_S = 1000
_MINUTE = 60 * _S
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR
_MIB = 1 << 20
_GIB = 1 << 30

Duration: TypeAlias = Annotated[int, Meta(extra={"kind": "duration"})]
Size: TypeAlias = Annotated[int, Meta(extra={"kind": "size"})]
Url: TypeAlias = Annotated[str, Meta(extra={"kind": "url"})]


class Nats(Section, frozen=True, kw_only=True):
    """How to reach the broker. Secrets can be read from files, which keeps them out of process listings and dumps."""

    url: Annotated[tuple[Url, ...], Meta(description="NATS server, or a list of the servers of one cluster.")] = (
        "nats://127.0.0.1:4222",
    )
    user: Annotated[str | None, Meta(description="User name.")] = None
    password: Annotated[Secret | None, Meta(description="Password of `user`.")] = None
    password_file: Annotated[str | None, Meta(description="File that holds the password of `user`.")] = None
    token: Annotated[Secret | None, Meta(description="Token, for servers that authenticate by one.")] = None
    token_file: Annotated[str | None, Meta(description="File that holds the token.")] = None
    credentials_file: Annotated[str | None, Meta(description="NATS .creds file (JWT and NKey seed).")] = None
    tls_ca_file: Annotated[str | None, Meta(description="PEM file of the CAs behind the server's certificate.")] = None
    tls_cert_file: Annotated[str | None, Meta(description="PEM file of the client's certificate.")] = None
    tls_key_file: Annotated[str | None, Meta(description="PEM file of the client certificate's key.")] = None
    connect_timeout_ms: Annotated[
        Duration, Meta(description="How long one attempt to connect may take.", ge=100, le=5 * _MINUTE)
    ] = 5 * _S

    def conflicts(self) -> Iterator[Conflict]:
        for one, other in (("password_file", "password"), ("token_file", "token")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                yield (one, other), f"expected one of {one} and {other}, got both"
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            yield ("tls_cert_file", "tls_key_file"), "expected both of tls_cert_file and tls_key_file, got one"
        if len({url.lower().startswith("ws") for url in self.url}) > 1:
            yield ("url",), "expected servers of one kind, got WebSocket (ws://, wss://) beside nats:// or tls://"


class Pipeline(Section, frozen=True, kw_only=True):
    """What changes results. These settings travel in the log, and every replica follows those in the log."""

    interval_ms: Annotated[
        Duration,
        Meta(description="Length of a window; it divides one minute, so that rollups align.", ge=_S, le=60 * _S),
    ] = 5 * _S
    lateness_ms: Annotated[
        Duration,
        Meta(description="How long after its end frames correct a window; later, just totals.", ge=0, le=_HOUR),
    ] = 60 * _S
    seal_deadline_ms: Annotated[
        Duration,
        Meta(description="How long a window waits for a node that fell silent.", ge=100, le=60 * _S),
    ] = 2 * _S
    node_timeout_ms: Annotated[
        Duration,
        Meta(description="Silence after which a node is no longer expected; at least one interval.", ge=_S, le=_DAY),
    ] = 15 * _S
    partitions: Annotated[
        int, Meta(description="Over how many aggregators series can be spread.", ge=1, le=MAX_PARTITIONS)
    ] = 1
    clock: Annotated[
        Literal["broker", "event"],
        Meta(description="Whose time moves windows on: the broker's, or the frames' own, for replays of old traces."),
    ] = "broker"
    max_series_per_metric: Annotated[
        int, Meta(description="Series of one metric in the cluster; more fold into `other`.", ge=1, le=10_000_000)
    ] = 10_000
    max_series: Annotated[
        int, Meta(description="Series of all metrics in the cluster; more fold into `other`.", ge=1, le=100_000_000)
    ] = 200_000

    def conflicts(self) -> Iterator[Conflict]:
        interval = format_duration_ms(self.interval_ms)
        if (60 * _S) % self.interval_ms:
            yield (
                ("interval",),
                f"expected a duration that divides 1m, such as 1s, 2s, 5s, 10s, 15s, 30s or 1m, got {interval}",
            )
        if self.node_timeout_ms < self.interval_ms:
            timeout = format_duration_ms(self.node_timeout_ms)
            yield (
                ("node_timeout", "interval"),
                f"expected node_timeout of at least interval, got node_timeout {timeout} and interval {interval}",
            )


class Emitter(Section, frozen=True, kw_only=True):
    """The part in a proxy process."""

    node: Annotated[str | None, Meta(description="Name of this process; unset, its host name and process id.")] = None
    queue_bytes: Annotated[
        Size,
        Meta(description="Frames kept while the broker is away; past it the oldest merge.", ge=_MIB, le=64 * _GIB),
    ] = 64 * _MIB
    ring_bytes: Annotated[
        Size, Meta(description="Acknowledged frames kept for an aggregator that missed one.", ge=0, le=64 * _GIB)
    ] = 16 * _MIB
    max_series_per_metric: Annotated[
        int, Meta(description="Series of one metric in this process; more fold into `other`.", ge=1, le=10_000_000)
    ] = 2000
    jitter_ms: Annotated[
        Duration,
        Meta(description="Spread of publishing after a window's edge, for 100 nodes or more.", ge=0, le=60 * _S),
    ] = 0
    host_metrics: Annotated[bool, Meta(description="Sample CPU, memory, disk and network of the host.")] = True

    def conflicts(self) -> Iterator[Conflict]:
        size = len((self.node or "").encode())
        if size > MAX_NODE:
            yield ("node",), f"expected a name of at most {MAX_NODE} bytes, got {size}"


class Aggregator(Section, frozen=True, kw_only=True):
    """The part that folds frames into windows."""

    snapshot_interval_ms: Annotated[
        Duration,
        Meta(description="How often state is saved; a restart replays the log since then.", ge=_S, le=_HOUR),
    ] = 10 * _S
    partitions: Annotated[
        str,
        Meta(
            description="Which partitions this process folds, such as 0-3,7; empty for all.",
            pattern=_PARTITIONS,
            extra={"expected": "partitions such as 0-3,7, or an empty text for all"},
        ),
    ] = ""


class Gateway(Section, frozen=True, kw_only=True):
    """The part that serves HTTP."""

    host: Annotated[str, Meta(description="Address to listen on; 0.0.0.0 or :: for all.", min_length=1)] = "127.0.0.1"
    port: Annotated[int, Meta(description="TCP port; 0 takes a free one and logs it.", ge=0, le=65535)] = 8000
    access_log: Annotated[bool, Meta(description="Log every request.")] = False


class Storage(Section, frozen=True, kw_only=True):
    """What the broker keeps. A stream drops its oldest messages at its age or its size, whichever comes first."""

    deltas_max_age_ms: Annotated[
        Duration, Meta(description="Age of frames; as far back windows can be recomputed.", ge=_MINUTE, le=3650 * _DAY)
    ] = _DAY
    deltas_max_bytes: Annotated[Size, Meta(description="Size of all frames.", ge=_MIB, le=1 << 50)] = 10 * _GIB
    windows_max_age_ms: Annotated[
        Duration, Meta(description="Age of windows; as far back they can be read.", ge=_MINUTE, le=3650 * _DAY)
    ] = 7 * _DAY
    windows_max_bytes: Annotated[Size, Meta(description="Size of all windows.", ge=_MIB, le=1 << 50)] = 10 * _GIB
    replicas: Annotated[
        Literal[1, 3, 5], Meta(description="NATS servers that hold each message; 3 survives the loss of one.")
    ] = 1
    data_dir: Annotated[
        str, Meta(description="Directory of the embedded NATS server; empty for .fleetmeter in the current one.")
    ] = ""


class Log(Section, frozen=True, kw_only=True):
    """Logs, which go to standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least severe level that is logged.")
    ] = "info"
    format: Annotated[
        Literal["auto", "text", "json"], Meta(description="Auto is text on a terminal, and JSON lines elsewhere.")
    ] = "auto"


class Config(Section, frozen=True, kw_only=True):
    """All settings."""

    cluster: Annotated[
        str,
        Meta(
            description="Name of the fleet; it is a part of every NATS subject and stream.",
            pattern=r"^[a-z0-9][a-z0-9-]{0,62}\Z",
            extra={"expected": "a name of 1 to 63 of a-z, 0-9 and -, with no - first"},
        ),
    ] = "fleet"
    nats: Nats = msgspec.field(default_factory=Nats)
    pipeline: Pipeline = msgspec.field(default_factory=Pipeline)
    emitter: Emitter = msgspec.field(default_factory=Emitter)
    aggregator: Aggregator = msgspec.field(default_factory=Aggregator)
    gateway: Gateway = msgspec.field(default_factory=Gateway)
    storage: Storage = msgspec.field(default_factory=Storage)
    log: Log = msgspec.field(default_factory=Log)

    def conflicts(self) -> Iterator[Conflict]:
        try:
            parse_partitions(self.aggregator.partitions, self.pipeline.partitions)
        except ConfigError as error:
            yield ("aggregator.partitions", "pipeline.partitions"), str(error)


def parse_partitions(text: str, partitions: int) -> tuple[int, ...]:
    """The partitions of ``0-3,7`` in ascending order, each once; all of `partitions` for an empty text.

    Raises ConfigError for other text, for a range that descends and for a partition that is not below `partitions`.
    """
    if not re.search(_PARTITIONS, text):
        raise ConfigError(f"expected partitions such as 0-3,7, got {show(text)}")
    chosen: set[int] = set()
    for part in filter(None, re.split(r" *, *", text)):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if not low <= high < partitions:
            limit = f"from 0 to {partitions - 1} (pipeline.partitions is {partitions})"
            raise ConfigError(f"expected partitions {limit}, the lower end of a range first, got {part}")
        chosen.update(range(low, high + 1))
    return tuple(sorted(chosen)) or tuple(range(partitions))


def load_config(
    path: Path | None,
    *,
    environ: Mapping[str, str],
    flags: Mapping[str, object] = MappingProxyType({}),
) -> Config:
    """The settings of a file (None for no file), overridden by `environ`, overridden by `flags`.

    `environ` also fills ``${VAR}`` in the file. `flags` are values by dotted key (``{"pipeline.interval": "10s"}``);
    None is a flag that was not given. Raises one ConfigError with a line for each thing that is wrong.
    """
    tree, problems = read_yaml(path, environ) if path else (Node(Place(0, ""), {}), [])
    known = key_paths(Config)
    overrides: dict[KeyPath, Node] = {}
    for key, node in (*_from_environment(environ, known, problems), *_from_flags(flags, known, problems)):
        overrides[key] = node
    config, more = build(Config, tree, overrides)
    problems += more
    if problems:
        lines = [str(problem) for problem in sorted(problems)]
        hidden = len(lines) - MAX_PROBLEMS
        raise ConfigError("\n".join(lines[:MAX_PROBLEMS] + [f"… and {hidden} more"] * (hidden > 0)))
    return config


def dump_effective(config: Config) -> str:
    """`config` as YAML with every key; it loads to an equal Config, but that secrets are ``<secret>``."""
    return yaml.safe_dump(_escaped(to_tree(config)), sort_keys=False, allow_unicode=True, width=10_000)


def _from_environment(
    environ: Mapping[str, str], known: list[KeyPath], problems: list[Problem]
) -> Iterator[tuple[KeyPath, Node]]:
    joined = {"_".join(path): path for path in known}
    seen: dict[KeyPath, str] = {}
    for variable, value in sorted(environ.items()):
        name = variable.upper()
        if not name.startswith(PREFIX) or name in RESERVED or _KUBERNETES.fullmatch(name):
            continue
        if name.endswith("_PORT") and _KUBERNETES_URL.fullmatch(value):
            continue
        place = Place(1, f"environment: {dotted((variable,))}")
        key = tuple(name.removeprefix(PREFIX).lower().split("__"))
        if key not in known:
            # One underscore for two is the likeliest slip, so names are compared without the difference.
            close = difflib.get_close_matches("_".join(key)[:64], joined, n=1, cutoff=0.8)
            near = joined[close[0]] if close else nearest(key, known)
            meant = f"{PREFIX}{'__'.join(near).upper()}" if near and near in known else None
            hint = f"did you mean {meant}?" if meant else f"names are {PREFIX}SECTION__KEY"
            problems.append(Problem(place, key, f"no such setting; {hint}"))
        elif key in seen:
            problems.append(Problem(place, key, f"set twice, also as {seen[key]}; keep one"))
        else:
            seen[key] = variable
            yield key, Node(place, value)


def _from_flags(
    flags: Mapping[str, object], known: list[KeyPath], problems: list[Problem]
) -> Iterator[tuple[KeyPath, Node]]:
    for name, value in flags.items():
        key = tuple(name.split("."))
        place = Place(2, f"--{key[-1].replace('_', '-')}")
        if value is None:
            continue
        if key in known:
            items = [Node(place, _text(item)) for item in value] if isinstance(value, list | tuple) else _text(value)
            yield key, Node(place, items)
        else:
            near = nearest(key, known)
            hint = f"; did you mean {dotted(near)!r}?" if near else ""
            problems.append(Problem(place, key, f"no such setting: {dotted(key)}{hint}"))


def _text(value: object) -> str:
    if isinstance(value, Secret):
        return value.reveal()
    return str(value).lower() if isinstance(value, bool) else str(value)


def _escaped(value: object) -> object:
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return escape(value) if isinstance(value, str) else value
