"""Log-probabilities of responses under the policy, with gradients: contexts once, no full [R, T, V] in memory.

A batch goes through the model as one row of tokens without padding, each context once (`packed_attention.py`). Loss and
gradients are those of the plain computation, in which each response is read together with its context. Where a model's
attention cannot be exchanged, each response is read that way here too.

Shape names as in `types.py`; N tokens.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from pipeline.config.errors import UserError
from pipeline.grpo.model.packed_attention import NAME, Attend
from pipeline.grpo.model.packing import Packing
from pipeline.grpo.model.prefix_attention import can_share
from pipeline.grpo.types import Batch

LOGITS_ON_CPU, LOGITS_ON_GPU = 1 << 25, 1 << 27
"""Logits that exist at a time: 128 MiB and 512 MiB in fp32."""


class PolicyLogprobs(nn.Module):
    """The policy as the objective sees it: a batch in, log-probabilities of its responses out.

    The policy that learns must be the one that sampled, so the model is in evaluation mode here too: nothing is dropped
    out, and no router is jittered, however a model spells it.

    Args:
        model: a causal language model of `transformers` whose logits are its output head's product. Where its attention
            can be exchanged, it is from now on that of packed batches.
        logits_at_once: logits that exist at a time, and as many gradients of them; by default what suits the device.
        attend: attention of packed batches; by default what suits the device.
    """

    def __init__(
        self, model: PreTrainedModel, *, logits_at_once: int | None = None, attend: Attend | None = None
    ) -> None:
        super().__init__()
        self.model = model.eval()
        self.head = HeadLogprobs(model.get_output_embeddings(), logits_at_once)
        self._attend = attend
        self.packs = can_share(model)
        """Whether contexts are read once for their responses."""
        if self.packs:
            model.config._attn_implementation = NAME

    def forward(self, batch: Batch, temperature: float, entropy: bool = False) -> tuple[Tensor, Tensor]:
        """What the policy makes of `batch.targets_RT`; outside the mask it is 0.

        Args:
            batch: contexts and responses.
            temperature: logits are divided by it, as they were when the responses were sampled.
            entropy: whether entropies are computed; they are 0 otherwise.

        Returns:
            log-probabilities [R, T] of the targets, and entropies [R, T] of the distributions they were drawn from
            (nats, fp32).
        """
        targets_N = batch.targets_RT[batch.mask_RT]  # waits for a GPU, and so comes before the model, not after
        hidden_NE = self._packed(batch) if self.packs else self._plain(batch)
        found = self.head(hidden_NE, targets_N, temperature, entropy)
        logprobs_RT, entropy_RT = (
            values_N.new_zeros(batch.mask_RT.shape).masked_scatter(batch.mask_RT, values_N) for values_N in found
        )
        return logprobs_RT, entropy_RT

    def _packed(self, batch: Batch) -> Tensor:
        """Hidden states [N, E] of the responses' tokens, contexts read once."""
        packing = Packing(batch)
        hidden = self.model.base_model(
            input_ids=packing.ids_N[None],
            position_ids=packing.positions_N[None],
            use_cache=False,
            packing=packing,
            attend=self._attend,
        ).last_hidden_state
        return hidden[0, packing.read :]

    def _plain(self, batch: Batch) -> Tensor:
        """Hidden states [N, E] of the responses' tokens, each response read after its own copy of the context."""
        mask = _joined(batch.context_mask_PC, batch.mask_RT)
        hidden = self.model.base_model(
            input_ids=_joined(batch.context_ids_PC, batch.inputs_RT),
            attention_mask=mask,
            position_ids=_positions(mask),
            use_cache=False,
        ).last_hidden_state
        return hidden[:, batch.context_ids_PC.shape[1] :][batch.mask_RT]


