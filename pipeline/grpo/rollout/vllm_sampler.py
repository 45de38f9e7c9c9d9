"""Sampling with vLLM, with the same methods as the built-in sampler: in this process, or on a server.

Prompts and responses are token ids throughout. The difference between the log-probabilities of vLLM and of the trainer
is measured at every update (`sampler/logprob_gap`), and training does not start if the first ones do not agree.
"""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode, urlsplit

import torch
from torch import Tensor

from pipeline.config.errors import UserError
from pipeline.config.training import RolloutConfig
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.policy import distributed
from pipeline.grpo.rollout.sampler_secret import shared_secret
from pipeline.grpo.types import Response, SamplingRequest

Sampled = Sequence[Any]
"""Token ids [T], log-probabilities [T], finished: `vllm_engine.Sampled`, or the same parsed from JSON."""


class TokenEngine(Protocol):
    """Interface of engines that sample token ids: `vllm_engine.VllmEngine`, or `RemoteEngine`, its client."""

    def generate(self, request: SamplingRequest, stop_ids: Sequence[int]) -> Sequence[Sampled]:
        """Sample the P·G responses, in the order of the request's seeds."""

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace all weights, given by their `transformers` names."""

    def close(self) -> None:
        """Release the engine's resources."""


class VllmSampler:
    """A `ResponseSampler` that samples with vLLM."""

    def __init__(self, engine: TokenEngine, tokenizer: CorpusTokenizer, eos_ids: Iterable[int]) -> None:
        self.eos_ids = frozenset(eos_ids)
        self._engine, self._tokenizer = engine, tokenizer

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the weights, given by their `transformers` names. Every rank must call it."""
        self._engine.load_weights(weights)

    def sample(self, request: SamplingRequest) -> list[Response]:
        """Sample the P·G responses, in the order of the request's seeds."""
        if not request.prompts:
            return []
        sampled, token_bytes = self._engine.generate(request, sorted(self.eos_ids)), self._tokenizer.token_bytes
        return [Response.of(ids, logprobs, finished, token_bytes) for ids, logprobs, finished in sampled]

    def close(self) -> None:
        """Release the engine. Call it before the process group is destroyed."""
        self._engine.close()


def start_vllm(
    folder: Path,
    tokenizer: CorpusTokenizer,
    eos_ids: Iterable[int],
    rollout: RolloutConfig,
    *,
    dtype: str,
    max_tokens: int,
    server: str | None,
) -> VllmSampler:
    """Return a sampler that uses vLLM on `server`, or in this process if `server` is None.

    Args:
        folder: the policy that vLLM in this process starts from.
        tokenizer: the policy's tokenizer.
        eos_ids: ids that end a response.
        rollout: rows and memory of vLLM in this process.
        dtype: dtype of its weights.
        max_tokens: maximum tokens of a prompt and its response.
        server: `http://host:port` of a `pipeline.grpo.rollout.vllm_server`.

    Raises:
        UserError: vLLM is not installed, or there are several ranks without a server.
    """
    if server is not None:
        return VllmSampler(RemoteEngine(server), tokenizer, eos_ids)
    if distributed.world_size() > 1:
        raise UserError(
            "vLLM in the trainer's process supports one rank only",
            hint="start `python -m pipeline.grpo.rollout.vllm_server FOLDER` and pass its address as --vllm-server",
        )
    try:
        from pipeline.grpo.rollout.vllm_engine import VllmEngine
    except ImportError as error:
        raise UserError(
            f"vLLM cannot be imported ({error})",
            where="rollout.sampler",
            hint="`pip install 'rpt[vllm]'`, pass --vllm-server, or set `rollout.sampler: built_in`",
        ) from error
    engine = VllmEngine(folder, dtype, max_tokens, rollout.batch_rows, rollout.vllm_memory_fraction)
    return VllmSampler(engine, tokenizer, eos_ids)


class RemoteEngine:
    """Client of a `pipeline.grpo.rollout.vllm_server`. Several ranks can share one; rank 0 sends the weights.

    Args:
        url: `http://host:port`.
        seconds: timeout of each request, so that a server that hangs is an error.
    """

    def __init__(self, url: str, seconds: float = 600.0) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise UserError("not the address of a sampling server", where=url, hint="use the form http://host:port")
        self._url, self._host, self._port, self._seconds = url, parts.hostname, parts.port or 80, seconds

    def generate(self, request: SamplingRequest, stop_ids: Sequence[int]) -> Sequence[Sampled]:
        """Sample on the server, as `vllm_engine.VllmEngine.generate` does."""
        request = replace(  # JSON cannot encode NumPy integers
            request,
            prompts=[list(map(int, prompt)) for prompt in request.prompts],
            seeds=list(map(int, request.seeds)),
        )
        body = {"request": asdict(request), "stop_ids": list(stop_ids)}
        return self._send_request("POST", "/sample", json.dumps(body).encode())

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Send the weights one parameter at a time, to save memory, and compare the checksum of each on arrival."""
        names = []
        for name, tensor in weights:
            if distributed.rank() == 0:
                self._send_parameter(name, tensor)
                names.append(name)
        if distributed.rank() == 0:
            self._send_request("POST", "/commit", json.dumps({"names": names}).encode())
        distributed.barrier()  # no rank samples before the weights have arrived

    def close(self) -> None:
        """Do nothing: the server keeps running, so that it can serve another run."""

    def _send_parameter(self, name: str, tensor: Tensor) -> None:
        body = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        query = {
            "name": name,
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": ",".join(map(str, tensor.shape)),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        arrived = self._send_request("PUT", f"/parameter?{urlencode(query)}", body)["sha256"]
        if arrived != query["sha256"]:
            raise UserError(
                f"the weights of {name} were corrupted in transfer", where=self._url, hint="restart the sampling server"
            )

    def _send_request(self, method: str, path: str, body: bytes) -> Any:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._seconds)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {shared_secret()}"}
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        except TimeoutError as error:
            raise UserError(
                f"the sampling server did not answer within {self._seconds:g} s",
                where=self._url,
                hint="restart it, then run the same command again to resume",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise UserError(
                f"the sampling server cannot be reached ({error})",
                where=self._url,
                hint="start it with `python -m pipeline.grpo.rollout.vllm_server FOLDER`, where vLLM is installed",
            ) from error
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            raise UserError(f"the sampling server answered {answer.status}: {_reason(content)}", where=self._url)
        return json.loads(content)


def _reason(content: bytes) -> str:
    try:
        return str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        return content[:200].decode(errors="replace").strip()
