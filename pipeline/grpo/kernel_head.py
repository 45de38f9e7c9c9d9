"""The output head on NVIDIA GPUs: its passes over the logits are two kernels (`head_triton.py`)."""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor

from pipeline.grpo.logprobs import ChunkedLogprobs, Passes
from pipeline.grpo.proof import agrees


class KernelPasses(Passes):
    """`Passes` that read the logits once, in the type of hidden states, and turn them into their slope in place."""

    def read(
        self, hidden_CE: Tensor, weight_VE: Tensor, targets_C: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        from pipeline.grpo.head_triton import read_logits

        logits_CV = hidden_CE @ weight_VE.t()
        logprobs_C, total_C, entropy_C = read_logits(logits_CV, targets_C, temperature)
        return logprobs_C, total_C, entropy_C if entropy else None, logits_CV

    def slope(
        self,
        kept: Tensor | None,
        hidden_CE: Tensor,
        weight_VE: Tensor,
        targets_C: Tensor,
        total_C: Tensor,
        entropy_C: Tensor,
        grad_C: Tensor,
        grad_entropy_C: Tensor,
        temperature: float,
        entropy: bool,
    ) -> tuple[Tensor, Tensor | float]:
        from pipeline.grpo.head_triton import into_slope_

        logits_CV = hidden_CE @ weight_VE.t() if kept is None else kept.clone()
        slope_CV = into_slope_(logits_CV, targets_C, total_C, entropy_C, grad_C, grad_entropy_C, temperature)
        return slope_CV, 1 / temperature  # entropies that are not wanted have a gradient of 0


@cache
def proven(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels give here what PyTorch's operations give, gradients included."""
    found, expected = (partial(_tried, passes, device, dtype) for passes in (KernelPasses(), Passes()))
    return agrees(found, expected, "the output head by PyTorch's operations")


def _tried(passes: Passes, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Values and gradients of a few tokens in two chunks, of a vocabulary of two blocks and a half; in fp32."""
    random = torch.Generator().manual_seed(0)
    shapes = ((50, 32), (10_000, 32), (50,), (50,))
    hidden, weight, grad, grad_entropy = (torch.randn(shape, generator=random).to(device) for shape in shapes)
    targets = torch.randint(10_000, (50,), generator=random).to(device)
    own = [state.to(dtype).requires_grad_() for state in (hidden, weight)]
    with torch.enable_grad():
        made = ChunkedLogprobs.apply(*own, targets, 0.8, True, 30, passes)
        gradients = torch.autograd.grad(made, own, (grad, grad_entropy))
    return [tensor.detach().float() for tensor in (*made, *gradients)]
