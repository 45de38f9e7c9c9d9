"""Policy losses: a term for every token, how much each counts, and what their sum is divided by.

The caller sums terms times weights over all micro-batches and ranks, and divides once by the global count of tokens or
responses. Groups of equal rewards are in neither: they have left before.

Shape names: R responses, T tokens. Ratios ρ are new over old probabilities; old is the policy that sampled. In a step's
only update old is new detached: ρ is 1, no bound acts, and losses differ in their weights alone. With
`optimizer.updates_per_step` above 1 old is the policy before the first of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClipRange:
    """The ratio is kept within [1 − low, 1 + high]."""

    low: float
    high: float

    def clamp(self, ratio: Tensor) -> Tensor:
        """The ratio within the bounds."""
        return ratio.clamp(1 - self.low, 1 + self.high)

    def outside(self, ratio: Tensor) -> tuple[Tensor, Tensor]:
        """Where the ratio is below the lower bound, and where it is above the upper one."""
        return ratio < 1 - self.low, ratio > 1 + self.high


# ------------------------------------------------------------------------------------- terms [R, T] to minimise

Terms = Callable[[Tensor, Tensor, Tensor, Tensor, ClipRange], Tensor]
"""logprobs_RT, old_logprobs_RT (at the temperature of the rollouts), advantages_R, mask_RT, bounds → terms [R, T], 0
outside the mask."""


def token_terms(
    logprobs_RT: Tensor, old_logprobs_RT: Tensor, advantages_R: Tensor, mask_RT: Tensor, bounds: ClipRange
) -> Tensor:
    """Minus the clipped surrogate of PPO and GRPO: −min(ρA, clamp(ρ)·A), ρ of the token (arXiv 2402.03300, equation 3).

    Example:
        >>> old, new = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.5, 0.9]]).log()  # ratios 1 and 1.8
        >>> token_terms(new, old, torch.tensor([1.0]), torch.tensor([[True, True]]), ClipRange(0.2, 0.28))
        tensor([[-1.0000, -1.2800]])
    """
    ratio_RT = _difference(logprobs_RT, old_logprobs_RT, mask_RT).exp()
    advantages_R1 = advantages_R[:, None]
    surrogate_RT = torch.minimum(ratio_RT * advantages_R1, bounds.clamp(ratio_RT) * advantages_R1)
    return -surrogate_RT.masked_fill(~mask_RT, 0.0)


def sequence_terms(
    logprobs_RT: Tensor, old_logprobs_RT: Tensor, advantages_R: Tensor, mask_RT: Tensor, bounds: ClipRange
) -> Tensor:
    """As `token_terms`, with one ratio a response, the geometric mean of its tokens' (GSPO, arXiv 2507.18071, eq. 5–7).

    ρ_i = exp(1/|o_i| Σ_t (log p − log p_old)); the mean of a response's terms is its −min(ρ_i A, clamp(ρ_i)·A).
    """
    ratio_R = _ratio_of_responses(logprobs_RT, old_logprobs_RT, mask_RT)
    surrogate_R = torch.minimum(ratio_R * advantages_R, bounds.clamp(ratio_R) * advantages_R)
    return -surrogate_R[:, None] * mask_RT


def cispo_terms(
    logprobs_RT: Tensor, old_logprobs_RT: Tensor, advantages_R: Tensor, mask_RT: Tensor, bounds: ClipRange
) -> Tensor:
    """−sg(clamp(ρ))·A·log p (CISPO, arXiv 2506.13585, equations 4–5): the weight is clipped, no token's gradient is."""
    weight_RT = bounds.clamp(_difference(logprobs_RT.detach(), old_logprobs_RT, mask_RT).exp())
    return -(weight_RT * advantages_R[:, None] * logprobs_RT).masked_fill(~mask_RT, 0.0)


def k3(logprobs_RT: Tensor, reference_RT: Tensor, mask_RT: Tensor) -> Tensor:
    """Estimates KL(policy ‖ reference) of each token, from the token sampled: e^d − d − 1, d = log p_ref − log p.

    Unbiased, and never negative (Schulman's k3; arXiv 2402.03300, equation 4).

    Example:
        >>> k3(torch.tensor([[0.5]]).log(), torch.tensor([[0.25]]).log(), torch.tensor([[True]]))
        tensor([[0.1931]])
    """
    difference_RT = _difference(reference_RT, logprobs_RT, mask_RT)
    return difference_RT.exp() - difference_RT - 1


# --------------------------------------------------------------------------- where a bound acts: masks [R, T], [R, T]

Clipped = Callable[[Tensor, Tensor, Tensor, Tensor, ClipRange], tuple[Tensor, Tensor]]
"""Arguments as of `Terms` → tokens at which the lower bound acts, and those at which the upper one does."""


def tokens_cut(
    logprobs_RT: Tensor, old_logprobs_RT: Tensor, advantages_R: Tensor, mask_RT: Tensor, bounds: ClipRange
) -> tuple[Tensor, Tensor]:
    """Of `token_terms`: the bound is the smaller of the two surrogates, so that the token has no gradient.

    Example:
        >>> old, new = torch.tensor([[0.5, 0.5, 0.5]]).log(), torch.tensor([[0.3, 0.5, 0.9]]).log()
        >>> tokens_cut(new, old, torch.tensor([1.0]), torch.tensor([[True] * 3]), ClipRange(0.2, 0.28))
        (tensor([[False, False, False]]), tensor([[False, False,  True]]))
    """
    ratio_RT = _difference(logprobs_RT, old_logprobs_RT, mask_RT).exp()
    return _cut(bounds.outside(ratio_RT), advantages_R, mask_RT)


