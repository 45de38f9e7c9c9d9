"""Every loss against its equation written out for single tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.config.training import ObjectiveConfig
from pipeline.grpo.algorithm.loss import LOSSES, ClipRange, k3

LOW, HIGH, ROOM = 0.2, 0.28, 9


@dataclass
class Tokens:
    """R responses of given lengths, padded with garbage."""

    new_RT: Tensor
    old_RT: Tensor
    advantages_R: Tensor
    lengths: list[int]

    @property
    def mask_RT(self) -> Tensor:
        return torch.arange(self.new_RT.shape[1]) < torch.tensor(self.lengths)[:, None]


@st.composite
def tokens(draw: st.DrawFn) -> Tokens:
    groups, size = draw(st.integers(1, 3)), draw(st.integers(2, 4))
    lengths = draw(st.lists(st.integers(0, 6), min_size=groups * size, max_size=groups * size))
    lengths[0] = max(lengths[0], 1)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    shape = (len(lengths), max(lengths) + draw(st.integers(0, 2)))
    old_RT = -torch.rand(shape, generator=generator, dtype=torch.float64) * 3
    new_RT = old_RT + torch.randn(shape, generator=generator, dtype=torch.float64) * draw(
        st.sampled_from([0.0, 0.3, 1])
    )
    made = Tokens(new_RT, old_RT, torch.randn(len(lengths), generator=generator, dtype=torch.float64), lengths)
    for padded in (made.new_RT, made.old_RT):
        padded[~made.mask_RT] = draw(st.sampled_from([-math.inf, math.inf, 7.0]))
    made.new_RT.requires_grad_(True)
    return made


def clipped(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


Row = tuple[Tensor, Tensor, Tensor]
"""new [T], old [T] and advantage of one response that has a token."""


def grpo(rows: list[Row], low: float = LOW, high: float = HIGH, room: int = ROOM) -> Tensor:
    means = [
        torch.stack([clipped((n - o).exp(), a, low, high) for n, o in zip(new, old, strict=True)]).mean()
        for new, old, a in rows
    ]
    return -torch.stack(means).mean()


def dapo(rows: list[Row], low: float = LOW, high: float = HIGH, room: int = ROOM) -> Tensor:
    return -torch.stack(
        [clipped((n - o).exp(), a, low, high) for new, old, a in rows for n, o in zip(new, old, strict=True)]
    ).mean()


def dr_grpo(rows: list[Row], low: float = LOW, high: float = HIGH, room: int = ROOM) -> Tensor:
    terms = [clipped((n - o).exp(), a, low, high) for new, old, a in rows for n, o in zip(new, old, strict=True)]
    return -torch.stack(terms).sum() / (len(rows) * room)


def gspo(rows: list[Row], low: float = LOW, high: float = HIGH, room: int = ROOM) -> Tensor:
    return -torch.stack([clipped((new - old).mean().exp(), a, low, high) for new, old, a in rows]).mean()


def cispo(rows: list[Row], low: float = LOW, high: float = HIGH, room: int = ROOM) -> Tensor:
    terms = []
    for new, old, a in rows:
        weight = (new - old).exp().clamp(1 - low, 1 + high).detach()
        terms += list(weight * a * new)
    return -torch.stack(terms).mean()


TWINS: dict[str, Callable[..., Tensor]] = {
    "grpo": grpo,
    "dapo": dapo,
    "dr_grpo": dr_grpo,
    "gspo": gspo,
    "cispo": cispo,
}


@pytest.mark.parametrize("name", LOSSES)
@given(made=tokens(), parts=st.integers(1, 3))
def test_loss_and_gradient_equal_the_equation(name: str, made: Tokens, parts: int) -> None:
    rows = [
        (made.new_RT[r, :length], made.old_RT[r, :length], made.advantages_R[r])
        for r, length in enumerate(made.lengths)
        if length
    ]
    expected = TWINS[name](rows)
    (gradient,) = torch.autograd.grad(expected, made.new_RT)

    loss, summed, count = LOSSES[name], torch.zeros(()), 0
    for rows_of_part in torch.arange(len(made.lengths)).chunk(parts):  # micro-batches: sum first, divide once
        mask_RT = made.mask_RT[rows_of_part]
        new_RT, old_RT, advantages_R = (
            tensor[rows_of_part] for tensor in (made.new_RT, made.old_RT, made.advantages_R)
        )
        terms_RT = loss.terms(new_RT, old_RT, advantages_R, mask_RT, ClipRange(LOW, HIGH))
        summed = summed + (terms_RT * loss.weights(mask_RT, ROOM)).sum()
        count += loss.count(mask_RT)
    found = summed / count
    torch.testing.assert_close(found, expected.to(found.dtype))
    found.backward()
    torch.testing.assert_close(made.new_RT.grad, gradient)


@given(made=tokens())
def test_on_policy_all_differ_by_weights_alone(made: Tokens) -> None:
    mask_RT = made.mask_RT
    gradients = {}
    for name, loss in LOSSES.items():
        made.new_RT.grad = None
        loss.terms(made.new_RT, made.new_RT.detach(), made.advantages_R, mask_RT, ClipRange(LOW, HIGH)).sum().backward()
        gradients[name] = made.new_RT.grad
    expected = (-made.advantages_R[:, None] * mask_RT).to(torch.float64)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected, msg=name)


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate"),
    [
        (1.0, 2.0, 2.0),
        (1.5, 2.0, 2.56),  # clipped: no reason to push further up
        (1.25, 2.0, 2.5),  # not clipped: the upper bound is higher than the lower one is low
        (1.5, -2.0, -3.0),  # not clipped: the bad token became likelier
        (0.5, 2.0, 1.0),  # not clipped: the good token became less likely
        (0.5, -2.0, -1.6),  # clipped: no reason to push further down
    ],
)
def test_clipping_by_hand(ratio: float, advantage: float, surrogate: float) -> None:
    new, mask = torch.tensor([[math.log(0.3 * ratio)]], requires_grad=True), torch.tensor([[True]])
    for name in ("grpo", "gspo"):
        new.grad = None
        old, bounds = torch.tensor([[math.log(0.3)]]), ClipRange(LOW, HIGH)
        loss = LOSSES[name].terms(new, old, torch.tensor([advantage]), mask, bounds).sum()
        assert loss.item() == pytest.approx(-surrogate, rel=1e-6)
        loss.backward()
        is_clipped = surrogate != pytest.approx(ratio * advantage)
        assert new.grad is not None
        assert new.grad.item() == pytest.approx(0.0 if is_clipped else -ratio * advantage, rel=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "low", "high"),
    [
        (1.3, 1.0, False, True),
        (1.25, 1.0, False, False),  # between 1 + clip and 1 + clip_high
        (1.3, -1.0, False, False),
        (0.7, -1.0, True, False),
        (0.7, 1.0, False, False),
        (1.0, 1.0, False, False),
    ],
)
def test_where_a_bound_acts_the_token_has_no_gradient(ratio: float, advantage: float, low: bool, high: bool) -> None:
    new, old = torch.tensor([[math.log(0.3 * ratio), -9.0]], requires_grad=True), torch.tensor([[math.log(0.3), 9.0]])
    mask, advantages, bounds = torch.tensor([[True, False]]), torch.tensor([advantage]), ClipRange(LOW, HIGH)
    for loss in (LOSSES["grpo"], LOSSES["dapo"], LOSSES["dr_grpo"], LOSSES["gspo"]):
        new.grad = None
        loss.terms(new, old, advantages, mask, bounds).sum().backward()
        below, above = loss.clipped(new, old, advantages, mask, bounds)
        assert (below.tolist(), above.tolist()) == ([[low, False]], [[high, False]])
        assert new.grad is not None and (new.grad[0, 0] == 0) == (low or high)


def test_a_clipped_weight_is_counted_whatever_the_advantage() -> None:
    new, old = (0.3 * torch.tensor([[0.5, 1.2, 1.3, 9.0]])).log(), torch.full((1, 4), 0.3).log()
    mask = torch.tensor([[True, True, True, False]])
    for advantage in (-1.0, 0.0, 1.0):
        below, above = LOSSES["cispo"].clipped(new, old, torch.tensor([advantage]), mask, ClipRange(LOW, HIGH))
        assert below.tolist() == [[True, False, False, False]] and above.tolist() == [[False, False, True, False]]


def test_k3_is_unbiased_and_never_negative() -> None:
    generator = torch.Generator().manual_seed(0)
    policy_V, reference_V = torch.randn(2, 6, generator=generator).log_softmax(dim=-1)
    estimates_V = k3(policy_V[None], reference_V[None], torch.ones(1, 6, dtype=torch.bool))[0]
    assert (estimates_V >= 0).all()
    exact = (policy_V.exp() * (policy_V - reference_V)).sum()
    torch.testing.assert_close((policy_V.exp() * estimates_V).sum(), exact)


def test_every_name_of_the_recipe_is_there() -> None:
    assert set(get_args(ObjectiveConfig.model_fields["loss"].annotation)) == set(LOSSES) == set(TWINS)
