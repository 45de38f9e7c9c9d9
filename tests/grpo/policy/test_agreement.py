from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import dropout

from pipeline.config.errors import UserError
from pipeline.grpo.model.logprobs import PolicyLogprobs
from pipeline.grpo.policy.agreement import sampler_gap, verify
from pipeline.grpo.types import Response
from tests.grpo.models import plain_logprobs, tiny

PROMPT = list(range(3, 23))


def gap(learner: Any, dtype: torch.dtype = torch.float32) -> float:
    """What `verify` says of a learner and a copy of the tiny policy."""
    policy = PolicyLogprobs(learner)
    return verify(policy, learner.named_parameters(), tiny().to(dtype), PROMPT, 0.7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_policy_that_is_random_in_evaluation_too_is_refused_as_random(dtype: torch.dtype) -> None:
    model = tiny().to(dtype)
    model.model.layers[0].mlp.register_forward_hook(lambda *seen: dropout(seen[-1], 0.5, training=True))
    with pytest.raises(UserError, match=r"the policy is not deterministic: two passes.*dropout"):
        gap(model, dtype)


def test_a_policy_that_equals_its_copy_is_accepted() -> None:
    assert gap(tiny()) < 1e-4


def test_a_policy_whose_logits_are_something_else_is_told_so() -> None:
    model = tiny()
    model.model.norm.register_forward_hook(lambda *seen: 1.5 * seen[-1])
    with pytest.raises(UserError, match="output head"):
        gap(model)


def test_weights_that_differ_are_named() -> None:
    model = tiny()
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-3
    with pytest.raises(AssertionError, match=r"1 of .* model\.norm\.weight"):
        gap(model)


def test_a_sampler_of_another_policy_is_refused() -> None:
    model, ids = tiny(), (5, 9, 7)
    with torch.no_grad():
        right = Response(ids, b"", True, tuple(plain_logprobs(model, PROMPT, ids, 0.7).tolist()))
        wrong = Response(ids, b"", True, tuple(plain_logprobs(tiny(seed=1), PROMPT, ids, 0.7).tolist()))
    learner = PolicyLogprobs(model)
    assert sampler_gap(learner, right, PROMPT, 0.7) < 1e-4
    with pytest.raises(UserError, match="sampler and trainer differ"):
        sampler_gap(learner, wrong, PROMPT, 0.7)
