"""Attention of the update over packed batches: each context once, then its responses, in one row without padding.

All of a model except its attention sees that row (`packing.py`). Attention spreads the row into slots, contexts
[P, H, C, D] and responses [R, H, T, D]: contexts attend to themselves, responses to their context and to themselves.
On CPUs a context's keys and values are not repeated for its responses: all their queries read them in one product, and
the softmax is split in two (Hydragen, arXiv 2402.05099), here with a backward. On other devices each response has a
copy of them and goes through PyTorch's public `scaled_dot_product_attention`.

Shape names as in `packing.py`; H query heads, K key-value heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from pipeline.grpo.model.packing import Packing

NAME = "rpt_packed"
"""Name of this attention in `transformers`."""

Attend = Callable[[Tensor, Tensor, Tensor, Packing, float, bool], Tensor]
"""Signature of attention over a packed row.

Queries [1, H, N, D], keys and values [1, K, N, D], the packing, scaling, and whether this is the last layer, whose
output for contexts is not used → [1, N, H, D].
"""

AttendRows = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Packing, float], Tensor]
"""Signature of attention of the responses.

Queries [R, H, T, D] of responses, keys and values of contexts [P, K, C, D] and of responses [R, K, T, D], the packing,
scaling → [R, H, T, D].
"""


def _in_slots(rows: AttendRows) -> Attend:
    """Return attention over a packed row, given the attention of responses (a decorator)."""

    @wraps(rows)
    def attend(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float, last: bool) -> Tensor:
        states = (_spread(states, packing) for states in (query, key, value))
        (context_query, query), (context_key, key), (context_value, value) = states
        responses = rows(query, context_key, context_value, key, value, packing, scaling)
        if last or not packing.width:  # nothing reads the last layer's output for contexts
            contexts = torch.zeros_like(context_query)
        else:
            gqa = key.shape[1] != query.shape[1]
            contexts = scaled_dot_product_attention(
                context_query, context_key, context_value, is_causal=True, scale=scaling, enable_gqa=gqa
            )
        out_SHD = torch.cat([part.transpose(1, 2).flatten(0, 1) for part in (contexts, responses)])
        return (out_SHD if packing.slot_N is None else out_SHD[packing.slot_N])[None]

    return attend


def _spread(states: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
    """Spread a packed row [1, H, N, D] into slots [P, H, C, D] and [R, H, T, D]."""
    slots, split = states[0], packing.contexts * packing.width
    if packing.slot_N is not None:
        empty = slots.new_zeros(len(slots), split + packing.rows * packing.response_width, slots.shape[2])
        slots = empty.index_copy(1, packing.slot_N, slots)
    shapes = (packing.contexts, packing.width), (packing.rows, packing.response_width)
    contexts, responses = (
        part.unflatten(1, shape).transpose(0, 1)
        for part, shape in zip((slots[:, :split], slots[:, split:]), shapes, strict=True)
    )
    return contexts, responses


@_in_slots
def repeated(
    query: Tensor, context_key: Tensor, context_value: Tensor, key: Tensor, value: Tensor, packing: Packing,
    scaling: float,
) -> Tensor:  # fmt: skip
    """Attend on any device, with a copy of the context's keys and values for each response (an `AttendRows`)."""
    size, queries = len(query) // len(context_key), query.shape[1] // key.shape[1]
    keys = torch.cat([context_key.repeat_interleave(size, dim=0), key], dim=2).repeat_interleave(queries, dim=1)
    values = torch.cat([context_value.repeat_interleave(size, dim=0), value], dim=2).repeat_interleave(queries, dim=1)
    return scaled_dot_product_attention(query, keys, values, attn_mask=packing.seen_RTS, scale=scaling)


@_in_slots
def joined(
    query: Tensor, context_key: Tensor, context_value: Tensor, key: Tensor, value: Tensor, packing: Packing,
    scaling: float,
) -> Tensor:  # fmt: skip
    """Attend on CPUs, reading a context's keys and values once for all queries of its responses (an `AttendRows`)."""
    bias = None
    if packing.real_PC is not None:  # not −inf: a context without tokens would give NaN
        least = torch.finfo(query.dtype).min / 2
        bias = torch.zeros_like(packing.real_PC, dtype=query.dtype).masked_fill_(~packing.real_PC, least)[:, None, None]
    out: Tensor = _Joined.apply(query, context_key, context_value, key, value, bias, scaling)
    return out


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""The kernel behind `scaled_dot_product_attention` on CPUs, which also returns the log Σ exp of the scores.

