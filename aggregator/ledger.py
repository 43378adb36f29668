"""The ledger: accounts for every frame ever received. ``received = applied + duplicate + rejected``, always."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..proto.exact import MAX_TOTAL
from ..proto.keys import encode_key
from ..proto.wire import Ledger


class Ledgers:
    """Running counts, and what of them was published last."""

    def __init__(self) -> None:
        self.received = 0
        self.applied = 0
        self.duplicate = 0
        self.late = 0
        self.healed = 0
        self.gap = 0
        self.rejected: dict[str, int] = {}
        #: Series deltas that were folded into ``other``, by metric.
        self.overflow: dict[str, int] = {}
        self._published: dict[bytes, int] = {}

    def reject(self, reason: str) -> None:
        self.rejected[reason] = self.rejected.get(reason, 0) + 1

    def missed(self, sequences: int) -> None:
        # Nonsense sequences must not take the count out of 64 bits.
        self.gap = min(self.gap + sequences, MAX_TOTAL)

    def overflowed(self, counts: Mapping[str, int]) -> None:
        for metric, n in counts.items():
            self.overflow[metric] = self.overflow.get(metric, 0) + n

    def message(self) -> Ledger:
        """As it is published."""
        return Ledger(
            received=self.received,
            applied=self.applied,
            duplicate=self.duplicate,
            late=self.late,
            healed=self.healed,
            gap=self.gap,
            rejected=dict(sorted(self.rejected.items())),
        )

    def take(self) -> dict[str, dict[bytes, tuple[int, int]]]:
        """Counters by metric and key as (increment since the last call, total)."""
        totals: dict[str, dict[bytes, int]] = {
            "frames_total": {
                encode_key("frames_total", {"result": result, "reason": ""}): count
                for result, count in (
                    ("applied", self.applied),
                    ("duplicate", self.duplicate),
                    ("late", self.late),
                    ("healed", self.healed),
                )
            },
            "frame_gaps_total": {b"frame_gaps_total": self.gap},
        }
        for reason, count in self.rejected.items():
            totals["frames_total"][encode_key("frames_total", {"result": "rejected", "reason": reason})] = count
        if self.overflow:
            totals["series_overflow_total"] = {
                encode_key("series_overflow_total", {"metric": metric}): count
                for metric, count in self.overflow.items()
            }
        taken = {
            metric: {key: (total - self._published.get(key, 0), total) for key, total in counters.items()}
            for metric, counters in totals.items()
        }
        for counters in totals.values():
            self._published.update(counters)
        return taken

    def pack(self) -> dict[str, Any]:
        return {
            "message": [self.received, self.applied, self.duplicate, self.late, self.healed, self.gap],
            "rejected": self.rejected,
            "overflow": self.overflow,
            "published": self._published,
        }

    def unpack(self, packed: dict[str, Any]) -> None:
        self.received, self.applied, self.duplicate, self.late, self.healed, self.gap = packed["message"]
        self.rejected = dict(packed["rejected"])
        self.overflow = dict(packed["overflow"])
        self._published = {bytes(key): count for key, count in packed["published"].items()}
