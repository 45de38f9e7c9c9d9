"""Objectives: sums over tokens, divided once by a count the caller knows. Shape names: R responses, T tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


def grpo(logprobs_RT: Tensor, old_logprobs_RT: Tensor, advantages_R: Tensor, mask_RT: Tensor, clip: float) -> Tensor:
    """Minus the clipped surrogate of PPO and GRPO (arXiv 2402.03300, equation 3, without KL), *summed* over tokens.

    Per token −min(ρA, clamp(ρ, 1 − clip, 1 + clip)·A), ρ the ratio of new to old probability. The caller divides the
    sum over all micro-batches and ranks by the number of tokens in them, once. On policy, where old is new detached,
    ρ is 1 and the gradient is that of −A·log p.

    Args:
        logprobs_RT, old_logprobs_RT: at the temperature the responses were sampled at.
        advantages_R: of each response, the same for all its tokens.
        mask_RT: True on tokens of responses.
        clip: ε of the ratio.

    Returns:
        a scalar.

    Example:
        >>> old = torch.log(torch.tensor([[0.5, 0.5]]))
        >>> new = torch.log(torch.tensor([[0.5, 0.9]]))  # ratios 1 and 1.8
        >>> round(grpo(new, old, torch.tensor([1.0]), torch.tensor([[True, True]]), clip=0.2).item(), 6)
        -2.2
    """
    ratio_RT = (logprobs_RT - old_logprobs_RT).exp()
    advantages_R1 = advantages_R[:, None]
    surrogate_RT = torch.minimum(ratio_RT * advantages_R1, ratio_RT.clamp(1 - clip, 1 + clip) * advantages_R1)
    return -surrogate_RT.masked_fill(~mask_RT, 0.0).sum()


LOSSES: dict[str, Loss] = {"grpo": grpo}
"""By the names of `objective.loss`."""
