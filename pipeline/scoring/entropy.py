"""How uncertain a model is at a position, from its logits (design §5). Pure functions; all values in nats.

The logits of a few hundred positions are made tile by tile of the vocabulary in one buffer, which is used again for the
next positions. While a tile is warm in the cache, the maxima of its blocks are taken: the `top_k` blocks with the
largest maxima hold the `top_k` largest logits, so the exact top-k is looked for in a hundredth of the vocabulary.

Shape names: T positions, C positions of a chunk, H hidden size, V vocabulary, K = min(top_k, V); the buffer holds N
tiles of W ids, each P blocks of B ids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

CHUNK_TOKENS = 512
"""Positions whose logits are held at once, enough for a fast product with the output matrix (297 MiB if V is 152k)."""

TILE_IDS = 4096
"""Ids of a tile: with a chunk's positions few enough for a cache (8 MiB), enough for a fast product."""

BLOCK = 128
"""Ids of a block, whose largest logit stands for it."""

WriteLogits = Callable[[Tensor, slice, Tensor], object]
"""(hidden [C, H], ids, out [C, ids]) writes the logits of these ids, in the type of `out`."""


@dataclass(frozen=True)
class PositionScores:
    """Scores of T positions, fp32 and int32. Rows of `top_*` are empty unless they were asked for."""

    entropy: Tensor
    """[T] −Σ p̂ ln p̂, p̂ the K most likely next tokens renormalised."""
    entropy_partial: Tensor
    """[T] −Σ p ln p over the same K, not renormalised."""
    nll: Tensor
    """[T] −ln p of the true token. NaN or infinite where the model's output is."""
    rank: Tensor
    """[T] number of tokens the model ranks before the true one: larger logits, and equal ones of lower id."""
    top_ids: Tensor
    """[T, K] most likely first, equal logits by id."""
    top_logprobs: Tensor
    """[T, K]"""

    def take(self, rows: slice) -> PositionScores:
        """The scores of some positions."""
        return PositionScores(*(getattr(self, field.name)[rows] for field in fields(self)))

    def to_cpu(self) -> PositionScores:
        """The same on the CPU; from an accelerator, only there once it has done all that it was asked for before."""
        return PositionScores(*(getattr(self, f.name).to("cpu", non_blocking=True) for f in fields(self)))

    @staticmethod
    def concatenate(parts: list[PositionScores]) -> PositionScores:
        """The scores of all parts' positions, in order."""
        return PositionScores(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(PositionScores)))


def score_logits(logits_TV: Tensor, targets_T: Tensor, top_k: int, *, with_top: bool = False) -> PositionScores:
    """Scores from the logits that predict each position.

    Args:
        logits_TV: any floating type; computed with in fp32. −inf means impossible.
        targets_T: ids of the true tokens.
        top_k: entropies are taken over this many most likely tokens (all, if the vocabulary is smaller).
        with_top: also return the top ids and log-probabilities, ties in the order of their ids.

    Example:
        >>> scores = score_logits(torch.tensor([[0.5, 0.25, 0.25, 0.0]]).log(), torch.tensor([2]), top_k=3)
        >>> round(scores.entropy.item(), 4), round(scores.nll.item(), 4), scores.rank.item()  # 1.5 ln 2, ln 4
        (1.0397, 1.3863, 2)
    """
    return score_hidden(logits_TV, copy_logits, logits_TV.shape[-1], targets_T, top_k, with_top=with_top)


def copy_logits(logits_CV: Tensor, ids: slice, out: Tensor) -> None:
    """`WriteLogits` of a model whose "hidden states" are its logits already."""
    out.copy_(logits_CV[:, ids])


