"""Attention of decoded responses to the contexts they share: a context's keys and values are stored and read once.

There is one product per group with a context's keys and values, for all queries of its responses ("bifurcated
attention", arXiv 2403.08845); the softmax is over context and own tokens together.

Shape names: P contexts, S slots per context for its responses, R rows, H key-value heads, N query heads of each, W
width of the left-padded contexts, T tokens decoded so far, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AttentionInterface, PreTrainedModel

_NAME = "rpt_shared_contexts"


class PrefixCache:
    """Keys and values of the contexts for every layer, and the context that each row belongs to.

    Args:
        layers: keys and values [P, H, W, D] of every layer.
        mask_PW: True for the real tokens of the contexts.
        group_size: rows per context, in order.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], mask_PW: Tensor, group_size: int) -> None:
        self.layers = list(layers)
        """Keys and values of the contexts that still have rows."""
        bias_PW = torch.zeros(mask_PW.shape, device=mask_PW.device).masked_fill_(~mask_PW, -torch.inf)
        self._bias = None if mask_PW.all() else bias_PW[:, None, None]
        self._most_rows = group_size  # S: the most rows that any context has
        self._context_R = torch.arange(len(mask_PW)).repeat_interleave(group_size)
        self._slot_R: Tensor | None = None  # None: the rows fill all slots in order
        self._device = mask_PW.device

    def select(self, rows: Tensor) -> None:
        """Keep only these rows, given in ascending order; contexts without any row are dropped."""
        context_R = self._context_R[rows.cpu()]
        kept, context_R, counts = context_R.unique_consecutive(return_inverse=True, return_counts=True)
        if len(kept) < len(self.layers[0][0]):
            chosen = kept.to(self._device)
            self.layers = [(keys[chosen], values[chosen]) for keys, values in self.layers]
            self._bias = None if self._bias is None else self._bias[chosen]
        first_P, self._most_rows = pad(counts.cumsum(0), (1, -1)), int(counts.max())
        self._context_R = torch.arange(len(kept))[context_R]
        slot_R = context_R * self._most_rows + torch.arange(len(context_R)) - first_P[context_R]
        self._slot_R = slot_R.to(self._device)

    def attend(self, layer: int, query: Tensor, own_keys: Tensor, own_values: Tensor, scaling: float) -> Tensor:
        """Return the attention output [R, 1, H·N, D] of one token per row over its context and its own tokens.

        Args:
            layer: index of the layer.
            query: queries [R, H·N, 1, D].
            own_keys: keys [R, H, T, D] of the rows' own tokens.
            own_values: values [R, H, T, D] of the rows' own tokens.
            scaling: factor of the attention scores.
        """
        keys, values = self.layers[layer]
        rows, heads, width, dimension = len(query), *keys.shape[1:]
        query = (query * scaling).view(rows, heads, -1, dimension)  # [R, H, N, D]
        read, own = self._by_context(query) @ keys.transpose(-1, -2), query @ own_keys.transpose(-1, -2)
        if self._bias is not None:
            read = read + self._bias
        weights = torch.cat([read, self._by_context(own)], dim=-1).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
        read = self._by_row(weights[..., :width] @ values, query.shape[2])
        own = self._by_row(weights[..., width:], query.shape[2]) @ own_values
        return (read + own).reshape(rows, 1, -1, dimension)

    def _by_context(self, query: Tensor) -> Tensor:
        """Regroup [R, H, N, D] → [P, H, S·N, D]; slots without a row hold zeros."""
        if self._slot_R is not None:
            filled = query.new_zeros(len(self.layers[0][0]) * self._most_rows, *query.shape[1:])
            query = filled.index_copy_(0, self._slot_R, query)
        return query.unflatten(0, (-1, self._most_rows)).transpose(1, 2).flatten(2, 3)

    def _by_row(self, states: Tensor, queries: int) -> Tensor:
        """Undo `_by_context`."""
        states = states.unflatten(2, (self._most_rows, queries)).transpose(1, 2).flatten(0, 1)
        return states if self._slot_R is None else states[self._slot_R]


def can_share(model: PreTrainedModel) -> bool:
    """Return True if all layers attend to the whole context through an attention function that can be replaced."""
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    windowed = getattr(model.config, "sliding_window", None) and getattr(model.config, "use_sliding_window", True)
    sdpa = model.config._attn_implementation == "sdpa"
    return bool(sdpa and model._supports_attention_backend and kinds == {"full_attention"} and not windowed)


@contextmanager
def sharing(model: PreTrainedModel) -> Iterator[None]:
    """Within the context, make the model attend by the `PrefixCache` that it is called with as `contexts=`."""
    before = model.config._attn_implementation
    model.config._attn_implementation = _NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *_: Any,
    contexts: PrefixCache,
    **options: Any,
) -> tuple[Tensor, None]:
    scaling = options.get("scaling") or query.shape[-1] ** -0.5
    return contexts.attend(module.layer_idx, query, key, value, scaling), None


AttentionInterface.register(_NAME, _attention)
