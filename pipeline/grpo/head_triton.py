"""The output head's log-probabilities on NVIDIA GPUs: one pass over the logits forward, one in place backward.

PyTorch's operations pass over them a dozen times, mostly in fp32: of 152k words more bytes than everything else in the
update of a model of half a billion.

They give what `logprobs.HeadLogprobs` gives in Triton's interpreter, and compile for GPUs from Ampere on (tests,
without a GPU). How fast they are has not been measured.

Shape names: C tokens of a chunk, V vocabulary. z are the logits divided by the temperature.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096
"""Logits of one step."""


def read_logits(logits_CV: Tensor, targets_C: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of every token log softmax(z) of its target, log Σ exp z and the entropy of softmax(z): [C] each, in fp32."""
    C, V = logits_CV.shape
    logprobs_C, total_C, entropy_C = logits_CV.new_empty((3, C), dtype=torch.float32)
    _read_logits[(C,)](
        logits_CV, targets_C, logprobs_C, total_C, entropy_C, logits_CV.stride(0), V, temperature, **sizes()
    )
    return logprobs_C, total_C, entropy_C


def into_slope_(
    logits_CV: Tensor,
    targets_C: Tensor,
    total_C: Tensor,
    entropy_C: Tensor,
    grad_C: Tensor,
    grad_entropy_C: Tensor,
    temperature: float,
) -> Tensor:
    """Logits become the gradient of z, of Σ grad · log softmax(z)[target] + grad_entropy · entropy; in place.

    grad · (onehot − p) − grad_entropy · p (log p + entropy), with p = softmax(z).
    """
    C, V = logits_CV.shape
    grad_C, grad_entropy_C = grad_C.contiguous(), grad_entropy_C.contiguous()  # of a sum they are one number, expanded
    _into_slope[(C, triton.cdiv(V, _BLOCK))](
        logits_CV, targets_C, total_C, entropy_C, grad_C, grad_entropy_C, logits_CV.stride(0), V, temperature, **sizes()
    )
    return logits_CV


def sizes() -> dict[str, int]:
    """What both kernels are compiled with."""
    return {"BLOCK": _BLOCK, "num_warps": 8}


@triton.jit
def _read_logits(  # type: ignore[no-untyped-def]
    logits, targets_C, logprobs_C, total_C, entropy_C, logits_c, V, temperature, BLOCK: tl.constexpr
):
    """One program a token: Σ exp(z − m) and Σ exp(z − m) (z − m), rescaled as the largest m rises.

    z − m and not z in the second, for the entropy is a small difference of large numbers.
    """
    c = tl.program_id(0).to(tl.int64)
    at = logits + c * logits_c
    offset = tl.arange(0, BLOCK)
    largest = -1.0e30
    total = 0.0
    weighted = 0.0
    for start in range(0, V, BLOCK):
        there = start + offset < V
        z = tl.load(at + start + offset, mask=there, other=-1.0e30).to(tl.float32) / temperature
        larger = tl.maximum(largest, tl.max(z, axis=0))
        below = z - larger
        weights = tl.exp(below)
        rescale = tl.exp(largest - larger)
        weighted = (weighted + total * (largest - larger)) * rescale
        weighted += tl.sum(tl.where(weights > 0.0, weights * below, 0.0), axis=0)
        total = total * rescale + tl.sum(weights, axis=0)
        largest = larger
    log_total = largest + tl.log(total)
    target = tl.load(at + tl.load(targets_C + c)).to(tl.float32) / temperature
    tl.store(logprobs_C + c, target - log_total)
    tl.store(total_C + c, log_total)
    tl.store(entropy_C + c, tl.log(total) - weighted / total)


@triton.jit
def _into_slope(  # type: ignore[no-untyped-def]
    logits, targets_C, total_C, entropy_C, grad_C, grad_entropy_C, logits_c, V, temperature, BLOCK: tl.constexpr
):
    """One program a token and BLOCK words."""
    c = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = logits + c * logits_c + word
    there = word < V
    logprob = tl.load(at, mask=there, other=0.0).to(tl.float32) / temperature - tl.load(total_C + c)
    grad = tl.load(grad_C + c)
    p = tl.exp(logprob)
    of_entropy = tl.where(p > 0.0, p * (logprob + tl.load(entropy_C + c)), 0.0) * tl.load(grad_entropy_C + c)
    slope = grad * (tl.where(word == tl.load(targets_C + c), 1.0, 0.0) - p) - of_entropy
    tl.store(at, slope, mask=there)
