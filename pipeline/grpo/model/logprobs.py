"""Log-probabilities of responses under the policy, with gradients: contexts once, no full [R, T, V] in memory.

A batch goes through the model as one row of tokens without padding, each context once (`packed_attention.py`). Loss and
gradients equal those of the plain computation, which reads each response together with its context. If a model's
attention cannot be replaced, each response is read that way here too.

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
from pipeline.grpo.model.packed_attention import NAME
from pipeline.grpo.model.packing import Packing
from pipeline.grpo.model.prefix_attention import can_share
from pipeline.grpo.types import Batch

LOGITS_ON_CPU, LOGITS_ON_GPU = 1 << 25, 1 << 27
"""Maximum number of logits in memory at a time: 128 MiB and 512 MiB in fp32."""


class PolicyLogprobs(nn.Module):
    """The policy as a module that maps a batch to the log-probabilities of its responses.

    The policy that is trained must be the one that sampled. The model is therefore in evaluation mode during training
    too, which turns off dropout and router jitter under whatever name a model has them.

    Args:
        model: a causal language model of `transformers` whose logits are the product with its output head. If its
            attention can be replaced, it is replaced by that of packed batches.
        logits_at_once: maximum number of logits in memory, and of their gradients; by default chosen by device.
        repeat_heads: as for `packed_attention.attend`; None: on all devices but CPUs.
    """

    def __init__(
        self, model: PreTrainedModel, *, logits_at_once: int | None = None, repeat_heads: bool | None = None
    ) -> None:
        super().__init__()
        self.model = model.eval()
        self.head = HeadLogprobs(model.get_output_embeddings(), logits_at_once)
        self._repeat_heads = repeat_heads
        self.packs = can_share(model)
        """True if each context is read once for all its responses."""
        if self.packs:
            model.config._attn_implementation = NAME

    def forward(self, batch: Batch, temperature: float, entropy: bool = False) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities and entropies of `batch.targets_RT`, 0 outside the mask.

        Args:
            batch: contexts and responses.
            temperature: divisor of the logits, as when the responses were sampled.
            entropy: True to compute entropies; they are 0 otherwise.

        Returns:
            Log-probabilities [R, T] of the targets, and entropies [R, T] of the distributions they were drawn from
            (nats, fp32).
        """
        targets_N = batch.targets_RT[batch.mask_RT]  # synchronises with the GPU, so do it before the model is queued
        hidden_NE = self._packed(batch) if self.packs else self._plain(batch)
        found = self.head(hidden_NE, targets_N, temperature, entropy)
        logprobs_RT, entropy_RT = (
            values_N.new_zeros(batch.mask_RT.shape).masked_scatter(batch.mask_RT, values_N) for values_N in found
        )
        return logprobs_RT, entropy_RT

    def _packed(self, batch: Batch) -> Tensor:
        """Return the hidden states [N, E] of the responses' tokens, with each context read once."""
        packing = Packing(batch)
        hidden = self.model.base_model(
            input_ids=packing.ids_N[None],
            position_ids=packing.positions_N[None],
            use_cache=False,
            packing=packing,
            repeat_heads=self._repeat_heads,
        ).last_hidden_state
        return hidden[0, packing.read :]

    def _plain(self, batch: Batch) -> Tensor:
        """Return the hidden states [N, E] of the responses' tokens, each response read after its own context copy."""
        mask = _with_contexts(batch.context_mask_PC, batch.mask_RT)
        hidden = self.model.base_model(
            input_ids=_with_contexts(batch.context_ids_PC, batch.inputs_RT),
            attention_mask=mask,
            position_ids=_positions(mask),
            use_cache=False,
        ).last_hidden_state
        return hidden[:, batch.context_ids_PC.shape[1] :][batch.mask_RT]


