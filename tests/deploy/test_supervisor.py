"""The supervisor: restarts what dies, stops all in order, leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fleetmeter.deploy.supervisor import Backoff, Part, PartFailed, Supervisor

QUICK = Backoff(first_s=0.01, max_s=0.05)


def shell(script: str, name: str = "child", grace_s: float = 10.0, reports: bool = True) -> Part:
    return Part(name, ["/bin/sh", "-c", script], dict(os.environ), grace_s, reports)


class Heard:
    """What the supervisor has said, and a way to wait for it."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self._changed = asyncio.Event()

    def __call__(self, name: str, line: str) -> None:
        self.lines.append((name, line))
        self._changed.set()

    async def until(self, holds: Callable[[list[tuple[str, str]]], bool]) -> None:
        async with asyncio.timeout(30):
            while not holds(self.lines):
                self._changed.clear()
                await self._changed.wait()


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_backoff_doubles_up_to_its_limit():
    """Waits are 0.5 s, 1 s, 2 s, … and never over 30 s."""
    backoff = Backoff()

    assert [backoff.after(n) for n in (1, 2, 3, 4, 7, 10_000)] == [0.5, 1.0, 2.0, 4.0, 30.0, 30.0]


async def test_start_waits_for_ready_lines():
    """A group is up when each part has said so, and what they said is returned."""
    supervisor = Supervisor(Heard())

    said = await supervisor.start(shell("echo one; exec sleep 60"), shell("exec sleep 60", reports=False))

    assert said == ["one", ""]
    await supervisor.stop()


async def test_restarts_what_is_killed():
    """A part that is killed comes back, and the supervisor says so."""
    heard = Heard()
    supervisor = Supervisor(heard, backoff=QUICK)
    await supervisor.start(shell("echo up; echo words $$ >&2; exec sleep 60"))
    await heard.until(lambda lines: len(lines) == 1)
    first = supervisor.pids()["child"]

    os.kill(first, signal.SIGKILL)
    await heard.until(lambda lines: sum(line.startswith("words") for _, line in lines) == 2)

    assert heard.lines[1] == ("child", "exited with signal 9; restarting in 0.01 s")
    assert supervisor.pids()["child"] != first
    await supervisor.stop()


async def test_backs_off_while_it_keeps_dying():
    """Each further death waits longer."""
    heard = Heard()
    supervisor = Supervisor(heard, backoff=QUICK)

    await supervisor.start(shell("echo up; exit 7"))
    await heard.until(lambda lines: len(lines) == 4)

    waits = [line.rpartition(" restarting in ")[2] for _, line in heard.lines[:4]]
    assert waits == ["0.01 s", "0.02 s", "0.04 s", "0.05 s"]
    await supervisor.stop()


async def test_health_resets_the_backoff():
    """A part that lived long enough is restarted as quickly as the first time."""
    heard = Heard()
    times = iter(range(0, 10_000, 100))
    supervisor = Supervisor(heard, backoff=QUICK, monotonic=lambda: float(next(times)))

    await supervisor.start(shell("echo up; exit 7"))
    await heard.until(lambda lines: len(lines) == 3)

    assert {line for _, line in heard.lines[:3]} == {"exited with status 7; restarting in 0.01 s"}
    await supervisor.stop()


@pytest.mark.parametrize("status", [2, 3])
async def test_wrong_configuration_is_not_restarted(status):
    """An exit status for wrong usage or an invalid configuration ends the start at once, and is the exit code."""
    heard = Heard()
    supervisor = Supervisor(heard, backoff=QUICK)

    with pytest.raises(PartFailed) as caught:
        await supervisor.start(shell(f"echo wrong >&2; exit {status}"))

    assert caught.value.exit_code == status
    assert [line for _, line in heard.lines] == ["wrong", f"exited with status {status}; not restarting"]
    await supervisor.stop()


async def test_gives_up_on_what_never_starts():
    """A part that dies three times before it was ever ready is no crash loop, but an error."""
    heard = Heard()
    supervisor = Supervisor(heard, backoff=QUICK)

    with pytest.raises(PartFailed, match="child exited with status 1"):
        await supervisor.start(shell("exit 1"))

    assert len(heard.lines) == 3
    await supervisor.stop()


