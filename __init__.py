"""Fleetmeter: cluster-wide metrics for a fleet of LLM proxy nodes.

A proxy process needs only this::

    from fleetmeter import Emitter

Nothing is imported until it is asked for: the repository's root is this package, so that tools may load this file under
another name, and a proxy should not pay for the parts that it doesn't run.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .emitter import Emitter
    from .proto.clock import ManualClock, SystemClock

__version__ = "0.1.0"

__all__ = ["Emitter", "ManualClock", "SystemClock", "__version__"]

_HOME = {"Emitter": ".emitter", "ManualClock": ".proto.clock", "SystemClock": ".proto.clock"}

if not TYPE_CHECKING:  # a type checker would take the function for a promise that every name exists

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
        # Cached in the module, so that only the first use comes here.
        globals()[name] = value = getattr(importlib.import_module(_HOME[name], __name__), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
