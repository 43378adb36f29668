"""A demo proxy: ``python -m fleetmeter.deploy.demo --node demo-1``. It uses the emitter as a real proxy would, for
made-up traffic.

Traffic comes in Poisson-like arrivals with a slow swell, over the models of the replay's rule; now and then a provider
has trouble for half a minute: it is slow, and fails more. Everything is drawn from `--seed`, so two demos with the same
seed see the same requests.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import heapq
import math
import os
import random
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..emitter import Emitter
from ..proto.clock import SystemClock
from ..proto.config import load_config
from ..proto.errors import FleetmeterError
from ..proto.logs import configure_logging
from .cli import exit_code
from .replay.rule import CHAT_SHARE, ERROR_SHARE, ERRORS, MODELS, NUSD, OPERATIONS, STREAM_SHARE

#: Mean requests per second of one demo proxy; what the cache does not answer goes to a provider.
RATE = 30.0
#: The swell: so much of `RATE` up and down, in so many seconds.
SWELL, SWELL_S = 0.5, 180.0
#: A provider's trouble: about every so many seconds, for so many seconds; so much slower, and so much more likely to
#: fail.
TROUBLE_EVERY_S, TROUBLE_S, TROUBLE_SLOWER, TROUBLE_ERRORS = 240.0, 30.0, 3.0, 8.0
#: Requests and tokens that each made-up provider allows a minute.
LIMIT_REQUESTS, LIMIT_TOKENS = 600, 600_000
#: The made-up cache: its room, and what an entry takes, bytes.
CACHE_BYTES, ENTRY_BYTES = 64 * 1024 * 1024, 20_000
CACHE_HITS = 0.8
POOL_SIZE = 50
_STEP_S = 0.05


@dataclass(order=True)
class Call:
    """A request under way: when it ends (s), and what `record_request` will be told then."""

    ends_s: float
    number: int
    arguments: dict[str, Any] = field(compare=False)


class Traffic:
    """The requests of one proxy from 0 s on. Pure: `advance` moves its time, and nothing else does."""

    def __init__(self, seed: int, rate: float = RATE) -> None:
        self.random = random.Random(seed)
        self.under_way: list[Call] = []
        self.troubled: str | None = None
        self.cache_entries = 0
        #: By provider: requests and tokens of the minute so far.
        self.used: dict[str, list[int]] = {m.provider: [0, 0] for m in MODELS}
        self._rate = rate
        self._number = 0
        self._next_s = 0.0
        self._minute = 0
        self._trouble_s = self.random.expovariate(1 / TROUBLE_EVERY_S)

    def advance(self, to_s: float) -> tuple[list[dict[str, Any]], int, int]:
        """Requests that have ended by `to_s` in order of their ends, and how many look-ups hit and missed the cache."""
        hits = misses = 0
        self._turn(to_s)
        while self._next_s <= to_s:
            if self.random.random() < CACHE_HITS:
                hits += 1
            else:
                misses += 1
                self.cache_entries = min(self.cache_entries + 1, CACHE_BYTES // ENTRY_BYTES)
                self._begin(self._next_s)
            swell = 1 + SWELL * math.sin(2 * math.pi * self._next_s / SWELL_S)
            self._next_s += self.random.expovariate(self._rate * swell)
        ended = []
        while self.under_way and self.under_way[0].ends_s <= to_s:
            ended.append(heapq.heappop(self.under_way).arguments)
        return ended, hits, misses

    def _turn(self, to_s: float) -> None:
        """Begin and end trouble, and a new minute of the providers' limits."""
        if self.troubled is None and to_s >= self._trouble_s:
            self.troubled = self.random.choice(MODELS).provider
        elif self.troubled is not None and to_s >= self._trouble_s + TROUBLE_S:
            self.troubled = None
            self._trouble_s = to_s + self.random.expovariate(1 / TROUBLE_EVERY_S)
        if to_s // 60 > self._minute:
            self._minute = int(to_s // 60)
            self.used = {provider: [0, 0] for provider in self.used}

    def _begin(self, at_s: float) -> None:
        draw = self.random
        model = draw.choices(MODELS, [m.share for m in MODELS])[0]
        trouble = model.provider == self.troubled
        stream = draw.random() < STREAM_SHARE
        tokens_in, tokens_out = (max(1, int(draw.lognormvariate(mu, 0.8))) for mu in (6.3, 5.0))
        slower = TROUBLE_SLOWER if trouble else 1.0
        first_s = slower * model.start_s * draw.lognormvariate(0.0, 0.45)
        took_s = first_s + slower * tokens_out * model.token_s
        overhead_s = draw.lognormvariate(-6.2, 0.5)
        arguments: dict[str, Any] = {
            "provider": model.provider,
            "model": model.name,
            "operation": OPERATIONS[draw.random() >= CHAT_SHARE],
            "stream": stream,
            "input_tokens": tokens_in,
            "overhead_time": overhead_s,
        }
        if draw.random() < ERROR_SHARE * (TROUBLE_ERRORS if trouble else 1.0):
            error = draw.choices(ERRORS, [e.share for e in ERRORS])[0]
            took_s = error.seconds * draw.lognormvariate(0.0, 0.3)
            arguments |= {"success": False, "error_type": error.error_type, "cost": 0.0}
        else:
            cost = (tokens_in * model.input_nusd + tokens_out * model.output_nusd) / NUSD
            arguments |= {"output_tokens": tokens_out, "cost": cost, "upstream_time": took_s}
            if stream:
                arguments |= {"time_to_first_token": first_s, "time_per_output_token": slower * model.token_s}
            self.used[model.provider][1] += tokens_in + tokens_out
        self.used[model.provider][0] += 1
        arguments["response_time"] = took_s + overhead_s
        self._number += 1
        heapq.heappush(self.under_way, Call(at_s + took_s, self._number, arguments))


def record(emitter: Emitter, traffic: Traffic, ended: list[dict[str, Any]], hits: int, misses: int) -> None:
    """Tell the emitter what has happened, and how things stand."""
    for arguments in ended:
        emitter.record_request(**arguments)
        if arguments.get("error_type") in ("timeout", "rate_limit"):
            labels = {"provider": arguments["provider"], "model": arguments["model"]}
            emitter.counter("retries_total", **labels).add()
    emitter.counter("cache_requests_total", result="hit").add(hits)
    emitter.counter("cache_requests_total", result="miss").add(misses)
    emitter.counter("pool_connections_reused_total").add(len(ended))
    busy = len(traffic.under_way)
    gauges = {
        "cache_entries": traffic.cache_entries,
        "cache_used_bytes": traffic.cache_entries * ENTRY_BYTES,
        "cache_limit_bytes": CACHE_BYTES,
        "pool_pending_requests": max(0, busy - POOL_SIZE),
    }
    for name, value in gauges.items():
        emitter.gauge(name).set(value)
    emitter.gauge("pool_connections", state="active").set(min(busy, POOL_SIZE))
    emitter.gauge("pool_connections", state="idle").set(POOL_SIZE - min(busy, POOL_SIZE))
    emitter.gauge("pool_connections_limit", kind="total").set(POOL_SIZE)
    for provider in traffic.used:
        for state in ("healthy", "degraded", "unhealthy"):
            is_so = state == ("degraded" if provider == traffic.troubled else "healthy")
            emitter.gauge("provider_health", provider=provider, state=state).set(float(is_so))
    flying = {(m.provider, m.name, operation): 0 for m in MODELS for operation in OPERATIONS}
    for call in traffic.under_way:
        flying[call.arguments["provider"], call.arguments["model"], call.arguments["operation"]] += 1
    for (provider, name, operation), n in flying.items():
        emitter.gauge("requests_in_flight", provider=provider, model=name, operation=operation).set(n)
    for model in MODELS:
        labels = {"provider": model.provider, "model": model.name}
        requests, tokens = traffic.used[model.provider]
        emitter.gauge("ratelimit_limit_requests", **labels).set(LIMIT_REQUESTS)
        emitter.gauge("ratelimit_remaining_requests", **labels).set(max(0, LIMIT_REQUESTS - requests))
        emitter.gauge("ratelimit_limit_tokens", **labels).set(LIMIT_TOKENS)
        emitter.gauge("ratelimit_remaining_tokens", **labels).set(max(0, LIMIT_TOKENS - tokens))


async def run(node: str, seed: int, rate: float, config_file: Path | None) -> None:
    """Be a proxy until SIGTERM or Ctrl-C; then flush, and say goodbye."""
    config = load_config(config_file, environ=os.environ)
    configure_logging(config.log.level, config.log.format)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    traffic, clock = Traffic(seed, rate), SystemClock()
    async with Emitter(config, node=node) as emitter:
        print("ready", flush=True)
        began_s = clock.monotonic()
        while not stop.is_set():
            record(emitter, traffic, *traffic.advance(clock.monotonic() - began_s))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STEP_S):
                    await stop.wait()


def main() -> None:
    """Arguments, and off."""
    parser = argparse.ArgumentParser(prog="fleetmeter-demo", description="A demo proxy with made-up traffic.")
    parser.add_argument("--node", required=True, help="name of this node")
    parser.add_argument("--seed", type=int, default=1, help="what the traffic is drawn from")
    parser.add_argument("--rate", type=float, default=RATE, help="mean requests per second")
    parser.add_argument("--config", type=Path, help="YAML configuration")
    given = parser.parse_args()
    try:
        asyncio.run(run(given.node, given.seed, given.rate, given.config))
    except FleetmeterError as problem:
        print(f"Error: {problem}", file=sys.stderr)
        sys.exit(exit_code(problem))


if __name__ == "__main__":
    main()
