"""The objective that an update minimises: a policy loss and the recipe's additional terms.

Shape names as in `types.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config.recipe import Recipe
from pipeline.grpo.algorithm.loss import LOSSES, ClipRange, Loss, k3
from pipeline.grpo.types import Batch


@dataclass(frozen=True)
class Objective:
    """The objective: Σ weights · (loss + kl · k3 − entropy · H) / count + next_token · (mean −log p of sites' text)."""

    loss: Loss
    bounds: ClipRange
    temperature: float
    """Temperature of the rollouts, at which log-probabilities and entropies are taken; those of text are at 1."""
    max_new_tokens: int
    """Maximum length of a response."""
    kl: float = 0.0
    """Weight of the divergence from the reference policy."""
    entropy: float = 0.0
    """Weight of the bonus for the policy's entropy H (nats)."""
    top_entropy: float = 1.0
    """Share of tokens that the loss covers: those of highest entropy."""
    next_token: float = 0.0
    """Weight of the auxiliary next-token loss."""
    importance_cap: float | None = None
    """Upper bound of the importance weight that corrects for the sampler's deviating probabilities."""

    @classmethod
    def of(cls, recipe: Recipe) -> Objective:
        """Return the objective that a recipe configures."""
        config = recipe.objective
        return cls(
            loss=LOSSES[config.loss],
            bounds=ClipRange(config.clip, config.clip if config.clip_high is None else config.clip_high),
            temperature=recipe.rollout.temperature,
            max_new_tokens=recipe.rollout.max_new_tokens,
            kl=config.kl,
            entropy=config.entropy,
            top_entropy=config.top_entropy,
            next_token=config.next_token,
            importance_cap=config.importance_cap,
        )

    def summed(
        self, batch: Batch, logprobs_RT: Tensor, entropy_RT: Tensor, reference_RT: Tensor | None = None
    ) -> Tensor:
        """Return the weighted sum of a micro-batch's terms, to be divided by the global count; no next-token loss."""
        mask_RT = batch.loss_mask_RT
        # Without old log-probabilities this is the step's only update, so the ratio is 1.
        old_logprobs_RT = logprobs_RT.detach() if batch.old_logprobs_RT is None else batch.old_logprobs_RT
        terms_RT = self.loss.terms(logprobs_RT, old_logprobs_RT, batch.advantages_R, mask_RT, self.bounds)
        if self.importance_cap is not None:
            gap_RT = (old_logprobs_RT - batch.sampled_logprobs_RT).masked_fill(~mask_RT, 0.0)
            terms_RT = terms_RT * importance(gap_RT, self.importance_cap)
        if reference_RT is not None:
            terms_RT = terms_RT + self.kl * k3(logprobs_RT, reference_RT, mask_RT)
        if self.entropy:
            terms_RT = terms_RT - self.entropy * entropy_RT.masked_fill(~mask_RT, 0.0)
        return (terms_RT * self.loss.weights(mask_RT, self.max_new_tokens)).sum()


def importance(gap_RT: Tensor, cap: float) -> Tensor:
    """Return min(e^gap, cap), the truncated importance weight of tokens that the sampler drew.

    The weight corrects for a sampler whose probabilities differ from the policy's. Up to the bound, the estimate is
    that of the policy's own distribution, and the bound keeps its variance finite (Ionides 2008; for sampler and
    trainer, Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training").

    Args:
        gap_RT: log-probability by the trainer minus that by the sampler.
        cap: upper bound of the weight.

    Example:
        >>> importance(torch.tensor([[0.0, 1.0, -1.0]]), 2.0)
        tensor([[1.0000, 2.0000, 0.3679]])
    """
    return gap_RT.exp().clamp(max=cap)


def entropy_threshold(entropies_N: Tensor, share: float) -> float:
    """Return the entropy that a token must reach to be among the `share` of N with the highest entropy.

    At least one token is selected, and ties are included. Training on these forking tokens only is the "80/20" rule of
    arXiv 2506.01939, equation 6.

    Example:
        >>> entropy_threshold(torch.tensor([0.1, 2.0, 0.3, 1.0, 0.2]), 0.4)
        1.0
    """
    if not len(entropies_N):
        return math.inf
    return float(torch.topk(entropies_N, math.ceil(share * len(entropies_N))).values[-1])
