"""What benchmarks share: a figure with its goal, and contestants that take turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. `goal` is a least value, or with `at_most` a greatest one; None for what is only told.

    `peer` says in words what the value is measured against, with the peer's own figure from the same run.
    """

    name: str
    value: float
    unit: str
    goal: float | None = None
    at_most: bool = False
    peer: str = ""

    @property
    def met(self) -> bool:
        return self.goal is None or (self.value <= self.goal if self.at_most else self.value >= self.goal)


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def best(rounds: int, **contestants: Callable[[], float]) -> dict[str, float]:
    """The least that each contestant's measurement gives in so many rounds; all measure once a round, in turn.

    The least, because whatever else runs on the machine only ever adds; in turn, so that a slow minute of the machine
    is one for all.
    """
    found = {name: float("inf") for name in contestants}
    for _ in range(rounds):
        for name, measure in contestants.items():
            found[name] = min(found[name], measure())
    return found
