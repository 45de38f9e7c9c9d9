"""Attention on CPUs for windows that are packed end to end in one row: each attends to itself alone, without padding.

Padding costs a CPU as much as text. PyTorch's attention can keep packed windows apart only by a mask over the whole
row, most of which it would compute for nothing; here it is called once for each window.

Shape names: T tokens of the row, H query heads, K key-value heads, D head dimension.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "rpt_windows"
"""Name of this attention in `transformers`. It has no mask there: only full causal attention is computed."""


def can_pack(config: Any) -> bool:
    """Return whether all layers of a model attend to all earlier tokens, by its configuration."""
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return not any(windows) and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *_: Any,
    cu_seq_lens_q: Tensor | None = None,
    scaling: float | None = None,
    **__: Any,
) -> tuple[Tensor, None]:
    """Return the attention [B, T, H, D] of queries [B, H, T, D] to keys and values [B, K, T, D].

    Args:
        module: the model's module.
        query: queries.
        key: keys.
        value: values.
        cu_seq_lens_q: where the windows of the only row begin and end; None: every row is one window.
        scaling: factor of the scores; by default 1 / √D.
    """
    ends = [0, query.shape[2]] if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
    seen = [
        scaled_dot_product_attention(
            query[:, :, begin:end],
            key[:, :, begin:end],
            value[:, :, begin:end],
            is_causal=True,
            scale=scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        for begin, end in pairwise(ends)
    ]
    return torch.cat(seen, dim=2).transpose(1, 2), None


AttentionInterface.register(NAME, _attention)
