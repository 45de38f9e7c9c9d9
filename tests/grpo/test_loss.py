from __future__ import annotations

import math

import pytest
import torch

from pipeline.grpo.loss import grpo

MASK = torch.tensor([[True]])


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate"),
    [
        (1.0, 2.0, 2.0),
        (1.5, 2.0, 2.4),  # clipped: no reason to push further up
        (1.5, -2.0, -3.0),  # not clipped: the bad token became likelier
        (0.5, 2.0, 1.0),  # not clipped: the good token became less likely
        (0.5, -2.0, -1.6),  # clipped: no reason to push further down
    ],
)
def test_clipping_by_hand(ratio: float, advantage: float, surrogate: float) -> None:
    new = torch.tensor([[math.log(0.3 * ratio)]], requires_grad=True)
    loss = grpo(new, torch.tensor([[math.log(0.3)]]), torch.tensor([advantage]), MASK, clip=0.2)
    assert loss.item() == pytest.approx(-surrogate, rel=1e-6)
    loss.backward()
    clipped = surrogate != pytest.approx(ratio * advantage)
    assert new.grad is not None
    assert new.grad.item() == pytest.approx(0.0 if clipped else -ratio * advantage, rel=1e-6)


def test_it_is_a_sum_over_tokens_of_responses_only() -> None:
    logprobs_RT = torch.randn(3, 4, requires_grad=True)
    mask_RT = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    advantages_R = torch.tensor([1.0, -2.0, 0.5])
    loss = grpo(logprobs_RT, logprobs_RT.detach(), advantages_R, mask_RT, 0.2)
    assert loss.item() == pytest.approx(-(3 * 1.0 + 1 * -2.0 + 4 * 0.5))
    loss.backward()
    assert logprobs_RT.grad is not None
    torch.testing.assert_close(logprobs_RT.grad, -advantages_R[:, None] * mask_RT)


def test_garbage_outside_the_mask_does_no_harm() -> None:
    logprobs = torch.tensor([[-1.0, math.inf]], requires_grad=True)
    loss = grpo(logprobs, logprobs.detach(), torch.tensor([1.0]), torch.tensor([[True, False]]), 0.2)
    assert loss.item() == -1.0
