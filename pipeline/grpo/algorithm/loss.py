"""Policy losses: a term per token, a weight per term, and the count that their sum is divided by.

The caller sums terms times weights over all micro-batches and ranks, and divides once by the global count of tokens or
responses. Groups of equal rewards are left out of both: they are removed beforehand.

Shape names: R responses, T tokens. A ratio ρ is the new probability over the old one, which is that of the policy that
sampled. If a step has a single update, old is new detached: ρ is 1, nothing is clipped, and losses differ only in their
weights. With `optimizer.updates_per_step` above 1, old is the policy before the first update.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClipRange:
    """Clipping range [1 − low, 1 + high] of the ratio."""

    low: float
    high: float

    def clamp(self, ratio: Tensor) -> Tensor:
        """Return the ratio clamped to the range."""
        return ratio.clamp(1 - self.low, 1 + self.high)

    def outside(self, ratio: Tensor) -> tuple[Tensor, Tensor]:
        """Return two masks: ratios below the lower bound, and ratios above the upper bound."""
        return ratio < 1 - self.low, ratio > 1 + self.high


# ------------------------------------------------------------------------------------- terms [R, T] to minimise

Terms = Callable[[Tensor, Tensor, Tensor, Tensor, ClipRange], Tensor]
"""Signature of a loss's terms.

