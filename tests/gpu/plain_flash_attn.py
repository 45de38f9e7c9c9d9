"""The package `flash_attn`, in plain PyTorch: what `transformers` imports of it."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

calls: list[str] = []
"""Which of the two was called."""


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False
) -> Tensor:
    """Queries, keys and values [B, T, H, D]: [B, T, H, D]."""
    calls.append("padded")
    return _attend(q, k, v, softmax_scale, causal)


def flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
) -> Tensor:  # fmt: skip
    """Sequences end to end, [N, H, D], which end where the cumulative lengths say."""
    calls.append("packed")
    assert cu_seqlens_q.dtype == torch.int32 and cu_seqlens_q.device == q.device
    ends = cu_seqlens_q.tolist()
    assert max_seqlen_q == max(b - a for a, b in itertools.pairwise(ends))
    parts = [slice(a, b) for a, b in itertools.pairwise(ends)]
    return torch.cat([_attend(q[None, p], k[None, p], v[None, p], softmax_scale, causal)[0] for p in parts])


def _not_used(*_: Any, **__: Any) -> Tensor:
    raise NotImplementedError


flash_attn_with_kvcache = pad_input = unpad_input = _not_used


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool) -> Tensor:
    assert q.dtype in (torch.bfloat16, torch.float16) and q.device.type == "cuda"
    states = (x.transpose(1, 2).float() for x in (q, k, v))
    out = scaled_dot_product_attention(*states, is_causal=causal, scale=scale, enable_gqa=True)
    return out.transpose(1, 2).to(q.dtype)
