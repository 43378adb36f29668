"""What `fleetmeter up` makes sure of before it starts anything: its directory and its ports."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest

from fleetmeter.deploy import up
from fleetmeter.proto.config import load_config
from fleetmeter.proto.errors import FleetmeterError


def options(data_dir: Path, flags: dict[str, object] | None = None) -> up.Options:
    config = load_config(None, environ={}, flags={"gateway.port": 0, **(flags or {})})
    return up.Options(config=config, nats_port=0, data_dir=data_dir)


def test_free_port_takes_one():
    """For 0 a port is chosen that can be listened on."""
    port = up.free_port("127.0.0.1", 0, "--port")

    with socket.socket() as server:
        server.bind(("127.0.0.1", port))


@pytest.mark.parametrize(("option", "hint"), [("--port", "--port"), ("--nats-port", "--nats-url nats://127.0.0.1:")])
def test_port_in_use(option, hint):
    """A port in use is told with the address and the option that changes it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(FleetmeterError) as caught:
            up.free_port("127.0.0.1", port, option)

    assert f"127.0.0.1:{port} can't be listened on: Address already in use" in str(caught.value)
    assert hint in str(caught.value)


def test_host_that_is_none():
    """An address that is not this machine's is told like a port in use."""
    with pytest.raises(FleetmeterError, match=r"203\.0\.113\.1:8000 can't be listened on"):
        up.free_port("203.0.113.1", 8000, "--port")


def test_data_directory_is_held_once(tmp_path):
    """Two on one data directory: the second is refused, and told whose it is; once the first has ended, it is free."""
    refused = pytest.raises(FleetmeterError, match=r"is in use by another `fleetmeter up` \(process \d+\)")
    with up._locked(tmp_path / "data"), refused, up._locked(tmp_path / "data"):
        pytest.fail("held twice")

    with up._locked(tmp_path / "data"):
        pass


def test_data_directory_that_cannot_be(tmp_path):
    """A path that can't be a directory is told with the remedy."""
    (tmp_path / "file").write_text("")

    with pytest.raises(FleetmeterError, match="name another with --data-dir"), up._locked(tmp_path / "file" / "data"):
        pass


def test_embedded_server_by_default(tmp_path):
    """Nothing said of NATS: it comes along, and parts are told its address by environment, not by arguments."""
    chosen = options(data_dir=tmp_path)
    with contextlib.ExitStack() as stack:
        places = up._claim(chosen, stack)

    assert places.nats is not None
    assert places.nats.store_dir == tmp_path / "nats"
    assert up._environment(chosen, places)["FLEETMETER_NATS__URL"] == places.nats.url


def test_server_of_ones_own(tmp_path):
    """A configured server is used, and no data directory is touched."""
    chosen = options(flags={"nats.url": "nats://me:secret@nats.example:4222"}, data_dir=tmp_path / "data")
    with contextlib.ExitStack() as stack:
        places = up._claim(chosen, stack)

    assert places.nats is None
    assert not (tmp_path / "data").exists()


def test_parts_log_text_unless_told_otherwise(tmp_path):
    """Parts write to a pipe that a person reads; who asks for JSON gets it."""
    for given, told in (("auto", "text"), ("json", None)):
        chosen = options(flags={"log.format": given}, data_dir=tmp_path)
        with contextlib.ExitStack() as stack:
            environment = up._environment(chosen, up._claim(chosen, stack))

        assert environment.get("FLEETMETER_LOG__FORMAT") == told
