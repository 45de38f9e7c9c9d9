"""Attention of an update on an NVIDIA GPU: variable-length flash attention on the packed row, nothing padded or copied.

Two calls a layer. Every context and every response attends to itself, causally; then all responses of a context, which
follow each other in the row, attend to the context's tokens. What a response's token sees is made of the two parts:
each has its output oᵢ and its log Σ exp, Lᵢ; the whole has L = log(e^L₁ + e^L₂) and the output Σ e^(Lᵢ − L) oᵢ. The
backward of a part needs L and the output of the whole, which give its probabilities and Σ o · grad.

Shape names as in `packing.py`; H query heads, K key-value heads, D head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from pipeline.grpo.packing import Packing, Segments


def takes(dtype: torch.dtype, dimension: int) -> bool:
    """Whether PyTorch's kernel knows such heads."""
    return dtype in (torch.bfloat16, torch.float16) and dimension % 8 == 0 and dimension <= 256


def can_varlen(query: Tensor, value: Tensor) -> bool:
    """Whether the kernel takes these [1, H or K, N, D] where they are: on an NVIDIA GPU from Ampere on."""
    nvidia = query.device.type == "cuda" and torch.version.cuda is not None
    known = takes(query.dtype, query.shape[-1]) and value.shape[-1] == query.shape[-1]
    return nvidia and known and torch.cuda.get_device_capability(query.device) >= (8, 0)


def varlen(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float, last: bool) -> Tensor:
    """An `Attend` of NVIDIA GPUs."""
    out: Tensor = _Varlen.apply(*(states[0].transpose(0, 1) for states in (query, key, value)), packing, scaling, last)
    return out[None]


class _Varlen(torch.autograd.Function):
    """Queries [N, H, D], keys and values [N, K, D] → [N, H, D]."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float, last: bool
    ) -> Tensor:
        read = packing.read
        start = read if last and read < len(query) else 0  # the first token whose output is read
        ctx.packing, ctx.scaling, ctx.start = packing, scaling, start
        own = packing.responses if start else packing.own
        out, total = _forward(query[start:], key[start:], value[start:], own, own, scaling, causal=True)
        if start:
            out, total = _after(start, out), pad(total, (start, 0))
        if 0 < read < len(query):
            states = query[read:], key[:read], value[:read]
            more, more_total = _forward(*states, packing.readers, packing.reads, scaling, causal=False)
            if packing.bare_N is not None:
                more_total.masked_fill_(packing.bare_N, -torch.inf)  # the kernel's is +inf where there is no key
            share = torch.sigmoid(more_total - total[:, read:]).t()[..., None]
            out[read:].lerp_(more, share.to(out.dtype))
            total[:, read:] = torch.logaddexp(total[:, read:], more_total)
        ctx.save_for_backward(query, key, value, out, total)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,), (query, key, value, out, total) = grads, ctx.saved_tensors
        packing, start, read = ctx.packing, ctx.start, ctx.packing.read
        own, whole = packing.responses if start else packing.own, (out[start:], total[:, start:])
        found = _backward(
            grad[start:], query[start:], key[start:], value[start:], *whole, own, own, ctx.scaling, causal=True
        )
        grad_query, grad_key, grad_value = (_after(start, x) for x in found) if start else found
        if 0 < read < len(query):
            states = grad[read:], query[read:], key[:read], value[:read], out[read:], total[:, read:]
            more = _backward(*states, packing.readers, packing.reads, ctx.scaling, causal=False)
            grad_query[read:] += more[0]
            grad_key[:read] += more[1]
            grad_value[:read] += more[2]
        return grad_query, grad_key, grad_value, None, None, None


def _after(tokens: int, states: Tensor) -> Tensor:
    """States [N, H, D] after those of so many tokens, which are 0."""
    return pad(states, (0, 0, 0, 0, tokens, 0))


def _forward(
    query: Tensor, key: Tensor, value: Tensor, asking: Segments, asked: Segments, scaling: float, *, causal: bool
) -> tuple[Tensor, Tensor]:
    """Each run of queries to its run of keys: outputs [N, H, D], and log Σ exp [H, N] in fp32."""
    bounds, longest = (asking.bounds, asked.bounds), (asking.longest, asked.longest)
    out, total, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, *bounds, *longest, 0.0, causal, False, scale=scaling
    )
    return out, total


def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, total: Tensor, asking: Segments,
    asked: Segments, scaling: float, *, causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Of `_forward`, given what came of *all* that the queries attend to: gradients of queries, keys and values."""
    bounds, longest = (asking.bounds, asked.bounds), (asking.longest, asked.longest)
    noise = query.new_empty(2, dtype=torch.uint64), query.new_empty(0)  # of dropout: not looked at without
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
        grad, query, key, value, out, total.contiguous(), *bounds, *longest, 0.0, causal, *noise, scale=scaling
    )  # the kernel counts on a total without gaps, and does not check
    return found