It is the only private operator here. No public function has a backward that accepts the log Σ exp of a larger whole;
`repeated` does without, but copies contexts. `tests/grpo/model/test_logprobs.py` compares the two.
"""
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _Joined(torch.autograd.Function):
    """Autograd function of softmax attention over [context, own tokens] in two parts with outputs oᵢ and log Σ exp Lᵢ.

    The whole has L = log(e^L₁ + e^L₂) and the output Σ e^(Lᵢ − L) oᵢ. The backward of a part needs L and the output of
    the whole, which give its probabilities and Σ o · grad.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, context_key: Tensor, context_value: Tensor, key: Tensor, value: Tensor,
        bias: Tensor | None, scaling: float,
    ) -> Tensor:  # fmt: skip
        """Return the output [R, H, T, D]."""
        ctx.scaling = scaling
        heads, queries = key.shape[1], query.shape[1] // key.shape[1]
        own = query, *(x.repeat_interleave(queries, dim=1) for x in (key, value))
        out, total = _flash(*own, 0.0, True, scale=scaling)
        if context_key.shape[2]:
            fold = _Fold(len(context_key), heads, query)
            read, read_total = _flash(
                fold(query), context_key, context_value, 0.0, False, attn_mask=bias, scale=scaling
            )
            read, read_total = fold.undo(read), fold.undo(read_total)
            share = torch.sigmoid(read_total - total)[..., None].to(out)
            out, total = torch.lerp(out, read, share), torch.logaddexp(total, read_total)
        ctx.save_for_backward(query, context_key, context_value, key, value, bias, out, total)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Return the gradients of queries, keys and values."""
        query, context_key, context_value, key, value, bias, out, total = ctx.saved_tensors
        grad, options = grads[0].contiguous(), {"scale": ctx.scaling}
        heads, queries = key.shape[1], query.shape[1] // key.shape[1]
        own = query, *(x.repeat_interleave(queries, dim=1) for x in (key, value))
        grad_query, *grad_own = _flash_backward(grad, *own, out, total, 0.0, True, **options)
        grad_key, grad_value = (x.unflatten(1, (heads, queries)).sum(dim=2) for x in grad_own)
        grad_context: list[Tensor] = [torch.zeros_like(context_key), torch.zeros_like(context_value)]
        if context_key.shape[2]:
            fold = _Fold(len(context_key), heads, query)
            states = fold(query), context_key, context_value, fold(out), fold(total)
            more, *grad_context = _flash_backward(fold(grad), *states, 0.0, False, attn_mask=bias, **options)
            grad_query = grad_query + fold.undo(more)
        return grad_query, *grad_context, grad_key, grad_value, None, None


class _Fold:
    """Reshaping [R, H, T, …] → [P, K, H/K·G·T, …]: all queries that read the same keys, in one dimension."""

    def __init__(self, contexts: int, heads: int, query: Tensor) -> None:
        self._shape = contexts, len(query) // contexts, heads, query.shape[1] // heads, query.shape[2]  # P G K H/K T

    def __call__(self, states: Tensor) -> Tensor:
        """Return the states folded."""
        contexts, size, heads, queries, _ = self._shape
        return states.unflatten(1, (heads, queries)).unflatten(0, (contexts, size)).movedim(1, 3).flatten(2, 4)

    def undo(self, states: Tensor) -> Tensor:
        """Return the states unfolded."""
        _, size, _, queries, tokens = self._shape
        return states.unflatten(2, (queries, size, tokens)).movedim(3, 1).flatten(2, 3).flatten(0, 1)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *_: Any,
    packing: Packing,
    attend: Attend | None,
    **options: Any,
) -> tuple[Tensor, None]:
    attend = attend or (joined if query.device.type == "cpu" else repeated)
    scaling, last = options.get("scaling") or query.shape[-1] ** -0.5, module.config.num_hidden_layers - 1
    return attend(query, key, value, packing, scaling, module.layer_idx == last), None


AttentionInterface.register(NAME, _attention)
