"""Sampling, learning and handing over weights on a GPU give what they give on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.grpo.batch import idle_batch, micro_batches
from pipeline.grpo.logprobs import PolicyLogprobs
from pipeline.grpo.loss import LOSSES, Bounds
from pipeline.grpo.objective import Objective
from pipeline.grpo.sampler import Sampler
from tests.gpu.simulated import SimulatedGpu
from tests.grpo.models import TEMPERATURE, saved, some_groups, tiny
from tests.grpo.test_sampler import TOKENIZER, sampler_of, seeds_of, some_prompts

pytestmark = pytest.mark.filterwarnings("error:decoding runs step by step")
KINDS = ["qwen2", "llama", "gpt2", "sliding"]


@pytest.mark.parametrize(("kind", "temperature"), [*((kind, 0.8) for kind in KINDS), ("qwen2", 0.0)])
def test_responses(kind: str, temperature: float, gpu: SimulatedGpu | None) -> None:
    prompts = some_prompts(5)
    asked = prompts, 3, temperature, 70 if kind == "qwen2" else 20, seeds_of(prompts, 3)
    expected = sampler_of(tiny(kind)).sample(*asked)
    found = sampler_of(tiny(kind).to("cuda")).sample(*asked)
    assert [response.ids for response in found] == [response.ids for response in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_a_context(kind: str, gpu: SimulatedGpu | None) -> None:
    contexts, ids = some_prompts(9), [[1, 5, n] for n in range(9)]
    here, there = sampler_of(tiny(kind)), sampler_of(tiny(kind).to("cuda"), prefill_tokens=30)
    assert there.direct(contexts) == here.direct(contexts)
    for a, b in zip(there.next_logprobs(contexts, ids), here.next_logprobs(contexts, ids), strict=True):
        assert a == pytest.approx(b, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_weights(dtype: torch.dtype, tmp_path: Path, gpu: SimulatedGpu | None) -> None:
    """From where they are trained, and from the host, where they are offloaded."""
    prompts = some_prompts(5)
    sampler = Sampler.load(saved(tmp_path), TOKENIZER, dtype=dtype, device="cuda")
    assert sampler.model.device.type == "cuda"
    before = sampler.sample(prompts, 2, 1.0, 9, seeds_of(prompts, 2))
    samples = []
    for device in ("cuda", "cpu"):
        new = tiny(seed=1).to(device=device, dtype=dtype)
        sampler.load_weights((name, tensor.data) for name, tensor in new.named_parameters())
        samples.append(sampler.sample(prompts, 2, 1.0, 9, seeds_of(prompts, 2)))
        sampler.load_weights((name, tensor.data) for name, tensor in tiny(seed=2).named_parameters())
    assert samples[0] == samples[1] != before


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: str, checkpointing: bool, gpu: SimulatedGpu | None) -> None:
    """Of all that an objective has, as `engine.update` asks for them; the last micro-batch is an idle one."""
    objective = Objective(
        LOSSES["grpo"], Bounds(0.2, 0.28), TEMPERATURE, 8, kl=0.1, entropy=0.01, importance_cap=2.0
    )  # fmt: skip
    batches = [*micro_batches(some_groups(5, 3), 90), idle_batch()]
    gradients = {}
    for device in ("cpu", "cuda"):
        model = tiny(kind).to(device)
        if checkpointing:
            model.train().gradient_checkpointing_enable({"use_reentrant": False})
        policy, reference = PolicyLogprobs(model, logits_at_once=1500), PolicyLogprobs(tiny(kind, seed=1).to(device))
        count = sum(objective.loss.count(batch.learned_RT) for batch in batches)
        for batch in (batch.to(torch.device(device)) for batch in batches):
            with torch.no_grad():
                reference_RT, _ = reference(batch, TEMPERATURE)
            summed = objective.summed(batch, *policy(batch, TEMPERATURE, True), reference_RT)
            (summed / count).backward()
        gradients[device] = {name: parameter.grad.cpu() for name, parameter in model.named_parameters()}
    for name, expected in gradients["cpu"].items():
        largest = float(expected.abs().max())
        torch.testing.assert_close(gradients["cuda"][name], expected, rtol=1e-3, atol=largest * 1e-4, msg=name)
