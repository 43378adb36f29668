"""Which format and encoding a client gets."""

from __future__ import annotations

import pytest

from fleetmeter.gateway.negotiate import accepts_gzip, best_type

OFFERS = ("application/json", "text/plain")
PROMETHEUS_2_42 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/plain", "text/plain"),
        (PROMETHEUS_2_42, "text/plain"),
        ("application/json;q=0.5, text/plain;q=0.4", "application/json"),
        ("application/json;q=0.4, text/plain;q=0.5", "text/plain"),
        ("TEXT/PLAIN", "text/plain"),
        ("text/plain, */*", "text/plain"),
        ("application/json, text/plain, */*", "application/json"),
        ("text/*, */*;q=0.1", "text/plain"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "application/json"),
        ("text/plain;q=0, */*", "application/json"),
        ("application/json;q=0, */*", "text/plain"),
        ("text/plain;q=nan", "application/json"),
        ("text/plain;q=rubbish, application/json;q=0.1", "application/json"),
        (",;,;=,", "application/json"),
    ],
)
def test_the_best_offer_by_accept(accept: str, expected: str) -> None:
    """The offer with the highest q is given; the most specific range counts, and JSON is the last resort."""
    assert best_type(accept, OFFERS) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [("", False), ("gzip", True), ("gzip;q=0", False), ("deflate, gzip;q=0.5", True), ("*", True), ("*;q=0", False)],
)
def test_gzip_only_for_who_accepts_it(header: str, expected: bool) -> None:
    """Compressed bodies go to clients that say they take them."""
    assert accepts_gzip(header) is expected