class HeadLogprobs(nn.Module):
    """The output head, asked for the log-probabilities of given tokens only.

    A module that shares the head's weight, so that ZeRO-3 gathers it for the forward and for the backward.
    """

    def __init__(self, head: nn.Module, logits_at_once: int | None = None) -> None:
        super().__init__()
        if not isinstance(head, nn.Linear) or getattr(head, "bias", None) is not None:
            raise UserError("the policy's output head is not a plain matrix", where=head, hint="choose another policy")
        self.weight = head.weight
        self._vocabulary, self._logits_at_once = head.out_features, logits_at_once

    def forward(self, hidden_NE: Tensor, targets_N: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor]:
        """Log-probabilities [N] of the targets, and entropies [N] or zeros."""
        at_once = self._logits_at_once or (LOGITS_ON_CPU if hidden_NE.device.type == "cpu" else LOGITS_ON_GPU)
        chunk = max(1, at_once // self._vocabulary)  # tokens
        found: tuple[Tensor, Tensor] = ChunkedLogprobs.apply(
            hidden_NE, self.weight, targets_N, temperature, entropy, chunk
        )
        return found


def _read(
    hidden_CE: Tensor, weight_VE: Tensor, targets_C: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """log softmax(z)[target], log Σ exp z and, if wanted, the entropy, each [C] in fp32; and log softmax(z) [C, V]."""
    logits = _logits(hidden_CE, weight_VE, temperature)
    logprobs = logits.log_softmax(dim=-1)
    logprobs_C = logprobs.gather(1, targets_C[:, None])[:, 0]
    total_C = logits.gather(1, targets_C[:, None])[:, 0] - logprobs_C
    entropy_C = -logprobs.exp().mul_(logprobs).sum(dim=-1) if entropy else None
    return logprobs_C, total_C, entropy_C, logprobs


def _slope(
    kept: Tensor | None,
    hidden_CE: Tensor,
    weight_VE: Tensor,
    targets_C: Tensor,
    total_C: Tensor,
    entropy_C: Tensor,
    grad_C: Tensor,
    grad_entropy_C: Tensor,
    temperature: float,
    entropy: bool,
) -> tuple[Tensor, Tensor | float]:
    """A slope [C, V] in the type of hidden states and a factor: their product is the gradient of h Wᵀ.

    With p the softmax of z: d log p[y] / dz = onehot(y) − p, and dH / dz = −p (log p + H). The temperature and, without
    entropy, a token's gradient are left to the factor: it is multiplied into [C, E], not [C, V].
    """
    target, grad = targets_C[:, None], grad_C[:, None]
    factor: Tensor | float
    if kept is not None:
        logprobs, room = kept, None
    else:
        logprobs = room = _logits(hidden_CE, weight_VE, temperature).sub_(total_C[:, None])
    if entropy:
        weights = (logprobs + entropy_C[:, None]).mul_(grad_entropy_C[:, None]).add_(grad)
        slope, of_target, factor = logprobs.exp().mul_(weights), -grad, -1 / temperature
    else:
        slope, of_target, factor = torch.exp(logprobs, out=room), -torch.ones_like(grad), -grad / temperature
    return slope.scatter_add_(1, target, of_target).to(hidden_CE.dtype), factor


class ChunkedLogprobs(torch.autograd.Function):
    """log softmax(h Wᵀ / temperature)[target] and its entropy, a chunk of tokens at a time.

    The backward computes the logits again, unless there was one chunk: what was made of them is kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NE: Tensor,
        weight_VE: Tensor,
        targets_N: Tensor,
        temperature: float,
        entropy: bool,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.temperature, ctx.entropy, ctx.chunk = temperature, entropy, chunk
        logprobs_N = torch.empty(len(targets_N), dtype=torch.float32, device=hidden_NE.device)
        total_N, entropy_N = torch.empty_like(logprobs_N), torch.zeros_like(logprobs_N)
        kept = logprobs_N.new_empty(0)
        for rows in _chunks(len(targets_N), chunk):
            logprobs_N[rows], total_N[rows], entropy_C, made = _read(
                hidden_NE[rows], weight_VE, targets_N[rows], temperature, entropy
            )
            if entropy_C is not None:
                entropy_N[rows] = entropy_C
            kept = made if len(targets_N) <= chunk else kept
        ctx.save_for_backward(hidden_NE, weight_VE, targets_N, total_N, entropy_N, kept)
        if not entropy:
            ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        hidden_NE, weight_VE, *of_tokens, kept = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden_NE)
        learned = ctx.needs_input_grad[1]
        grad_weight = torch.zeros_like(weight_VE, dtype=torch.float32) if learned else None
        for rows in _chunks(len(hidden_NE), ctx.chunk):
            hidden = hidden_NE[rows]
            targets, total, entropy, grad, grad_entropy = (values_N[rows] for values_N in (*of_tokens, *grads))
            made = kept if len(kept) else None
            slope, factor = _slope(
                made, hidden, weight_VE, targets, total, entropy, grad, grad_entropy, ctx.temperature, ctx.entropy
            )
            grad_hidden[rows] = (slope @ weight_VE).mul_(factor)
            if grad_weight is not None:
                _add_product(grad_weight, slope.t(), (hidden * factor).to(hidden.dtype))
        grad_weight = None if grad_weight is None else grad_weight.to(weight_VE.dtype)
        return grad_hidden, grad_weight, None, None, None, None


def _logits(hidden_NE: Tensor, weight_VE: Tensor, temperature: float) -> Tensor:
    """h Wᵀ / temperature in fp32; of a policy in 16 bits from logits rounded to them, as those it was sampled from."""
    if hidden_NE.dtype == torch.float32:
        return (hidden_NE / temperature) @ weight_VE.t()
    logits = (hidden_NE @ weight_VE.t()).float()
    return logits if temperature == 1 else logits.div_(temperature)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a · b to a total in fp32."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    else:
        total += a @ b


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Keep only the inputs of a model's layers for the backward, which runs each layer again.

    `transformers` itself would do so of a model in training mode only.

    Raises:
        UserError: the model has no layers that can be run again.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(
            f"{type(model).__name__} has no gradient checkpointing",
            where="policy.gradient_checkpointing",
            hint="set it to false, or choose another policy",
        )
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def _chunks(tokens: int, chunk: int) -> list[slice]:
    return [slice(start, start + chunk) for start in range(0, tokens, chunk)]


def _joined(context_PC: Tensor, response_RT: Tensor) -> Tensor:
    """[R, C + T]: each context's row before every one of its responses."""
    size = len(response_RT) // len(context_PC)
    return torch.cat([context_PC.repeat_interleave(size, dim=0), response_RT], dim=1)


def _positions(mask: Tensor) -> Tensor:
    """Positions of the real columns, counted from each row's first one; padding has any position."""
    return (mask.cumsum(dim=1) - 1).clamp_(min=0)
