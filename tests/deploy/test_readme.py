"""What the README tells a newcomer to type works."""

from __future__ import annotations

import os
import re
import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.cluster import Cluster

from fleetmeter.deploy.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


async def test_the_emitter_example_runs_as_it_stands(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines under *In your proxy* record a request on a real NATS server."""
    await cluster.create_streams()
    monkeypatch.setenv("FLEETMETER_NATS__URL", cluster.server.url)
    monkeypatch.setenv("FLEETMETER_CLUSTER", "test")
    example = re.search(r"## In your proxy\n\n((?:    .*\n|\n)+)", README)
    assert example is not None
    body = textwrap.dedent(example[1])
    code = "async def main():\n" + textwrap.indent(body, "    ") + "        return meter\n"
    names: dict[str, object] = {"os": os}
    exec(code, names)
    meter = await names["main"]()  # type: ignore[operator]
    assert (meter.stats().requests, meter.stats().invalid) == (1, {})


@pytest.mark.parametrize("command", sorted(set(re.findall(r"\.venv/bin/fleetmeter (\w+)", README))))
def test_each_command_exists(command: str) -> None:
    """Commands in the README are commands of the program."""
    assert CliRunner().invoke(main, [command, "--help"]).exit_code == 0


def test_each_make_target_exists() -> None:
    """So are the targets of make."""
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"make (up|test|bench|lint|install)\b", README)) <= set(targets)


def test_each_link_leads_to_a_file() -> None:
    """Files that the README links to are there."""
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
