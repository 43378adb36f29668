"""Content negotiation by ``Accept`` and ``Accept-Encoding`` (RFC 9110, section 12.5), with ``q`` honoured."""

from __future__ import annotations

from collections.abc import Sequence


def parse_accept(header: str) -> list[tuple[str, float]]:
    """(value in lower case without parameters, q) for each element; what has no readable q counts as q=0."""
    found = []
    for element in header.split(",")[:64]:
        value, *parameters = (piece.strip() for piece in element.split(";"))
        q = 1.0
        for parameter in parameters:
            name, _, text = parameter.partition("=")
            if name.strip().lower() == "q":
                try:
                    q = min(max(float(text), 0.0), 1.0)
                except ValueError:
                    q = 0.0
                if q != q:  # NaN
                    q = 0.0
        if value:
            found.append((value.lower(), q))
    return found


def best_type(header: str, offers: Sequence[str]) -> str:
    """The media type of `offers` that the client likes best; the first for a tie, for ``*/*`` and for no header at all.

    OpenMetrics is answered as plain text, which every client that asks for it also reads.
    """
    if not header.strip():
        return offers[0]
    scores: list[tuple[float, int]] = []
    wishes = parse_accept(header)
    for offer in offers:
        kind = offer.partition("/")[0]
        names = {offer, "application/openmetrics-text"} if offer == "text/plain" else {offer}
        exact = [q for value, q in wishes if value in names]
        ranged = [q for value, q in wishes if value == f"{kind}/*"]
        anything = [q for value, q in wishes if value == "*/*"]
        # The most specific range that matches decides (RFC 9110, 12.5.1); of equal wishes the more specific one.
        matched = next(
            ((max(found), rank) for rank, found in ((2, exact), (1, ranged), (0, anything)) if found), (0.0, 0)
        )
        scores.append(matched)
    best = max(scores)
    return offers[scores.index(best)] if best[0] > 0 else offers[0]


def accepts_gzip(header: str) -> bool:
    """Whether a gzip body may be sent."""
    wishes = dict(parse_accept(header))
    return wishes.get("gzip", wishes.get("*", 0.0)) > 0
