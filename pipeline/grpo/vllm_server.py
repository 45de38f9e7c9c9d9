"""vLLM as a server for the trainer: `python -m pipeline.grpo.vllm_server FOLDER`, in an environment that has vLLM.

Input:   prompts as token ids; weights, one parameter a request, each with the checksum it must have here.
Output:  responses as token ids with log-probabilities; of every parameter, the checksum that arrived.
Command: python -m pipeline.grpo.vllm_server demo/policy --port 8077        (loopback; prints one line when it is ready)

It speaks to one trainer and has no rights to protect but the machine's own: it listens on loopback unless told
otherwise, and then only with a token (`RPT_SAMPLER_TOKEN`) that every request must carry.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import ipaddress
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipeline.grpo.types import SamplingRequest

if TYPE_CHECKING:
    from pipeline.grpo.vllm_engine import VllmEngine

DEFAULT_PORT = 8077
TOKEN_VARIABLE = "RPT_SAMPLER_TOKEN"


def application(engine: VllmEngine, token: str | None) -> Starlette:
    """The server's routes. One request at a time reaches the engine."""
    busy = asyncio.Lock()
    waiting: dict[str, torch.Tensor] = {}

    def refused(request: Request) -> JSONResponse | None:
        if token and request.headers.get("authorization") != f"Bearer {token}":
            return JSONResponse({"error": f"wrong or missing token: set {TOKEN_VARIABLE} as the server has it"}, 403)
        return None

    async def health(request: Request) -> Response:
        return refused(request) or JSONResponse({"ready": True})

    async def sample(request: Request) -> Response:
        if denied := refused(request):
            return denied
        asked = await request.json()
        async with busy:
            made = await run_in_threadpool(engine.generate, SamplingRequest(**asked["request"]), asked["stop_ids"])
        return JSONResponse(made)

    async def parameter(request: Request) -> Response:
        if denied := refused(request):
            return denied
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
        if denied := refused(request):
            return denied
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
        ]
    )


def main() -> None:
    """Load the model, then serve until killed."""
    parser = argparse.ArgumentParser(prog="pipeline.grpo.vllm_server", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="the policy the trainer starts from")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--max-tokens", type=int, help="longest prompt and response together")
    parser.add_argument("--batch-rows", type=int, default=256, help="responses decoded at once")
    parser.add_argument("--memory-fraction", type=float, default=0.9, help="of the accelerator's memory")
    arguments = parser.parse_args()
    token = os.environ.get(TOKEN_VARIABLE)
    if not token and not ipaddress.ip_address(arguments.host).is_loopback:
        sys.exit(f"error: set {TOKEN_VARIABLE} to a secret of your own to listen on {arguments.host}")

    from pipeline.grpo.vllm_engine import VllmEngine

    engine = VllmEngine(
        arguments.folder, arguments.dtype, arguments.max_tokens, arguments.batch_rows, arguments.memory_fraction
    )
    app = application(engine, token)
    family = socket.AF_INET6 if ":" in arguments.host else socket.AF_INET
    listening = socket.create_server((arguments.host, arguments.port), family=family)  # before it is said to be ready
    print(f"ready: http://{arguments.host}:{arguments.port}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


if __name__ == "__main__":
    main()
