"""Scores documents by n-gram counts of all other documents: exact leave-one-document-out, without a model.

A document's own n-grams are subtracted from the counts before it is scored (`count_leave_out.py`). The result is what a
model says that was counted anew without the document. Probabilities are those of interpolated modified Kneser-Ney
smoothing (Chen and Goodman 1998, §3), where unigrams are interpolated with the uniform distribution:

    p_k(w | c) = (n(c w) − D(n(c w))) / n(c ·) + γ(c) p_{k−1}(w | c without its first token)

The most likely tokens are exact although most continuations are never read (`count_candidates.py`).

Shape names: P positions, R some of them, K the most likely tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.config.manifest import ScoreConfig
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.scoring.count_candidates import Candidates, needed
from pipeline.scoring.count_leave_out import Own, Text
from pipeline.scoring.count_positions import Positions
from pipeline.scoring.count_ranks import before_by_unigrams, is_rare, raised_above_rare, unigram_keys
from pipeline.scoring.count_tables import LISTED, CountTables
from pipeline.scoring.sample import Texts

if TYPE_CHECKING:
    from pipeline.scoring.entropy import PositionScores

Array = NDArray[Any]

CELLS = 1 << 19
"""Candidates that are computed at once, at most: some 70 MB."""


class CountScores(NamedTuple):
    """Scores of positions, in nats; see `PositionScores`."""

    entropy: NDArray[np.float64]
    entropy_partial: NDArray[np.float64]
    nll: NDArray[np.float64]
    rank: NDArray[np.int64]
    top_ids: NDArray[np.int64]
    top_logprobs: NDArray[np.float64]


def score_by_counts(
    tables: CountTables, documents: Sequence[NDArray[np.integer]], counted: Sequence[bool], config: ScoreConfig
) -> list[PositionScores]:
    """Return the scores of every document's positions 1 … T−1, as `score_documents` does for a model.

    Values do not depend on which documents are scored together. Arguments are those of `score_counted`.
    """
    import torch

    from pipeline.scoring.entropy import PositionScores

    scores = score_counted(tables, documents, counted, config.top_k)
    stored = config.top_k if config.store_top else 0
    top_ids, top_logprobs = scores.top_ids[:, :stored], scores.top_logprobs[:, :stored]
    columns = [c.astype(np.float32) for c in (scores.entropy, scores.entropy_partial, scores.nll)]
    columns += [scores.rank.astype(np.int32), top_ids.astype(np.int32), top_logprobs.astype(np.float32)]
    size_D = np.array([len(ids) for ids in documents], np.int64)
    scored_P = np.ones(size_D.sum(), bool)
    scored_P[(np.cumsum(size_D) - size_D)[size_D > 0]] = False  # each document's first token
    sizes = np.maximum(size_D - 1, 0).tolist()
    of_each = [torch.from_numpy(column[scored_P]).split(sizes) for column in columns]
    return [PositionScores(*scores) for scores in zip(*of_each, strict=True)]


def counted_bits_per_byte(tables: CountTables, tokenizer: CorpusTokenizer, texts: Texts) -> float:
    """Return the bits per byte that the counts need for held-out texts' tokens (all but each text's first).

    Those that were counted are subtracted first.
    """
    ids = tokenizer.encode_batch(texts.held_out)
    scores = score_by_counts(tables, ids, texts.held_out_counted, ScoreConfig(min_context_tokens=1))
    nats = sum(s.nll.double().sum().item() for s in scores)
    return nats / math.log(2) / sum(len(text.encode()) for text in texts.held_out)


def score_counted(
    tables: CountTables, documents: Sequence[NDArray[np.integer]], counted: Sequence[bool], top_k: int
) -> CountScores:
    """Return the scores of all documents' tokens [P], end to end, each document's first token included.

    Args:
        tables: the counts.
        documents: token ids of each document.
        counted: whether each document is among those that were counted, and is to be subtracted.
        top_k: number of most likely tokens that entropies are computed over.
    """
    text = Text.of(tables, documents)
    own = Own.of(tables, text, np.asarray(counted, bool))
    size = max(1, CELLS // (LISTED * len(tables.orders)))
    K = min(top_k, tables.vocab_size)
    found = [
        _score(Positions.of(tables, text, own, np.arange(begin, min(begin + size, len(text.tokens)))), K)
        for begin in range(0, len(text.tokens), size)
    ]
    empty = _joined_scores(np.empty((0, K)), np.empty((0, K), np.int64), np.empty(0), np.empty(0, np.int64))
    return CountScores(*(np.concatenate(parts) for parts in zip(*(found or [empty]), strict=True)))


def _score(positions: Positions, K: int) -> CountScores:
    """Return the scores of positions: with few candidates first, and with more where those do not decide."""
    true = positions.of_true()
    keys = unigram_keys(positions, true)
    before = before_by_unigrams(positions, keys)
    few = [np.minimum(context.fanout, LISTED) for context in positions.contexts]
    few[0] = np.minimum(positions.contexts[0].fanout, max(LISTED, K))
    found = Candidates.of(positions, true, few)
    top, ids = found.top(K)
    rank = before + found.raised
    rare = is_rare(positions, true) & (few[1] < positions.contexts[1].fanout)
    for_top = [needed(positions, k, size, top[:, -1]) for k, size in enumerate(few, 1)]
    for_rank = [np.zeros(len(true), np.int64)]
    for_rank += [needed(positions, k, size, np.where(rare, 1.0, true)) for k, size in enumerate(few[1:], 2)]
    more_top = np.any([a > b for a, b in zip(for_top, few, strict=True)], 0)
    more_rank = np.any([a > b for a, b in zip(for_rank, few, strict=True)], 0) & ~more_top
    both = [np.maximum(a, b) for a, b in zip(for_top, for_rank, strict=True)]
    for row, found in _wider(positions, true, both, np.flatnonzero(more_top)):
        top[row], ids[row] = found.top(K)
        rank[row] = before[row] + found.raised
    for row, found in _wider(positions, true, for_rank, np.flatnonzero(more_rank)):
        rank[row] = before[row] + found.raised
    row = np.flatnonzero(rare)
    rank[row] = before[row] + raised_above_rare(positions.take(row), keys[row])
    return _joined_scores(top, ids, true, rank)


def _wider(
    positions: Positions, true: Array, listed: Sequence[Array], rows: Array
) -> Iterator[tuple[Array, Candidates]]:
    """Yield rows with their candidates, about `CELLS` at once."""
    size = np.sum(listed, 0)
    rows = rows[np.argsort(size[rows], kind="stable")]
    while len(rows):
        some = rows[-max(1, CELLS // int(size[rows[-1]])) :]
        rows = rows[: len(rows) - len(some)]
        yield some, Candidates.of(positions.take(some), true[some], [of_order[some] for of_order in listed])


def _joined_scores(top_PK: Array, ids_PK: Array, true: Array, rank: Array) -> CountScores:
    logprobs = np.log(top_PK)
    share = top_PK / top_PK.sum(1, keepdims=True)
    entropy = -(share * np.log(share)).sum(1)
    return CountScores(entropy, -(top_PK * logprobs).sum(1), -np.log(true), rank, ids_PK, logprobs)
