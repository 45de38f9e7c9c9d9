"""The web server of the live pages: it listens on loopback, closes stalled connections, and a signal ends it."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.config.errors import UserError

REQUEST_TIMEOUT = 10.0
"""Seconds within which a request must be complete, counted from its connection or first byte."""


class TimeoutProtocol(H11Protocol):
    """HTTP/1.1 protocol that closes connections with unfinished requests.

    uvicorn closes a connection that is idle after a response, but not one whose request never ends, which would
    occupy a socket forever.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer of the first request."""
        super().connection_made(transport)
        self._update_timer()

    def data_received(self, data: bytes) -> None:
        """Start or stop the timer according to the state of the request."""
        super().data_received(data)
        self._update_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def _update_timer(self) -> None:
        """Start the timer when a request begins, and stop it when the request is complete.

        Further data of the same request do not restart it, so slow senders are closed too.
        """
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(REQUEST_TIMEOUT, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Server(uvicorn.Server):
    """uvicorn server with the default signal handlers, which end the process whatever it computes.

    Nothing needs to be finished: the only data written, a flag, is a single write.
    """

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Restore the default handlers of SIGINT and SIGTERM."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
        yield


def server(app: ASGIApp) -> Server:
    """Return a server of `app`, to be run on a listening socket."""
    config = uvicorn.Config(
        app, http=TimeoutProtocol, ws="none", log_level="warning", lifespan="off", server_header=False, access_log=False
    )
    return Server(config)


@contextmanager
def listening(port: int) -> Iterator[socket.socket]:
    """Listen on a port of the loopback interface, 0 for any free one.

    Raises:
        UserError: the port is in use.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as taken:  # named: no Nagle delay
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", port))
        except OSError as error:
            hint = "choose another with --port, or 0 for any free port"
            raise UserError("the port is already in use", where=port, hint=hint) from error
        taken.listen()
        yield taken


def address(taken: socket.socket) -> str:
    """Return the address of a listening socket."""
    return f"http://127.0.0.1:{taken.getsockname()[1]}"
