"""Decoding for models of Llama's family in fewer operations: contexts, then one more token per row and step.

A decoding step of a small model is bound by its number of operations. Here queries, keys and values are one product,
gate and up another, the residual is added by the product before it, and queries and keys are rotated together.

Shape names: P contexts, C tokens of the longest, R rows, E hidden size, H query heads, K key-value heads, D head
dimension, S = H + K, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention, silu
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from transformers.cache_utils import DynamicLayer

from pipeline.grpo.model.prefix_attention import PrefixCache, can_share
from pipeline.grpo.rollout.decoding import Keyed

Rope = tuple[Tensor, Tensor]
"""Cosines and signed sines of the rotary embedding (arXiv 2104.09864), with the halves of a head paired."""

FAMILY = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)


def can_fuse(model: PreTrainedModel) -> bool:
    """Return True if the model is an unmodified member of the family that shares contexts and rotates whole heads."""
    whole_heads = (getattr(model.config, "rope_parameters", None) or {}).get("partial_rotary_factor", 1) == 1
    return type(model) in FAMILY and model.config.hidden_act == "silu" and whole_heads and can_share(model)


class Linear(NamedTuple):
    """A linear layer: x · weightᵀ + bias."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, states: Tensor) -> Tensor:
        """Return states · weightᵀ + bias."""
        return linear(states, self.weight, self.bias)

    def added_to(self, total: Tensor, states: Tensor) -> Tensor:
        """Add states · weightᵀ + bias to `total` in place and return it."""
        total.addmm_(states, self.weight.t())
        return total if self.bias is None else total.add_(self.bias)


def rope_factors(cos_RD: Tensor, sin_RD: Tensor) -> Rope:
    """Return the factors for `apply_rope`: [−x₂, x₁] · sin equals [x₂, x₁] · sin with its first half negated."""
    first, second = sin_RD.chunk(2, dim=1)
    return cos_RD[:, None], torch.cat([-first, second], dim=1)[:, None]


