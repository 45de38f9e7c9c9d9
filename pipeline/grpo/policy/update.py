"""The updates of a step: one optimizer step on each of its mini-batches. Shape names as in `types.py`.

A step samples once. With one mini-batch the policy that learns is the one that sampled, and every ratio of new to old
probability is 1. With several, old probabilities are those before the first update, so that from the second one on the
bounds of the loss act.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from pipeline.config.errors import UserError
from pipeline.grpo.algorithm.loss import k3
from pipeline.grpo.algorithm.objective import Objective, entropy_threshold
from pipeline.grpo.model.batch import idle_batch
from pipeline.grpo.policy import distributed
from pipeline.grpo.policy.engine import Engine, Reference
from pipeline.grpo.types import Batch


@dataclass(frozen=True)
class MiniBatch:
    """What one optimizer step learns from, as this rank's micro-batches."""

    responses: Sequence[Batch] = ()
    text: Sequence[Batch] = ()
    """For the next-token loss."""


@dataclass(frozen=True)
class Update:
    """What the updates of a step did."""

    loss: float
    """The objective: sums divided by the counts of all ranks; of several updates the mean."""
    tokens: int
    """Tokens of responses it learned from, on all ranks."""
    grad_norm: float | None
    """Before clipping, of several updates the largest; None where DeepSpeed does not tell (fp32 without ZeRO)."""
    logprob_gap: float
    """Mean |trainer − sampler| of the log-probabilities (nats): how far the two disagree about the same weights."""
    parts: dict[str, float] = field(default_factory=dict)
    """Means over tokens (nats) of what the objective adds: `loss/kl`, `loss/entropy`, `loss/next_token`; of several
    updates also the shares of tokens at which a bound of the ratio acted: `clip/low`, `clip/high`."""

    def metrics(self) -> dict[str, float]:
        """By the names they are logged under."""
        known = {} if self.grad_norm is None else {"grad_norm": self.grad_norm}
        gap = {"sampler/logprob_gap": self.logprob_gap}
        return {"loss": self.loss, "tokens/trained": self.tokens, **known, **gap, **self.parts}


@dataclass(frozen=True)
class _Step:
    """What one optimizer step saw, over all ranks."""

    loss: float
    grad_norm: float | None
    tokens: int
    text_tokens: int
    sums: dict[str, float]
    """Over tokens, by name."""


def update(
    engine: Engine,
    mini_batches: Sequence[MiniBatch],
    objective: Objective,
    lr: float,
    *,
    reference: Reference | None = None,
) -> Update:
    """One optimizer step on each mini-batch in turn; none on one that is empty on all ranks. Every rank must call it.

    The gradient of a mini-batch is that of its sums over *all ranks* divided by its own global counts: each backward is
    of a sum divided by the count. Every rank runs the same number of backwards, because ZeRO-3 gathers weights in each.

    Args:
        engine: the policy.
        mini_batches: this rank's part of each; all ranks give as many.
        objective: what is minimised.
        lr: learning rate of this step, for all its updates.
        reference: the policy that training started from, where the objective measures the divergence from it.

    Raises:
        UserError: the loss or the gradient of an update is not finite; if it is the loss, weights stay as they were
            before that update.
    """
    prepared = _as_sampled(engine, mini_batches, objective)
    steps = [step for part in prepared if (step := _optimizer_step(engine, part, objective, lr, reference))]
    if not steps:
        return Update(loss=0.0, tokens=0, grad_norm=0.0, logprob_gap=0.0)
    tokens, text_tokens = sum(step.tokens for step in steps), sum(step.text_tokens for step in steps)
    sums = {name: sum(step.sums[name] for step in steps) for name in steps[0].sums}
    norms = [step.grad_norm for step in steps if step.grad_norm is not None]
    per_token = {name: value / max(tokens, 1) for name, value in sums.items()}
    parts = {
        **({"loss/kl": per_token["kl"]} if reference is not None else {}),
        **({"loss/entropy": per_token["entropy"]} if objective.entropy else {}),
        **({"loss/next_token": sums["next_token"] / text_tokens} if text_tokens else {}),
        **({name: per_token[name] for name in ("clip/low", "clip/high")} if len(mini_batches) > 1 else {}),
    }
    loss = sum(step.loss for step in steps) / len(steps)
    return Update(loss, tokens, max(norms) if norms else None, per_token["gap"], parts)


@torch.no_grad()
def _as_sampled(engine: Engine, mini_batches: Sequence[MiniBatch], objective: Objective) -> list[MiniBatch]:
    """The mini-batches with what only the policy that sampled can say, where it is needed: one more forward.

    Of several mini-batches the old log-probabilities; and which tokens learn, if only the most uncertain of the step
    do.
    """
    several, by_entropy = len(mini_batches) > 1, objective.top_entropy < 1
    if not several and not by_entropy:
        return list(mini_batches)
    batches = [batch for part in mini_batches for batch in part.responses]
    read = [engine(batch, objective.temperature, by_entropy) for batch in _same_number(batches, engine.device)]
    if several:
        batches = [
            replace(batch, old_logprobs_RT=logprobs_RT.cpu())
            for batch, (logprobs_RT, _) in zip(batches, read, strict=False)
        ]
    if by_entropy:
        batches = _most_uncertain(batches, [entropy_RT.cpu() for _, entropy_RT in read], objective.top_entropy)
    left = iter(batches)
    return [replace(part, responses=[next(left) for _ in part.responses]) for part in mini_batches]


