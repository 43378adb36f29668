from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from fleetmeter.proto.config import (
    Config,
    Duration,
    Emitter,
    Gateway,
    Nats,
    Pipeline,
    Secret,
    Storage,
    dump_effective,
    load_config,
    parse_partitions,
)
from fleetmeter.proto.errors import ConfigError
from fleetmeter.proto.schema import Section, build
from fleetmeter.proto.yamlfile import parse_yaml


@pytest.fixture
def load(tmp_path, monkeypatch):
    """load(text, flags, **environment) for a file `f.yaml` that holds `text`, in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = (tmp_path / "f.yaml").relative_to(tmp_path)

    def load(text="", flags=None, **environ):
        path.write_text(text, encoding="utf-8")
        return load_config(path, environ=environ, flags=flags or {})

    return load


@pytest.fixture
def errors(load):
    """The lines of the ConfigError that `load` raises."""

    def errors(text="", flags=None, **environ):
        with pytest.raises(ConfigError) as caught:
            load(text, flags, **environ)
        return str(caught.value).split("\n")

    return errors


# ---- What is loaded


def test_defaults(load):
    """With no file, an empty file and a file whose sections are all comments, every setting has its default."""
    assert load_config(None, environ={}) == load("") == load("nats:\n  # url: x\npipeline: {}\n") == Config()
    config = Config()
    assert (config.cluster, config.nats.url) == ("fleet", ("nats://127.0.0.1:4222",))
    assert (config.pipeline.interval_ms, config.pipeline.node_timeout_ms) == (5000, 15_000)
    assert (config.storage.deltas_max_age_ms, config.storage.deltas_max_bytes) == (86_400_000, 10 << 30)


def test_every_section(load):
    """Settings of every section and of every type are read from a file."""
    config = load(
        """
        cluster: prod-1
        nats: {url: ["nats://a:4222", "tls://b"], user: me, password: s3cret, connect_timeout: 250ms}
        pipeline: {interval: 10, lateness: 0s, partitions: 8, clock: event, max_series: 1_000_000}
        emitter: {node: "n 1", queue_bytes: 128MiB, ring_bytes: 0, host_metrics: off}
        aggregator: {snapshot_interval: 1m30s, partitions: "0-3,7"}
        gateway: {host: "::", port: 0, access_log: yes}
        storage: {replicas: 3, windows_max_age: 30d, data_dir: /var/lib/fleetmeter}
        log: {level: WARNING, format: json}
        """
    )

    assert config.cluster == "prod-1"
    assert config.nats == Nats(
        url=("nats://a:4222", "tls://b"), user="me", password=Secret("s3cret"), connect_timeout_ms=250
    )
    assert config.pipeline == Pipeline(
        interval_ms=10_000, lateness_ms=0, partitions=8, clock="event", max_series=1_000_000
    )
    assert config.emitter == Emitter(node="n 1", queue_bytes=128 << 20, ring_bytes=0, host_metrics=False)
    assert (config.aggregator.snapshot_interval_ms, config.aggregator.partitions) == (90_000, "0-3,7")
    assert config.gateway == Gateway(host="::", port=0, access_log=True)
    assert config.storage == Storage(replicas=3, windows_max_age_ms=30 * 86_400_000, data_dir="/var/lib/fleetmeter")
    assert (config.log.level, config.log.format) == ("warning", "json")


def test_text_is_taken_as_written(load):
    """A text that YAML would take for a number or a boolean is the text that was written."""
    config = load("nats: {user: 007, password: 0123, token_file: no}\ncluster: 1e3\n")

    assert (config.nats.user, config.nats.token_file, config.cluster) == ("007", "no", "1e3")
    assert config.nats.password.reveal() == "0123"


def test_layers(load):
    """The environment overrides the file, and flags override both, setting by setting."""
    config = load(
        "gateway: {port: 1, host: a, access_log: true}\n",
        {"gateway.port": 3, "gateway.host": None},
        FLEETMETER_GATEWAY__PORT="2",
        FLEETMETER_GATEWAY__HOST="b",
    )

    assert config.gateway == Gateway(port=3, host="b", access_log=True)


def test_an_override_hides_a_wrong_value(load):
    """A value that is overridden need not be right, as nothing uses it."""
    assert load("gateway: {port: x}\n", FLEETMETER_GATEWAY__PORT="1").gateway.port == 1


def test_flags_of_any_type(load):
    """A flag is a text or a value: a number, a boolean, a path, a secret."""
    flags = {
        "gateway.port": 81,
        "emitter.host_metrics": False,
        "storage.data_dir": Path("/data"),
        "nats.password": Secret("pw"),
    }

    config = load("", flags)

    assert (config.gateway.port, config.emitter.host_metrics, config.storage.data_dir) == (81, False, "/data")
    assert config.nats.password == Secret("pw")


def test_environment_names(load):
    """Variables are read in either case; a key at the top needs no section; others are left alone."""
    config = load(
        "",
        FLEETMETER_CLUSTER="c",
        fleetmeter_log__level="debug",
        FLEETMETER_CONFIG="/etc/fleetmeter.yaml",
        FLEETMETERS="x",
        HOME="/root",
    )

    assert (config.cluster, config.log.level) == ("c", "debug")


def test_kubernetes_variables(load):
    """What Kubernetes sets for a Service that is named fleetmeter or fleetmeter-gateway is no setting."""
    config = load(
        "",
        FLEETMETER_SERVICE_HOST="10.0.0.1",
        FLEETMETER_SERVICE_PORT="8000",
        FLEETMETER_SERVICE_PORT_HTTP="8000",
        FLEETMETER_PORT="tcp://10.0.0.1:8000",
        FLEETMETER_GATEWAY_PORT_8000_TCP="tcp://10.0.0.1:8000",
        FLEETMETER_GATEWAY_PORT_8000_TCP_ADDR="10.0.0.1",
    )

    assert config == Config()


def test_lists_outside_the_file(load):
    """A list is one variable with commas, or a flag that is given several times."""
    urls = ("nats://u:p,w@a:1", "nats://b:2")

    assert load("", FLEETMETER_NATS__URL=", ".join(urls)).nats.url == urls
    assert load("", {"nats.url": urls}).nats.url == urls
    assert load("", {"nats.url": list(urls)}).nats.url == urls


def test_an_empty_variable_is_unset(load):
    """An optional setting whose variable is empty is not set, as compose files pass on what is unset."""
    config = load("nats: {user: '${USER:-}', token: x}\n", FLEETMETER_NATS__TOKEN="")

    assert (config.nats.user, config.nats.token) == (None, None)


def test_variables_in_the_file(load):
    """${VAR} in the file is filled in before the value is read as its type; values of the environment are not."""
    config = load(
        "gateway: {port: '${PORT}'}\nlog: {level: '${LEVEL:-error}'}\n",
        PORT="81",
        FLEETMETER_STORAGE__DATA_DIR="${PORT}",
    )

    assert (config.gateway.port, config.log.level, config.storage.data_dir) == (81, "error", "${PORT}")


def test_plain_numbers_are_in_the_unit_that_the_key_names():
    """A duration without a unit is in seconds, or in the unit that ends its key."""

    class Cooldown(Section, frozen=True, kw_only=True):
        cooldown_minutes_ms: Annotated[Duration, Meta(description="…")] = 0
        cooldown_ms: Annotated[Duration, Meta(description="…")] = 0

    tree, _ = parse_yaml("cooldown_minutes: 5\ncooldown: 5\n", "f.yaml", {})

    result, problems = build(Cooldown, tree, {})

    assert (result, problems) == (Cooldown(cooldown_minutes_ms=300_000, cooldown_ms=5000), [])


# ---- What is refused

NAME = "expected a name of 1 to 63 of a-z, 0-9 and -, with no - first"
WRONG = [
    ("pipeline:\n  intervl: 5s\n", "2:3: pipeline.intervl", "unknown key; did you mean 'interval'?"),
    ("pipline: {}\n", "1:1: pipline", "unknown key; did you mean 'pipeline'?"),
    ("interval: 5s\n", "1:1: interval", "unknown key; did you mean 'pipeline.interval'?"),
    ("log: {Level: info}\n", "1:7: log.Level", "unknown key; did you mean 'level'?"),
    ("log: {zzz: info}\n", "1:7: log.zzz", "unknown key; known here are format, level"),
    ('log: {"a\\nb": info}\n', "1:7: log.'a\\nb'", "unknown key; known here are format, level"),
    (
        "pipeline:\n  interval: 5x\n",
        "2:3: pipeline.interval",
        "expected a duration such as 250ms, 5s, 1m30s, 1h or 7d, got 5x",
    ),
    ("pipeline: {interval: 61s}\n", "1:12: pipeline.interval", "expected a duration from 1s to 1m, got 61s"),
    (
        "pipeline: {interval: 7s}\n",
        "1:12: pipeline.interval",
        "expected a duration that divides 1m, such as 1s, 2s, 5s, 10s, 15s, 30s or 1m, got 7s",
    ),
    ("pipeline: {interval: }\n", "1:12: pipeline.interval", "expected a duration from 1s to 1m, got nothing"),
    ("pipeline: {interval: [5s]}\n", "1:12: pipeline.interval", "expected a duration from 1s to 1m, got a list"),
    ("pipeline: {lateness: 61m}\n", "1:12: pipeline.lateness", "expected a duration from 0s to 1h, got 61m"),
    (
        "pipeline: {seal_deadline: 99ms}\n",
        "1:12: pipeline.seal_deadline",
        "expected a duration from 100ms to 1m, got 99ms",
    ),
    ("pipeline: {partitions: 1025}\n", "1:12: pipeline.partitions", "expected a whole number from 1 to 1024, got 1025"),
    ("pipeline: {partitions: 1.5}\n", "1:12: pipeline.partitions", "expected a whole number from 1 to 1024, got 1.5"),
    (
        "pipeline: {partitions: many}\n",
        "1:12: pipeline.partitions",
        "expected a whole number from 1 to 1024, got 'many'",
    ),
    ("pipeline: {clock: wall}\n", "1:12: pipeline.clock", "expected one of broker, event, got 'wall'"),
    ("pipeline: 5\n", "1:1: pipeline", "expected a section with settings of its own, got text"),
    ("cluster: A b\n", "1:1: cluster", f"{NAME}, got 'A b'"),
    (
        f"cluster: {'a' * 64}\n",
        "1:1: cluster",
        f"{NAME}, got {'a' * 64!r}",
    ),
    (
        'cluster: "a\\n"\n',
        "1:1: cluster",
        f"{NAME}, got text with control characters or not in UTF-8",
    ),
    (
        "emitter: {queue_bytes: 64M}\n",
        "1:11: emitter.queue_bytes",
        "expected a size such as 64MiB, 10GiB, 512KB or a number of bytes, got 64M",
    ),
    ("emitter: {queue_bytes: 1KiB}\n", "1:11: emitter.queue_bytes", "expected a size from 1MiB to 64GiB, got 1KiB"),
    (
        f"emitter: {{node: {'é' * 65}}}\n",
        "1:11: emitter.node",
        "expected a name of at most 128 bytes, got 130",
    ),
    ("emitter: {host_metrics: 2}\n", "1:11: emitter.host_metrics", "expected true or false, got 2"),
    ("gateway: {port: 65536}\n", "1:11: gateway.port", "expected a whole number from 0 to 65535, got 65536"),
    ("gateway: {host: ''}\n", "1:11: gateway.host", "expected text, got ''"),
    ("storage: {replicas: 2}\n", "1:11: storage.replicas", "expected one of 1, 3, 5, got 2"),
    (
        "aggregator: {partitions: 0-x}\n",
        "1:14: aggregator.partitions",
        "expected partitions such as 0-3,7, or an empty text for all, got 0-x",
    ),
    (
        "nats: {url: []}\n",
        "1:8: nats.url",
        "expected a URL that begins with nats://, tls://, ws:// or wss://, or a list of such, got a list",
    ),
    ("nats: {tls_key_file: k}\n", "1:8: nats.tls_key_file", "expected both of tls_cert_file and tls_key_file, got one"),
    (
        "nats: {url: [ws://a, nats://b]}\n",
        "1:8: nats.url",
        "expected servers of one kind, got WebSocket (ws://, wss://) beside nats:// or tls://",
    ),
]


@pytest.mark.parametrize(("text", "where", "what"), WRONG, ids=range(len(WRONG)))
def test_wrong_setting(text, where, what, errors):
    """A wrong setting is one line: file, line, column, key, what was expected, what was there."""
    assert errors(text) == [f"f.yaml:{where}: {what}"]


def test_all_problems_in_order(errors):
    """Every problem of file, environment and flags is in one error, a line each, in the order of reading."""
    lines = errors(
        "gateway:\n  port: x\n  host: ${X}\n  port: y\nlog: {levl: info}\ncluster: '-'\n",
        {"pipeline.interval": "5h"},
        FLEETMETER_PIPELINE__LATENESS="2h",
        FLEETMETER_PIPELINE__CLOCK="x",
    )

    assert [line.split(": expected")[0].split(": unknown")[0].split(": given")[0] for line in lines] == [
        "f.yaml:2:3: gateway.port",
        "f.yaml:3:9: gateway.host: the environment variable X is not set; set it, or write ${NAME:-default}",
        "f.yaml:4:3: gateway.port",
        "f.yaml:5:7: log.levl",
        "f.yaml:6:1: cluster",
        "environment: FLEETMETER_PIPELINE__CLOCK",
        "environment: FLEETMETER_PIPELINE__LATENESS",
        "--interval",
    ]


def test_very_many_problems(errors):
    """A file of another kind does not fill the screen."""
    lines = errors("\n".join(f"key{i}x: 1" for i in range(60)))

    assert (len(lines), lines[-1]) == (51, "… and 10 more")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("cluster", "A"),
        ("pipeline.interval", "61s"),
        ("pipeline.interval", ""),
        ("pipeline.partitions", "1025"),
        ("pipeline.clock", "wall"),
        ("emitter.queue_bytes", "64M"),
        ("emitter.host_metrics", "2"),
        ("storage.replicas", "2"),
        ("nats.url", "http://x"),
        ("nats.password", "a\x00"),
    ],
)
def test_one_way_for_all_layers(key, text, errors):
    """A value is refused in the same words in the file, in the environment and as a flag; only the place differs."""
    section, _, name = key.rpartition(".")
    setting = f"{name}: {json.dumps(text)}"
    file = f"{section}: {{{setting}}}" if section else setting

    [in_file] = errors(file)
    [in_environment] = errors("", **{f"FLEETMETER_{key.replace('.', '__').upper()}": text})
    [as_flag] = errors("", {key: text})

    what = in_file.partition(f"{key}: ")[2]
    assert what.startswith("expected ")
    assert in_environment == f"environment: FLEETMETER_{key.replace('.', '__').upper()}: {what}"
    assert as_flag == f"--{name.replace('_', '-')}: {what}"


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("FLEETMETER_PIPELINE__INTERVL", "did you mean FLEETMETER_PIPELINE__INTERVAL?"),
        ("FLEETMETER_PIPELINES__INTERVAL", "did you mean FLEETMETER_PIPELINE__INTERVAL?"),
        ("FLEETMETER_CLUSTR", "did you mean FLEETMETER_CLUSTER?"),
        ("FLEETMETER_INTERVAL", "did you mean FLEETMETER_PIPELINE__INTERVAL?"),
        ("FLEETMETER_GATEWAY_PORT", "did you mean FLEETMETER_GATEWAY__PORT?"),
        ("FLEETMETER_NATS_ULR", "did you mean FLEETMETER_NATS__URL?"),
        ("FLEETMETER_GATEWAY", "names are FLEETMETER_SECTION__KEY"),
        ("FLEETMETER_QQQ", "names are FLEETMETER_SECTION__KEY"),
        ("FLEETMETER_", "names are FLEETMETER_SECTION__KEY"),
    ],
)
def test_unknown_variable(variable, hint, errors):
    """A variable with our prefix that is no setting is an error that names the nearest one, and not the value."""
    assert errors("", **{variable: "hunter2"}) == [f"environment: {variable}: no such setting; {hint}"]


def test_variable_set_twice(errors):
    """Two variables that differ in case only are an error, for nobody can say which one is meant."""
    assert errors("", FLEETMETER_CLUSTER="a", fleetmeter_cluster="b") == [
        "environment: fleetmeter_cluster: set twice, also as FLEETMETER_CLUSTER; keep one"
    ]


def test_bytes_that_are_no_utf8(errors):
    """A variable whose bytes are not UTF-8 is refused, and not shown."""
    [line] = errors("", FLEETMETER_STORAGE__DATA_DIR="/\udcff")

    assert line.endswith("expected text, got text with control characters or not in UTF-8")
    assert line.isprintable()


def test_unknown_flag(errors):
    """A dotted key that is no setting is an error that names the nearest one."""
    assert errors("", {"pipeline.intervl": "5s"}) == [
        "--intervl: no such setting: pipeline.intervl; did you mean 'pipeline.interval'?"
    ]


def test_conflict_names_both_settings(errors):
    """Two settings that do not go together are one error, with both names, both values, and where each was set."""
    what = "expected node_timeout of at least interval, got node_timeout 5s and interval 10s"

    assert errors("pipeline:\n  interval: 10s\n  node_timeout: 5s\n") == [
        f"f.yaml:3:3: pipeline.node_timeout: {what}; pipeline.interval is set at f.yaml:2:3"
    ]
    assert errors("pipeline:\n  node_timeout: 5s\n", FLEETMETER_PIPELINE__INTERVAL="10") == [
        f"f.yaml:2:3: pipeline.node_timeout: {what}; "
        "pipeline.interval is set at environment: FLEETMETER_PIPELINE__INTERVAL"
    ]


def test_conflict_with_a_default(errors):
    """A conflict with a default is reported at the setting that was made."""
    assert errors("pipeline:\n  interval: 20s\n") == [
        "f.yaml:2:3: pipeline.interval: "
        "expected node_timeout of at least interval, got node_timeout 15s and interval 20s"
    ]


@pytest.mark.parametrize("timeout", ["node_timeout: x", "node_timeout: ${X}", "node_timeuot: 1m"])
def test_no_conflict_with_a_wrong_value(timeout, errors):
    """A value that is wrong, missing or misspelt is one problem: it is not held against another setting as well."""
    [line] = errors(f"pipeline:\n  interval: 20s\n  {timeout}\n")

    assert line.startswith("f.yaml:3:")


@pytest.mark.parametrize("name", ["password", "token"])
def test_secret_and_its_file(name, errors):
    """A secret and the file that holds it are not given both."""
    [line] = errors(f"nats:\n  {name}: hunter2\n  {name}_file: /run/secret\n")

    assert line.startswith(f"f.yaml:3:3: nats.{name}_file: expected one of {name}_file and {name}, got both")


@pytest.mark.parametrize("interval_ms", range(1000, 60_001, 500))
def test_interval_divides_a_minute(interval_ms, load):
    """Exactly the intervals that divide a minute are taken, so that rollups are made of whole windows."""
    flags = {"pipeline.interval": f"{interval_ms}ms", "pipeline.node_timeout": "1m"}

    if 60_000 % interval_ms == 0:
        assert load("", flags).pipeline.interval_ms == interval_ms
    else:
        with pytest.raises(ConfigError, match="divides 1m"):
            load("", flags)


# ---- Partitions


@pytest.mark.parametrize(
    ("text", "chosen"),
    [("", (0, 1, 2, 3, 4, 5, 6, 7)), ("0-3,7", (0, 1, 2, 3, 7)), ("7, 1-1 ,0,0-1", (0, 1, 7))],
)
def test_partitions(text, chosen):
    """Partitions are numbers and ranges, ascending and each once in the result; an empty text is all of them."""
    assert parse_partitions(text, 8) == chosen


@pytest.mark.parametrize("text", ["8", "0-8", "3-1", "0-9999"])
def test_partitions_out_of_range(text, errors):
    """A partition that there is not, and a range that descends, are errors that name the limit and its setting."""
    [line] = errors(f"pipeline: {{partitions: 8}}\naggregator: {{partitions: '1,{text}'}}\n")

    assert line == (
        "f.yaml:2:14: aggregator.partitions: expected partitions from 0 to 7 (pipeline.partitions is 8), "
        f"the lower end of a range first, got {text}; pipeline.partitions is set at f.yaml:1:12"
    )


@pytest.mark.parametrize("text", ["a", "-1", "1-", "1;2", "1,,2", "99999", "1\n"])
def test_partitions_malformed(text):
    """A text that is no list of partitions raises ConfigError."""
    with pytest.raises(ConfigError, match="expected partitions such as 0-3,7"):
        parse_partitions(text, 8)


# ---- Secrets

HIDING = [
    "nats: {password: hunter2}",
    "nats: {token: hunter2, url: 'nats://me:hunter2@h:4222'}",
    "nats: {url: ['nats://hunter2@h', 'nats://me:x@hunter2@h', 'tls://c']}",
    "nats: {url: 'nats://me:hunter2'}",
    "nats: {url: 'http://me:hunter2@h'}",
    "nats: {url: 'nats://me:a/hunter2@h'}",
    "nats: {url: 'me:hunter2@h'}",
    "nats: {password: [hunter2]}",
    "nats: {password: {hunter2: a}}",
    "nats: {password: 'hunter2\t'}",
    "nats: hunter2",
    "nats: {password: hunter2, password_file: x, tls_cert_file: y}",
    "nats: {password: 'hunter2${'}",
    "nats: {password: !hunter2 x}",
    "nats: {passwort: hunter2}",
]


@pytest.mark.parametrize("text", HIDING)
def test_no_secret_in_any_output(text, load):
    """Whether a configuration is right or wrong, no message, repr or dump of it shows a secret."""
    try:
        config = load(text + "\n")
        shown = f"{config!r} {config.nats} {dump_effective(config)} {config.nats.__rich_repr__()}"
        assert "<secret>" in shown
    except ConfigError as error:
        shown = str(error)

    assert "hunter2" not in shown


def test_secret():
    """A secret shows itself only when told to; it compares, hashes and pickles as a value."""
    secret = Secret("hunter2")

    assert (repr(secret), str(secret), f"{secret}", f"{secret!r:>10}") == ("<secret>",) * 3 + ("  <secret>",)
    assert secret.reveal() == "hunter2"
    assert {secret} == {Secret("hunter2")} and secret != Secret("other") and secret != "hunter2"
    assert pickle.loads(pickle.dumps(secret)) == secret


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://h:4222", "nats://h:4222"),
        ("nats://me:pw@h:4222", "nats://<secret>@h:4222"),
        ("wss://token@[::1]:80/path", "wss://<secret>@[::1]:80/path"),
    ],
)
def test_urls_in_the_dump(url, shown, load):
    """The dump has a URL as it is, but for its user name and password."""
    config = load("", {"nats.url": url})

    assert config.nats.url == (url,)
    assert yaml.safe_load(dump_effective(config))["nats"]["url"] == shown


# ---- The dump


def test_dump_has_every_setting_and_reads_well():
    """The dump has every key, durations and sizes as a person writes them, in the order of the structs."""
    tree = yaml.safe_load(dump_effective(Config()))

    assert list(tree) == ["cluster", "nats", "pipeline", "emitter", "aggregator", "gateway", "storage", "log"]
    assert tree["pipeline"] == {
        "interval": "5s",
        "lateness": "1m",
        "seal_deadline": "2s",
        "node_timeout": "15s",
        "partitions": 1,
        "clock": "broker",
        "max_series_per_metric": 10_000,
        "max_series": 200_000,
    }
    assert (tree["storage"]["deltas_max_age"], tree["storage"]["deltas_max_bytes"]) == ("1d", "10GiB")
    assert tree["nats"]["url"] == "nats://127.0.0.1:4222"


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
CONFIGS = st.builds(
    Config,
    cluster=st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True),
    nats=st.builds(
        Nats,
        url=st.lists(st.sampled_from(["nats://a", "tls://b:1", "nats://[::1]:2"]), min_size=1, max_size=3).map(tuple),
        user=st.none() | TEXT.filter(bool),
    ),
    pipeline=st.builds(
        Pipeline,
        interval_ms=st.sampled_from([1000, 1500, 2500, 60_000]),
        node_timeout_ms=st.integers(60_000, 86_400_000),
        lateness_ms=st.integers(0, 3_600_000),
        clock=st.sampled_from(["broker", "event"]),
    ),
    emitter=st.builds(Emitter, node=st.none() | TEXT.filter(bool), queue_bytes=st.integers(1 << 20, 1 << 36)),
    storage=st.builds(Storage, data_dir=TEXT | st.sampled_from(["${A}", "$${A}", "null", "no", "~", "a: b", " x"])),
)


@given(config=CONFIGS)
def test_dump_loads_again(config, tmp_path_factory):
    """A dump loads to an equal configuration, whatever its texts look like to YAML."""
    path = tmp_path_factory.getbasetemp() / "dump.yaml"
    path.write_text(dump_effective(config), encoding="utf-8")

    assert load_config(path, environ={}) == config


def test_dump_of_secrets_loads(load):
    """A dump with hidden secrets still loads; just the secrets differ."""
    config = load("nats: {user: me, password: hunter2, url: 'nats://a:b@h'}\n")

    again = load(dump_effective(config))

    assert again.nats.password == Secret("<secret>") and again.nats.url == ("nats://<secret>@h",)
    assert msgspec.structs.replace(again, nats=config.nats) == config


# ---- The structs


def test_every_setting_is_described():
    """Every setting has a sentence of description, of which an example file can be made."""
    info: Any = msgspec.inspect.type_info(Config)
    for section in info.fields[1:]:
        assert section.type.cls.__doc__
        for field in section.type.fields:
            description = (field.type.extra_json_schema or {}).get("description", "")
            assert re.fullmatch(r"[A-Z.].*\.", description), f"{section.encode_name}.{field.encode_name}"


def test_pipeline_settings_can_travel():
    """The settings that change results are encoded with the keys of the file, and decoding checks their bounds."""
    pipeline = Pipeline(interval_ms=10_000)
    raw = msgspec.msgpack.encode(pipeline)

    assert msgspec.msgpack.decode(raw)["interval"] == 10_000
    assert msgspec.msgpack.decode(raw, type=Pipeline) == pipeline
    with pytest.raises(msgspec.ValidationError, match="interval"):
        msgspec.convert({"interval": 61_000}, Pipeline)
