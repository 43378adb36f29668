"""How far a replay is, told to whoever shows it."""

from __future__ import annotations


class Progress:
    """Hears how far a replay is; the command line shows it. This one says nothing."""

    def phase(self, text: str) -> None:
        """What is done now."""

    def rows(self, done: int, of: int) -> None:
        """Requests recorded."""

    def words(self, name: str, line: str) -> None:
        """A line from a process."""
