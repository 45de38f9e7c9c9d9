"""Log-probabilities of responses under the policy, with gradients: contexts once, no full [R, T, V] in memory.

The contexts run once with a cache, which is repeated for the G responses of each; autograd flows back through it. Loss
and gradients are those of the plain computation, in which each response is read together with its context.

Shape names as in `types.py`; N tokens of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from pipeline.core.errors import UserError
from pipeline.grpo.types import Batch

LOGITS_AT_ONCE = 1 << 25
"""128 MiB in fp32."""


class PolicyLogprobs(nn.Module):
    """The policy as the objective sees it: a batch in, log-probabilities of its responses out.

    Args:
        model: a causal language model of `transformers` whose logits are its output head's product.
        share_contexts: run a context once for its responses. Off under gradient checkpointing, which `transformers`
            does not do with a cache: each response is then read with its own copy of the context.
        logits_at_once: logits that exist at a time, in fp32, and as many gradients of them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        share_contexts: bool = True,
        logits_at_once: int = LOGITS_AT_ONCE,
    ) -> None:
        super().__init__()
        self.model = model
        self.head = HeadLogprobs(model.get_output_embeddings(), logits_at_once)
        self._share_contexts = share_contexts

    def forward(self, batch: Batch, temperature: float, entropy: bool = False) -> tuple[Tensor, Tensor]:
        """What the policy makes of `batch.targets_RT`; what stands outside the mask is meaningless.

        Args:
            batch: contexts and responses.
            temperature: logits are divided by it, as they were when the responses were sampled.
            entropy: whether entropies are computed; they are 0 otherwise.

        Returns:
            log-probabilities [R, T] of the targets, and entropies [R, T] of the distributions they were drawn from
            (nats, fp32).
        """
        shared = self._share_contexts and batch.context_ids_PC.shape[1] > 0
        hidden_RTE = self._shared(batch) if shared else self._plain(batch)
        return self.head(hidden_RTE, batch.targets_RT, temperature, entropy)

    def _shared(self, batch: Batch) -> Tensor:
        """Hidden states [R, T, E] of the responses on the repeated caches of their contexts."""
        base, size = self.model.base_model, batch.group_size
        layers: list[Any] = [DynamicLayer() for _ in range(self.model.config.num_hidden_layers)]
        cache = Cache(layers=layers)
        base(
            input_ids=batch.context_ids_PC,
            attention_mask=batch.context_mask_PC,
            position_ids=_positions(batch.context_mask_PC),
            past_key_values=cache,
            use_cache=True,
        )
        cache.batch_repeat_interleave(size)
        mask = _joined(batch.context_mask_PC, batch.mask_RT)
        return base(
            input_ids=batch.inputs_RT,
            attention_mask=mask,
            position_ids=_positions(mask)[:, batch.context_ids_PC.shape[1] :],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state

    def _plain(self, batch: Batch) -> Tensor:
        """Hidden states [R, T, E] of the responses, each read after its own copy of the context."""
        mask = _joined(batch.context_mask_PC, batch.mask_RT)
        hidden = self.model.base_model(
            input_ids=_joined(batch.context_ids_PC, batch.inputs_RT),
            attention_mask=mask,
            position_ids=_positions(mask),
            use_cache=False,
        ).last_hidden_state
        return hidden[:, batch.context_ids_PC.shape[1] :]


class HeadLogprobs(nn.Module):
    """The output head, asked for the log-probabilities of given tokens only.

    A module that shares the head's weight, so that ZeRO-3 gathers it for the forward and for the backward.
    """

    def __init__(self, head: nn.Module, logits_at_once: int) -> None:
        super().__init__()
        if not isinstance(head, nn.Linear) or getattr(head, "bias", None) is not None:
            raise UserError("the policy's output head is not a plain matrix", where=head, mend="choose another policy")
        self.weight = head.weight
        self._chunk = max(1, logits_at_once // head.out_features)  # tokens

    def forward(
        self, hidden_RTE: Tensor, targets_RT: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities [R, T] of the targets, and entropies [R, T] or zeros."""
        logprobs_N, entropy_N = _HeadLogprobs.apply(
            hidden_RTE.flatten(0, 1), self.weight, targets_RT.flatten(), temperature, entropy, self._chunk
        )
        return logprobs_N.view(targets_RT.shape), entropy_N.view(targets_RT.shape)


class _HeadLogprobs(torch.autograd.Function):
    """log softmax(h Wᵀ / temperature)[target] and its entropy, a chunk of tokens at a time.

    The backward computes the logits again. With p the softmax of logits z: d log p[y] / dz = onehot(y) − p, and
    dH / dz = −p (log p + H).
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
        entropy_N = torch.zeros_like(logprobs_N)
        for rows in _chunks(len(targets_N), chunk):
            logits = (hidden_NE[rows] @ weight_VE.t()).float().div_(temperature)
            total = logits.logsumexp(dim=-1)
            logprobs_N[rows] = logits.gather(1, targets_N[rows, None])[:, 0] - total
            if entropy:
                entropy_N[rows] = total - (logits.softmax(dim=-1) * logits).sum(dim=-1)
        ctx.save_for_backward(hidden_NE, weight_VE, targets_N, entropy_N)
        if not entropy:
            ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad_N, grad_entropy_N = grads
        hidden_NE, weight_VE, targets_N, entropy_N = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden_NE)
        grad_weight = torch.zeros_like(weight_VE, dtype=torch.float32)
        for rows in _chunks(len(targets_N), ctx.chunk):
            logits = (hidden_NE[rows] @ weight_VE.t()).float().div_(ctx.temperature)
            if ctx.entropy:
                logprobs = logits.log_softmax(dim=-1)
                probabilities = logprobs.exp()
                factor = grad_N[rows, None] + grad_entropy_N[rows, None] * (logprobs + entropy_N[rows, None])
                grad_logits = probabilities.mul_(-factor)
            else:
                grad_logits = logits.softmax(dim=-1).mul_(-grad_N[rows, None])
            grad_logits.scatter_add_(1, targets_N[rows, None], grad_N[rows, None])
            grad_logits = grad_logits.div_(ctx.temperature).to(hidden_NE.dtype)
            grad_hidden[rows] = grad_logits @ weight_VE
            grad_weight += grad_logits.t() @ hidden_NE[rows]
        return grad_hidden, grad_weight.to(weight_VE.dtype), None, None, None, None


def disable_dropout(model: nn.Module) -> None:
    """The policy that learns must be the one that sampled."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def _chunks(tokens: int, chunk: int) -> list[slice]:
    return [slice(start, start + chunk) for start in range(0, tokens, chunk)]


def _joined(context_PC: Tensor, response_RT: Tensor) -> Tensor:
    """[R, C + T]: each context's row before every one of its responses."""
    size = len(response_RT) // len(context_PC)
    return torch.cat([context_PC.repeat_interleave(size, dim=0), response_RT], dim=1)


def _positions(mask: Tensor) -> Tensor:
    """Positions of the real columns, counted from each row's first one; padding has any position."""
    return (mask.cumsum(dim=1) - 1).clamp_(min=0)
