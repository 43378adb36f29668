"""What `fleetmeter up` shows of the running cluster: a screen on a terminal, a line elsewhere. Both from the gateway's
JSON alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .terminal import plain

#: What is shown for a number that the gateway does not give (yet).
NONE = "–"

Tree = Mapping[str, Any]


def screen(tree: Tree) -> RenderableType:
    """One screen: the fleet in a few lines, then a row for each provider."""
    facts = Table.grid(padding=(0, 3))
    for _ in range(4):
        facts.add_column()
    pairs = _facts(tree)
    for i in range(0, len(pairs), 4):
        facts.add_row(*(Text.assemble((f"{name} ", "dim"), (value, "bold")) for name, value in pairs[i : i + 4]))
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    table.add_column("provider")
    for title in ("requests", "success", "p95", "tokens", "cost"):
        table.add_column(title, justify="right")
    for name, provider in sorted(_section(tree, "metrics", "providers").items()):
        table.add_row(
            Text(plain(str(name))),
            _count(provider.get("requests")),
            _percent(provider.get("success_rate")),
            _ms(provider.get("p95_response_time_ms", provider.get("avg_response_time_ms"))),
            _count(provider.get("total_tokens")),
            _usd(provider.get("cost_usd")),
        )
    return Group(facts, Text(), table)


def line(tree: Tree) -> str:
    """The same in one line, without the providers."""
    return "  ".join(f"{name} {value}" for name, value in _facts(tree))


def _facts(tree: Tree) -> list[tuple[str, str]]:
    application = _section(tree, "metrics", "application")
    nodes = _section(tree, "metrics", "nodes") or _section(tree, "nodes")

    def number(*names: str) -> Any:
        for place in (application, _section(tree, "metrics"), tree):
            for name in names:
                if isinstance(place.get(name), int | float):
                    return place[name]
        return None

    errors = number("error_rate")
    success = number("success_rate")
    if errors is None and success is not None:
        errors = 1 - success
    return [
        ("requests/s", _decimal(number("requests_per_second"))),
        ("p50", _ms(number("p50_response_time_ms"))),
        ("p95", _ms(number("p95_response_time_ms"))),
        ("p99", _ms(number("p99_response_time_ms"))),
        ("errors", _percent(errors)),
        ("output tokens/s", _decimal(number("output_tokens_per_second"))),
        ("cost", _usd(number("cost_usd"))),
        ("nodes", f"{_count(nodes.get('live'))} live, {_count(nodes.get('stale'))} stale"),
        ("complete", _percent(number("completeness"))),
    ]


def _section(tree: Tree, *path: str) -> Tree:
    for name in path:
        inner = tree.get(name)
        if not isinstance(inner, Mapping):
            return {}
        tree = inner
    return tree


def _decimal(value: Any) -> str:
    return f"{value:,.1f}" if isinstance(value, int | float) else NONE


def _count(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else NONE


def _percent(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, int | float) else NONE


def _ms(value: Any) -> str:
    if not isinstance(value, int | float):
        return NONE
    return f"{value:,.0f} ms" if value < 10_000 else f"{value / 1000:,.1f} s"


def _usd(value: Any) -> str:
    return f"${value:,.2f}" if isinstance(value, int | float) else NONE
