"""The rule that completes a trace: from a request's row number, its tokens and a seed, all that a trace does not say.

It is a pure function of these and of nothing else, so the totals that a cluster must show can be computed from the file
alone, and any number of nodes plays the same requests: only who plays a request depends on it (``row % nodes``).

Randomness is SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014) used as a
counter:

    mix(x)               = x ^= x >> 30; x *= 0xBF58476D1CE4E5B9; x ^= x >> 27; x *= 0x94D049BB133111EB; x ^= x >> 31
    (mod 2^64) bits(seed, row, k)   = mix(mix(mix(seed + G) + G * (row + 1)) + G * (k + 1))        G =
    0x9E3779B97F4A7C15 u(seed, row, k)      = (bits >> 11) / 2^53, in [0, 1)

and the draws of a row are, by `k`:

    0  the model, by its share in `MODELS`              1  the operation: 90 % chat, 10 % completion
    2  streamed: 70 %                                   3  the outcome: 3 % fail
    4  of a failure, its type by its share in `ERRORS`
    5, 6  a standard normal z by Box-Muller: sqrt(-2 ln(1 - u5)) cos(2 pi u6)

Then, in seconds, with the model's `start_s` and `token_s`:

    first token   = start_s * exp(0.45 z) + 0.00002 * input tokens
    whole answer  = first token + token_s * output tokens * exp(0.1 z)
    a failure     = its type's `seconds`, times exp(0.3 z)

rounded to whole microseconds, as a clock would, so that the last bit of a machine's exp() does not show. A failure
counts its tokens and its cost as well, as providers bill them, so that totals of tokens are the sums over the file.
Cost is in whole nano-dollars: ``input tokens * input_nusd + output tokens * output_nusd``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ...proto.exact import F64, I64, U64
from .trace import Trace


class Model(NamedTuple):
    """A model of the made-up fleet: `share` of 1, time to first token and per token (s), prices (10^-9 USD a token)."""

    provider: str
    name: str
    share: float
    start_s: float
    token_s: float
    input_nusd: int
    output_nusd: int


class Failure(NamedTuple):
    """A type of failure: `share` of failures, and how long it takes (s)."""

    error_type: str
    share: float
    seconds: float


MODELS = (
    Model("openai", "gpt-4o", 0.30, 0.45, 0.012, 2_500, 10_000),
    Model("openai", "gpt-4o-mini", 0.25, 0.30, 0.007, 150, 600),
    Model("anthropic", "claude-sonnet-4", 0.25, 0.70, 0.015, 3_000, 15_000),
    Model("anthropic", "claude-haiku", 0.10, 0.35, 0.006, 800, 4_000),
    Model("google", "gemini-2.5-flash", 0.10, 0.25, 0.005, 300, 2_500),
)
ERRORS = (
    Failure("connection", 0.15, 0.05),
    Failure("timeout", 0.20, 60.0),
    Failure("rate_limit", 0.35, 0.08),
    Failure("authentication", 0.05, 0.06),
    Failure("server", 0.20, 1.5),
    Failure("client", 0.05, 0.04),
)
OPERATIONS = ("chat", "completion")
CHAT_SHARE = 0.90
STREAM_SHARE = 0.70
ERROR_SHARE = 0.03
INPUT_TOKEN_S = 0.000_02
NUSD = 10**9  # nano-dollars in a dollar

_G = np.uint64(0x9E37_79B9_7F4A_7C15)
_M1 = np.uint64(0xBF58_476D_1CE4_E5B9)
_M2 = np.uint64(0x94D0_49BB_1331_11EB)


class Columns(NamedTuple):
    """What the rule says of n requests; `model`, `operation` and `failure` are indices, `failure` -1 for a success.

    Times in seconds; `first_token` is NaN where none is recorded: of what was not streamed, and of failures.
    """

    model: I64
    operation: I64
    stream: npt.NDArray[np.bool_]
    failure: I64
    latency: F64
    first_token: F64
    cost_nusd: I64


class Request(NamedTuple):
    """One request, complete: time (ms since the epoch), durations (s), cost (10^-9 USD)."""

    at_ms: int
    input_tokens: int
    output_tokens: int
    model: Model
    operation: str
    stream: bool
    failure: Failure | None
    latency: float
    first_token: float | None
    cost_nusd: int


def mix(x: U64) -> U64:
    """SplitMix64's finalizer, on a column."""
    x = (x ^ (x >> np.uint64(30))) * _M1
    x = (x ^ (x >> np.uint64(27))) * _M2
    return x ^ (x >> np.uint64(31))


