"""Protection of the pages against other sites: accepted hosts, what a page may load, who may write."""

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

ACCEPTED_FETCH_SITES = frozenset({"none", "same-origin"})
"""Accepted values of `Sec-Fetch-Site`; another port of this machine is `same-site` and not accepted."""

MAX_FORM_BYTES = 32_768
"""Maximum size of a form in bytes."""

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
    """Middleware that rejects unknown hosts and requests from other sites, and adds `HEADERS` to every response.

    Another site can point a host name of its own at this machine ("DNS rebinding"), but it cannot choose the Host
    header, so requests for unknown host names are refused. It can also load our pages or link to them. It cannot read
    the responses, but the requests would keep this machine busy. Browsers send the origin of a request in
    `Sec-Fetch-Site`; only requests from our own pages, the address bar or bookmarks are accepted. Clients that are not
    browsers do not send the header.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app, self._hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        host = headers.get("host", "")
        answer: ASGIApp = self.app
        if _host_name(host) not in self._hosts:
            answer = PlainTextResponse(f"This server does not accept requests for the host {host[:100]!r}.\n", 421)
        elif headers.get("sec-fetch-site", "none") not in ACCEPTED_FETCH_SITES:
            answer = PlainTextResponse(
                "This request came from another site. Copy the address and open it in a new tab.\n", 403
            )
        await answer(scope, receive, guarded)


def may_write(request: Request, token: str, given: str) -> bool:
    """Return True if a POST comes from one of our pages: it has the token, and its Origin, if any, is this server."""
    origin = request.headers.get("origin")
    own_origin = origin is None or origin == f"http://{request.headers.get('host')}"
    return own_origin and hmac.compare_digest(token.encode(), given.encode())


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a posted form (`application/x-www-form-urlencoded`).

    Raises:
        HTTPException: The form is larger than `MAX_FORM_BYTES`.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            raise HTTPException(413, "The form is too large.")
    return dict(parse_qsl(body.decode(errors="replace")))


def _host_name(host: str) -> str:
    """Return the host name in a Host header, without the port; empty if it is invalid.

    Example:
        >>> _host_name("localhost:8000"), _host_name("[::1]:8000"), _host_name("evil.example")
        ('localhost', '::1', 'evil.example')
    """
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
