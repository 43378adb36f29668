"""The gateway's HTTP server: which path answers what. Everything comes from the fold; no request does more than pick
bytes.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from ..proto.clock import Clock
from ..proto.logs import get_logger
from . import exposition, metrics_json
from .health import health
from .negotiate import accepts_gzip, best_type
from .rendered import Body, Rendered
from .state import GatewayFold
from .view import View

log = get_logger(__name__)

JSON = "application/json"
TEXT = "text/plain"

#: Path and what it answers, for the index.
ENDPOINTS = {
    "/metrics": "all metrics: JSON, or Prometheus text when Accept prefers text/plain",
    "/metrics/prometheus": "all metrics as Prometheus text",
    "/health": "health of providers, memory, cache, connections and of the pipeline; 503 when unhealthy",
    "/livez": "200 while this process serves",
    "/readyz": "200 once this gateway has read everything that was published; ?verbose says more",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Gateway:
    """Answers requests from `fold`. `not_ready` says why this gateway is not ready yet, or is empty."""

    def __init__(
        self,
        fold: GatewayFold,
        *,
        clock: Clock,
        version: str,
        connected: Callable[[], bool],
        not_ready: Callable[[], str],
        event_time: Callable[[], bool] = lambda: False,
    ) -> None:
        self._fold = fold
        self._clock = clock
        self._version = version
        self._connected = connected
        self._not_ready = not_ready
        self._event_time = event_time
        self._started = clock.monotonic()
        self._rendered = Rendered()
        self._document: tuple[int, dict[str, Any]] | None = None
        self._text = exposition.TextExposition(exposition.own_metrics(version))

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[_guard])
        app.router.add_get("/", self._index)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/metrics/prometheus", self._prometheus)
        app.router.add_get("/health", self._health)
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.on_response_prepare.append(_harden)
        return app

    def text_body(self) -> Body:
        """The newest Prometheus text; rendered now unless it was."""
        return self._rendered.get(
            "text", self._fold.generation, exposition.CONTENT_TYPE, lambda: self._text.render(self._fold)
        )

    def json_body(self) -> Body:
        """The newest JSON; rendered now unless it was."""

        return self._rendered.get(
            "json", self._fold.generation, JSON, lambda: msgspec.json.encode(self._json_document())
        )

    def _json_document(self) -> dict[str, Any]:
        """What JSON and health are made of, collected once for each state of the fold."""
        if self._document is None or self._document[0] != self._fold.generation:
            start = time.perf_counter()
            document = metrics_json.document(View(self._fold), self._clock.now_ms())
            document["collection_duration_ms"] = round((time.perf_counter() - start) * 1000, 3)
            self._document = (self._fold.generation, document)
        return self._document[1]

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        wanted = best_type(request.headers.get("Accept", ""), (JSON, TEXT))
        return _answer(
            request, self.text_body() if wanted == TEXT else self.json_body(), vary="Accept, Accept-Encoding"
        )

    async def _prometheus(self, request: web.Request) -> web.StreamResponse:
        return _answer(request, self.text_body())

    async def _health(self, request: web.Request) -> web.StreamResponse:
        status, body = health(
            View(self._fold),
            self._json_document()["metrics"],
            self._clock.now_ms(),
            self._clock.monotonic() - self._started,
            self._version,
            self._connected(),
            self._event_time(),
        )
        return web.json_response(body, status=status, dumps=_dumps)

    async def _livez(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.StreamResponse:
        reason = self._not_ready()
        lines = [f"not ready: {reason}" if reason else "ok"]
        if "verbose" in request.query:
            lines.append(f"nats: {'connected' if self._connected() else 'not connected'}")
            newest = View(self._fold).end_ms
            lines.append(f"newest window ends: {metrics_json.rfc3339(newest) if newest is not None else 'none yet'}")
        return web.Response(text="\n".join(lines) + "\n", status=503 if reason else 200)

    async def _index(self, request: web.Request) -> web.StreamResponse:
        width = max(map(len, ENDPOINTS))
        lines = [f"Fleetmeter gateway {self._version}", ""]
        lines += [f"{path:{width}}  {what}" for path, what in ENDPOINTS.items()]
        return web.Response(text="\n".join(lines) + "\n")


def problem(status: int, title: str, detail: str) -> web.Response:
    """An error as a problem document (RFC 9457)."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return web.json_response(body, status=status, content_type="application/problem+json", dumps=_dumps)


def _answer(request: web.Request, body: Body, vary: str = "Accept-Encoding") -> web.Response:
    # "no-cache" lets a client keep the body if it asks each time whether it still holds.
    # The tag is weak because the compressed body has the same.
    headers = {"ETag": f"W/{body.etag}", "Vary": vary, "Cache-Control": "no-cache", "Content-Type": body.content_type}
    if body.etag in (tag.strip().removeprefix("W/") for tag in request.headers.get("If-None-Match", "").split(",")):
        return web.Response(status=304, headers=headers)
    content = body.plain
    if accepts_gzip(request.headers.get("Accept-Encoding", "")) and body.compressed is not None:
        content = body.compressed
        headers["Content-Encoding"] = "gzip"
    return web.Response(body=content, headers=headers)


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors become problem documents; none ends the gateway, or tells the client what is inside."""
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return problem(404, "Not Found", f"There is no {request.path[:200]}; / lists what there is.")
    except web.HTTPMethodNotAllowed as refused:
        allowed = ", ".join(sorted(refused.allowed_methods))
        answer = problem(405, "Method Not Allowed", f"{request.method} is not possible here; possible: {allowed}.")
        answer.headers["Allow"] = allowed
        return answer
    except web.HTTPException as refused:
        return problem(refused.status, refused.reason, refused.reason)
    except Exception:
        log.error("request failed", every_s=10.0, key=request.path, path=request.path[:200], exc_info=True)
        return problem(500, "Internal Server Error", "The gateway could not answer; its log says why.")


async def _harden(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["Server"] = "fleetmeter"


def _dumps(value: Any) -> str:
    return msgspec.json.encode(value).decode()
