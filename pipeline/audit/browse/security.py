"""What stands between the pages and other sites: which hosts are answered, what a page may load, who may write."""

from __future__ import annotations

import hmac
from collections.abc import Collection
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

OWN_SITES = frozenset({"none", "same-origin"})
"""Values of `Sec-Fetch-Site` that are answered. Another port of this machine is `same-site`: not ours."""

LONGEST_FORM = 32_768
"""Bytes of a form that are read."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # under "no-referrer" browsers send `Origin: null` with our own forms
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-cache",
}


class RequestGuard:
    """Answers requests to known hosts only, none that another site made, and puts `HEADERS` on every answer.

    A page of another site can make a browser ask us under a name of its own that points to this machine ("DNS
    rebinding"), but it cannot choose the Host header: a name that we were not started under is refused.
    It can also have its pages load ours, or link to them. It could not read the answers, but the questions would keep
    this machine busy: a browser says where a request comes from (`Sec-Fetch-Site`), and only our own pages and what a
    person types or opens from bookmarks is answered. Clients that are no browsers say nothing.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app, self._hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        host = headers.get("host", "")
        answer: ASGIApp = self._app
        if _host_name(host) not in self._hosts:
            answer = PlainTextResponse(f"This server does not answer for the host {host[:100]!r}.\n", 421)
        elif headers.get("sec-fetch-site", "none") not in OWN_SITES:
            answer = PlainTextResponse("Another site asks for this page. Copy its address and open it yourself.\n", 403)
        await answer(scope, receive, guarded)


def may_write(request: Request, token: str, given: str) -> bool:
    """Whether a POST comes from one of our pages: it knows the token, and its Origin, if told, is this server."""
    origin = request.headers.get("origin")
    same = origin is None or origin == f"http://{request.headers.get('host')}"
    return same and hmac.compare_digest(token.encode(), given.encode())


async def posted(request: Request) -> dict[str, str]:
    """The fields of a form (`application/x-www-form-urlencoded`).

    Raises:
        HTTPException: longer than any form of ours.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LONGEST_FORM:
            raise HTTPException(413, "That form is too long.")
    return dict(parse_qsl(body.decode(errors="replace")))


def _host_name(host: str) -> str:
    """
    Example:
        >>> _host_name("localhost:8000"), _host_name("[::1]:8000"), _host_name("evil.example")
        ('localhost', '::1', 'evil.example')
    """
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
