"""The live page behind HTTP: a static page, how runs stand, and a stream of what changes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from acme_fleet.errors import FleetError
from acme_fleet.outside import reason
from acme_fleet.report.live.watch import Board, Watched
from acme_fleet_runtime.handler import is_loopback

_STATIC = Path(__file__).with_name("static")
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/live.css": ("live.css", "text/css; charset=utf-8"),
    "/live.js": ("live.js", "text/javascript; charset=utf-8"),
    "/charts.js": ("charts.js", "text/javascript; charset=utf-8"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_REPORT_POLICY = "frame-ancestors 'none'; sandbox allow-scripts"
"""Beside the report's own: it sorts its tables, and can ask this server for nothing."""
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_COOKIE = "acme_live"
_EVERY_S, _ALIVE_S = 1.0, 15.0
_MOST_SHOWN = 8
_LEAST_TOKEN = 16

Next = Callable[[Request], Awaitable[Response]]


def make_app(board: Board, token: str | None, every_s: float = _EVERY_S) -> FastAPI:
    """The application.

    Args:
        board: the runs.
        token: that requests must bring, in the address once and then in a cookie, or as
            ``Authorization: Bearer``. Without one the server must listen on loopback alone, and
            answers only requests that name a loopback host: a page elsewhere could have its own
            name lead here.
        every_s: the stream's pause between two looks at the runs.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guard(request: Request, call_next: Next) -> Response:
        refused = _refusal(request, token)
        response = refused if refused is not None else await call_next(request)
        response.headers.update(_HEADERS)
        response.headers.setdefault("Content-Security-Policy", POLICY)
        return response

    for path, (name, kind) in _FILES.items():
        app.add_api_route(path, _static(name, kind), methods=["GET"])

    @app.get("/api/runs")
    def runs() -> JSONResponse:
        return JSONResponse(_listed(board))

    @app.get("/api/runs/{name}")
    def run(name: str) -> JSONResponse:
        return JSONResponse(_known(board, name).shown())

    @app.get("/runs/{name}/report")
    def report(name: str) -> FileResponse:
        path = _known(board, name).path / "report.html"
        if not path.is_file():
            raise HTTPException(404, "this run has no report yet")
        own = {"Content-Security-Policy": _REPORT_POLICY}
        return FileResponse(path, media_type="text/html; charset=utf-8", headers=own)

    @app.get("/api/stream")
    async def stream(
        request: Request,
        run: list[str] = Query(default=[]),  # noqa: B008
    ) -> StreamingResponse:
        chosen = run[:_MOST_SHOWN]
        return StreamingResponse(
            _changes(request, board, chosen, every_s), media_type="text/event-stream"
        )

    return app


def _static(name: str, kind: str) -> Callable[[], Response]:
    content = (_STATIC / name).read_bytes()
    return lambda: Response(content, media_type=kind)


def _known(board: Board, name: str) -> Watched:
    found = board.runs().get(name)
    if found is None:
        raise HTTPException(404, "there is no such run here")
    return found


def _listed(board: Board) -> list[dict[str, str]]:
    return [run.brief() for run in board.runs().values()]


async def _changes(
    request: Request, board: Board, chosen: list[str], every_s: float
) -> AsyncIterator[str]:
    """Server-sent events: the list of runs, and each chosen run; again when they have changed."""
    seen: dict[str, str] = {}
    quiet = 0.0
    yield "retry: 2000\n\n"
    while not await request.is_disconnected():
        told = await run_in_threadpool(_snapshot, board, chosen)
        for key, content in told:
            digest = hashlib.sha256(content.encode()).hexdigest()
            if seen.get(key) != digest:
                seen[key], quiet = digest, 0.0
                yield f"event: {key.partition(':')[0]}\ndata: {content}\n\n"
        if quiet >= _ALIVE_S:
            quiet = 0.0
            yield ": still here\n\n"
        await asyncio.sleep(every_s)
        quiet += every_s


def _snapshot(board: Board, chosen: list[str]) -> list[tuple[str, str]]:
    known = board.runs()
    told = [("runs", json.dumps(_listed(board)))]
    told += [(f"run:{n}", json.dumps(known[n].shown())) for n in chosen if n in known]
    return told


# --- who may ask ------------------------------------------------------------------------------


def _refusal(request: Request, token: str | None) -> Response | None:
    """None for a request that may be answered; otherwise what it gets in place of an answer."""
    if token is None:
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname
        if host is None or not is_loopback(host):
            return JSONResponse({"detail": "ask for a loopback address"}, 421)
        return None
    given = request.query_params.get("token")
    if given is not None and request.url.path == "/" and _same(given, token):
        response: Response = RedirectResponse("/", 303)
        response.set_cookie(_COOKIE, _cookie(token), httponly=True, samesite="strict")
        return response
    kind, _, bearer = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and _same(bearer, token):
        return None
    if _same(request.cookies.get(_COOKIE, ""), _cookie(token)):
        return None
    return JSONResponse({"detail": "open the address that acme ui has printed"}, 401)


def _cookie(token: str) -> str:
    """The cookie's value, from which the token cannot be found."""
    return hmac.new(token.encode(), b"acme live page", "sha256").hexdigest()


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


# --- listening --------------------------------------------------------------------------------


def serve(board: Board, host: str, port: int, token: str | None, say: Callable[[str], Any]) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        board: the runs.
        host, port: to listen on; port 0 takes a free one.
        token: that requests must bring. Without one it is made up, unless only this machine can
            reach the host.
        say: is told the address to open.

    Raises:
        FleetError: if the token is too short, or the port cannot be had.
    """
    if token is not None and (len(token) < _LEAST_TOKEN or not token.isascii() or " " in token):
        raise FleetError(f"--token: use at least {_LEAST_TOKEN} ASCII characters without spaces")
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(24)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            raise FleetError(f"cannot listen on {host}, port {port}: {reason(error)}") from error
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listener.getsockname()[1]}/"
        say(f"live page: {address}{f'?token={token}' if token else ''}")
        config = uvicorn.Config(
            make_app(board, token),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        uvicorn.Server(config).run([listener])
