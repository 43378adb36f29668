"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cluster import Cluster, running_server

from fleetmeter.deploy.nats_server import NatsServer


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    """A NATS server that is the test's own: it may be killed."""
    with running_server(tmp_path / "nats") as server:
        yield server


@pytest.fixture
def cluster(nats: NatsServer) -> Cluster:
    """A cluster on that server, with windows of one second in event time."""
    return Cluster(nats)
