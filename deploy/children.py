"""Child processes: started so that none outlives us, read line by line, stopped gently and then not gently."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence

#: Longest line of a child that is passed on, bytes; the rest of it becomes further lines.
MAX_LINE = 16 * 1024

_PR_SET_PDEATHSIG = 1
# Loaded here, because between fork and exec as little as possible may happen.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with(parent_pid: int) -> None:
    """For `preexec_fn`: the kernel kills this process when the thread that started it ends, however it ends.

    Chosen over a watchdog process because it needs no cooperation of the child (the NATS server is not ours) and no
    process that could be killed itself. SIGKILL, because SIGTERM can hang; a flush is lost, which is what the design
    promises for a kill -9. Linux only; elsewhere children stop only when they are told to.
    """
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died between fork and here
        os._exit(1)


async def spawn(
    argv: Sequence[str], env: Mapping[str, str], *, stdin: int = asyncio.subprocess.DEVNULL
) -> asyncio.subprocess.Process:
    """Start a child with its outputs piped, in a session of its own: Ctrl-C on the terminal reaches us alone. Raises
    OSError.

    Call it in the main thread, for a child dies with the thread that started it.
    """
    return await asyncio.create_subprocess_exec(
        *argv,
        env=dict(env),
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        preexec_fn=functools.partial(die_with, os.getpid()),
    )


async def lines(stream: asyncio.StreamReader | None) -> AsyncIterator[str]:
    """Lines of a child's output until its end. Bytes that are no UTF-8 are shown escaped."""
    if stream is None:
        return
    rest = b""
    while chunk := await stream.read(MAX_LINE):
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_LINE:
            whole, rest = [*whole, rest], b""
        for line in whole:
            yield line.rstrip(b"\r").decode("utf-8", "backslashreplace")
    if rest:
        yield rest.decode("utf-8", "backslashreplace")


async def stop(process: asyncio.subprocess.Process, grace_s: float) -> None:
    """SIGTERM, and SIGKILL after `grace_s` seconds; returns when the process has ended."""
    if process.returncode is None:
        _signal(process, signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await process.wait()
        except TimeoutError:
            pass
        finally:  # also when we are cancelled while it takes its time
            if process.returncode is None:
                _signal(process, signal.SIGKILL)
    await process.wait()


def _signal(process: asyncio.subprocess.Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def describe_exit(returncode: int) -> str:
    """``exited with status 1``, ``exited with signal 9``."""
    return f"exited with {'status' if returncode >= 0 else 'signal'} {abs(returncode)}"


def environment(changes: Mapping[str, str], base: Mapping[str, str]) -> dict[str, str]:
    """`base` with `changes`. A variable of ours that `base` has in another case is replaced: a name set twice is a
    mistake.
    """
    ours = {name.upper() for name in changes}
    return {name: value for name, value in base.items() if name.upper() not in ours} | dict(changes)
