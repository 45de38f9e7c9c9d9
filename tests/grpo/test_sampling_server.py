"""The sampling server's wire, over real HTTP; what samples behind it is the built-in sampler instead of vLLM."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import pytest
import uvicorn

from pipeline.core.errors import UserError
from pipeline.grpo.sampler import Sampler
from pipeline.grpo.types import SamplingRequest
from pipeline.grpo.vllm_sampler import RemoteEngine, Sampled, VllmSampler
from pipeline.grpo.vllm_server import application
from tests.grpo.models import tiny
from tests.grpo.test_sampler import TOKENIZER, some_prompts

EOS = range(0, 61, 6)


class BuiltIn:
    """A token engine that samples by the built-in sampler."""

    def generate(self, request: SamplingRequest, stop_ids: Sequence[int]) -> list[Sampled]:
        made = Sampler(tiny(), TOKENIZER, stop_ids).sample(request)
        return [(response.ids, response.logprobs, response.finished) for response in made]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application(cast("Any", BuiltIn()), None), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_a_request_arrives_as_it_was_sent(url: str) -> None:
    """Numbers of numpy, seeds of 64 bits, and what ends a response included."""
    prompts = some_prompts(4)
    seeds = np.arange(8, dtype=np.uint64) + np.uint64(2**63)
    request = SamplingRequest([np.array(prompt) for prompt in prompts], 2, 0.7, 3, seeds)  # type: ignore[arg-type, list-item]
    here, there = Sampler(tiny(), TOKENIZER, EOS), VllmSampler(RemoteEngine(url), TOKENIZER, EOS)
    found, expected = there.sample(request), here.sample(request)
    assert [(r.ids, r.text, r.finished) for r in found] == [(r.ids, r.text, r.finished) for r in expected]
    assert {r.finished for r in expected} == {False, True}
    assert [r.logprobs for r in found] == [pytest.approx(r.logprobs) for r in expected]
    assert there.direct(prompts) == here.direct(prompts)
    assert there.sample(SamplingRequest([], 2, 0.7, 12, [])) == there.direct([]) == []


def test_a_seed_is_needed_for_each_response() -> None:
    with pytest.raises(ValueError, match="a seed for each response is needed: 4, got 3"):
        SamplingRequest([[1], [2]], 2, 1.0, 8, [0, 1, 2])


def test_a_server_that_is_not_there_is_named(url: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(UserError, match="cannot be reached"):
            VllmSampler(RemoteEngine(gone), TOKENIZER, EOS).direct([[1]])