class HeadLogprobs(nn.Module):
    """The output head restricted to the log-probabilities of given tokens.

    It is a module that shares the head's weight, so that ZeRO-3 gathers the weight for the forward and the backward.
    """

    def __init__(self, head: nn.Module, logits_at_once: int | None = None) -> None:
        super().__init__()
        if not isinstance(head, nn.Linear) or getattr(head, "bias", None) is not None:
            raise UserError("the policy's output head is not a plain matrix", where=head, hint="choose another policy")
        self.weight = head.weight
        self._vocabulary, self._logits_at_once = head.out_features, logits_at_once

    def forward(self, hidden_NE: Tensor, targets_N: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities [N] of the targets, and their entropies [N] or zeros."""
        at_once = self._logits_at_once or (LOGITS_ON_CPU if hidden_NE.device.type == "cpu" else LOGITS_ON_GPU)
        chunk = max(1, at_once // self._vocabulary)  # tokens
        found: tuple[Tensor, Tensor] = ChunkedLogprobs.apply(
            hidden_NE, self.weight, targets_N, temperature, entropy, chunk
        )
        return found


def _log_softmax(
    hidden_CE: Tensor, weight_VE: Tensor, targets_C: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Return log softmax(z)[target], log Σ exp z, the entropy or None, each [C] in fp32, and log softmax(z) [C, V]."""
    logits = _logits(hidden_CE, weight_VE, temperature)
    logprobs = logits.log_softmax(dim=-1)
    logprobs_C = logprobs.gather(1, targets_C[:, None])[:, 0]
    total_C = logits.gather(1, targets_C[:, None])[:, 0] - logprobs_C
    entropy_C = -logprobs.exp().mul_(logprobs).sum(dim=-1) if entropy else None
    return logprobs_C, total_C, entropy_C, logprobs


def _logits_grad(
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
    """Return the gradient of h Wᵀ as a slope [C, V] in the hidden states' dtype and a factor to multiply it by.

    With p the softmax of z: d log p[y] / dz = onehot(y) − p, and dH / dz = −p (log p + H). The factor holds the
    temperature and, without entropy, the token's gradient, so that it is multiplied into [C, E] instead of [C, V].
    """
    target, grad = targets_C[:, None], grad_C[:, None]
    factor: Tensor | float
    if kept is not None:
        logprobs, buffer = kept, None  # autograd's saved tensor must not be overwritten
    else:
        logprobs = buffer = _logits(hidden_CE, weight_VE, temperature).sub_(total_C[:, None])
    if entropy:
        weights = (logprobs + entropy_C[:, None]).mul_(grad_entropy_C[:, None]).add_(grad)
        slope, of_target, factor = logprobs.exp().mul_(weights), -grad, -1 / temperature
    else:
        slope, of_target, factor = torch.exp(logprobs, out=buffer), -torch.ones_like(grad), -grad / temperature
    return slope.scatter_add_(1, target, of_target).to(hidden_CE.dtype), factor


class ChunkedLogprobs(torch.autograd.Function):
    """Autograd function of log softmax(h Wᵀ / temperature)[target] and its entropy, one chunk of tokens at a time.

    The backward recomputes the logits, unless there was only one chunk: then log softmax is kept from the forward.
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
        """Return log-probabilities [N] and entropies [N] in fp32."""
        ctx.temperature, ctx.entropy, ctx.chunk = temperature, entropy, chunk
        logprobs_N = torch.empty(len(targets_N), dtype=torch.float32, device=hidden_NE.device)
        total_N, entropy_N = torch.empty_like(logprobs_N), torch.zeros_like(logprobs_N)
        kept = logprobs_N.new_empty(0)
        for rows in _chunks(len(targets_N), chunk):
            logprobs_N[rows], total_N[rows], entropy_C, made = _log_softmax(
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
        """Return the gradients of hidden states and, if it is trained, of the weight."""
        hidden_NE, weight_VE, *of_tokens, kept = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden_NE)
        # Sums over chunks are in fp32, because bf16 would lose the small ones.
        grad_weight = torch.zeros_like(weight_VE, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for rows in _chunks(len(hidden_NE), ctx.chunk):
            hidden = hidden_NE[rows]
            targets, total, entropy, grad, grad_entropy = (values_N[rows] for values_N in (*of_tokens, *grads))
            made = kept if len(kept) else None
            slope, factor = _logits_grad(
                made, hidden, weight_VE, targets, total, entropy, grad, grad_entropy, ctx.temperature, ctx.entropy
            )
            grad_hidden[rows] = (slope @ weight_VE).mul_(factor)
            if grad_weight is not None:
                _add_product(grad_weight, slope.t(), (hidden * factor).to(hidden.dtype))
        grad_weight = None if grad_weight is None else grad_weight.to(weight_VE.dtype)
        return grad_hidden, grad_weight, None, None, None, None


def _logits(hidden_NE: Tensor, weight_VE: Tensor, temperature: float) -> Tensor:
    """Return h Wᵀ / temperature in fp32.

    For a 16-bit policy the logits are rounded to 16 bits first, as they were when the responses were sampled.
    """
    if hidden_NE.dtype == torch.float32:
        return (hidden_NE / temperature) @ weight_VE.t()
    logits = (hidden_NE @ weight_VE.t()).float()
    return logits if temperature == 1 else logits.div_(temperature)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add the matrix product a · b to an fp32 total in place."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    else:
        total += a @ b


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Turn on gradient checkpointing: only the layers' inputs are kept, and the backward runs each layer again.

    It is not left to `transformers`, which does it only for a model in training mode.

    Raises:
        UserError: the model's layers do not support gradient checkpointing.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(
            f"{type(model).__name__} does not support gradient checkpointing",
            where="policy.gradient_checkpointing",
            hint="set it to false, or choose another policy",
        )
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def _chunks(tokens: int, chunk: int) -> list[slice]:
    return [slice(start, start + chunk) for start in range(0, tokens, chunk)]


def _with_contexts(context_PC: Tensor, response_RT: Tensor) -> Tensor:
    """Return rows [R, C + T]: the context's row before each of its responses."""
    size = len(response_RT) // len(context_PC)
    return torch.cat([context_PC.repeat_interleave(size, dim=0), response_RT], dim=1)


def _positions(mask: Tensor) -> Tensor:
    """Return positions of the real columns, counted from each row's first one; those of padding have no meaning."""
    return (mask.cumsum(dim=1) - 1).clamp_(min=0)
