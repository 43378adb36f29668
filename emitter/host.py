"""The host's processor, memory, disk and network as gauges of the node, sampled in a thread of its own."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

import psutil

from ..proto.logs import get_logger
from .recorder import Recorder

log = get_logger(__name__)

#: How often, seconds: once in the default window.
SAMPLE_S = 5.0


class HostSampler:
    """Sets the node gauges of the catalogue until `stop`. What a platform or a container does not tell is left out."""

    def __init__(self, recorder: Recorder, interval_s: float = SAMPLE_S) -> None:
        self._recorder = recorder
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleetmeter-host", daemon=True)

    def start(self) -> None:
        psutil.cpu_percent()  # the first call only sets where the next one measures from
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2.0)

    def _run(self) -> None:
        # A first sample soon, so that a new node is not without numbers for a whole window.
        wait = 0.2
        while not self._stop.wait(wait):
            sample(self._recorder)
            wait = self._interval_s


def sample(recorder: Recorder) -> None:
    """Take one sample. Never raises."""
    for read in (_cpu, _memory, _swap, _disk):
        try:
            for name, value in read():
                recorder.gauge(name).set(value)
        except Exception as problem:  # platforms and containers differ in what they refuse, and how
            log.debug("host counter is not available", counter=read.__name__, reason=str(problem))
    with contextlib.suppress(OSError, AttributeError):
        for span, load in zip(("1m", "5m", "15m"), os.getloadavg(), strict=True):
            recorder.gauge("node_load_average", span=span).set(load)


Readings = Iterator[tuple[str, float]]


def _cpu() -> Readings:
    yield "node_cpu_usage_ratio", psutil.cpu_percent() / 100
    yield "node_cpu_cores", psutil.cpu_count() or 0


def _memory() -> Readings:
    memory = psutil.virtual_memory()
    yield "node_memory_total_bytes", memory.total
    yield "node_memory_available_bytes", memory.available
    yield "node_memory_used_bytes", memory.total - memory.available


def _swap() -> Readings:
    swap = psutil.swap_memory()
    yield "node_swap_total_bytes", swap.total
    yield "node_swap_used_bytes", swap.used


def _disk() -> Readings:
    usage = psutil.disk_usage(os.path.abspath(os.sep))
    yield "node_disk_total_bytes", usage.total
    yield "node_disk_used_bytes", usage.used
    yield "node_disk_available_bytes", usage.free
