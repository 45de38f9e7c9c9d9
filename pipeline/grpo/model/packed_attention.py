"""Attention of the update over packed batches: each context once, then its responses, in one row without padding.

All of a model except its attention sees that row (`packing.py`). Attention spreads the row into slots, contexts
[P, H, C, D] and responses [R, H, T, D]: contexts attend to themselves, responses to their context and to themselves.
Both go through PyTorch's `scaled_dot_product_attention`, for which each response has a copy of its context's keys and
values.

Shape names as in `packing.py`; H query heads, K key-value heads, D head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from pipeline.grpo.model.packing import Packing

NAME = "rpt_packed"
"""Name of this attention in `transformers`."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float, *, last: bool, repeat_heads: bool
) -> Tensor:
    """Attend over a packed row.

    Args:
        query: queries [1, H, N, D].
        key: keys [1, K, N, D].
        value: values [1, K, N, D].
        packing: the places of contexts and responses in the row.
        scaling: factor of the scores.
        last: True for the last layer, whose output for contexts is not used.
        repeat_heads: True to give each query head a copy of its keys and values. Kernels of GPUs that take a mask want
            that; on CPUs the copies cost more than they save.

    Returns:
        Output [1, N, H, D].
    """
    states = (_spread(states, packing) for states in (query, key, value))
    (context_query, query), (context_key, key), (context_value, value) = states
    gqa, size = query.shape[1] // key.shape[1], packing.rows // packing.contexts
    # `expand` copies nothing; `cat` then makes the one copy for each response.
    keys, values = (
        torch.cat([context[:, None].expand(-1, size, -1, -1, -1).flatten(0, 1), own], dim=2)
        for context, own in ((context_key, key), (context_value, value))
    )
    if repeat_heads:
        keys, values = (copied.repeat_interleave(gqa, dim=1) for copied in (keys, values))
    responses = scaled_dot_product_attention(
        query, keys, values, attn_mask=packing.seen_RTS, scale=scaling, enable_gqa=keys.shape[1] != query.shape[1]
    )
    if last or not packing.width:  # nothing reads the last layer's output for contexts
        contexts = torch.zeros_like(context_query)
    else:
        contexts = scaled_dot_product_attention(
            context_query, context_key, context_value, is_causal=True, scale=scaling, enable_gqa=gqa > 1
        )
    out_SHD = torch.cat([part.transpose(1, 2).flatten(0, 1) for part in (contexts, responses)])
    return (out_SHD if packing.slot_N is None else out_SHD[packing.slot_N])[None]


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


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *_: Any,
    packing: Packing,
    repeat_heads: bool | None,
    **options: Any,
) -> tuple[Tensor, None]:
    if repeat_heads is None:
        repeat_heads = query.device.type != "cpu"
    scaling = options.get("scaling") or query.shape[-1] ** -0.5
    last = module.layer_idx == module.config.num_hidden_layers - 1
    return attend(query, key, value, packing, scaling, last=last, repeat_heads=repeat_heads), None


AttentionInterface.register(NAME, _attention)
