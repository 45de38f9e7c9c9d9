"""Sampling with vLLM, behind the same methods as the built-in sampler: in this process, or in a server's.

Token ids go end to end. How far vLLM and the trainer disagree about the same weights is measured at every update
(`sampler/logprob_gap`), and a policy whose first log-probabilities do not agree is refused before training starts.
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
from pipeline.task.reward import response_bytes

Sampled = Sequence[Any]
"""Token ids [T], log-probabilities [T], finished: `vllm_engine.Sampled`, or the same out of JSON."""


class TokenEngine(Protocol):
    """What samples token ids: `vllm_engine.VllmEngine`, or `RemoteEngine`, which speaks to one."""

    def generate(self, request: SamplingRequest, stop_ids: Sequence[int]) -> Sequence[Sampled]: ...

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None: ...

    def close(self) -> None: ...


class VllmSampler:
    """`pipeline.grpo.rollout.sampler.Sampler`, by another engine."""

    def __init__(self, engine: TokenEngine, tokenizer: CorpusTokenizer, eos_ids: Iterable[int]) -> None:
        self.eos_ids = frozenset(eos_ids)
        self._engine, self._tokenizer = engine, tokenizer

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the weights, given by their `transformers` names. Every rank must call it."""
        self._engine.load_weights(weights)

    def sample(self, request: SamplingRequest) -> list[Response]:
        """The P·G responses, in the order of the request's seeds."""
        if not request.prompts:
            return []
        return [self._response(*sampled) for sampled in self._engine.generate(request, sorted(self.eos_ids))]

    def direct(self, contexts: Sequence[Sequence[int]]) -> list[int]:
        """The most likely next token after each context (see `Sampler.direct`)."""
        if not contexts:
            return []
        request = SamplingRequest(contexts, group_size=1, temperature=0.0, max_new_tokens=1, seeds=[0] * len(contexts))
        made = self._engine.generate(request, [])
        return [ids[0] for ids, *_ in made]

    def close(self) -> None:
        """Release the engine, before the process group is left."""
        self._engine.close()

    def _response(self, ids: Sequence[int], logprobs: Sequence[float], finished: bool) -> Response:
        text = response_bytes(ids[:-1] if finished else ids, self._tokenizer.token_bytes)
        return Response(tuple(ids), text, finished, tuple(logprobs))


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
    """vLLM on `server`, or in this process.

    Args:
        folder: the policy a vLLM in this process starts from.
        tokenizer: the policy's.
        eos_ids: ids that end a response.
        rollout: rows and memory of a vLLM in this process.
        dtype: of its weights.
        max_tokens: longest prompt and response together.
        server: `http://host:port` of a `pipeline.grpo.rollout.vllm_server`.

    Raises:
        UserError: vLLM is not installed, or several ranks would each want one.
    """
    if server is not None:
        return VllmSampler(RemoteEngine(server), tokenizer, eos_ids)
    if distributed.world_size() > 1:
        raise UserError(
            "a vLLM in the trainer's process serves one rank",
            hint="start `python -m pipeline.grpo.rollout.vllm_server FOLDER` and give its address as --vllm-server",
        )
    try:
        from pipeline.grpo.rollout.vllm_engine import VllmEngine
    except ImportError as error:
        raise UserError(
            f"vLLM cannot be imported ({error})",
            where="rollout.sampler",
            hint="`pip install 'rpt[vllm]'`, give --vllm-server, or choose `rollout.sampler: built_in`",
        ) from error
    engine = VllmEngine(folder, dtype, max_tokens, rollout.batch_rows, rollout.vllm_memory_fraction)
    return VllmSampler(engine, tokenizer, eos_ids)


class RemoteEngine:
    """A `pipeline.grpo.rollout.vllm_server` somewhere else. Several ranks may share one; rank 0 hands over the weights.

    Args:
        url: `http://host:port`.
        seconds: that any answer may take: a server that hangs is an error, not a run that never ends.
    """

    def __init__(self, url: str, seconds: float = 600.0) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise UserError("not the address of a sampling server", where=url, hint="give http://host:port")
        self._url, self._host, self._port, self._seconds = url, parts.hostname, parts.port or 80, seconds

    def generate(self, request: SamplingRequest, stop_ids: Sequence[int]) -> Sequence[Sampled]:
        """As `vllm_engine.VllmEngine.generate`, by the server."""
        request = replace(  # JSON knows no numbers of numpy
            request,
            prompts=[list(map(int, prompt)) for prompt in request.prompts],
            seeds=list(map(int, request.seeds)),
        )
        asked = {"request": asdict(request), "stop_ids": list(stop_ids)}
        return self._ask("POST", "/sample", json.dumps(asked).encode())

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Parameter by parameter: none is held twice here, and each must arrive with the checksum it left with."""
        names = []
        for name, tensor in weights:
            if distributed.rank() == 0:
                self._send(name, tensor)
                names.append(name)
        if distributed.rank() == 0:
            self._ask("POST", "/commit", json.dumps({"names": names}).encode())
        distributed.barrier()  # no rank samples before the weights are there

    def close(self) -> None:
        """The server goes on: it may serve another run."""

    def _send(self, name: str, tensor: Tensor) -> None:
        body = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        facts = {
            "name": name,
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": ",".join(map(str, tensor.shape)),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        arrived = self._ask("PUT", f"/parameter?{urlencode(facts)}", body)["sha256"]
        if arrived != facts["sha256"]:
            raise UserError(f"weights of {name} arrived changed", where=self._url, hint="restart the sampling server")

    def _ask(self, method: str, path: str, body: bytes) -> Any:
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