async def test_missing_executable():
    """What can't be started at all is told, and ends in the same error."""
    heard = Heard()
    supervisor = Supervisor(heard, backoff=QUICK)

    with pytest.raises(PartFailed):
        await supervisor.start(Part("child", ["/nonexistent/program"], {}))

    assert "No such file" in heard.lines[0][1]
    await supervisor.stop()


async def test_stops_groups_in_reverse_order(tmp_path):
    """The group that was started last has ended before the one before it is told to."""
    log = tmp_path / "log"
    script = f"trap 'echo $NAME >> {log}; exit 0' TERM; echo up; while :; do sleep 0.01; done"
    supervisor = Supervisor(Heard())
    for names in (("nats",), ("aggregator",), ("demo-1", "demo-2")):
        await supervisor.start(*(Part(n, ["/bin/sh", "-c", script], {**os.environ, "NAME": n}) for n in names))

    await supervisor.stop()

    order = log.read_text().split()
    assert set(order[:2]) == {"demo-1", "demo-2"}
    assert order[2:] == ["aggregator", "nats"]


async def test_kills_what_does_not_stop():
    """A part that ignores SIGTERM is killed after its grace."""
    supervisor = Supervisor(Heard())
    await supervisor.start(shell("trap '' TERM; echo up; while :; do sleep 0.01; done", grace_s=0.05))
    pid = supervisor.pids()["child"]

    await supervisor.stop()

    assert not alive(pid)


async def test_kill_ends_patience():
    """After `kill`, a stop does not wait for a grace."""
    supervisor = Supervisor(Heard())
    await supervisor.start(shell("trap '' TERM; echo up; while :; do sleep 0.01; done", grace_s=3600.0))
    stopping = asyncio.create_task(supervisor.stop())
    await asyncio.sleep(0)

    supervisor.kill()

    async with asyncio.timeout(30):
        await stopping


async def test_stop_during_a_restart():
    """A part that waits to be restarted is not started any more."""
    heard = Heard()
    supervisor = Supervisor(heard, backoff=Backoff(first_s=3600.0, max_s=3600.0))
    await supervisor.start(shell("echo up; exit 1"))
    await heard.until(lambda lines: len(lines) == 1)

    async with asyncio.timeout(30):
        await supervisor.stop()

    assert supervisor.pids() == {}


async def test_passes_on_any_output():
    """A line without an end, one that is no UTF-8, and one of a megabyte all come through."""
    heard = Heard()
    supervisor = Supervisor(heard)
    script = "import sys; sys.stderr.buffer.write(b'\\xff\\n' + b'x' * 1_000_000 + b'\\nend'); print('up')"
    await supervisor.start(Part("child", [sys.executable, "-c", script], dict(os.environ)))

    await heard.until(lambda lines: any(line == "end" for _, line in lines))

    assert heard.lines[0][1] == "\\xff"
    assert sum(line.count("x") for _, line in heard.lines[1:]) >= 1_000_000
    await supervisor.stop()


async def test_children_are_in_sessions_of_their_own():
    """Ctrl-C on a terminal goes to its foreground group, in which no child is."""
    supervisor = Supervisor(Heard())
    await supervisor.start(shell("echo up; exec sleep 60"))

    assert os.getsid(supervisor.pids()["child"]) != os.getsid(0)

    await supervisor.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel kills children with their parent on Linux only")
def test_kill_9_of_the_supervisor_takes_the_children_along(tmp_path: Path):
    """However the supervisor ends, its children end."""
    program = textwrap.dedent("""
        import asyncio, os
        from fleetmeter.deploy.supervisor import Part, Supervisor

        async def main():
            supervisor = Supervisor(lambda name, line: None)
            script = "trap '' TERM HUP INT; echo up; while :; do sleep 0.05; done"
            await supervisor.start(*(Part(f"child-{i}", ["/bin/sh", "-c", script], dict(os.environ)) for i in range(3)))
            print(*supervisor.pids().values(), flush=True)
            await asyncio.Event().wait()

        asyncio.run(main())
    """)
    supervisor = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout is not None
    with supervisor.stdout:
        children = [psutil.Process(int(pid)) for pid in supervisor.stdout.readline().split()]

    supervisor.kill()
    supervisor.wait()

    assert len(children) == 3
    assert psutil.wait_procs(children, timeout=30)[1] == []