def apply_rope(states: Tensor, rope: Rope) -> Tensor:
    """Return the queries and keys [..., S, D] rotated."""
    cos, signed_sin = rope
    return torch.addcmul(states * cos, states.roll(states.shape[-1] // 2, dims=-1), signed_sin)


class _Layer(NamedTuple):
    input_norm: Tensor
    query_key_value: Linear
    head_norms: tuple[Tensor, Tensor] | None
    """Norm weights of queries and of keys, if the model has them (Qwen3)."""
    out: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear
    head_size: int
    scaling: float


class FusedDecoder:
    """Computes logits after contexts and after one more token per row, for models that `can_fuse` accepts.

    The weights of the model's projections become views of the fused ones, so that a copy into either changes both. The
    model must not be moved to another device afterwards.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config
        self._model, self._eps = model.model, config.rms_norm_eps
        self._heads, self._values = config.num_attention_heads, config.num_key_value_heads
        self._head = Linear(model.lm_head.weight, model.lm_head.bias)
        self._layers = [_layer(layer) for layer in model.model.layers]

    def __call__(
        self,
        ids_R: Tensor,
        positions_R: Tensor,
        own: Sequence[DynamicLayer],
        contexts: PrefixCache,
    ) -> Tensor:
        """Return the logits [R, V] after one more token per row.

        Args:
            ids_R: the token of each row.
            positions_R: its position.
            own: keys and values of the responses so far, by layer; those of the token are appended.
            contexts: keys and values of the contexts that the rows share.
        """
        hidden_RE = self._model.embed_tokens(ids_R)
        rope = rope_factors(*(x[0] for x in self._model.rotary_emb(hidden_RE, positions_R[None])))
        for index, layer in enumerate(self._layers):
            states_RSD, value_RKD = self._attention_states(layer, self._normed(hidden_RE, layer.input_norm))
            query, key, value = (x[:, :, None] for x in (*self._split(apply_rope(states_RSD, rope)), value_RKD))
            keys, values = own[index].update(key, value)
            seen = contexts.attend(index, query, keys, values, layer.scaling).flatten(1)
            hidden_RE = self._layer_output(layer, hidden_RE, seen)
        return self._head(self._normed(hidden_RE, self._model.norm.weight))

    def read_contexts(self, contexts: Sequence[Sequence[int]], width: int, kept: Keyed | None) -> Tensor:
        """Return the logits [P, V] after the contexts (a `ReadContexts`).

        In the last layer only the last tokens' attention is computed, besides keys and values. Contexts are padded on
        the right, where causal attention never sees padding, and shifted to the right in the stored keys and values.
        """
        ids_PC = pad_sequence([torch.tensor(ids) for ids in contexts], batch_first=True).to(self._model.device)
        length_P = torch.tensor([len(ids) for ids in contexts], device=ids_PC.device)
        column_C = torch.arange(ids_PC.shape[1], device=ids_PC.device)
        p_P1 = torch.arange(len(contexts), device=ids_PC.device)[:, None]
        last_P1 = length_P[:, None] - 1
        moved_PW = (torch.arange(width, device=ids_PC.device) - width + length_P[:, None]).clamp_(min=0)
        hidden = self._model.embed_tokens(ids_PC).flatten(0, 1)
        rope = rope_factors(*(x[0] for x in self._model.rotary_emb(hidden, column_C[None])))
        for index, layer in enumerate(self._layers):
            made = self._attention_states(layer, self._normed(hidden, layer.input_norm))
            states, value = (x.unflatten(0, ids_PC.shape) for x in made)  # [P, C, S, D] and [P, C, K, D]
            query, key = self._split(apply_rope(states, rope))
            if kept is not None:
                kept.append((_moved(key, p_P1, moved_PW), _moved(value, p_P1, moved_PW)))
            real = None
            if index == len(self._layers) - 1:
                query, hidden = query[p_P1, last_P1], hidden.unflatten(0, ids_PC.shape)[p_P1, last_P1][:, 0]
                real = (column_C <= last_P1)[:, None, None]
            query, key, value = (x.transpose(1, 2) for x in (query, key, value))
            seen = scaled_dot_product_attention(
                query, key, value, real, is_causal=real is None, scale=layer.scaling, enable_gqa=True
            )
            hidden = self._layer_output(layer, hidden, seen.transpose(1, 2).flatten(2).flatten(0, 1))
        return self._head(self._normed(hidden, self._model.norm.weight))

    def _layer_output(self, layer: _Layer, hidden: Tensor, seen: Tensor) -> Tensor:
        """Return a layer's output, given its input and the output of its heads; both residuals are added in place."""
        hidden = layer.out.added_to(hidden, seen)
        gate, up = layer.gate_up(self._normed(hidden, layer.mlp_norm)).chunk(2, dim=1)
        return layer.down.added_to(hidden, silu(gate).mul_(up))

    def _attention_states(self, layer: _Layer, hidden_RE: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries and keys [R, S, D] before rotation, and values [R, K, D]."""
        made = layer.query_key_value(hidden_RE).unflatten(1, (-1, layer.head_size))
        states, value = made[:, : -self._values], made[:, -self._values :]
        if layer.head_norms:
            parts = zip(self._split(states), layer.head_norms, strict=True)
            states = torch.cat([self._normed(x, norm) for x, norm in parts], dim=1)
        return states, value

    def _split(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Split [..., S, D] into queries [..., H, D] and keys [..., K, D]."""
        return states[..., : self._heads, :], states[..., self._heads :, :]

    def _normed(self, states: Tensor, weight: Tensor) -> Tensor:
        """Return x / √(mean x² + ε) · w over the last dimension, in fp32 and rounded once; without gradients.

        On CPUs PyTorch's `rms_norm` takes two to ten times as long as these passes.
        """
        lengths = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=torch.float32)
        scale = lengths.square_().div_(states.shape[-1]).add_(self._eps).rsqrt_()
        return (states * scale).mul_(weight).to(states.dtype)


def _moved(states: Tensor, p_P1: Tensor, columns_PW: Tensor) -> Tensor:
    """Move [P, C, K, D] → [P, K, W, D] by the columns' indices."""
    return states[p_P1, columns_PW].transpose(1, 2).contiguous()


def _layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    norms = (attention.q_norm.weight, attention.k_norm.weight) if hasattr(attention, "q_norm") else None
    return _Layer(
        layer.input_layernorm.weight,
        _fused(attention.q_proj, attention.k_proj, attention.v_proj),
        norms,
        _fused(attention.o_proj),
        layer.post_attention_layernorm.weight,
        _fused(mlp.gate_proj, mlp.up_proj),
        _fused(mlp.down_proj),
        attention.head_dim,
        attention.scaling,
    )


def _fused(*modules: nn.Linear) -> Linear:
    """Fuse projections of the same states into one, and make the weight of each a view of it."""
    if len(modules) == 1:
        return Linear(modules[0].weight, modules[0].bias)
    weight = _concatenate_in_place([module.weight for module in modules])
    return Linear(
        weight, None if modules[0].bias is None else _concatenate_in_place([module.bias for module in modules])
    )


def _concatenate_in_place(parameters: Sequence[Tensor]) -> Tensor:
    whole = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(parameters, whole.split([len(parameter) for parameter in parameters]), strict=True):
        parameter.data = part
    return whole
