"""Checks before the first step that the trained policy, a plain copy of it and the sampler compute the same model."""

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
"""A `PolicyLogprobs` or its DeepSpeed engine: batch and temperature → log-probabilities and entropies [R, T]."""


@torch.no_grad()
def verify(
    learner: Learner,
    weights: Iterable[tuple[str, Tensor]],
    copy: PreTrainedModel,
    prompt: Sequence[int],
    temperature: float,
) -> float:
    """Compare the trained policy with a plain copy: every weight, then the log-probabilities of a prompt's tokens.

    The log-probabilities are computed twice, to detect a policy that is not deterministic. Every rank must call it.

    Args:
        learner: the policy under training.
        weights: its weights by their names in the copy.
        copy: the policy as `transformers` loads it.
        prompt: token ids, at least two.
        temperature: temperature of the log-probabilities.

    Returns:
        The mean absolute difference of the log-probabilities (nats).

    Raises:
        AssertionError: weights differ, because they were not loaded or not handed over.
        UserError: the policy is not deterministic, or its logits are not the product with its output head.
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
            f"the policy is not deterministic: two passes over the same tokens differ by {spread:.3g} nats",
            where=type(copy).__name__,
            hint="set dropout, jitter and noise in its config.json to 0, or choose another policy",
        )
    ids = torch.tensor([list(prompt)], device=copy.device)
    logits_TV = copy(input_ids=ids, use_cache=False).logits[0, cut - 1 : -1].float() / temperature
    plain_T = logits_TV.log_softmax(dim=-1).gather(1, ids[0, cut:, None])[:, 0].cpu()
    if (gap := float((own_T - plain_T).abs().mean())) > tolerance:
        raise UserError(
            f"the trainer's log-probabilities of this policy are off by {gap:.3g} nats",
            where=type(copy).__name__,
            hint="its logits are not a plain product with its output head (soft-capping, scaling): "
            "choose another policy",
        )
    return gap


@torch.no_grad()
def sampler_gap(learner: Any, response: Response, prompt: Sequence[int], temperature: float) -> float:
    """Return the largest difference (nats) between the sampler's log-probabilities of a response and the learner's.

    Every rank must call it.

    Raises:
        UserError: the difference is too large: the weights did not arrive, or one side computes another model.
    """
    weight = next(learner.parameters())
    own_T = _logprobs(learner, response, prompt, temperature, weight.device)
    gap = float((own_T[: len(response.ids)] - torch.tensor(response.logprobs)).abs().max())
    if gap > (0.5 if weight.dtype == torch.bfloat16 else 1e-2):
        raise UserError(
            f"log-probabilities of sampler and trainer differ by {gap:.3g} nats under the same weights",
            hint="check that both load the same policy, or set `rollout.sampler: built_in`",
        )
    return gap


def _logprobs(
    learner: Learner, response: Response, prompt: Sequence[int], temperature: float, device: torch.device
) -> Tensor:
    """Return the learner's log-probabilities [T] of a response's tokens, on the CPU."""
    batch = batch_of([Group(tuple(prompt), (response,), (1.0,))]).to(device)
    return learner(batch, temperature)[0][0].cpu()
