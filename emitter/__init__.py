"""What lives in a proxy process: instruments, the recording API, host sampling, health checks and the sender.

Here belong the code that a request passes, which must cost next to nothing and never raise or block, and `integrations`
with the frameworks and clients that a proxy is built of.

Here does not belong anything that knows of other nodes: merging, windows of a cluster, alerts.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .emitter import Emitter

__all__ = ["Emitter"]

if not TYPE_CHECKING:  # a type checker would take the function for a promise that every name exists

    def __getattr__(name: str) -> object:
        # Late, so that an instrument or a check can be imported without the sender and its NATS client.
        if name != "Emitter":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has Emitter")
        globals()[name] = value = importlib.import_module(".emitter", __name__).Emitter
        return value
