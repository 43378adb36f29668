"""The replay from end to end: recorded traffic through real processes, and totals that match the file's."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import psutil
from support.cluster import Cluster
from support.command import fleetmeter
from support.peers import given

from fleetmeter.deploy.nats_server import NatsServer

#: 19,366 requests of 58 minutes; it lies beside the repository, and is no part of it.
AZURE = Path(__file__).parents[3] / "shared" / "data" / "azure_llm_conv_2023.csv"


def write_trace(directory: Path, seconds: int, per_second: int = 5) -> Path:
    """A trace of so many seconds."""
    path = directory / "trace.csv"
    rows = [
        f"2023-11-16 18:{i // per_second // 60:02d}:{i // per_second % 60:02d}.{i % per_second},{i % 900},{i % 77}\n"
        for i in range(seconds * per_second)
    ]
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(rows))
    return path


async def test_an_hour_of_real_traffic_matches():
    """Eight nodes replay the recorded hour, and every number that comes out is the one computed from the file."""
    async with fleetmeter("replay", given(AZURE), "--nodes", 8, "--speed", "max", "--verify", "--json") as command:
        code = await command.ended(90)

    summary = json.loads("\n".join(command.out))
    assert code == 0, command.err
    assert summary["match"] is True
    assert (summary["requests"], summary["input_tokens"], summary["output_tokens"]) == (19_366, 22_361_870, 4_088_665)
    assert summary["windows"] == 701
    assert 0 < summary["max_quantile_error"] <= 0.0109


async def test_aggregator_killed_again_and_again():
    """kill -9 of the aggregator, whenever, changes no number."""
    async with fleetmeter("replay", given(AZURE), "--nodes", 2, "--speed", "900x", "--verify", "--json") as command:
        await command.said("replaying")
        for times in (1, 2, 3):
            (await command.child("run aggregator")).kill()
            await command.said("restarting in", times)
        code = await command.ended(90)

    assert code == 0, command.err
    assert json.loads("\n".join(command.out))["match"] is True


async def test_partitions_and_a_short_interval(tmp_path):
    """Settings of the configuration hold for the replay's own cluster: three partitions, windows of a second."""
    trace = write_trace(tmp_path, 30)
    config = tmp_path / "fleetmeter.yaml"
    config.write_text("pipeline: {interval: 1s, partitions: 3}\n")

    async with fleetmeter("replay", trace, "--nodes", 2, "--verify", "--json", "--config", config) as command:
        code = await command.ended()

    summary = json.loads("\n".join(command.out))
    assert code == 0, command.err
    assert (summary["match"], summary["windows"], summary["requests"]) == (True, 30, 150)


async def test_summary_for_people(tmp_path):
    """Without --json the summary is a few lines of text."""
    async with fleetmeter("replay", write_trace(tmp_path, 7), "--nodes", 1, "--verify") as command:
        code = await command.ended()

    assert code == 0, command.err
    assert command.out[0] == "requests       35"
    assert "yes, in every number" in command.out[-1]


async def test_a_used_cluster_is_refused(tmp_path, nats: NatsServer):
    """Event time does not go back: a second replay into the same cluster is told to take another name."""
    trace = write_trace(tmp_path, 3)
    where = ("--nats-url", nats.url, "--cluster", "once")
    async with fleetmeter("replay", trace, "--nodes", 1, "--verify", *where) as command:
        first = await command.ended()

    async with fleetmeter("replay", trace, "--nodes", 1, "--verify", *where) as again:
        second = await again.ended()

    assert (first, second) == (0, 3)
    assert "name a new one, such as --cluster once-replay" in again.err[-1]


async def test_joins_a_cluster_in_event_time(tmp_path, nats: NatsServer):
    """A cluster that goes by the frames' time and has had none yet is joined, and aggregates for itself."""
    where = ("--nats-url", nats.url, "--cluster", "test", "--nodes", 2)
    arguments = ("replay", write_trace(tmp_path, 20), "--verify", "--json", *where)
    async with Cluster(nats).aggregator(), fleetmeter(*arguments) as command:
        code = await command.ended()

    assert code == 0, command.err
    summary = json.loads("\n".join(command.out))
    assert (summary["match"], summary["windows"]) == (True, 20)
    assert "starting an aggregator" not in command.err


async def test_real_time_in_a_cluster_that_runs(tmp_path, nats: NatsServer):
    """A cluster that goes by the broker's clock takes a trace in real time, and no other speed."""
    trace = write_trace(tmp_path, 3)
    cluster = Cluster(nats, {"pipeline.clock": "broker"})
    where = ("--nats-url", nats.url, "--cluster", "test", "--nodes", 2, "--verify")
    async with cluster.aggregator():
        async with fleetmeter("replay", trace, "--speed", "60x", *where) as fast:
            refused = await fast.ended()
        async with fleetmeter("replay", trace, "--speed", "1x", "--json", *where) as command:
            code = await command.ended()

    assert refused == 3
    assert "--speed 1x" in fast.err[-1]
    assert code == 0, (command.out, command.err)
    summary = json.loads("\n".join(command.out))
    assert (summary["match"], summary["windows"]) == (True, 3)
    assert summary["seconds"] > 3


async def test_a_node_that_dies_fails_the_replay(tmp_path):
    """A replay without one of its nodes would show other totals; it ends, and says which node."""
    async with fleetmeter("replay", write_trace(tmp_path, 60), "--nodes", 2, "--speed", "1x") as command:
        await command.said("replaying")
        processes = command.children()
        (await command.child("replay.worker")).kill()
        code = await command.ended()

    assert code == 1
    assert any("node replay-" in line and "exited with signal 9" in line for line in command.err)
    assert psutil.wait_procs(processes, timeout=30)[1] == []


async def test_interrupt_leaves_nothing_running(tmp_path):
    """Ctrl-C ends the replay with 130, and all that it started."""
    async with fleetmeter(
        "replay", write_trace(tmp_path, 60), "--nodes", 2, "--speed", "1x", TMPDIR=str(tmp_path)
    ) as command:
        await command.said("replaying")
        processes = command.children()
        command.process.send_signal(signal.SIGINT)
        code = await command.ended()

    assert code == 130
    assert len(processes) == 4  # NATS, aggregator, two nodes
    assert psutil.wait_procs(processes, timeout=30)[1] == []
    assert list(tmp_path.glob("fleetmeter-replay-*")) == []
