"""The updates of a step: one optimizer step on each of its mini-batches. Shape names as in `types.py`.

A step samples once. With one mini-batch the policy that is updated is the one that sampled, and every ratio of new to
old probability is 1. With several, old probabilities are those before the first update, so that ratios are clipped from
the second update on.
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
    """The data of one optimizer step, as this rank's micro-batches."""

    responses: Sequence[Batch] = ()
    """Micro-batches of the policy loss."""
    text: Sequence[Batch] = ()
    """Micro-batches of the next-token loss."""


@dataclass(frozen=True)
class Update:
    """Measurements of a step's updates, over all ranks."""

    loss: float
    """The objective: sums divided by the counts of all ranks; with several updates, their mean."""
    tokens: int
    """Response tokens in the loss, on all ranks."""
    grad_norm: float | None
    """Norm before clipping; with several updates, the largest. None if DeepSpeed reports none (fp32 without ZeRO)."""
    logprob_gap: float
    """Mean |trainer − sampler| of the log-probabilities (nats) under the same weights."""
    parts: dict[str, float] = field(default_factory=dict)
    """Means over tokens (nats) of the objective's additional terms: `loss/kl`, `loss/entropy`, `loss/next_token`.

    With several updates also the shares of clipped tokens: `clip/low`, `clip/high`.
    """

    def metrics(self) -> dict[str, float]:
        """Return the measurements by the names that they are logged under."""
        known = {} if self.grad_norm is None else {"grad_norm": self.grad_norm}
        gap = {"sampler/logprob_gap": self.logprob_gap}
        return {"loss": self.loss, "tokens/trained": self.tokens, **known, **gap, **self.parts}


@dataclass(frozen=True)
class _Step:
    """Measurements of one optimizer step, over all ranks."""

    loss: float
    grad_norm: float | None
    tokens: int
    text_tokens: int
    sums: dict[str, float]
    """Sums over tokens, by name."""


def update(
    engine: Engine,
    mini_batches: Sequence[MiniBatch],
    objective: Objective,
    lr: float,
    *,
    reference: Reference | None = None,
) -> Update:
    """Run one optimizer step on each mini-batch in turn, skipping those that are empty on all ranks.

    Every rank must call it. The gradient of a mini-batch is that of its sums over *all ranks* divided by its own global
    counts, so each backward is of a sum already divided by the count. Every rank runs the same number of backwards,
    because ZeRO-3 gathers weights in each.

    Args:
        engine: the policy.
        mini_batches: this rank's part of each mini-batch; the number is the same on all ranks.
        objective: the objective to minimise.
        lr: learning rate of this step, for all its updates.
        reference: the policy that training started from, if the objective has a KL term.

    Raises:
        UserError: the loss or the gradient of an update is not finite; if it is the loss, weights stay as they were
            before that update.
    """
    prepared = _with_old_policy(engine, mini_batches, objective)
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
def _with_old_policy(engine: Engine, mini_batches: Sequence[MiniBatch], objective: Objective) -> list[MiniBatch]:
    """Add to the mini-batches what needs a forward pass of the policy before the first update.

    That is the old log-probabilities if there are several mini-batches, and the mask of high-entropy tokens if the loss
    covers only those. Otherwise no forward is run.
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
        batches = _high_entropy_mask(batches, [entropy_RT.cpu() for _, entropy_RT in read], objective.top_entropy)
    remaining = iter(batches)
    return [replace(part, responses=[next(remaining) for _ in part.responses]) for part in mini_batches]


def _high_entropy_mask(batches: Sequence[Batch], entropies: Sequence[Tensor], share: float) -> list[Batch]:
    """Restrict the loss masks to the tokens of highest entropy among those of all ranks.

    Args:
        batches: this rank's micro-batches.
        entropies: [R, T] of each micro-batch; further ones, of idle batches, are ignored.
        share: share of the tokens to keep.
    """
    own = [entropy_RT[batch.loss_mask_RT] for entropy_RT, batch in zip(entropies, batches, strict=False)]
    gathered = distributed.all_gather([torch.cat(own).numpy() if own else np.zeros(0, dtype=np.float32)])
    threshold = entropy_threshold(torch.from_numpy(np.concatenate(gathered)), share)
    return [
        replace(batch, loss_mask_RT=batch.loss_mask_RT & (entropy_RT >= threshold))
        for batch, entropy_RT in zip(batches, entropies, strict=False)
    ]


def _optimizer_step(
    engine: Engine, part: MiniBatch, objective: Objective, lr: float, reference: Reference | None
) -> _Step | None:
    """Run the backwards of a mini-batch's micro-batches and the optimizer step; return None if no rank has any."""
    masks = [batch.loss_mask_RT for batch in part.responses]
    counted = sum(objective.loss.count(mask_RT) for mask_RT in masks), sum(int(mask_RT.sum()) for mask_RT in masks)
    count, tokens, text_tokens = distributed.all_reduce_sum(
        *counted, sum(int(batch.mask_RT.sum()) for batch in part.text)
    )
    names = ("loss", "gap", "kl", "entropy", "next_token", "clip/low", "clip/high")
    sums: dict[str, Tensor | float] = dict.fromkeys(names, 0.0)  # stay on the device until the end: no synchronisation
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
    """Run forward and backward of one micro-batch of responses; add to `sums` and return the objective's sum."""
    loss_mask_RT = batch.loss_mask_RT

    def summed_over_tokens(values_RT: Tensor) -> Tensor:
        return values_RT.detach().masked_fill(~loss_mask_RT, 0.0).sum().double()

    reference_RT = None if reference is None else reference(batch, objective.temperature)
    logprobs_RT, entropy_RT = engine(batch, objective.temperature, objective.entropy > 0)
    summed = objective.summed(batch, logprobs_RT, entropy_RT, reference_RT)
    # DeepSpeed averages gradients over ranks, but the objective needs their sum.
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
    """Yield this rank's micro-batches, then idle ones until all ranks have run equally many, as ZeRO-3 requires."""
    for i in range(distributed.all_reduce_max(len(batches))):
        yield (batches[i] if i < len(batches) else idle_batch()).to(device)


def _must_be_finite(name: str, value: float) -> None:
    if not torch.isfinite(torch.tensor(value)):
        raise UserError(
            f"the {name} is not finite ({value})",
            hint="lower `optimizer.lr`; the run can be resumed from the last checkpoint",
        )
