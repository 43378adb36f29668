"""Every subject, stream and bucket name, and the message ids that make a publication count once.

    fm.<cluster>.delta.<partition>.<node>                      frames            stream FM_<cluster>_DELTAS
    fm.<cluster>.tick.<partition>                              broker time       stream FM_<cluster>_DELTAS
    fm.<cluster>.settings                                      settings          stream FM_<cluster>_DELTAS
    fm.<cluster>.window.<resolution>.<metric>.<partition>      windows           stream FM_<cluster>_WINDOWS
    fm.<cluster>.window.<resolution>._sealed.<partition>       seal markers      stream FM_<cluster>_WINDOWS
    fm.<cluster>.late.<metric>.<partition>                     totals of frames that came after their window closed
    fm.<cluster>.resend.<node>                                 gap repair        core NATS, no stream

A node's name is any text; in a subject it is one token, with every byte outside ``[A-Za-z0-9_-]`` written as ``=XX``.
"""

from __future__ import annotations

import re

from .errors import FrameError

SEALED = "_sealed"

_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_ESCAPE = re.compile(r"=([0-9A-F]{2})")
#: Longest node name, in bytes of UTF-8.
MAX_NODE = 128


def node_token(node: str) -> str:
    """A node's name as one subject token."""
    return "".join(chr(b) if b in _SAFE else f"={b:02X}" for b in node.encode("utf-8", "replace"))


def node_of_token(token: str) -> str:
    """The name that `node_token` wrote. Raises FrameError when the token is not one it writes."""
    try:
        raw = b"".join(
            bytes([int(part, 16)]) if i % 2 else part.encode("ascii") for i, part in enumerate(_ESCAPE.split(token))
        )
        node = raw.decode()
    except (UnicodeError, ValueError) as error:
        raise FrameError("subject", f"node token {token[:80]!r} is not ASCII with =XX escapes of UTF-8") from error
    if node_token(node) != token:
        raise FrameError("subject", f"node token {token[:80]!r} is not in canonical form")
    return node


def resolution_name(resolution_ms: int) -> str:
    """``5s``, ``1m``, ``1h``, ``250ms``: a window length as a subject token."""
    for unit_ms, unit in ((3_600_000, "h"), (60_000, "m"), (1000, "s")):
        if resolution_ms % unit_ms == 0:
            return f"{resolution_ms // unit_ms}{unit}"
    return f"{resolution_ms}ms"


class Subjects:
    """The names of one cluster."""

    def __init__(self, cluster: str) -> None:
        self.cluster = cluster
        root = f"fm.{cluster}"
        self.settings = f"{root}.settings"
        self.deltas_stream = f"FM_{cluster}_DELTAS"
        self.deltas_all = [f"{root}.delta.>", f"{root}.tick.>", self.settings]
        self.windows_stream = f"FM_{cluster}_WINDOWS"
        self.windows_all = [f"{root}.window.>", f"{root}.late.>"]
        self.snapshots_bucket = f"FM_{cluster}_SNAPSHOTS"
        self._root = root

    def delta(self, partition: int, node: str) -> str:
        return f"{self._root}.delta.{partition}.{node_token(node)}"

    def deltas_of(self, partition: int) -> list[str]:
        """What the aggregator of one partition reads, in log order."""
        return [f"{self._root}.delta.{partition}.*", self.tick(partition), self.settings]

    def tick(self, partition: int) -> str:
        return f"{self._root}.tick.{partition}"

    def window(self, resolution_ms: int, metric: str, partition: int) -> str:
        return f"{self._root}.window.{resolution_name(resolution_ms)}.{metric}.{partition}"

    def sealed(self, resolution_ms: int, partition: int) -> str:
        return self.window(resolution_ms, SEALED, partition)

    def windows_of(self, metric: str) -> str:
        """Wildcard subject of one metric's windows at every resolution, of every partition."""
        return f"{self._root}.window.*.{metric}.*"

    def late(self, metric: str, partition: int) -> str:
        return f"{self._root}.late.{metric}.{partition}"

    def resend(self, node: str) -> str:
        return f"{self._root}.resend.{node_token(node)}"


def frame_id(node: str, incarnation: int, partition: int, sequence: int) -> str:
    """``Nats-Msg-Id`` of a frame: JetStream keeps the first message of an id."""
    return f"{node_token(node)}.{incarnation}.{partition}.{sequence}"