def uniform(seed: int, row: I64, k: int) -> F64:
    """Draw `k` of each row, in [0, 1)."""
    # Columns of one even for the scalars: numpy wraps columns silently, and warns of scalars that wrap.
    start = mix(np.array([seed % 2**64], np.uint64) + _G)
    bits = mix(mix(start + _G * (row.astype(np.uint64) + np.uint64(1))) + _G * np.array([k + 1], np.uint64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def node_of(row: I64, nodes: int) -> I64:
    """Which of `nodes` plays each row."""
    return row % nodes


def requests(trace: Trace, seed: int) -> Iterator[Request]:
    """The requests of `trace` in its order, completed by the rule."""
    columns = (trace.at_ms, trace.input_tokens, trace.output_tokens, *complete(trace, seed))
    for at_ms, inputs, outputs, model, operation, stream, failure, latency, first_token, nusd in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        yield Request(
            at_ms=at_ms,
            input_tokens=inputs,
            output_tokens=outputs,
            model=MODELS[model],
            operation=OPERATIONS[operation],
            stream=stream,
            failure=ERRORS[failure] if failure >= 0 else None,
            latency=latency,
            first_token=None if math.isnan(first_token) else first_token,
            cost_nusd=nusd,
        )


def complete(trace: Trace, seed: int) -> Columns:
    """What the rule says of every request of `trace`, in columns."""
    row, inputs, outputs = trace.row, trace.input_tokens, trace.output_tokens
    model = _pick(uniform(seed, row, 0), [m.share for m in MODELS])
    operation = (uniform(seed, row, 1) >= CHAT_SHARE).astype(np.int64)
    stream = uniform(seed, row, 2) < STREAM_SHARE
    failed = uniform(seed, row, 3) < ERROR_SHARE
    failure = np.where(failed, _pick(uniform(seed, row, 4), [e.share for e in ERRORS]), -1)
    z = np.sqrt(-2.0 * np.log(1.0 - uniform(seed, row, 5))) * np.cos(2.0 * np.pi * uniform(seed, row, 6))

    start, per_token = (np.array([m[field] for m in MODELS])[model] for field in (3, 4))
    first = start * np.exp(0.45 * z) + INPUT_TOKEN_S * inputs
    answer = first + per_token * outputs * np.exp(0.1 * z)
    broken = np.array([e.seconds for e in ERRORS])[failure] * np.exp(0.3 * z)
    in_price, out_price = (np.array([m[field] for m in MODELS], np.int64)[model] for field in (5, 6))
    return Columns(
        model=model,
        operation=operation,
        stream=stream,
        failure=failure,
        latency=_whole_us(np.where(failed, broken, answer)),
        first_token=np.where(stream & ~failed, _whole_us(first), np.nan),
        cost_nusd=inputs * in_price + outputs * out_price,
    )


def _pick(u: F64, shares: list[float]) -> I64:
    """The index whose share of [0, 1) holds `u`; what rounding leaves over goes to the last."""
    edges = np.cumsum(shares)[:-1]
    return np.searchsorted(edges, u, side="right").astype(np.int64)


def _whole_us(seconds: F64) -> F64:
    return np.rint(seconds * 1e6) / 1e6