def responses_cut(
    logprobs_RT: Tensor, old_logprobs_RT: Tensor, advantages_R: Tensor, mask_RT: Tensor, bounds: ClipRange
) -> tuple[Tensor, Tensor]:
    """Of `sequence_terms`: all tokens of a response or none."""
    ratio_R = _ratio_of_responses(logprobs_RT, old_logprobs_RT, mask_RT)
    below_R, above_R = bounds.outside(ratio_R)
    return _cut((below_R[:, None], above_R[:, None]), advantages_R, mask_RT)


def weights_cut(
    logprobs_RT: Tensor, old_logprobs_RT: Tensor, advantages_R: Tensor, mask_RT: Tensor, bounds: ClipRange
) -> tuple[Tensor, Tensor]:
    """Of `cispo_terms`: wherever the ratio is outside, whatever the advantage."""
    below_RT, above_RT = bounds.outside(_difference(logprobs_RT, old_logprobs_RT, mask_RT).exp())
    return below_RT & mask_RT, above_RT & mask_RT


def _cut(outside: tuple[Tensor, Tensor], advantages_R: Tensor, mask_RT: Tensor) -> tuple[Tensor, Tensor]:
    """−min(ρA, clamp(ρ)A) takes the lower bound for bad responses and the upper one for good ones."""
    below, above = outside
    return below & (advantages_R < 0)[:, None] & mask_RT, above & (advantages_R > 0)[:, None] & mask_RT


def _ratio_of_responses(logprobs_RT: Tensor, old_logprobs_RT: Tensor, mask_RT: Tensor) -> Tensor:
    """The geometric mean [R] of the ratios of a response's tokens."""
    log_ratio_RT = _difference(logprobs_RT, old_logprobs_RT, mask_RT)
    return (log_ratio_RT.sum(dim=1) / mask_RT.sum(dim=1).clamp(min=1)).exp()


def _difference(logprobs_RT: Tensor, other_RT: Tensor, mask_RT: Tensor) -> Tensor:
    """Outside the mask anything may stand, infinities too; there it is 0, and so is the gradient."""
    return logprobs_RT.masked_fill(~mask_RT, 0.0) - other_RT.masked_fill(~mask_RT, 0.0)


# ---------------------------------------------------------------------------------------- weights [R, T] of terms

Weights = Callable[[Tensor, int], Tensor]
"""mask_RT, and the tokens a response has room for → weights [R, T]."""


def per_token(mask_RT: Tensor, room: int) -> Tensor:
    """1 for every token."""
    return mask_RT.float()


def per_sequence(mask_RT: Tensor, room: int) -> Tensor:
    """1/|o_i| for every token of response i: long responses count as much as short ones."""
    return mask_RT / mask_RT.sum(dim=1, keepdim=True).clamp(min=1)


def constant_norm(mask_RT: Tensor, room: int) -> Tensor:
    """1/room for every token: a constant, so that length does not change what a token counts."""
    return mask_RT / room


# ----------------------------------------------------------------------------------------------------- by name


@dataclass(frozen=True)
class Loss:
    """Σ terms · weights, divided by the global number of tokens or responses."""

    terms: Terms
    clipped: Clipped
    weights: Weights
    per: Literal["token", "response"]

    def count(self, mask_RT: Tensor) -> int:
        """What a micro-batch adds to the global count: its tokens, or its responses that have one."""
        return int(mask_RT.sum() if self.per == "token" else mask_RT.any(dim=1).sum())


LOSSES: dict[str, Loss] = {
    # 1/R Σ_i 1/|o_i| Σ_t −min(ρA, clamp(ρ)A)                       GRPO: DeepSeekMath, arXiv 2402.03300, equation 3
    "grpo": Loss(token_terms, tokens_cut, per_sequence, "response"),
    # 1/Σ|o_i| Σ_i Σ_t −min(ρA, clamp(ρ)A)                          DAPO: arXiv 2503.14476, equations 8–12
    "dapo": Loss(token_terms, tokens_cut, per_token, "token"),
    # 1/R Σ_i 1/room Σ_t −min(ρA, clamp(ρ)A)                        Dr. GRPO: arXiv 2503.20783, section 3.2
    "dr_grpo": Loss(token_terms, tokens_cut, constant_norm, "response"),
    # 1/R Σ_i −min(ρ_i A, clamp(ρ_i)A)                              GSPO: arXiv 2507.18071, equation 5
    "gspo": Loss(sequence_terms, responses_cut, per_sequence, "response"),
    # 1/Σ|o_i| Σ_i Σ_t −sg(clamp(ρ))A log p                         CISPO: arXiv 2506.13585, equation 4
    "cispo": Loss(cispo_terms, weights_cut, per_token, "token"),
}
"""By the names of `objective.loss`."""
