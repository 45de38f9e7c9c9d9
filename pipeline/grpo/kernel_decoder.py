"""Decoding steps of Llama's family on NVIDIA GPUs: between matrix products four kernels a layer, and the two norms.

By PyTorch's operations a layer takes some fifty kernels, each of which takes a GPU microseconds however little it does:
recorded as a CUDA graph, such a step of a small model takes several times what reading its weights does.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.core.hardware import runs_triton
from pipeline.grpo.fused_decoder import FusedDecoder, Operations, Turn
from pipeline.grpo.proof import agrees
from pipeline.grpo.recorded_decoding import FixedLayer
from pipeline.grpo.shared_attention import SharedContexts


def fastest_decoder(model: PreTrainedModel) -> FusedDecoder:
    """The one that suits the model's device best, where `can_fuse`."""
    heads, shared = model.config.num_attention_heads, model.config.num_key_value_heads
    if runs_triton(model.device.type):
        size = model.model.layers[0].self_attn.head_dim
        if proven(model.device, model.dtype, heads, shared, size):
            return FusedDecoder(model, Kernels(heads))
    return FusedDecoder(model, Operations(heads))


class Kernels(Operations):
    """`Operations` as few kernels. Keys and values of responses must be `FixedLayer`s."""

    def turn(self, cos_RD: Tensor, sin_RD: Tensor) -> Turn:
        return cos_RD, sin_RD

    def attend(
        self, index: int, states_RSD: Tensor, value_RKD: Tensor, turn: Turn, own: Any, contexts: SharedContexts,
        own_bias: Tensor | None, scaling: float,
    ) -> Tensor:  # fmt: skip
        from pipeline.grpo.decode_triton import attend, rotate_and_store

        query_RHD = rotate_and_store(*self.split(states_RSD), value_RKD, *turn, own.keys, own.values, own.column)
        read = *contexts.layers[index], contexts.first_P, contexts.bounds_P1, contexts.most_rows
        return attend(query_RHD, *read, own.keys, own.values, own.column, scaling)  # up to the column: no bias

    def gated(self, gate_up_R2F: Tensor) -> Tensor:
        from pipeline.grpo.decode_triton import swiglu

        return swiglu(gate_up_R2F)


@cache
def proven(device: torch.device, dtype: torch.dtype, heads: int, shared: int, size: int) -> bool:
    """Whether kernels give here what PyTorch's operations give."""
    found, expected = (
        partial(_tried, operations, device, dtype, heads, shared, size)
        for operations in (Kernels(heads), Operations(heads))
    )
    return agrees(found, expected, "decoding by PyTorch's operations")


@torch.inference_mode()
def _tried(
    operations: Operations, device: torch.device, dtype: torch.dtype, heads: int, shared: int, size: int
) -> list[Tensor]:
    """What operations make of a few rows, contexts of which are long, padded and all but empty; in fp32."""
    random, column, width = torch.Generator().manual_seed(0), 70, 300

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(device, dtype)

    real_PW = torch.arange(width) >= torch.tensor([0, 100, width - 1])[:, None]
    contexts = SharedContexts([(some(3, shared, width, size), some(3, shared, width, size))], real_PW.to(device), 4)
    contexts.select(torch.tensor([0, 1, 2, 3, 5, 9, 10], device=device))
    own = FixedLayer(some(7, shared, 0, size), torch.full((1,), column, device=device))
    own.keys, own.values = some(7, shared, column + 9, size), some(7, shared, column + 9, size)
    open_B = torch.where(torch.arange(column + 9) > column, -torch.inf, 0.0).to(device)
    turn = operations.turn(some(7, size // 2).repeat(1, 2), some(7, size // 2).repeat(1, 2))
    states, value = some(7, heads + shared, size), some(7, shared, size)
    seen = operations.attend(0, states, value, turn, own, contexts, open_B, size**-0.5)
    return [made.float() for made in (seen, own.keys, own.values, operations.gated(some(7, 4000)))]