def score_hidden(
    hidden_TH: Tensor,
    write_logits: WriteLogits,
    vocab_size: int,
    targets_T: Tensor,
    top_k: int,
    *,
    with_top: bool = False,
    chunk_tokens: int = CHUNK_TOKENS,
    tile_ids: int = TILE_IDS,
) -> PositionScores:
    """`score_logits` of the logits that `write_logits` makes of hidden states.

    Besides the hidden states themselves, memory is `chunk_tokens` × `vocab_size` × 4 bytes, however many positions.
    """
    tiles = -(-vocab_size // tile_ids)
    width = -(-vocab_size // (tiles * BLOCK)) * BLOCK
    shape = (-(-vocab_size // width), min(chunk_tokens, len(hidden_TH)), width)
    logits_NCW = torch.empty(shape, device=hidden_TH.device)
    logits_NCW[-1].fill_(-torch.inf)  # where no id belongs it stays
    return PositionScores.concatenate(
        [
            _score_chunk(
                hidden_CH, write_logits, vocab_size, targets_C, top_k, with_top, logits_NCW[:, : len(targets_C)]
            )
            for hidden_CH, targets_C in zip(hidden_TH.split(chunk_tokens), targets_T.split(chunk_tokens), strict=True)
        ]
    )


def _score_chunk(
    hidden_CH: Tensor, write_logits: WriteLogits, vocab_size: int, targets_C: Tensor, top_k: int, with_top: bool,
    logits_NCW: Tensor,
) -> PositionScores:  # fmt: skip
    N, C, W = logits_NCW.shape
    maxima_NCP = logits_NCW.new_empty(N, C, W // BLOCK)
    for n in range(N):
        ids = slice(n * W, min((n + 1) * W, vocab_size))
        write_logits(hidden_CH, ids, logits_NCW[n, :, : ids.stop - ids.start])
        torch.amax(logits_NCW[n].view(C, -1, BLOCK), -1, out=maxima_NCP[n])
    blocks_NCPB = logits_NCW.view(N, C, -1, BLOCK)
    top_CK, top_ids_CK = top_logits(blocks_NCPB, maxima_NCP, min(top_k, vocab_size))
    target_C1 = logits_NCW[targets_C // W, torch.arange(C, device=targets_C.device), targets_C % W][:, None]
    lse_C1, rank_C = _normaliser_and_rank(logits_NCW, maxima_NCP.amax((0, 2))[:, None], target_C1, targets_C[:, None])
    return as_scores(top_CK, top_ids_CK, target_C1, lse_C1, rank_C, with_top)


def as_scores(
    top_CK: Tensor, top_ids_CK: Tensor, target_C1: Tensor, lse_C1: Tensor, rank_C: Tensor, with_top: bool
) -> PositionScores:
    """Scores from the largest logits and their ids, the true token's logit, ln Σ exp of all logits, and its rank."""
    logprobs_CK = top_CK - lse_C1
    return PositionScores(
        entropy=_entropy(top_CK.log_softmax(-1)),
        entropy_partial=_entropy(logprobs_CK),
        nll=(lse_C1 - target_C1)[:, 0],
        rank=rank_C.int(),
        top_ids=top_ids_CK[:, : None if with_top else 0].int(),
        top_logprobs=logprobs_CK[:, : None if with_top else 0],
    )


def _entropy(logprobs_TK: Tensor) -> Tensor:
    return torch.special.entr(logprobs_TK.exp()).sum(-1)


def top_logits(blocks_NCPB: Tensor, maxima_NCP: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """The K largest logits [C, K] in fp32 and their ids, ties by id.

    No logit of a block that is not among the K best can be: K others, the maxima of those blocks, come before it.
    """
    N, C, P, B = blocks_NCPB.shape
    maxima_CM = maxima_NCP.transpose(0, 1).reshape(C, N * P)
    block_CM = _top_ids(maxima_CM, torch.arange(N * P, device=maxima_CM.device), min(K, N * P))
    rows_C1 = torch.arange(C, device=maxima_CM.device)[:, None]
    candidates_CL = blocks_NCPB[block_CM // P, rows_C1, block_CM % P].flatten(1)
    ids_CL = (block_CM[:, :, None] * B + torch.arange(B, device=maxima_CM.device)).flatten(1)
    ids_CK = _top_ids(candidates_CL, ids_CL, K)
    tile_CK, column_CK = ids_CK // (P * B), ids_CK % (P * B)
    return blocks_NCPB[tile_CK, rows_C1, column_CK // B, column_CK % B].float(), ids_CK


def _top_ids(values_CL: Tensor, ids_CL: Tensor, K: int) -> Tensor:
    """Ids [C, K] of the K largest values in falling order, equal ones by id.

    That is the order of a stable sort. `topk` leaves open which of equal values it returns, so it is asked for whole
    numbers that differ: a float's bits, read as an integer that rises with the float, above the id.
    """
    bits_CL = (values_CL.float() + 0.0).view(torch.int32).long()  # −0.0 + 0.0 is 0.0
    rising_CL = torch.where(bits_CL < 0, bits_CL ^ 0x7FFFFFFF, bits_CL)
    return 0xFFFFFFFF - ((rising_CL << 32) + (0xFFFFFFFF - ids_CL)).topk(K, dim=-1).values.bitwise_and(0xFFFFFFFF)


def _normaliser_and_rank(
    logits_NCW: Tensor, largest_C1: Tensor, target_C1: Tensor, targets_C1: Tensor
) -> tuple[Tensor, Tensor]:
    """ln Σ exp of the logits [C, 1], and how many tokens come before the true one [C].

    Comparisons are written as fp32, which sums several times faster than booleans do, and exactly below 2²⁴.
    """
    N, C, W = logits_NCW.shape
    shift_C1 = largest_C1.clamp(min=torch.finfo(torch.float32).min)
    before_C1 = target_C1.nextafter(torch.full_like(target_C1, -torch.inf))  # x ≥ target where x > before
    own_C1 = targets_C1 // W
    sum_C, rank_C = torch.zeros_like(target_C1[:, 0]), torch.zeros_like(target_C1[:, 0])
    scratch_CW = torch.empty_like(logits_NCW[0])
    for n in range(N):
        sum_C += torch.sub(logits_NCW[n], shift_C1, out=scratch_CW).exp_().sum(-1)
        bound_C1 = torch.where(own_C1 > n, before_C1, target_C1)
        rank_C += torch.gt(logits_NCW[n], bound_C1, out=scratch_CW).sum(-1)
    own_CW = logits_NCW[own_C1[:, 0], torch.arange(C, device=own_C1.device)]
    lower_CW = torch.arange(W, device=own_CW.device) < targets_C1 % W
    rank_C += ((own_CW == target_C1) & lower_CW).sum(-1)
    return shift_C1 + sum_C[:, None].log(), rank_C
