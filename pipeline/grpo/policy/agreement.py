"""Whether the policy that learns, a plain copy of it, and what samples compute the same model. What differs is refused
before the first step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.config.errors import UserError
from pipeline.grpo.model.batch import batch_of
from pipeline.grpo.types import Batch, Group, Response

Learner = Callable[[Batch, float], tuple[Tensor, Tensor]]
"""A `PolicyLogprobs`, or DeepSpeed's engine of one: batch and temperature → log-probabilities and entropies [R, T]."""


@torch.no_grad()
def verify(
    learner: Learner,
    weights: Iterable[tuple[str, Tensor]],
    copy: PreTrainedModel,
    prompt: Sequence[int],
    temperature: float,
) -> float:
    """Compare what learns with a plain copy of the policy: every weight, then log-probabilities of a prompt's tokens.

    These are read twice, because what differs from itself is random. Every rank must call it.

    Args:
        learner: what learns.
        weights: its weights by their names in the copy.
        copy: the policy as `transformers` loads it.
        prompt: token ids, two at least.
        temperature: of the log-probabilities.

    Returns:
        the mean difference of the log-probabilities (nats).

    Raises:
        AssertionError: weights differ: they were not loaded, or not handed over.
        UserError: the policy is random, or the logits of this architecture are not its output head's product.
    """
    expected = dict(copy.named_parameters())
    wrong = [name for name, tensor in weights if not torch.equal(tensor, expected[name])]
    if wrong:
        raise AssertionError(f"{len(wrong)} of the policy's weights are not what was loaded: {', '.join(wrong[:5])}")
    cut = max(1, len(prompt) // 2)
    response = Response(tuple(prompt[cut:]), b"", True, (0.0,) * (len(prompt) - cut))
    own_T, again_T = (_logprobs(learner, response, prompt[:cut], temperature, copy.device) for _ in range(2))
    tolerance = 0.2 if copy.dtype == torch.bfloat16 else 1e-3
    if (spread := float((own_T - again_T).abs().mean())) > tolerance / 10:
        raise UserError(
            f"the policy is random: read twice, its log-probabilities of the same tokens differ by {spread:.3g} nats",
            where=type(copy).__name__,
            hint="set what its config.json has of dropout, jitter or noise to 0, or choose another policy",
        )
    ids = torch.tensor([list(prompt)], device=copy.device)
    logits_TV = copy(input_ids=ids, use_cache=False).logits[0, cut - 1 : -1].float() / temperature
    plain_T = logits_TV.log_softmax(dim=-1).gather(1, ids[0, cut:, None])[:, 0].cpu()
    if (gap := float((own_T - plain_T).abs().mean())) > tolerance:
        raise UserError(
            f"log-probabilities of the policy are off by {gap:.3g} nats",
            where=type(copy).__name__,
            hint="its logits are not a plain product of its output head (soft-capping, scaling): choose another policy",
        )
    return gap


@torch.no_grad()
def sampler_gap(learner: Any, response: Response, prompt: Sequence[int], temperature: float) -> float:
    """Largest difference (nats) between the log-probabilities a sampler gave its own response and the learner's.

    Every rank must call it.

    Raises:
        UserError: they are not of the same policy: the weights did not arrive, or one of the two computes another
            model.
    """
    weight = next(learner.parameters())
    own_T = _logprobs(learner, response, prompt, temperature, weight.device)
    gap = float((own_T[: len(response.ids)] - torch.tensor(response.logprobs)).abs().max())
    if gap > (0.5 if weight.dtype == torch.bfloat16 else 1e-2):
        raise UserError(
            f"sampler and trainer disagree by {gap:.3g} nats about the same weights",
            hint="check that both load the same policy, or choose `rollout.sampler: built_in`",
        )
    return gap


def _logprobs(
    learner: Learner, response: Response, prompt: Sequence[int], temperature: float, device: torch.device
) -> Tensor:
    """Of a response's tokens [T], by the learner; on the CPU."""
    batch = batch_of([Group(tuple(prompt), (response,), (1.0,))]).to(device)
    return learner(batch, temperature)[0][0].cpu()
