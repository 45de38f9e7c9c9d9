"""Scores straight from the definitions: fp32 `log_softmax` of full logits and a stable sort. The twin of the tests."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.scoring.entropy import PositionScores

NAMES = ("entropy", "entropy_partial", "nll", "rank", "top_ids", "top_logprobs")


def plain_scores(logits_TV: Tensor, targets_T: Tensor, top_k: int) -> PositionScores:
    """All scores, with the top-k, ties by id."""
    logprobs_TV = logits_TV.float().log_softmax(-1)
    order_TV = logits_TV.sort(dim=-1, descending=True, stable=True).indices
    top_TK = logprobs_TV.gather(1, order_TV[:, :top_k])
    return PositionScores(
        entropy=torch.special.entr(top_TK.softmax(-1)).sum(-1),
        entropy_partial=torch.special.entr(top_TK.exp()).sum(-1),
        nll=-logprobs_TV.gather(1, targets_T[:, None])[:, 0],
        rank=(order_TV == targets_T[:, None]).int().argmax(1).int(),
        top_ids=order_TV[:, :top_k].int(),
        top_logprobs=top_TK,
    )


def assert_close(found: PositionScores, expected: PositionScores) -> None:
    """Floats to 1e-5. The twin's hidden states may differ in the last bit, so a target and one other token whose logits
    are almost equal may change places: at one position of fifty, or of a short document. Far down the ranking several
    logits lie that close: 2 places at ranks 395 and 434 of 512 were seen."""
    for name in ("entropy", "entropy_partial", "nll"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-5, rtol=1e-5)
    moved_T = (found.rank - expected.rank).abs()
    assert (moved_T <= 1 + expected.rank // 100).all() and moved_T.count_nonzero() <= max(1, 0.02 * len(moved_T)), (
        moved_T
    )
