"""An update in bfloat16 on a GPU attends by variable-length flash attention, and computes what it does on the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from pipeline.grpo.batch import idle_batch, micro_batches
from pipeline.grpo.logprobs import PolicyLogprobs
from pipeline.grpo.loss import LOSSES, Bounds
from pipeline.grpo.objective import Objective
from pipeline.grpo.packed_attention import Attend, fastest, joined, proven, repeated
from pipeline.grpo.varlen_attention import varlen
from tests.gpu.simulated import KERNELS, SimulatedGpu
from tests.grpo import plain_flash
from tests.grpo.models import TEMPERATURE, groups_of, tiny

aten = torch.ops.aten
OBJECTIVE = Objective(LOSSES["dapo"], Bounds(0.2, 0.2), TEMPERATURE, room=8)
LENGTHS = [(9, [7, 3, 1]), (1, [4, 2, 6]), (4, [1, 1, 5]), (12, [3, 7, 2]), (7, [5, 5, 5])]


@pytest.fixture
def calls(gpu: SimulatedGpu | None) -> Iterator[Counter[str]]:
    """How often the pretended GPU was asked for what only GPUs have."""
    counted: Counter[str] = Counter()

    def flash(*args: Any, **kwargs: Any) -> Any:
        counted["forward"] += 1
        return plain_flash.forward(*args, **kwargs)

    def flash_backward(*args: Any, **kwargs: Any) -> Any:
        counted["backward"] += 1
        return plain_flash.backward(*args, **kwargs)

    def addmm(total: Tensor, a: Tensor, b: Tensor, out_dtype: torch.dtype, *, out: Any = None, **scales: Any) -> Tensor:
        counted["addmm"] += 1
        return torch.addmm(total, a.to(out_dtype), b.to(out_dtype), out=out, **scales)

    kernels = {
        aten._flash_attention_forward.default: flash,
        aten._flash_attention_backward.default: flash_backward,
        aten.addmm.dtype: addmm,
        aten.addmm.dtype_out: addmm,
    }
    proven.cache_clear()
    with patch.dict(KERNELS, kernels):
        yield counted
    proven.cache_clear()


@pytest.mark.parametrize("logits_at_once", [300, None])
@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_gradients_in_bfloat16(
    kind: str, logits_at_once: int | None, gpu: SimulatedGpu | None, calls: Counter[str]
) -> None:
    here, there = tiny(kind), tiny(kind).to(device="cuda", dtype=torch.bfloat16)
    learn(PolicyLogprobs(here), "cpu")
    heads = here.config.num_attention_heads, here.config.num_key_value_heads
    assert proven(there.device, torch.bfloat16, *heads, here.config.hidden_size // heads[0])
    calls.clear()
    waited = len(gpu.syncs) if gpu else 0
    batches = learn(PolicyLogprobs(there, logits_at_once=logits_at_once), "cuda")
    if gpu is not None:
        layers = 2 * (2 * (batches - 1) + 1)  # an idle one has no readers
        assert calls["forward"] == calls["backward"] == layers
        assert calls["addmm"] > 0
        assert len(gpu.syncs) - waited == 3 * batches, "for two masks and the targets, whatever the number of layers"
    for (name, expected), found in zip(here.named_parameters(), there.parameters(), strict=True):
        largest = float(expected.grad.abs().max())
        torch.testing.assert_close(found.grad.float().cpu(), expected.grad, rtol=0, atol=0.05 * largest, msg=name)


@pytest.mark.usefixtures("calls")
def test_kernels_are_proven_in_the_midst_of_a_layer_that_is_run_again() -> None:
    policies = [tiny().to(device="cuda", dtype=torch.bfloat16).train() for _ in range(2)]
    policies[0].gradient_checkpointing_enable({"use_reentrant": False})
    for model in policies:
        learn(PolicyLogprobs(model), "cuda")
    for again, once in zip(*(model.parameters() for model in policies), strict=True):
        torch.testing.assert_close(again.grad.cpu(), once.grad.cpu(), rtol=0.02, atol=1e-3)


@pytest.mark.usefixtures("calls")
def test_the_kernel_is_asked_for_what_it_takes() -> None:
    def chosen(dtype: torch.dtype, dimension: int, device: str = "cuda") -> Attend:
        states = torch.zeros(1, 2, 3, dimension, dtype=dtype, device=device)
        return fastest(states, states)

    assert chosen(torch.bfloat16, 64) is chosen(torch.float16, 256) is varlen
    assert chosen(torch.float32, 64) is chosen(torch.bfloat16, 12) is chosen(torch.bfloat16, 264) is repeated
    assert chosen(torch.bfloat16, 64, "cpu") is joined


@pytest.mark.parametrize("wrong", ["forward", "backward", "refused", "not a number"])
def test_kernels_that_are_wrong_are_not_used(wrong: str, gpu: SimulatedGpu | None, calls: Counter[str]) -> None:
    """A result or a gradient too large, a gradient that is no number; a kernel that this build does not have."""
    if gpu is None:
        pytest.skip("exchanges what a pretended GPU computes with")

    def spoiled(*args: Any, **kwargs: Any) -> Any:
        if wrong == "refused":
            raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")
        if wrong == "not a number":
            *others, last = plain_flash.backward(*args, **kwargs)
            return (*others, last * torch.nan)
        out, *others = getattr(plain_flash, wrong)(*args, **kwargs)
        return (out * 1.2, *others)

    name = {"refused": "forward", "not a number": "backward"}.get(wrong, wrong)
    states = torch.zeros(1, 2, 3, 64, dtype=torch.bfloat16, device="cuda")
    with patch.dict(KERNELS, {getattr(aten, f"_flash_attention_{name}").default: spoiled}):
        with pytest.warns(UserWarning, match="no variable-length flash attention"):
            assert fastest(states, states) is repeated
        assert fastest(states, states) is repeated, "and is said once"


def learn(policy: PolicyLogprobs, device: str) -> int:
    """Gradients of micro-batches, the last of them an idle one; how many they are."""
    batches = [*micro_batches(groups_of(LENGTHS), 60), idle_batch()]
    count = sum(int(batch.mask_RT.sum()) for batch in batches)
    for batch in (batch.to(torch.device(device)) for batch in batches):
        (OBJECTIVE.summed(batch, *policy(batch, TEMPERATURE)) / count).backward()
    return len(batches)
