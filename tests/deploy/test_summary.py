"""The summary of a running cluster: complete from full JSON, and honest about what is missing."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import pytest
from rich.console import Console

from fleetmeter.deploy.summary import line, screen

FULL = {
    "metrics": {
        "application": {
            "requests_per_second": 25.4,
            "success_rate": 0.98,
            "p50_response_time_ms": 245.8,
            "p95_response_time_ms": 1200.0,
            "p99_response_time_ms": 12_000.0,
            "output_tokens_per_second": 812.0,
            "cost_usd": 3.5,
        },
        "providers": {
            "openai": {"requests": 5000, "success_rate": 0.97, "total_tokens": 250_000, "cost_usd": 125.5},
            "anthropic": {"requests": 3000, "success_rate": 0.98, "total_tokens": 180_000, "cost_usd": 90.25},
        },
        "nodes": {"live": 3, "stale": 1},
        "completeness": 0.75,
    },
}


def text_of(tree: Mapping[str, Any]) -> str:
    out = io.StringIO()
    Console(file=out, width=120, no_color=True).print(screen(tree))
    return out.getvalue()


def test_line():
    """One line tells the fleet's numbers with their units."""
    assert line(FULL) == (
        "requests/s 25.4  p50 246 ms  p95 1,200 ms  p99 12.0 s  errors 2.0%  output tokens/s 812.0  cost $3.50  "
        "nodes 3 live, 1 stale  complete 75.0%"
    )


def test_screen_has_a_row_for_each_provider():
    """The screen shows the same, and every provider."""
    text = text_of(FULL)

    for expected in (
        "25.4",
        "246 ms",
        "3 live, 1 stale",
        "openai",
        "5,000",
        "97.0%",
        "250,000",
        "$125.50",
        "anthropic",
    ):
        assert expected in text


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"metrics": {}},
        {"metrics": None},
        {"metrics": {"application": {"success_rate": None}, "providers": {"x": {}}}},
    ],
)
def test_missing_numbers_are_dashes(tree):
    """A gateway that has no window yet, or knows less, is shown without a number rather than with a wrong one."""
    assert "errors –" in line(tree)
    assert "–" in text_of(tree)
