"""How uncertain a model is at a position, from its logits (design §5). Pure functions; all values in nats.

Shape names: T positions, V vocabulary, H hidden size, K = min(top_k, V).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

CHUNK_TOKENS = 256
"""Positions whose logits are held at once: few enough for a cache where V is small, enough for a fast product with the
output matrix where V is large (256 × 152k in fp32 are 148 MiB)."""


@dataclass(frozen=True)
class PositionScores:
    """Scores of T positions, fp32 and int32, on the CPU. Rows of `top_*` are empty unless they were asked for."""

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
    logits_TV = logits_TV.float()
    lse_T = logits_TV.logsumexp(-1)
    target_T1 = logits_TV.gather(-1, targets_T[:, None])
    top_TK = logits_TV.topk(min(top_k, logits_TV.shape[-1]), dim=-1).values
    return PositionScores(
        entropy=_entropy(top_TK.log_softmax(-1)).cpu(),
        entropy_partial=_entropy(top_TK - lse_T[:, None]).cpu(),
        nll=(lse_T - target_T1[:, 0]).cpu(),
        rank=_rank(logits_TV, target_T1, targets_T).int().cpu(),
        top_ids=_top_ids(logits_TV, top_TK).int().cpu() if with_top else torch.empty(len(lse_T), 0, dtype=torch.int32),
        top_logprobs=(top_TK - lse_T[:, None]).cpu() if with_top else torch.empty(len(lse_T), 0),
    )


def score_hidden(
    hidden_TH: Tensor,
    head: Callable[[Tensor], Tensor],
    targets_T: Tensor,
    top_k: int,
    *,
    with_top: bool = False,
    chunk_tokens: int = CHUNK_TOKENS,
) -> PositionScores:
    """`score_logits(head(hidden))`, a chunk of positions at a time: the logits of all T never exist at once."""
    return PositionScores.concatenate(
        [
            score_logits(head(hidden_CH), targets_C, top_k, with_top=with_top)
            for hidden_CH, targets_C in zip(hidden_TH.split(chunk_tokens), targets_T.split(chunk_tokens), strict=True)
        ]
    )


def _entropy(logprobs_TK: Tensor) -> Tensor:
    return torch.special.entr(logprobs_TK.exp()).sum(-1)


def _rank(logits_TV: Tensor, target_T1: Tensor, targets_T: Tensor) -> Tensor:
    """[T] how many tokens come before the true one. Comparisons are written as fp32, which sums several times faster
    than booleans do (and exactly below 2²⁴); rows with ties are few and looked at one by one."""
    verdicts_TV = torch.empty_like(logits_TV)
    rank_T = torch.gt(logits_TV, target_T1, out=verdicts_TV).sum(-1)
    tied_T = (torch.eq(logits_TV, target_T1, out=verdicts_TV).sum(-1) > 1).nonzero()[:, 0]
    ids_V = torch.arange(logits_TV.shape[-1], device=logits_TV.device)
    rank_T[tied_T] += (verdicts_TV[tied_T] * (ids_V < targets_T[tied_T, None])).sum(-1)
    return rank_T


def _top_ids(logits_TV: Tensor, top_TK: Tensor) -> Tensor:
    """Ids of the K largest logits, ties by id. `topk` leaves open which of equal logits it returns, so rows in which
    the last of the K is tied with one left out are sorted in full; there are next to none."""
    K = top_TK.shape[-1]
    ids_TK = logits_TV.topk(K, dim=-1).indices.sort(-1).values
    order_TK = logits_TV.gather(-1, ids_TK).sort(dim=-1, descending=True, stable=True).indices
    ids_TK = ids_TK.gather(-1, order_TK)
    tied_T = ((logits_TV >= top_TK[:, -1:]).sum(-1) > K).nonzero()[:, 0]
    ids_TK[tied_T] = logits_TV[tied_T].sort(dim=-1, descending=True, stable=True).indices[:, :K]
    return ids_TK