logprobs_RT, old_logprobs_RT (both at the rollouts' temperature), advantages_R, mask_RT, bounds → terms [R, T], which
are 0 outside the mask.
"""


def token_terms(
    logprobs_RT: Tensor, old_logprobs_RT: Tensor, advantages_R: Tensor, mask_RT: Tensor, bounds: ClipRange
) -> Tensor:
    """Return the negative clipped surrogate of PPO and GRPO per token: −min(ρA, clamp(ρ)·A).

    Source: arXiv 2402.03300, equation 3.

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
    """Return the terms of GSPO: as `token_terms`, but with one ratio per response.

    The ratio is the geometric mean of its tokens' ratios, ρ_i = exp(1/|o_i| Σ_t (log p − log p_old)); the mean of a
    response's terms is −min(ρ_i A, clamp(ρ_i)·A). Source: arXiv 2507.18071, equations 5–7.
    """
    ratio_R = _sequence_ratio(logprobs_RT, old_logprobs_RT, mask_RT)
    surrogate_R = torch.minimum(ratio_R * advantages_R, bounds.clamp(ratio_R) * advantages_R)
    return -surrogate_R[:, None] * mask_RT


def cispo_terms(
    logprobs_RT: Tensor, old_logprobs_RT: Tensor, advantages_R: Tensor, mask_RT: Tensor, bounds: ClipRange
) -> Tensor:
    """Return the terms of CISPO: −sg(clamp(ρ))·A·log p, where sg stops the gradient.

    The weight is clipped, so that every token keeps a gradient. Source: arXiv 2506.13585, equations 4–5.
    """
    weight_RT = bounds.clamp(_difference(logprobs_RT.detach(), old_logprobs_RT, mask_RT).exp())
    return -(weight_RT * advantages_R[:, None] * logprobs_RT).masked_fill(~mask_RT, 0.0)


def k3(logprobs_RT: Tensor, reference_RT: Tensor, mask_RT: Tensor) -> Tensor:
    """Estimate KL(policy ‖ reference) per token from the sampled token: e^d − d − 1, d = log p_ref − log p.

    Unbiased, and never negative (Schulman's k3; arXiv 2402.03300, equation 4).

    Example:
        >>> k3(torch.tensor([[0.5]]).log(), torch.tensor([[0.25]]).log(), torch.tensor([[True]]))
        tensor([[0.1931]])
    """
    difference_RT = _difference(reference_RT, logprobs_RT, mask_RT)
    return difference_RT.exp() - difference_RT - 1


# --------------------------------------------------------------- clipped tokens: masks [R, T] of lower and upper bound

Clipped = Callable[[Tensor, Tensor, Tensor, Tensor, ClipRange], tuple[Tensor, Tensor]]
"""Signature of a loss's clip masks: arguments as `Terms` → tokens clipped at the lower bound, and at the upper one."""


def clipped_tokens(
    logprobs_RT: Tensor, old_logprobs_RT: Tensor, advantages_R: Tensor, mask_RT: Tensor, bounds: ClipRange
) -> tuple[Tensor, Tensor]:
    """Return the clip masks of `token_terms`: tokens whose clipped surrogate is the smaller one have no gradient.

    Example:
        >>> old, new = torch.tensor([[0.5, 0.5, 0.5]]).log(), torch.tensor([[0.3, 0.5, 0.9]]).log()
        >>> clipped_tokens(new, old, torch.tensor([1.0]), torch.tensor([[True] * 3]), ClipRange(0.2, 0.28))
        (tensor([[False, False, False]]), tensor([[False, False,  True]]))
    """
    ratio_RT = _difference(logprobs_RT, old_logprobs_RT, mask_RT).exp()
    return _clipped_by_sign(bounds.outside(ratio_RT), advantages_R, mask_RT)


def clipped_responses(
    logprobs_RT: Tensor, old_logprobs_RT: Tensor, advantages_R: Tensor, mask_RT: Tensor, bounds: ClipRange
) -> tuple[Tensor, Tensor]:
    """Return the clip masks of `sequence_terms`: all tokens of a response or none."""
    ratio_R = _sequence_ratio(logprobs_RT, old_logprobs_RT, mask_RT)
    below_R, above_R = bounds.outside(ratio_R)
    return _clipped_by_sign((below_R[:, None], above_R[:, None]), advantages_R, mask_RT)


def clipped_weights(
    logprobs_RT: Tensor, old_logprobs_RT: Tensor, advantages_R: Tensor, mask_RT: Tensor, bounds: ClipRange
) -> tuple[Tensor, Tensor]:
    """Return the clip masks of `cispo_terms`: tokens with a ratio outside the range, whatever their advantage."""
    below_RT, above_RT = bounds.outside(_difference(logprobs_RT, old_logprobs_RT, mask_RT).exp())
    return below_RT & mask_RT, above_RT & mask_RT


def _clipped_by_sign(outside: tuple[Tensor, Tensor], advantages_R: Tensor, mask_RT: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the lower bound for negative advantages and the upper one for positive ones, as −min(ρA, clamp(ρ)A) does."""
    below, above = outside
    return below & (advantages_R < 0)[:, None] & mask_RT, above & (advantages_R > 0)[:, None] & mask_RT


def _sequence_ratio(logprobs_RT: Tensor, old_logprobs_RT: Tensor, mask_RT: Tensor) -> Tensor:
    """Return the geometric mean [R] of the ratios of each response's tokens."""
    log_ratio_RT = _difference(logprobs_RT, old_logprobs_RT, mask_RT)
    return (log_ratio_RT.sum(dim=1) / mask_RT.sum(dim=1).clamp(min=1)).exp()


def _difference(logprobs_RT: Tensor, other_RT: Tensor, mask_RT: Tensor) -> Tensor:
    """Return the difference of log-probabilities, 0 outside the mask.

    Both inputs are masked before the subtraction, because they may be infinite outside the mask and inf − inf would put
    NaN into the gradient.
    """
    return logprobs_RT.masked_fill(~mask_RT, 0.0) - other_RT.masked_fill(~mask_RT, 0.0)


# ---------------------------------------------------------------------------------------- weights [R, T] of terms

Weights = Callable[[Tensor, int], Tensor]
"""Signature of a loss's weights: mask_RT, `rollout.max_new_tokens` → weights [R, T]."""


def per_token(mask_RT: Tensor, max_new_tokens: int) -> Tensor:
    """Return 1 for every token."""
    return mask_RT.float()


def per_sequence(mask_RT: Tensor, max_new_tokens: int) -> Tensor:
    """Return 1/|o_i| for every token of response i, so that long responses count as much as short ones."""
    return mask_RT / mask_RT.sum(dim=1, keepdim=True).clamp(min=1)


def constant_norm(mask_RT: Tensor, max_new_tokens: int) -> Tensor:
    """Return the constant 1/max_new_tokens for every token, so that a token's weight does not depend on length."""
    return mask_RT / max_new_tokens


# ----------------------------------------------------------------------------------------------------- by name


@dataclass(frozen=True)
class Loss:
    """A policy loss: Σ terms · weights, divided by the global number of tokens or responses."""

    terms: Terms
    clipped: Clipped
    weights: Weights
    per: Literal["token", "response"]

    def count(self, mask_RT: Tensor) -> int:
        """Return the micro-batch's share of the global count: its tokens, or its responses that have any."""
        return int(mask_RT.sum() if self.per == "token" else mask_RT.any(dim=1).sum())


LOSSES: dict[str, Loss] = {  # in the formulas, R responses, L = max_new_tokens
    # 1/R Σ_i 1/|o_i| Σ_t −min(ρA, clamp(ρ)A)                       GRPO: DeepSeekMath, arXiv 2402.03300, equation 3
    "grpo": Loss(token_terms, clipped_tokens, per_sequence, "response"),
    # 1/Σ|o_i| Σ_i Σ_t −min(ρA, clamp(ρ)A)                          DAPO: arXiv 2503.14476, equations 8–12
    "dapo": Loss(token_terms, clipped_tokens, per_token, "token"),
    # 1/R Σ_i 1/L Σ_t −min(ρA, clamp(ρ)A)                           Dr. GRPO: arXiv 2503.20783, section 3.2
    "dr_grpo": Loss(token_terms, clipped_tokens, constant_norm, "response"),
    # 1/R Σ_i −min(ρ_i A, clamp(ρ_i)A)                              GSPO: arXiv 2507.18071, equation 5
    "gspo": Loss(sequence_terms, clipped_responses, per_sequence, "response"),
    # 1/Σ|o_i| Σ_i Σ_t −sg(clamp(ρ))A log p                         CISPO: arXiv 2506.13585, equation 4
    "cispo": Loss(cispo_terms, clipped_weights, per_token, "token"),
}
"""Losses by the names that `objective.loss` accepts."""
