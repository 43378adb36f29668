"""Prometheus text exposition, version 0.0.4 (prometheus/docs, exposition_formats.md), of everything that the fold
holds.

A line is a prefix that never changes (name and labels, made once when the series appears) and a number. So rendering
costs about a microsecond a line, once per window, and a scrape costs nothing but sending the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..proto.catalogue import PREFIX, Kind, Metric, define, get
from ..proto.errors import CatalogueError
from ..proto.exact import to_float
from ..proto.keys import decode_key
from ..proto.sketch import PER_OCTAVE
from .cumulative import CumulativeSketches
from .gauges import merged
from .state import GatewayFold

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_ESCAPE = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_ESCAPE_HELP = str.maketrans({"\\": r"\\", "\n": r"\n"})


class TextExposition:
    """Renders a fold. Keeps the prefixes of lines; they are a cache, and are dropped when they grow past use."""

    def __init__(self, own: str = "") -> None:
        """`own` is text with the gateway's own metrics, put at the end."""
        self._own = own
        self._prefixes: dict[bytes, str] = {}
        self._buckets: dict[bytes, list[str]] = {}
        self._metrics: dict[str, Metric | None] = {}

    def render(self, fold: GatewayFold) -> bytes:
        """The whole body: metrics by name, series by key, so that equal folds give equal bytes."""
        lines: list[str] = []
        for name in sorted(fold.kinds):
            lines.extend(self._metric(fold, name, fold.kinds[name]))
        lines.append(self._own)
        self._trim(fold)
        return "\n".join(lines).encode()

    def _metric(self, fold: GatewayFold, name: str, kind: Kind) -> Iterator[str]:
        match kind:
            case Kind.COUNTER:
                values = fold.totals_of(name)
                yield self._header(name, kind)
                prefix = self._prefix
                for key in sorted(values):
                    value = values[key]
                    yield f"{prefix(key)}{value if isinstance(value, int) else _number(value)}"
            case Kind.GAUGE:
                found: dict[bytes, float] = {}
                for columns in fold.gauges_of(name):
                    for key, value in zip(columns.keys, merged(name, columns).tolist(), strict=True):
                        found[key] = found.get(key, 0.0) + value  # a key of several partitions: each has its share
                if found:
                    yield self._header(name, kind)
                    for key in sorted(found):
                        yield f"{self._prefix(key)}{_number(found[key])}"
            case Kind.HISTOGRAM:
                yield self._header(name, kind)
                yield from self._histogram(name, fold.cumulative[name])

    def _histogram(self, name: str, sums: CumulativeSketches) -> Iterator[str]:
        metric = self._known(name, Kind.HISTOGRAM)
        bounds = metric.bounds if metric is not None else ()
        # A bound 2^k is the upper edge of bucket 32k - 1, so counts up to it are exact.
        limits = np.array([int(np.log2(bound)) * PER_OCTAVE for bound in bounds], np.int64)
        table = sums.below(limits).tolist()
        totals = to_float(sums.whole, sums.fraction).tolist()
        for key in sorted(sums.keys):
            row = sums.rows[key]
            *prefixes, sum_prefix, count_prefix = self._bucket_prefixes(key, bounds)
            counts = table[row]
            for prefix, count in zip(prefixes, counts, strict=True):
                yield f"{prefix}{count}"
            yield f"{sum_prefix}{_number(totals[row])}"
            yield f"{count_prefix}{counts[-1]}"

    def _bucket_prefixes(self, key: bytes, bounds: tuple[float, ...]) -> list[str]:
        found = self._buckets.get(key)
        if found is None:
            metric, labels = decode_key(key)
            name = PREFIX + metric
            edges = [*(_number(bound) for bound in bounds), "+Inf"]
            found = self._buckets[key] = [
                *(f"{name}_bucket{_labels({**labels, 'le': edge})} " for edge in edges),
                f"{name}_sum{_labels(labels)} ",
                f"{name}_count{_labels(labels)} ",
            ]
        return found

    def _prefix(self, key: bytes) -> str:
        found = self._prefixes.get(key)
        if found is None:
            metric, labels = decode_key(key)
            found = self._prefixes[key] = f"{PREFIX}{metric}{_labels(labels)} "
        return found

    def _header(self, name: str, kind: Kind) -> str:
        metric = self._known(name, kind)
        help_text = metric.help if metric is not None else f"A {kind} of the fleet's own."
        return f"# HELP {PREFIX}{name} {help_text.translate(_ESCAPE_HELP)}\n# TYPE {PREFIX}{name} {kind}"

    def _known(self, name: str, kind: Kind) -> Metric | None:
        if name not in self._metrics:
            try:
                self._metrics[name] = get(name) or define(name, kind, help=f"A {kind} of the fleet's own.")
            except CatalogueError:
                self._metrics[name] = None
        return self._metrics[name]

    def _trim(self, fold: GatewayFold) -> None:
        series = sum(len(t.values) for shards in fold.totals.values() for t in shards.values()) + sum(
            len(c.keys) for c in fold.cumulative.values()
        )
        if len(self._prefixes) > 2 * series + 10_000:
            self._prefixes.clear()


def _labels(labels: dict[str, str]) -> str:
    """``{a="b",…}``; an empty value is the same as no label, so it is left out."""
    pairs = [f'{name}="{value.translate(_ESCAPE)}"' for name, value in labels.items() if value]
    return "{" + ",".join(pairs) + "}" if pairs else ""


def _number(value: float) -> str:
    # A whole number has neither point nor exponent; repr() of another is the fewest digits that give it back.
    return str(int(value)) if value.is_integer() else repr(value)


def own_metrics(version: str) -> str:
    """The gateway's own constant metrics, ready to stand at the end of a body."""
    metric = get("build_info")
    assert metric is not None
    labels = _labels({"part": "gateway", "version": version})
    name = f"{PREFIX}build_info"
    return f"# HELP {name} {metric.help}\n# TYPE {name} gauge\n{name}{labels} 1\n"
