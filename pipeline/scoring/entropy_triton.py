"""`score_hidden` on NVIDIA GPUs: a product by cuBLAS, a kernel that reads its logits once, one for the top-k.

The first makes of a position's logits what `entropy.score_hidden` makes in five passes: the normaliser, the rank of the
true token and the maxima of the blocks. The second finds the best blocks and the best logits in them, as
`entropy.largest` does. Logits stay in the model's own type and are computed with in fp32.

They give what plain PyTorch gives in Triton's interpreter, and compile for GPUs from Ampere on (tests, without a GPU).
How fast they are has not been measured.

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

MOST_SELECTED = 32
"""Tokens of a top-k up to which a kernel looks for them: the logits of so many blocks fit a program's registers."""

_TILE = 32 * BLOCK
"""Ids that one step of the first kernel reads."""


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
        top_CK, top_ids_CK = _largest(logits_CW[:C], maxima_CP, min(top_k, vocab_size))
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


def _largest(logits_CW: Tensor, maxima_CP: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """The K largest logits [C, K] in fp32 and their ids, ties by id."""
    C, P = maxima_CP.shape
    if K > MOST_SELECTED:
        return largest(logits_CW.view(1, C, P, BLOCK), maxima_CP[None], K)
    top_CK = maxima_CP.new_empty(C, K)
    ids_CK = torch.empty_like(top_CK, dtype=torch.int64)
    if C:
        sizes = triton.next_power_of_2(K), triton.next_power_of_2(P)
        _select_row[(C,)](
            logits_CW, maxima_CP, top_CK, ids_CK, P, logits_CW.stride(0), K, *sizes, BLOCK, num_warps=4
        )  # fmt: skip
    return top_CK, ids_CK


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


@triton.jit
def _select_row(  # type: ignore[no-untyped-def]
    logits_CW, maxima_CP, top_CK, ids_CK, P, stride,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a position: the K blocks with the largest maxima, then the K largest logits in them.

    Both are taken one after the other, the largest key first. A key is a logit's place in the order of floats above
    what its id lacks to 2³² − 1, so no two are the same; `_NONE` is below them all.
    """
    c = tl.program_id(0).to(tl.int64)
    rows = tl.arange(0, ROWS)
    blocks = tl.arange(0, BLOCKS)
    maxima = tl.load(maxima_CP + c * P + blocks, mask=blocks < P, other=-float("inf"))
    keys = tl.where(blocks < P, _key(maxima, blocks), _NONE)
    chosen = tl.full((ROWS,), _LOW, tl.int64)
    for k in range(K):
        best = tl.max(keys, axis=0)
        chosen = tl.where(rows == k, (best & _LOW) ^ _LOW, chosen)
        keys = tl.where(keys == best, _NONE, keys)
    ids = chosen[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    there = chosen[:, None] < P
    logits = tl.load(logits_CW + c * stride + ids, mask=there, other=-float("inf")).to(tl.float32)
    candidates = tl.where(there, _key(logits, ids), _NONE)
    for k in range(K):
        best = tl.max(tl.max(candidates, axis=1), axis=0)
        rising = (best >> 32).to(tl.int32)
        logit = tl.where(rising < 0, rising ^ 0x7FFFFFFF, rising).to(tl.float32, bitcast=True)
        tl.store(top_CK + c * K + k, logit)
        tl.store(ids_CK + c * K + k, (best & _LOW) ^ _LOW)
        candidates = tl.where(candidates == best, _NONE, candidates)


@triton.jit
def _key(logits, ids):  # type: ignore[no-untyped-def]
    """As `entropy._first` makes it."""
    bits = tl.where(logits == 0.0, 0.0, logits).to(tl.int32, bitcast=True)  # −0.0 is 0.0
    rising = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    return (rising << 32) + (ids.to(tl.int64) ^ _LOW)


_LOW: tl.constexpr = tl.constexpr((1 << 32) - 1)
_NONE: tl.constexpr = tl.constexpr(1 - (1 << 63))
