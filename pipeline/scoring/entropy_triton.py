"""`score_hidden` on NVIDIA GPUs: a product by cuBLAS, a kernel that reads its logits once, a top-k in what is left.

The kernel makes of a position's logits what `entropy.score_hidden` makes in five passes: the normaliser, the rank of
the true token and the maxima of the blocks; the same functions finish from there. Logits stay in the model's own type
and are computed with in fp32.

It gives what plain PyTorch gives (tests, in Triton's interpreter, without a GPU). How fast it is has not been measured.

Shape names as in `entropy`: T positions, C positions of a chunk, H hidden size, V vocabulary, W = V rounded up to whole
blocks, P blocks.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.scoring.entropy import BLOCK, PositionScores, WriteLogits, as_scores, largest

CHUNK_TOKENS = 2048
"""Positions whose logits are held at once: 0.6 GiB in bf16 if V is 152k, and a large product."""

_TILE = 32 * BLOCK
"""Ids that one step of the kernel reads."""


def score_hidden(
    hidden_TH: Tensor,
    write_logits: WriteLogits,
    vocab_size: int,
    targets_T: Tensor,
    top_k: int,
    *,
    with_top: bool = False,
    chunk_tokens: int = CHUNK_TOKENS,
) -> PositionScores:
    """As `entropy.score_hidden`, up to rounding."""
    width = -(-vocab_size // BLOCK) * BLOCK
    logits_CW = hidden_TH.new_empty(min(chunk_tokens, len(hidden_TH)), width)
    logits_CW[:, vocab_size:] = -torch.inf  # where no id belongs it stays
    parts = []
    for hidden_CH, targets_C in zip(hidden_TH.split(chunk_tokens), targets_T.split(chunk_tokens), strict=True):
        C = len(targets_C)
        write_logits(hidden_CH, slice(0, vocab_size), logits_CW[:C, :vocab_size])
        target_C, lse_C, rank_C, maxima_CP = _reduce(logits_CW[:C], targets_C)
        blocks_NCPB = logits_CW[:C].view(1, C, -1, BLOCK)
        top_CK, top_ids_CK = largest(blocks_NCPB, maxima_CP[None], min(top_k, vocab_size))
        parts.append(as_scores(top_CK, top_ids_CK, target_C[:, None], lse_C[:, None], rank_C, with_top))
    return PositionScores.concatenate(parts)


def _reduce(logits_CW: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The true token's logit [C], ln Σ exp [C], tokens before the true one [C], maxima of blocks [C, P], in fp32."""
    C, W = logits_CW.shape
    target_C, lse_C = logits_CW.new_empty((2, C), dtype=torch.float32)
    rank_C = torch.empty_like(targets_C, dtype=torch.int32)
    maxima_CP = logits_CW.new_empty((C, W // BLOCK), dtype=torch.float32)
    if C:
        _reduce_row[(C,)](
            logits_CW, targets_C, target_C, lse_C, rank_C, maxima_CP, W, logits_CW.stride(0), BLOCK, _TILE, num_warps=8
        )
    return target_C, lse_C, rank_C, maxima_CP


@triton.jit
def _reduce_row(  # type: ignore[no-untyped-def]
    logits_CW, targets_C, target_C, lse_C, rank_C, maxima_CP, W, stride, BLOCK: tl.constexpr, TILE: tl.constexpr
):
    """One program a position. Equal logits come in the order of their ids; NaN and +inf make the normaliser NaN."""
    c = tl.program_id(0).to(tl.int64)
    P = W // BLOCK
    row = logits_CW + c * stride
    target = tl.load(targets_C + c)
    own = tl.load(row + target).to(tl.float32)
    shift = tl.full((), -3.4028235e38, tl.float32)
    total = tl.full((), 0.0, tl.float32)
    rank = tl.full((), 0, tl.int32)
    for start in range(0, W, TILE):
        ids = start + tl.arange(0, TILE)
        logits = tl.load(row + ids, mask=ids < W, other=-float("inf")).to(tl.float32)
        blocks = start // BLOCK + tl.arange(0, TILE // BLOCK)
        maxima = tl.max(tl.reshape(logits, (TILE // BLOCK, BLOCK)), axis=1)
        tl.store(maxima_CP + c * P + blocks, maxima, mask=blocks < P)
        larger = tl.maximum(shift, tl.max(maxima, axis=0))
        total = total * tl.exp(shift - larger) + tl.sum(tl.exp(logits - larger), axis=0)
        shift = larger
        before = (logits > own) | ((logits == own) & (ids < target))
        rank += tl.sum(before.to(tl.int32), axis=0)
    tl.store(target_C + c, own)
    tl.store(lse_C + c, shift + tl.log(total))
    tl.store(rank_C + c, rank)
