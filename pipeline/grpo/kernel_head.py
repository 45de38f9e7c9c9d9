"""`logprobs.HeadLogprobs` on NVIDIA GPUs: its passes over the logits are two kernels (`head_triton.py`)."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from pipeline.grpo.head_triton import into_slope_, read_logits
from pipeline.grpo.logprobs import PlainLogprobs, add_product, chunks
from pipeline.grpo.proof import agrees


class KernelLogprobs(torch.autograd.Function):
    """log softmax(h Wᵀ / temperature)[target] and its entropy, as `PlainLogprobs`.

    The backward computes the logits again, unless there was one chunk.
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
        ctx.temperature, ctx.chunk = temperature, chunk
        found_3N = hidden_NE.new_empty((3, len(targets_N)), dtype=torch.float32)
        kept = hidden_NE.new_empty(0)
        for rows in chunks(len(targets_N), chunk):
            logits_CV = hidden_NE[rows] @ weight_VE.t()
            found_3N[:, rows] = torch.stack(read_logits(logits_CV, targets_N[rows], temperature))
            kept = logits_CV if len(targets_N) <= chunk else kept
        logprobs_N, total_N, entropy_N = found_3N.unbind()
        ctx.save_for_backward(hidden_NE, weight_VE, targets_N, total_N, entropy_N, kept)
        if entropy:
            return logprobs_N, entropy_N
        nothing_N = torch.zeros_like(entropy_N)
        ctx.mark_non_differentiable(nothing_N)
        return logprobs_N, nothing_N

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        hidden_NE, weight_VE, targets_N, total_N, entropy_N, kept = ctx.saved_tensors
        grad_N, grad_entropy_N = (grad / ctx.temperature for grad in grads)
        grad_hidden = torch.empty_like(hidden_NE)
        learned = ctx.needs_input_grad[1]
        grad_weight = torch.zeros_like(weight_VE, dtype=torch.float32) if learned else None
        for rows in chunks(len(targets_N), ctx.chunk):
            logits_CV = kept.clone() if len(kept) else hidden_NE[rows] @ weight_VE.t()
            slope_CV = into_slope_(
                logits_CV, targets_N[rows], total_N[rows], entropy_N[rows], grad_N[rows], grad_entropy_N[rows],
                ctx.temperature,
            )  # fmt: skip
            grad_hidden[rows] = slope_CV @ weight_VE
            if grad_weight is not None:
                add_product(grad_weight, slope_CV.t(), hidden_NE[rows])
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight_VE.dtype), None, None, None, None


@cache
def proven(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels give here what PyTorch's operations give, gradients included."""
    found, expected = (partial(_tried, function, device, dtype) for function in (KernelLogprobs, PlainLogprobs))
    return agrees(found, expected, "the output head by PyTorch's operations")


def _tried(function: type[torch.autograd.Function], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Values and gradients of a few tokens in two chunks, of a vocabulary of two blocks and a half; in fp32."""
    random = torch.Generator().manual_seed(0)
    shapes = ((50, 32), (10_000, 32), (50,), (50,))
    hidden, weight, grad, grad_entropy = (torch.randn(shape, generator=random).to(device) for shape in shapes)
    targets = torch.randint(10_000, (50,), generator=random).to(device)
    own = [state.to(dtype).requires_grad_() for state in (hidden, weight)]
    with torch.enable_grad():
        made = function.apply(*own, targets, 0.8, True, 30)
        gradients = torch.autograd.grad(made, own, (grad, grad_entropy))
    return [tensor.detach().float() for tensor in (*made, *gradients)]
