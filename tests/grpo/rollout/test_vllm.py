"""vLLM for real: a server in an environment of its own (`make vllm-cpu`), the demo's policy, and weights handed over.

Without that environment these tests skip and say so.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from pipeline.config.errors import UserError
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.policy import distributed
from pipeline.grpo.rollout.response_ends import response_ends
from pipeline.grpo.rollout.sampler import Sampler
from pipeline.grpo.rollout.sampler_secret import VARIABLE
from pipeline.grpo.rollout.token_sampling import rollout_seed
from pipeline.grpo.rollout.vllm_sampler import RemoteEngine, VllmSampler
from pipeline.grpo.types import Response, SamplingRequest

ROOT = Path(__file__).parent.parent.parent.parent
POLICY = ROOT / "demo" / "policy"
PYTHON = Path(os.environ.get("RPT_VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))

pytestmark = [
    pytest.mark.skipif(not PYTHON.exists(), reason="no environment with vLLM: `make vllm-cpu`, or set RPT_VLLM_PYTHON"),
    pytest.mark.xdist_group("vllm"),
]


@pytest.fixture(scope="module", autouse=True)
def secret() -> Iterator[None]:
    """One that only these tests know, on both sides."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "only-known-here")
        yield


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(PYTHON),
        "-m",
        "pipeline.grpo.rollout.vllm_server",
        str(POLICY),
        "--port",
        str(port),
        "--max-tokens",
        "512",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout
    lines = iter(process.stdout.readline, "")
    assert any(line.startswith("ready") for line in lines), "the server did not start"
    yield f"http://127.0.0.1:{port}", process
    process.kill()
    process.wait()


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one rank, as a run has it."""
    distributed.prepare_environment()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def policy() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float32)


def prompts(tokens: CorpusTokenizer) -> list[list[int]]:
    texts = ["Problem: the counter reads 1 and is given A2, B5", "Problem: Zoë's", "Complete the text: 甲 and 🌑 then"]
    return [tokens.encode(text).tolist() for text in texts]


def seeds(n: int) -> list[int]:
    return [rollout_seed(0, 0, "site", sample) for sample in range(n)]


def gap(model: torch.nn.Module, prompt: list[int], response: Response, temperature: float) -> float:
    """Largest difference between the sampler's log-probabilities and a plain forward pass."""
    ids = torch.tensor([[*prompt, *response.ids]])
    with torch.no_grad():
        logits_TV = model(ids).logits[0, len(prompt) - 1 : -1] / temperature
    plain_T = logits_TV.log_softmax(-1).gather(1, torch.tensor(response.ids)[:, None])[:, 0]
    return float((plain_T - torch.tensor(response.logprobs)).abs().max())


def sampler(url: str) -> tuple[VllmSampler, CorpusTokenizer, RemoteEngine]:
    tokens, engine = CorpusTokenizer.load(str(POLICY)), RemoteEngine(url, seconds=120)
    return VllmSampler(engine, tokens, response_ends(POLICY, tokens).ids), tokens, engine


def test_same_weights_same_log_probabilities_before_and_after_a_sync(
    server: tuple[str, subprocess.Popen[str]], alone: None, policy: torch.nn.Module
) -> None:
    remote, tokens, _ = sampler(server[0])
    remote.load_weights(policy.named_parameters())
    asked = prompts(tokens)
    for temperature in (0.5, 1.0):
        made = remote.sample(SamplingRequest(asked, 2, temperature, 12, seeds(6)))
        assert max(gap(policy, asked[i // 2], r, temperature) for i, r in enumerate(made)) < 1e-4
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += torch.randn_like(parameter) * 0.05
    stale = remote.sample(SamplingRequest(asked, 2, 1.0, 12, seeds(6)))
    assert max(gap(policy, asked[i // 2], r, 1.0) for i, r in enumerate(stale)) > 0.1
    remote.load_weights(policy.named_parameters())
    fresh = remote.sample(SamplingRequest(asked, 2, 1.0, 12, seeds(6)))
    assert max(gap(policy, asked[i // 2], r, 1.0) for i, r in enumerate(fresh)) < 1e-4


def test_it_reads_and_samples_as_the_built_in_sampler(
    server: tuple[str, subprocess.Popen[str]], alone: None, policy: torch.nn.Module
) -> None:
    remote, tokens, _ = sampler(server[0])
    remote.load_weights(policy.named_parameters())
    built_in = Sampler.load(POLICY, tokens)
    asked = prompts(tokens)
    greedy, expected = (
        remote.sample(SamplingRequest(asked, 1, 0.0, 16, [0] * 3)),
        built_in.sample(SamplingRequest(asked, 1, 0.0, 16, [0] * 3)),
    )
    assert [(r.ids, r.text, r.finished) for r in greedy] == [(r.ids, r.text, r.finished) for r in expected]


def test_a_response_is_a_function_of_its_seed_whatever_shares_the_batch(
    server: tuple[str, subprocess.Popen[str]], alone: None
) -> None:
    remote, tokens, _ = sampler(server[0])
    asked = prompts(tokens)
    together = remote.sample(SamplingRequest(asked, 4, 1.0, 12, seeds(12)))
    assert len({r.ids for r in together[:4]}) > 1
    assert remote.sample(SamplingRequest(asked[1:2], 4, 1.0, 12, seeds(12)[4:8])) == together[4:8]


def test_weights_that_arrive_changed_or_incomplete_are_refused(
    server: tuple[str, subprocess.Popen[str]], alone: None, policy: torch.nn.Module
) -> None:
    engine = RemoteEngine(server[0], seconds=60)
    with pytest.raises(UserError, match="bytes differ from what was sent"):
        engine._send_request("PUT", "/parameter?name=x&dtype=float32&shape=1&sha256=" + "0" * 64, b"\0\0\0\0")
    engine._send_parameter("model.norm.weight", policy.get_parameter("model.norm.weight"))
    with pytest.raises(UserError, match="2 parameters are not as announced"):
        engine._send_request("POST", "/commit", b'{"names": ["model.norm.bias"]}')


def test_a_server_that_hangs_is_an_error_with_a_time_limit(
    server: tuple[str, subprocess.Popen[str]], alone: None
) -> None:
    remote, tokens, engine = sampler(server[0])
    engine._seconds = 1.0
    server[1].send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(UserError, match="did not answer within 1 s"):
            remote.sample(SamplingRequest(prompts(tokens), 1, 0.0, 1, [0] * 3))
    finally:
        server[1].send_signal(signal.SIGCONT)
        engine._seconds = 120


def test_no_server_is_an_error_that_says_how_to_start_one(alone: None) -> None:
    with pytest.raises(UserError, match=r"cannot be reached .*vllm_server"):
        RemoteEngine("http://127.0.0.1:9", seconds=5)._send_request("GET", "/health", b"")
