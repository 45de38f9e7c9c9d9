"""Computes a model's uncertainty at each position from its logits. Pure functions; all values in nats.

The logits of a few hundred positions are computed one vocabulary tile at a time, in one buffer that is reused for the
next positions. While a tile is in the cache, the maxima of its blocks are taken: the `top_k` blocks with the largest
maxima hold the `top_k` largest logits, so the exact top-k is searched in a hundredth of the vocabulary.

Shape names: T positions, C positions of a chunk, H hidden size, V vocabulary, K = min(top_k, V); the buffer holds N
tiles of W ids, each of P blocks of B ids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

CHUNK_TOKENS = {"cpu": 256, "cuda": 512}
"""Positions whose logits are in memory at once, by device: enough for a fast matrix product. On a CPU their logits of a
tile have to fit its cache (4 MiB), on a GPU 512 take 297 MiB for V = 152k."""

TILE_IDS = 4096
"""Ids of a tile: few enough that a chunk's logits fit a cache, enough for a fast matrix product."""

BLOCK = 128
"""Ids of a block, which is represented by its largest logit."""

SMALL_BLOCK = 16
"""Ids of the parts of blocks among which the search goes on."""

WriteLogits = Callable[[Tensor, slice, Tensor], object]
"""A function of (hidden [C, H], ids, out [C, ids]) that writes the logits of these ids to `out`, in its dtype."""


@dataclass(frozen=True)
class PositionScores:
    """Scores of T positions, fp32 and int32. Rows of `top_*` are empty unless requested."""

    entropy: Tensor
    """[T] −Σ p̂ ln p̂, where p̂ are the probabilities of the K most likely next tokens, renormalised."""
    entropy_partial: Tensor
    """[T] −Σ p ln p over the same K, not renormalised."""
    nll: Tensor
    """[T] −ln p of the true token. NaN or infinite where the model's output is."""
    rank: Tensor
    """[T] number of tokens ranked before the true one: larger logits, and equal logits of lower id."""
    top_ids: Tensor
    """[T, K] ids of the most likely tokens in falling order, equal logits by id."""
    top_logprobs: Tensor
    """[T, K] ln p of `top_ids`."""

    def take(self, rows: slice) -> PositionScores:
        """Return the scores of a range of positions."""
        return PositionScores(*(getattr(self, field.name)[rows] for field in fields(self)))

    def to_cpu(self) -> PositionScores:
        """Return the scores on the CPU. A copy from an accelerator is asynchronous: synchronise before reading it."""
        return PositionScores(*(getattr(self, f.name).to("cpu", non_blocking=True) for f in fields(self)))

    @staticmethod
    def concatenate(parts: list[PositionScores]) -> PositionScores:
        """Return the scores of all parts' positions, in order."""
        return PositionScores(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(PositionScores)))


def score_logits(logits_TV: Tensor, targets_T: Tensor, top_k: int, *, with_top: bool = False) -> PositionScores:
    """Return the scores of positions, given the logits that predict them.

    Args:
        logits_TV: any floating-point type; computation is in fp32. −inf means impossible.
        targets_T: ids of the true tokens.
        top_k: number of most likely tokens that entropies are computed over (all, if the vocabulary is smaller).
        with_top: also return the top ids and log-probabilities, ties in the order of their ids.

    Example:
        >>> scores = score_logits(torch.tensor([[0.5, 0.25, 0.25, 0.0]]).log(), torch.tensor([2]), top_k=3)
        >>> round(scores.entropy.item(), 4), round(scores.nll.item(), 4), scores.rank.item()  # 1.5 ln 2, ln 4
        (1.0397, 1.3863, 2)
    """
    return score_hidden(logits_TV, copy_logits, logits_TV.shape[-1], targets_T, top_k, with_top=with_top)


def copy_logits(logits_CV: Tensor, ids: slice, out: Tensor) -> None:
    """Write logits for a model whose hidden states are its logits already (a `WriteLogits`)."""
    out.copy_(logits_CV[:, ids])


