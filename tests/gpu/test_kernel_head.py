"""Log-probabilities and gradients of a policy are the CPU's where the output head's passes are kernels."""

from __future__ import annotations

import pytest
import torch

from pipeline.grpo.batch import batch_of
from pipeline.grpo.logprobs import Passes, PolicyLogprobs, _fastest
from tests.grpo.models import some_groups, tiny


@pytest.mark.filterwarnings("error:the output head")
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("logits_at_once", [None, 61 * 7])
def test_a_policy_learns_the_same(logits_at_once: int | None) -> None:
    batch, gradients = batch_of(some_groups(3, 2)), []
    for device in ("cuda", "cpu"):
        policy = PolicyLogprobs(tiny().to(device), logits_at_once=logits_at_once)
        assert (type(_fastest(policy.head.weight)) is Passes) == (device == "cpu")
        logprobs_RT, entropy_RT = policy(batch.to(torch.device(device)), 0.7, True)
        (logprobs_RT.sum() + 0.3 * entropy_RT.sum()).backward()
        made = [logprobs_RT.detach().cpu(), entropy_RT.detach().cpu()]
        gradients.append([*made, *(p.grad.cpu() for p in policy.parameters() if p.grad is not None)])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("broken", ["read_logits", "into_slope_"])
def test_kernels_that_are_wrong_are_not_used(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.grpo import head_triton

    right = getattr(head_triton, broken)
    monkeypatch.setattr(head_triton, broken, lambda *args: _off(right(*args)))
    with pytest.warns(UserWarning, match="the output head by PyTorch's operations: the kernels are wrong here: off by"):
        assert type(_fastest(torch.zeros(1, 1, device="cuda"))) is Passes


def _off(made: object) -> object:
    """A tenth too large, one tensor or several."""
    return made * 1.1 if isinstance(made, torch.Tensor) else tuple(x * 1.1 for x in made)  # type: ignore[attr-defined]
