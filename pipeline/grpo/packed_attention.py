"""Attention of an update: contexts once, then their responses, packed into one row of tokens without padding.

All of a model but its attention sees that row. Attention spreads it into contexts [P, H, C, D] and responses
[R, H, T, D]: contexts attend to themselves, responses to their context and to themselves. Keys and values of a context
are never repeated on a CPU: as in `shared_attention.py` the softmax is split in two, here with a backward.

Shape names as in `types.py`; N packed tokens, S slots (P·C + R·T, padding included), H query heads, K key-value heads,
D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from pipeline.grpo.shared_attention import cpu_flash
from pipeline.grpo.types import Batch

NAME = "rpt_packed"
"""Under which `transformers` knows it."""

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, "Packing", float], Tensor]
"""Queries [R, H, T, D] of responses, keys and values of contexts [P, K, C, D], own ones [R, K, T, D], what is padding,
scaling → [R, H, T, D]."""


class Packing:
    """The tokens of a batch in one row, and the attention between them.

    Args:
        batch: contexts and responses.
        attend: of responses; by default the fastest on the batch's device.
    """

    def __init__(self, batch: Batch, attend: Attend | None = None) -> None:
        contexts_PC, rows_RT = batch.context_mask_PC, batch.mask_RT
        (self._contexts, self._width), (self._rows, self._room) = contexts_PC.shape, rows_RT.shape
        position_PC, length_P = contexts_PC.cumsum(dim=1) - 1, contexts_PC.sum(dim=1)
        time_T, device = torch.arange(self._room, device=rows_RT.device), rows_RT.device
        position_RT = length_P.repeat_interleave(batch.group_size)[:, None] + time_T
        self.ids_N = torch.cat([batch.context_ids_PC[contexts_PC], batch.inputs_RT[rows_RT]])
        self.positions_N = torch.cat([position_PC[contexts_PC], position_RT[rows_RT]])
        self.read = int(length_P.sum())
        """Of the N tokens those of contexts; responses follow."""
        # In the slots contexts are padded on their right, where no token of theirs looks.
        slot_PC = torch.arange(self._contexts, device=device)[:, None] * self._width + position_PC
        slot_RT = contexts_PC.numel() + torch.arange(self._rows, device=device)[:, None] * self._room + time_T
        full = len(self.ids_N) == contexts_PC.numel() + rows_RT.numel()
        self._slot_N = None if full else torch.cat([slot_PC[contexts_PC], slot_RT[rows_RT]])
        self.real_PC = None if contexts_PC.all() else torch.arange(self._width, device=device) < length_P[:, None]
        """Slots of contexts that hold a token; None if all do."""
        self._attend = attend or (joined if device.type == "cpu" else repeated)

    def attention(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, *, last: bool) -> Tensor:
        """Of queries [1, H, N, D] to keys and values [1, K, N, D]: [1, N, H, D].

        In the `last` layer nothing reads what contexts see, and it is 0.
        """
        (context_query, query), (context_key, key), (context_value, value) = map(self._spread, (query, key, value))
        rows = self._attend(query, context_key, context_value, key, value, self, scaling)
        if last or not self._width:
            contexts = torch.zeros_like(context_query)
        else:
            gqa = key.shape[1] != query.shape[1]
            contexts = scaled_dot_product_attention(
                context_query, context_key, context_value, is_causal=True, scale=scaling, enable_gqa=gqa
            )
        out_SHD = torch.cat([part.transpose(1, 2).flatten(0, 1) for part in (contexts, rows)])
        return (out_SHD if self._slot_N is None else out_SHD[self._slot_N])[None]

    @cached_property
    def seen_RTS(self) -> Tensor:
        """What each token of a response sees of its context's copy and of its own response: [R or 1, 1, T, C + T]."""
        time_T = torch.arange(self._room, device=self.ids_N.device)
        own_TT, real_PC = time_T[:, None] >= time_T, self.real_PC
        if real_PC is None:
            real_PC = own_TT.new_ones(1, self._width)
        else:
            real_PC = real_PC.repeat_interleave(self._rows // self._contexts, dim=0)
        shape = len(real_PC), self._room, -1
        return torch.cat([real_PC[:, None].expand(shape), own_TT.expand(shape)], dim=2)[:, None]

    def _spread(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """[1, H, N, D] → [P, H, C, D] and [R, H, T, D]."""
        slots, split = states[0], self._contexts * self._width
        if self._slot_N is not None:
            empty = slots.new_zeros(len(slots), split + self._rows * self._room, slots.shape[2])
            slots = empty.index_copy(1, self._slot_N, slots)
        shapes = (self._contexts, self._width), (self._rows, self._room)
        contexts, rows = (
            part.unflatten(1, shape).transpose(0, 1)
            for part, shape in zip((slots[:, :split], slots[:, split:]), shapes, strict=True)
        )
        return contexts, rows


def repeated(
    query: Tensor, context_key: Tensor, context_value: Tensor, key: Tensor, value: Tensor, packing: Packing,
    scaling: float,
) -> Tensor:  # fmt: skip
    """An `Attend` of any device: each response has a copy of its context's keys and values."""
    size, queries = len(query) // len(context_key), query.shape[1] // key.shape[1]
    keys = torch.cat([context_key.repeat_interleave(size, dim=0), key], dim=2).repeat_interleave(queries, dim=1)
    values = torch.cat([context_value.repeat_interleave(size, dim=0), value], dim=2).repeat_interleave(queries, dim=1)
    return scaled_dot_product_attention(query, keys, values, attn_mask=packing.seen_RTS, scale=scaling)


def joined(
    query: Tensor, context_key: Tensor, context_value: Tensor, key: Tensor, value: Tensor, packing: Packing,
    scaling: float,
) -> Tensor:  # fmt: skip
    """An `Attend` of CPUs: a context's keys and values are read once by all queries of its responses."""
    bias = None
    if packing.real_PC is not None:  # finite, for a context of no token
        least = torch.finfo(query.dtype).min / 2
        bias = torch.zeros_like(packing.real_PC, dtype=query.dtype).masked_fill_(~packing.real_PC, least)[:, None, None]
    out: Tensor = _Joined.apply(query, context_key, context_value, key, value, bias, scaling)
    return out


_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _Joined(torch.autograd.Function):
    """softmax over [context, own tokens] in two parts, each with its output oᵢ and its log Σ exp, Lᵢ.

    The whole has L = log(e^L₁ + e^L₂) and the output Σ e^(Lᵢ − L) oᵢ. The backward of a part needs L and the output of
    the whole, which give its probabilities and Σ o · grad.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, context_key: Tensor, context_value: Tensor, key: Tensor, value: Tensor,
        bias: Tensor | None, scaling: float,
    ) -> Tensor:  # fmt: skip
        ctx.scaling = scaling
        heads, queries = key.shape[1], query.shape[1] // key.shape[1]
        own = query, *(x.repeat_interleave(queries, dim=1) for x in (key, value))
        out, total = cpu_flash(*own, 0.0, True, scale=scaling)
        if context_key.shape[2]:
            fold = _Fold(len(context_key), heads, query)
            read, read_total = cpu_flash(
                fold(query), context_key, context_value, 0.0, False, attn_mask=bias, scale=scaling
            )
            read, read_total = fold.undo(read), fold.undo(read_total)
            share = torch.sigmoid(read_total - total)[..., None].to(out)
            out, total = torch.lerp(out, read, share), torch.logaddexp(total, read_total)
        ctx.save_for_backward(query, context_key, context_value, key, value, bias, out, total)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
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
    """[R, H, T, …] → [P, K, H/K·G·T, …]: all queries that read the same keys, in one dimension."""

    def __init__(self, contexts: int, heads: int, query: Tensor) -> None:
        self._shape = contexts, len(query) // contexts, heads, query.shape[1] // heads, query.shape[2]  # P G K H/K T

    def __call__(self, states: Tensor) -> Tensor:
        """Fold."""
        contexts, size, heads, queries, _ = self._shape
        return states.unflatten(1, (heads, queries)).unflatten(0, (contexts, size)).movedim(1, 3).flatten(2, 4)

    def undo(self, states: Tensor) -> Tensor:
        """Unfold."""
        _, size, _, queries, room = self._shape
        return states.unflatten(2, (queries, size, room)).movedim(3, 1).flatten(2, 3).flatten(0, 1)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, packing: Packing, **options: Any
) -> tuple[Tensor, None]:
    scaling, last = options.get("scaling") or query.shape[-1] ** -0.5, module.config.num_hidden_layers - 1
    return packing.attention(query, key, value, scaling, last=module.layer_idx == last), None


AttentionInterface.register(NAME, _attention)