def _most_uncertain(batches: Sequence[Batch], entropies: Sequence[Tensor], share: float) -> list[Batch]:
    """The micro-batches, learning from the tokens of highest entropy among those of all ranks.

    Args:
        batches: this rank's.
        entropies: [R, T] of each; further ones, of idle batches, are not looked at.
        share: of the tokens.
    """
    own = [entropy_RT[batch.loss_mask_RT] for entropy_RT, batch in zip(entropies, batches, strict=False)]
    everyones = distributed.all_gather([torch.cat(own).numpy() if own else np.zeros(0, dtype=np.float32)])
    least = entropy_threshold(torch.from_numpy(np.concatenate(everyones)), share)
    return [
        replace(batch, loss_mask_RT=batch.loss_mask_RT & (entropy_RT >= least))
        for batch, entropy_RT in zip(batches, entropies, strict=False)
    ]


def _optimizer_step(
    engine: Engine, part: MiniBatch, objective: Objective, lr: float, reference: Reference | None
) -> _Step | None:
    """Backwards of a mini-batch's micro-batches, then the step; None if no rank has any."""
    masks = [batch.loss_mask_RT for batch in part.responses]
    counted = sum(objective.loss.count(mask_RT) for mask_RT in masks), sum(int(mask_RT.sum()) for mask_RT in masks)
    count, tokens, text_tokens = distributed.all_reduce_sum(
        *counted, sum(int(batch.mask_RT.sum()) for batch in part.text)
    )
    names = ("loss", "gap", "kl", "entropy", "next_token", "clip/low", "clip/high")
    sums: dict[str, Tensor | float] = dict.fromkeys(names, 0.0)  # read once, at the end
    for batch in _same_number(part.responses if count else [], engine.device):
        summed = _backward(engine, batch, objective, reference, count, sums)
        sums["loss"] += summed / count
    for batch in _same_number(part.text if text_tokens else [], engine.device):
        logprobs_RT, _ = engine(batch, 1.0)
        summed = -logprobs_RT.masked_fill(~batch.mask_RT, 0.0).sum()
        engine.backward(summed / text_tokens * objective.next_token * distributed.world_size())
        sums["loss"] += summed.detach().double() / text_tokens * objective.next_token
        sums["next_token"] += summed.detach().double()
    if not count and not text_tokens:
        return None
    totals = dict(zip(names, distributed.all_reduce_sum(*map(float, sums.values())), strict=True))
    loss = totals.pop("loss")
    _must_be_finite("loss", loss)
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    engine.step()
    norm = engine.get_global_grad_norm()
    _must_be_finite("gradient", float(norm or 0.0))
    return _Step(loss, None if norm is None else float(norm), int(tokens), int(text_tokens), totals)


def _backward(
    engine: Engine,
    batch: Batch,
    objective: Objective,
    reference: Reference | None,
    count: float,
    sums: dict[str, Tensor | float],
) -> Tensor:
    """Forward and backward of one micro-batch of responses. Adds to `sums`; returns the objective's own sum."""
    loss_mask_RT = batch.loss_mask_RT

    def summed_over_tokens(values_RT: Tensor) -> Tensor:
        return values_RT.detach().masked_fill(~loss_mask_RT, 0.0).sum().double()

    reference_RT = None if reference is None else reference(batch, objective.temperature)
    logprobs_RT, entropy_RT = engine(batch, objective.temperature, objective.entropy > 0)
    summed = objective.summed(batch, logprobs_RT, entropy_RT, reference_RT)
    # DeepSpeed averages gradients over ranks; the sum over ranks is meant.
    engine.backward(summed / count * distributed.world_size())
    own_RT = logprobs_RT.detach()
    old_RT = own_RT if batch.old_logprobs_RT is None else batch.old_logprobs_RT
    sums["gap"] += summed_over_tokens((old_RT - batch.sampled_logprobs_RT).abs())
    sums["entropy"] += summed_over_tokens(entropy_RT)
    if reference_RT is not None:
        sums["kl"] += k3(own_RT, reference_RT, loss_mask_RT).sum().double()
    if batch.old_logprobs_RT is not None:
        below_RT, above_RT = objective.loss.clipped(own_RT, old_RT, batch.advantages_R, loss_mask_RT, objective.bounds)
        sums["clip/low"] += below_RT.sum().double()
        sums["clip/high"] += above_RT.sum().double()
    return summed.detach().double()


def _same_number(batches: Sequence[Batch], device: torch.device) -> Iterator[Batch]:
    """This rank's micro-batches, then idle ones until every rank has had as many: they wait in each other's gathers."""
    for i in range(distributed.all_reduce_max(len(batches))):
        yield (batches[i] if i < len(batches) else idle_batch()).to(device)


def _must_be_finite(what: str, value: float) -> None:
    if not torch.isfinite(torch.tensor(value)):
        raise UserError(
            f"the {what} is not finite ({value})", hint="lower `optimizer.lr`; the last checkpoint can be resumed from"
        )
