"""Root-mean-square norms in fewer passes than `transformers` writes: one GPU kernel, or three passes of a CPU."""

from __future__ import annotations

from functools import partial
from inspect import getsource

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm
from transformers.models.llama.modeling_llama import LlamaRMSNorm


def fuse_norms(model: nn.Module) -> int:
    """Exchange the forward of every norm that is written as Llama's; returns how many there are.

    x / √(mean x² + ε) · w in fp32, rounded once; `transformers` rounds before it multiplies by w, too. In fp32 the two
    are the same to rounding, in 16 bits they differ by a unit in the last place: policy and sampler must have the same.
    On CPUs PyTorch has no such kernel, and nothing is gained.
    """
    norms = [module for module in model.modules() if _as_llama(module)]
    for norm in norms:
        norm.forward = partial(_forward, norm)
    return len(norms)


def normed(states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / √(mean x² + ε) · w of the last dimension, in fp32 and rounded once; without gradients.

    PyTorch's function is one kernel on GPUs only; on a CPU it takes twice the time of these passes, or ten times.
    """
    if states.device.type != "cpu":
        return rms_norm(states, weight.shape, weight, eps)
    lengths = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=torch.float32)
    scale = lengths.square_().div_(states.shape[-1]).add_(eps).rsqrt_()
    return (states * scale).mul_(weight).to(states.dtype)


def _as_llama(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__name__.endswith("RMSNorm") and getsource(kind.forward) == getsource(LlamaRMSNorm.forward)


def _forward(norm: nn.Module, hidden_states: Tensor) -> Tensor:
    weight = norm.weight
    assert isinstance(weight, Tensor)
    return rms_norm(hidden_states, weight.shape, weight, float(norm.variance_epsilon))  # type: ignore[arg-type]
