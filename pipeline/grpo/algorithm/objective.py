"""What an update minimises: a policy loss, and what the recipe adds to it. Shape names as in `types.py`."""

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
    """Σ weights · (loss + kl · k3 − entropy · H) / count + next_token · (mean −log p of the sites' text)."""

    loss: Loss
    bounds: ClipRange
    temperature: float
    """Of the rollouts: log-probabilities and entropies are taken at it; those of text at 1."""
    room: int
    """Tokens a response has room for."""
    kl: float = 0.0
    """Weight of the divergence from the reference policy."""
    entropy: float = 0.0
    """Weight of the bonus for the policy's entropy H (nats)."""
    top_entropy: float = 1.0
    """Share of tokens that learn, those of highest entropy."""
    next_token: float = 0.0
    """Weight of the auxiliary next-token loss."""
    importance_cap: float | None = None
    """Bound of the weight that corrects for a sampler with other probabilities."""

    @classmethod
    def of(cls, recipe: Recipe) -> Objective:
        """As a recipe names it."""
        config = recipe.objective
        return cls(
            loss=LOSSES[config.loss],
            bounds=ClipRange(config.clip, config.clip if config.clip_high is None else config.clip_high),
            temperature=recipe.rollout.temperature,
            room=recipe.rollout.max_new_tokens,
            kl=config.kl,
            entropy=config.entropy,
            top_entropy=config.top_entropy,
            next_token=config.next_token,
            importance_cap=config.importance_cap,
        )

    def summed(
        self, batch: Batch, logprobs_RT: Tensor, entropy_RT: Tensor, reference_RT: Tensor | None = None
    ) -> Tensor:
        """The sum over a micro-batch that the global count divides, without the next-token loss."""
        mask_RT = batch.learned_RT
        # Without any, this is the only update on what this policy sampled: the ratio is 1.
        old_logprobs_RT = logprobs_RT.detach() if batch.old_logprobs_RT is None else batch.old_logprobs_RT
        terms_RT = self.loss.terms(logprobs_RT, old_logprobs_RT, batch.advantages_R, mask_RT, self.bounds)
        if self.importance_cap is not None:
            gap_RT = (old_logprobs_RT - batch.sampled_logprobs_RT).masked_fill(~mask_RT, 0.0)
            terms_RT = terms_RT * importance(gap_RT, self.importance_cap)
        if reference_RT is not None:
            terms_RT = terms_RT + self.kl * k3(logprobs_RT, reference_RT, mask_RT)
        if self.entropy:
            terms_RT = terms_RT - self.entropy * entropy_RT.masked_fill(~mask_RT, 0.0)
        return (terms_RT * self.loss.weights(mask_RT, self.room)).sum()


def importance(gap_RT: Tensor, cap: float) -> Tensor:
    """min(e^gap, cap): what a token counts that the sampler drew with another probability than the policy gives it.

    Truncated importance sampling: the estimate stays that of the policy's own distribution up to the bound, which keeps
    its variance finite (Ionides 2008; for sampler and trainer, Yao et al. 2025, "Your efficient RL framework secretly
    brings you off-policy RL training").

    Args:
        gap_RT: log-probability by the trainer minus that by the sampler.
        cap: the bound.

    Example:
        >>> importance(torch.tensor([[0.0, 1.0, -1.0]]), 2.0)
        tensor([[1.0000, 2.0000, 0.3679]])
    """
    return gap_RT.exp().clamp(max=cap)


def entropy_threshold(entropies_N: Tensor, share: float) -> float:
    """The entropy that a token must reach to be among the `share` most uncertain of N (at least one; ties are in).

    Learning from the forking tokens alone: "80/20", arXiv 2506.01939, equation 6.

    Example:
        >>> entropy_threshold(torch.tensor([0.1, 2.0, 0.3, 1.0, 0.2]), 0.4)
        1.0
    """
    if not len(entropies_N):
        return math.inf
    return float(torch.topk(entropies_N, math.ceil(share * len(entropies_N))).values[-1])
