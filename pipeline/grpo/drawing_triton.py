"""`drawing.draw` on NVIDIA GPUs: logits are read once, and a block of them again.

PyTorch's operations pass over the logits ten times, mostly in fp32: of 256 rows and 152k words more bytes than the
weights of a model of half a billion.

It gives what `drawing.draw` gives in Triton's interpreter, and compiles for GPUs from Ampere on (tests, without a GPU).
How fast it is has not been measured.

Shape names: R rows, V vocabulary, B blocks of it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
"""Logits that one program reads."""


def draw(logits_RV: Tensor, temperature: float, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
    """As `drawing.draw`, up to rounding."""
    R, V = logits_RV.shape
    B = triton.cdiv(V, BLOCK)
    largest_RB, total_RB = logits_RV.new_empty((2, R, B), dtype=torch.float32)
    ids_R = logits_RV.new_empty(R, dtype=torch.int64)
    logprobs_R = logits_RV.new_empty(R, dtype=torch.float32)
    scale, greedy = temperature or 1.0, temperature == 0
    _read_blocks[(R, B)](logits_RV, largest_RB, total_RB, logits_RV.stride(0), V, scale, **block_sizes())
    _draw[(R,)](
        logits_RV, largest_RB, total_RB, uniform_R, ids_R, logprobs_R, logits_RV.stride(0), V, B, scale,
        **row_sizes(B, greedy=greedy),
    )  # fmt: skip
    return ids_R, logprobs_R


def block_sizes() -> dict[str, int]:
    """What `_read_blocks` is compiled with."""
    return {"BLOCK": BLOCK, "num_warps": 8}


def row_sizes(B: int, *, greedy: bool) -> dict[str, int]:
    """What `_draw` is compiled with."""
    return {"BLOCK": BLOCK, "BLOCKS": triton.next_power_of_2(B), "GREEDY": int(greedy), "num_warps": 8}


@triton.jit
def _read_blocks(logits, largest_RB, total_RB, logits_r, V, scale, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program a row and block: its largest logit m, and Σ exp(z − m)."""
    r = tl.program_id(0).to(tl.int64)
    b = tl.program_id(1)
    column = b * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(logits + r * logits_r + column, mask=column < V, other=-float("inf")).to(tl.float32) / scale
    largest = tl.max(z, axis=0)
    weights = tl.exp(z - tl.maximum(largest, -3.0e38))  # of −∞ alone nothing: −∞ − (−∞) would be no number
    to = r * tl.num_programs(1) + b
    tl.store(largest_RB + to, largest)
    tl.store(total_RB + to, tl.sum(weights, axis=0))


@triton.jit
def _draw(  # type: ignore[no-untyped-def]
    logits, largest_RB, total_RB, uniform_R, ids_R, logprobs_R, logits_r, V, B, scale,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, GREEDY: tl.constexpr,
):  # fmt: skip
    """One program a row: the block in which the cumulative distribution passes the row's draw, then the token there."""
    r = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    there = block < B
    largest_B = tl.load(largest_RB + r * B + block, mask=there, other=-float("inf"))
    total_B = tl.load(total_RB + r * B + block, mask=there, other=0.0)
    largest = tl.max(largest_B, axis=0)
    total_B *= tl.exp(largest_B - largest)
    total = tl.sum(total_B, axis=0)
    if GREEDY:
        chosen = tl.argmax(largest_B, axis=0, tie_break_left=True)
        point = 0.0
        before = 0.0
    else:
        point = tl.load(uniform_R + r) * total
        # Of all blocks with a probability the first that passes the point; the last, if rounding lets none pass it.
        passed = tl.sum((there & (tl.cumsum(total_B, axis=0) <= point)).to(tl.int32), axis=0)
        chosen = tl.minimum(passed, tl.max(tl.where(total_B > 0.0, block, 0), axis=0))
        before = tl.sum(tl.where(block < chosen, total_B, 0.0), axis=0)
    offset = tl.arange(0, BLOCK)
    column = chosen * BLOCK + offset
    z = tl.load(logits + r * logits_r + column, mask=column < V, other=-float("inf")).to(tl.float32) / scale
    if GREEDY:
        within = tl.argmax(z, axis=0, tie_break_left=True)
    else:
        weights = tl.exp(z - largest)
        passed = tl.sum((tl.cumsum(weights, axis=0) + before <= point).to(tl.int32), axis=0)
        within = tl.minimum(passed, tl.max(tl.where(weights > 0.0, offset, 0), axis=0))
    tl.store(ids_R + r, (chosen * BLOCK + within).to(tl.int64))
    tl.store(logprobs_R + r, tl.sum(tl.where(offset == within, z, 0.0), axis=0) - largest - tl.log(total))
