"""The command line: what each command prints where, and what it exits with."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner, Result

import fleetmeter
from fleetmeter.deploy import cli
from fleetmeter.proto.errors import BusError, BusUnreachable, ConfigError, FleetmeterError, TraceError

#: A port that nothing listens on: 1 is reserved, and below what users may bind.
NOWHERE = "nats://127.0.0.1:1"
TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n"


def fleetmeter_(*arguments: object, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli.main, [str(a) for a in arguments], env=env)


def test_version():
    """The version goes to standard output, and is the package's."""
    result = fleetmeter_("version")

    assert (result.exit_code, result.stdout) == (0, f"fleetmeter {fleetmeter.__version__}\n")


def test_version_imports_nothing_heavy():
    """A command pays only for what it uses."""
    program = (
        "import sys, fleetmeter.deploy.cli; print(*{'numpy', 'nats', 'aiohttp', 'rich', 'yaml'} & set(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""


def test_check_accepts(tmp_path):
    """A right file is ok."""
    path = tmp_path / "fleetmeter.yaml"
    path.write_text("cluster: west\n")

    result = fleetmeter_("check", path)

    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{path}: ok\n", "")


def test_check_refuses(tmp_path):
    """A wrong file is told with its place, on standard error, with exit code 3."""
    path = tmp_path / "fleetmeter.yaml"
    path.write_text("cluster: west\npipeline:\n  intervall: 5s\n")

    result = fleetmeter_("check", path)

    assert (result.exit_code, result.stdout) == (3, "")
    assert f"{path}:3:" in result.stderr
    assert "interval" in result.stderr
    assert "Traceback" not in result.stderr


def test_check_missing_file(tmp_path):
    """A file that is not there is an invalid configuration."""
    result = fleetmeter_("check", tmp_path / "none.yaml")

    assert result.exit_code == 3
    assert "none.yaml" in result.stderr


def test_print_effective(tmp_path):
    """All settings are shown, with the environment's on top, and no secret."""
    path = tmp_path / "fleetmeter.yaml"
    path.write_text("nats:\n  password: hunter2\n  user: me\n")

    result = fleetmeter_("check", path, "--print-effective", env={"FLEETMETER_PIPELINE__INTERVAL": "10s"})

    assert result.exit_code == 0
    assert "interval: 10s" in result.stdout
    assert "hunter2" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("nothing",),
        ("check",),
        ("up", "--demo", "-1"),
        ("up", "--port", "65536"),
        ("run", "everything"),
        ("tail",),
        ("tail", "requests_total", "-o", "xml"),
        ("tail", "requests total"),
        ("tail", "requests.>"),
        ("tail", "requests_total", "--resolution", "soon"),
        ("tail", "requests_total", "--count", "0"),
        ("replay",),
        ("replay", "trace.csv", "--speed", "fast"),
        ("replay", "trace.csv", "--speed", "0x"),
        ("replay", "trace.csv", "--speed", "-1x"),
        ("replay", "trace.csv", "--nodes", "0"),
        ("replay", "trace.csv", "--seed", "-1"),
    ],
)
def test_wrong_usage(arguments):
    """What can't be meant is told with exit code 2."""
    result = fleetmeter_(*arguments)

    assert result.exit_code == 2
    assert "Error: " in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(("text", "speed"), [("max", 0.0), ("60x", 60.0), ("60", 60.0), ("0.5x", 0.5)])
def test_speed(text, speed):
    """A speed is a multiple of real time, or max."""
    assert cli._Speed().convert(text, None, None) == speed


@pytest.mark.parametrize(
    "command", [("up",), ("run", "aggregator"), ("run", "gateway"), ("tail", "requests_total"), ("replay", "trace.csv")]
)
def test_invalid_configuration_is_3_everywhere(tmp_path, command):
    """Every command that reads the configuration refuses a wrong one alike, before it does anything."""
    path = tmp_path / "fleetmeter.yaml"
    path.write_text("cluster: No Good\n")

    by_flag = fleetmeter_(*command, "--config", path)
    by_environment = fleetmeter_(*command, env={"FLEETMETER_CONFIG": str(path)})

    assert (by_flag.exit_code, by_environment.exit_code) == (3, 3)
    assert f"{path}:1:" in by_flag.stderr


@pytest.mark.parametrize("command", ["tail requests_total", "replay TRACE"])
def test_nats_unreachable_is_4(tmp_path, command):
    """No NATS server where there should be one is one message, with exit code 4."""
    trace = tmp_path / "trace.csv"
    trace.write_text(TRACE)

    result = fleetmeter_(
        *command.replace("TRACE", str(trace)).split(),
        "--nats-url",
        NOWHERE,
        env={"FLEETMETER_NATS__CONNECT_TIMEOUT": "200ms"},
    )

    assert result.exit_code == 4
    assert NOWHERE in result.stderr
    assert "Traceback" not in result.stderr


def test_bad_trace_is_told_before_anything_starts(tmp_path):
    """A mistake in the trace is told with file, line and column; no server was asked for."""
    trace = tmp_path / "trace.csv"
    trace.write_text(TRACE + "2023-11-16 18:15:47,many,1\n")

    result = fleetmeter_("replay", trace, "--nats-url", NOWHERE)

    assert result.exit_code == 1
    assert f"{trace}:3: ContextTokens: value 'many', expected a whole number" in result.stderr


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (FleetmeterError("x"), 1),
        (TraceError("x"), 1),
        (BusError("x"), 1),
        (ConfigError("x"), 3),
        (BusUnreachable("x"), 4),
    ],
)
def test_exit_codes(problem, code):
    """Each kind of error has its exit code."""
    assert cli.exit_code(problem) == code


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (ConfigError("what is wrong"), 3),
        (ExceptionGroup("tasks", [ExceptionGroup("more", [BusUnreachable("what is wrong")])]), 4),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_become_a_message(monkeypatch, raised, code):
    """An error of ours, also out of a group of tasks, is one line; Ctrl-C is 130 and silent."""

    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(cli, "_load", fail)

    result = fleetmeter_("check", "fleetmeter.yaml")

    assert result.exit_code == code
    assert result.stderr == ("" if code == 130 else "Error: what is wrong\n")


def test_mistakes_of_ours_are_not_hidden(monkeypatch):
    """What is no FleetmeterError keeps its traceback: it is a bug, and has to be seen as one."""

    def fail(*_: object) -> None:
        raise ExceptionGroup("tasks", [ZeroDivisionError("bug"), ConfigError("and more")])

    monkeypatch.setattr(cli, "_load", fail)

    assert isinstance(fleetmeter_("check", "fleetmeter.yaml").exception, ExceptionGroup)


def test_replay_of_one_request(tmp_path, nats):
    """The summary is one JSON object on standard output, whatever is said meanwhile on standard error."""
    trace = tmp_path / "trace.csv"
    trace.write_text(TRACE)

    result = fleetmeter_("replay", trace, "--nodes", 1, "--json", "--nats-url", nats.url, "--cluster", "one")

    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert list(summary) == [
        "requests", "input_tokens", "output_tokens", "cost_usd", "windows", "seconds", "max_quantile_error", "match",
    ]  # fmt: skip
    assert (summary["requests"], summary["input_tokens"], summary["output_tokens"], summary["windows"]) == (
        1,
        374,
        44,
        1,
    )
    assert (summary["match"], summary["max_quantile_error"]) == (None, None)
