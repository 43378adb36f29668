"""Benchmarks: ``python tests/bench/run.py NAME... [--json]``; README.md says how to read what they print."""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib
import json
import multiprocessing
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `bench` is a package, here and in the workers

from bench.measure import Figure

#: Benchmarks, and the figures of each that `--json` gives.
BENCHMARKS = {
    "record": ("record.ratio_prometheus", "record.ratio_opentelemetry", "record.ns"),
    "merge": ("merge.counter_deltas_per_s", "merge.sketch_deltas_per_s", "merge.ratio_dict"),
    "catchup": ("catchup.series_deltas_per_s",),
    "scrape": ("scrape.ratio_generate_latest", "scrape.us_per_line"),
    "seal": ("seal.p99_ms",),
    "overhead": ("overhead.percent",),
}


def measure(name: str) -> list[Figure]:
    """Run one benchmark, in this process."""
    figures: list[Figure] = importlib.import_module(f"bench.{name}").run()
    return figures


def table(figures: list[Figure]) -> str:
    """The figures as text."""
    rows = [("figure", "value", "unit", "goal", "", "peer, in the same run")]
    for figure in figures:
        goal = "" if figure.goal is None else f"{'≤' if figure.at_most else '≥'} {_number(figure.goal)}"
        verdict = "" if figure.goal is None else "met" if figure.met else "MISSED"
        rows.append((figure.name, _number(figure.value), figure.unit, goal, verdict, figure.peer))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure Fleetmeter and its peers, in the same run.")
    parser.add_argument("names", nargs="+", metavar="NAME", choices=[*BENCHMARKS, "all"], help=", ".join(BENCHMARKS))
    parser.add_argument("--json", action="store_true", help="one flat JSON object instead of the table")
    options = parser.parse_args(arguments)
    names = list(BENCHMARKS) if "all" in options.names else list(dict.fromkeys(options.names))
    figures: list[Figure] = []
    # Each in a fresh process: one's heap and event loop are nothing to the next.
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as processes:
        for name in names:
            print(f"measuring {name} …", file=sys.stderr)
            figures += processes.submit(measure, name).result()
    if options.json:
        values = {figure.name: figure.value for figure in figures}
        print(json.dumps({key: round(values[key], 4) for name in names for key in BENCHMARKS[name]}, indent=2))
    else:
        print(table(figures))


if __name__ == "__main__":
    main()
