"""How the live page is served: connections that say nothing are closed, and a signal always ends it."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_WITHIN = 10.0
"""Seconds within which a request must have come whole, from its connection or its first byte on."""


class Impatient(H11Protocol):
    """uvicorn's protocol, which closes a connection that is silent after an answer, but not one that begins a request
    and never ends it: each of those would hold a socket as long as the other side likes."""

    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._mind_the_clock()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._mind_the_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_the_clock()
        super().connection_lost(exc)

    def _mind_the_clock(self) -> None:
        """Start it while a request is on its way; what trickles in does not start it anew."""
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._stop_the_clock()
        elif self._clock is None:
            self._clock = self.loop.call_later(REQUEST_WITHIN, self.transport.close)

    def _stop_the_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None


class Server(uvicorn.Server):
    """uvicorn's server, with the system's own answer to signals: they end the process, whatever it computes.

    There is nothing to finish: the only thing that is written, a flag, is a single write.
    """

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
        yield


def server(app: ASGIApp) -> Server:
    """A server of `app`, to be run on a socket that listens."""
    config = uvicorn.Config(
        app, http=Impatient, ws="none", log_level="warning", lifespan="off", server_header=False, access_log=False
    )
    return Server(config)