def score_hidden(
    hidden_TH: Tensor,
    write_logits: WriteLogits,
    vocab_size: int,
    targets_T: Tensor,
    top_k: int,
    *,
    with_top: bool = False,
    chunk_tokens: int | None = None,
    tile_ids: int = TILE_IDS,
) -> PositionScores:
    """Return the scores of positions, given hidden states from which `write_logits` computes their logits.

    Besides the hidden states, memory is `chunk_tokens` (by default `CHUNK_TOKENS`) × `vocab_size` × 4 bytes for any
    number of positions. Arguments and result are otherwise those of `score_logits`.
    """
    chunk_tokens = chunk_tokens or CHUNK_TOKENS[hidden_TH.device.type]
    # Tiles of equal width, a whole number of blocks each, so that one view divides all of them into blocks.
    tiles = -(-vocab_size // tile_ids)
    width = -(-vocab_size // (tiles * BLOCK)) * BLOCK
    shape = (-(-vocab_size // width), min(chunk_tokens, len(hidden_TH)), width)
    logits_NCW = torch.empty(shape, device=hidden_TH.device)
    logits_NCW[-1].fill_(-torch.inf)  # the last tile has columns without an id; they keep −inf
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
        # Taken now, while the tile is still in the cache: the search below then skips most blocks.
        torch.amax(logits_NCW[n].view(C, -1, BLOCK), -1, out=maxima_NCP[n])
    blocks_NCPB = logits_NCW.view(N, C, -1, BLOCK)
    top_CK, top_ids_CK = top_logits(blocks_NCPB, maxima_NCP, min(top_k, vocab_size))
    target_C1 = logits_NCW[targets_C // W, torch.arange(C, device=targets_C.device), targets_C % W][:, None]
    lse_C1, rank_C = _normaliser_and_rank(logits_NCW, maxima_NCP.amax((0, 2))[:, None], target_C1, targets_C[:, None])
    return as_scores(top_CK, top_ids_CK, target_C1, lse_C1, rank_C, with_top)


def as_scores(
    top_CK: Tensor, top_ids_CK: Tensor, target_C1: Tensor, lse_C1: Tensor, rank_C: Tensor, with_top: bool
) -> PositionScores:
    """Return scores, given the largest logits and their ids, the target's logit and rank, and ln Σ exp of all."""
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
    """Return the K largest logits [C, K] in fp32 and their ids, ties by id.

    Only the K blocks with the largest maxima are searched, and of them only the K parts of `SMALL_BLOCK` ids with the
    largest maxima. A logit of any other block or part comes after those K maxima, so it cannot be among the K largest.
    """
    N, C, P, B = blocks_NCPB.shape
    maxima_CM = maxima_NCP.transpose(0, 1).reshape(C, N * P)
    block_CM = _top_ids(maxima_CM, torch.arange(N * P, device=maxima_CM.device), min(K, N * P))
    rows_C1 = torch.arange(C, device=maxima_CM.device)[:, None]
    parts_NCPS = blocks_NCPB.flatten(2).unflatten(2, (-1, SMALL_BLOCK))
    block_CM = block_CM[:, :, None] * B
    starts_CL = (block_CM + SMALL_BLOCK * torch.arange(B // SMALL_BLOCK, device=maxima_CM.device)).flatten(1)
    candidates_CLS = _at(parts_NCPS, rows_C1, starts_CL)
    starts_CM = _top_ids(candidates_CLS.amax(-1), starts_CL, min(K, starts_CL.shape[1]))
    ids_CL = (starts_CM[:, :, None] + torch.arange(SMALL_BLOCK, device=maxima_CM.device)).flatten(1)
    ids_CK = _top_ids(_at(parts_NCPS, rows_C1, starts_CM).flatten(1), ids_CL, K)
    return _at(parts_NCPS.flatten(2)[..., None], rows_C1, ids_CK)[..., 0].float(), ids_CK


def _at(parts_NCPS: Tensor, rows_C1: Tensor, starts_CM: Tensor) -> Tensor:
    """Return the logits [C, M, S] of the parts of S ids that begin with these ids."""
    P, S = parts_NCPS.shape[2:]
    part_CM = starts_CM // S
    return parts_NCPS[part_CM // P, rows_C1, part_CM % P]


def _top_ids(values_CL: Tensor, ids_CL: Tensor, K: int) -> Tensor:
    """Return the ids [C, K] of the K largest values in falling order, equal ones by id.

    That is the order of a stable sort. `topk` does not define which of several equal values it returns, so it gets
    distinct integers: the high 32 bits are the float's bits as an integer that rises with the float, the low 32 bits
    the complement of the id.
    """
    bits_CL = (values_CL.float() + 0.0).view(torch.int32)  # −0.0 + 0.0 is 0.0
    rising_CL = bits_CL ^ ((bits_CL >> 31) & 0x7FFFFFFF)  # negative floats rise as their bits fall
    keys_CL = rising_CL.long().bitwise_left_shift_(32).add_(0xFFFFFFFF - ids_CL)
    return 0xFFFFFFFF - keys_CL.topk(K, dim=-1).values.bitwise_and(0xFFFFFFFF)


def _normaliser_and_rank(
    logits_NCW: Tensor, largest_C1: Tensor, target_C1: Tensor, targets_C1: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ln Σ exp of the logits [C, 1], and the number of tokens ranked before the true one [C].

    Comparisons are written as fp32, which sums several times faster than booleans and is exact below 2²⁴.
    """
    N, C, W = logits_NCW.shape
    # Subtracting the largest logit keeps exp below overflow; the clamp avoids −inf − (−inf) in rows of −inf alone.
    shift_C1 = largest_C1.clamp(min=torch.finfo(torch.float32).min)
    after_C1 = target_C1.nextafter(torch.full_like(target_C1, torch.inf))  # x > target where x ≥ after
    own_C1, P = targets_C1 // BLOCK, W // BLOCK
    sum_C, rank_C = torch.zeros_like(target_C1[:, 0]), torch.zeros_like(target_C1[:, 0])
    scratch_CW = torch.empty_like(logits_NCW[0])
    for n in range(N):
        sum_C += torch.sub(logits_NCW[n], shift_C1, out=scratch_CW).exp_().sum(-1)
        # Equal logits count as before the target in blocks of lower ids only; its own block is completed below.
        block_P = torch.arange(n * P, (n + 1) * P, device=own_C1.device)
        bound_CP1 = torch.where(block_P < own_C1, target_C1, after_C1)[:, :, None]
        torch.ge(logits_NCW[n].view(C, P, BLOCK), bound_CP1, out=scratch_CW.view(C, P, BLOCK))
        rank_C += scratch_CW.sum(-1)
    own_CB = logits_NCW.view(N, C, P, BLOCK)[own_C1[:, 0] // P, torch.arange(C, device=own_C1.device), own_C1[:, 0] % P]
    lower_CB = torch.arange(BLOCK, device=own_C1.device) < targets_C1 % BLOCK
    rank_C += ((own_CB == target_C1) & lower_CB).sum(-1)
    return shift_C1 + sum_C[:, None].log(), rank_C
