"""vLLM as a server for the trainer, in an environment that has vLLM.

Input:   prompts as token ids; weights, one parameter per request, each with its expected checksum.
Output:  responses as token ids with log-probabilities; for each parameter, the checksum on arrival.
Command: python -m pipeline.grpo.rollout.vllm_server demo/policy --port 8077
         (loopback; prints one line when it is ready)

It serves one trainer, by default on loopback only. Every request must carry the shared secret (`sampler_secret.py`),
and requests from web pages are refused.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.grpo.rollout.sampler_secret import VARIABLE, shared_secret
from pipeline.grpo.types import SamplingRequest

if TYPE_CHECKING:
    from pipeline.grpo.rollout.vllm_engine import VllmEngine

DEFAULT_PORT = 8077


class Gate:
    """Middleware that accepts only requests which carry the secret and cannot come from a browser.

    Any web page can make a browser send requests to this machine's ports. The browser cannot add our header without a
    preflight request, and it reveals the page's origin (Origin, Sec-Fetch-Site). Under "DNS rebinding", a foreign name
    that resolves to this machine, it reveals that name (Host), so only addresses and our own names are accepted.
    """

    def __init__(self, app: ASGIApp, secret: str, names: Collection[str]) -> None:
        self._app, self._expected, self._names = app, f"Bearer {secret}".encode(), frozenset(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        refusal = self._refusal(Headers(scope=scope)) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, headers: Headers) -> JSONResponse | None:
        name = _host_name(headers.get("host", ""))
        if not (name in self._names or _is_address(name)):
            return JSONResponse({"error": f"this server does not go by the name {name[:100]!r}"}, 421)
        if "origin" in headers or "sec-fetch-site" in headers:
            return JSONResponse({"error": "web pages are not answered"}, 403)
        if not hmac.compare_digest(headers.get("authorization", "").encode("latin-1"), self._expected):
            return JSONResponse({"error": f"wrong or missing token: give both sides the same {VARIABLE}"}, 403)
        return None


def _host_name(host: str) -> str:
    """Return the name in a Host header, without its port; empty if it has none.

    Example:
        >>> _host_name("localhost:8077"), _host_name("[::1]:8077"), _host_name("[")
        ('localhost', '::1', '')
    """
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def application(engine: VllmEngine, secret: str, names: Collection[str] = ("localhost",)) -> Starlette:
    """Return the server's application, which passes one request at a time to the engine.

    Args:
        engine: the engine that samples.
        secret: the secret that every request must carry.
        names: host names that the server accepts, besides addresses.
    """
    busy = asyncio.Lock()
    waiting: dict[str, torch.Tensor] = {}

    async def health(request: Request) -> Response:
        return JSONResponse({"ready": True})

    async def sample(request: Request) -> Response:
        body = await request.json()
        async with busy:
            sampled = await run_in_threadpool(engine.generate, SamplingRequest(**body["request"]), body["stop_ids"])
        return JSONResponse(sampled)

    async def parameter(request: Request) -> Response:
        body = await request.body()
        shape = [int(n) for n in request.query_params["shape"].split(",") if n]
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[
            request.query_params["dtype"]
        ]
        arrived = hashlib.sha256(body).hexdigest()
        if arrived != request.query_params["sha256"]:
            return JSONResponse({"error": "bytes differ from what was sent", "sha256": arrived}, 422)
        waiting[request.query_params["name"]] = torch.frombuffer(bytearray(body), dtype=dtype).view(shape)
        return JSONResponse({"sha256": arrived})

    async def commit(request: Request) -> Response:
        names = (await request.json())["names"]
        if sorted(names) != sorted(waiting):
            missing = sorted(set(names) ^ set(waiting))
            waiting.clear()
            return JSONResponse({"error": f"{len(missing)} parameters are not as announced: {missing[:3]}"}, 409)
        async with busy:
            await run_in_threadpool(engine.load_weights, list(waiting.items()))
        waiting.clear()
        return JSONResponse({"loaded": len(names)})

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/sample", sample, methods=["POST"]),
            Route("/parameter", parameter, methods=["PUT"]),
            Route("/commit", commit, methods=["POST"]),
        ],
        middleware=[Middleware(Gate, secret=secret, names=names)],
    )


def main() -> None:
    """Load the model, then serve until killed."""
    parser = argparse.ArgumentParser(
        prog="pipeline.grpo.rollout.vllm_server", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="the policy the trainer starts from")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--max-tokens", type=int, help="longest prompt and response together")
    parser.add_argument("--batch-rows", type=int, default=256, help="responses decoded at once")
    parser.add_argument("--memory-fraction", type=float, default=0.9, help="of the accelerator's memory")
    arguments = parser.parse_args()
    secret, names = shared_secret(), {arguments.host, "localhost", socket.gethostname(), socket.getfqdn()}

    from pipeline.grpo.rollout.vllm_engine import VllmEngine

    engine = VllmEngine(
        arguments.folder, arguments.dtype, arguments.max_tokens, arguments.batch_rows, arguments.memory_fraction
    )
    app = application(engine, secret, names)
    family = socket.AF_INET6 if ":" in arguments.host else socket.AF_INET
    listening = socket.create_server((arguments.host, arguments.port), family=family)  # before "ready" is printed
    print(f"ready: http://{arguments.host}:{arguments.port}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


if __name__ == "__main__":
    main()
