"""The web application of `rpt board`: the Run tab alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from pipeline.audit.board.handlers import RunPages
from pipeline.audit.board.run import Run
from pipeline.audit.browse.rendering import asset, environment
from pipeline.audit.browse.security import LOOPBACK, RequestGuard
from pipeline.config.errors import UserError

BASE = "board_base.html"


def create_board(runs: Sequence[Run], hosts: Collection[str] = LOOPBACK) -> RequestGuard:
    """Return the web application over some runs; `hosts` are the host names that the server accepts."""
    templates = environment(board_title=", ".join(run.name for run in runs))

    def home(request: Request) -> Response:
        return RedirectResponse("/run")

    def page(request: Request, status: int, detail: str) -> Response:
        html = templates.get_template("board_error.html").render(path=request.url.path, code=status, detail=detail)
        return HTMLResponse(html, status)

    def http_error(request: Request, error: HTTPException) -> Response:
        return page(request, error.status_code, error.detail)

    def user_error(request: Request, error: UserError) -> Response:
        return page(request, 400, str(error))

    routes = [Route("/", home), *RunPages(runs, templates, BASE).routes(), Route("/assets/{name}", asset)]
    handlers: dict[Any, Callable[..., Any]] = {HTTPException: http_error, UserError: user_error}
    return RequestGuard(Starlette(routes=routes, exception_handlers=handlers), hosts)
