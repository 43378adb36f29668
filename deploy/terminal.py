"""Text from elsewhere, made safe for a terminal."""

from __future__ import annotations


def plain(text: str) -> str:
    """`text` in which nothing ends a line, moves the cursor or reverses direction: what is not printable is escaped.

    Label values come from frames, which any client of the broker may send.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
