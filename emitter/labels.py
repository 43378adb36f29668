"""Label values as they may leave the process: text, valid UTF-8, of bounded length."""

from __future__ import annotations

from ..proto.keys import MAX_VALUE


def label(value: object) -> str:
    """`value` as a label's value: booleans as true/false, anything else as text; cut at MAX_VALUE bytes of UTF-8."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = value if isinstance(value, str) else str(value)
    raw = text.encode("utf-8", "replace")  # a lone surrogate becomes "?"
    return raw[:MAX_VALUE].decode("utf-8", "ignore")
