"""Scores documents by n-gram counts of all other documents: exact leave-one-document-out, without a model.

A document's own n-grams are subtracted from the counts before it is scored (`count_leave_out.py`). The result is what a
model says that was counted anew without the document. Probabilities are those of interpolated modified Kneser-Ney
smoothing (Chen and Goodman 1998, §3), where unigrams are interpolated with the uniform distribution:

    p_k(w | c) = (n(c w) − D(n(c w))) / n(c ·) + γ(c) p_{k−1}(w | c without its first token)

The most likely tokens are exact although most continuations are never read. Those of a context are stored in the order
of their probability before the subtraction. The first few of each order are computed, and what the others can have at
most follows from the last of them (`_bound`). Where that is not below what is needed, more are computed.

Shape names: P positions, F candidates of all positions end to end, K the most likely tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.config.manifest import ScoreConfig
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.scoring.count_leave_out import Own, Text
from pipeline.scoring.count_positions import Positions
from pipeline.scoring.count_tables import LISTED, CountTables, discounted, discounts
from pipeline.scoring.sample import Texts

if TYPE_CHECKING:
    from pipeline.scoring.entropy import PositionScores

Array = NDArray[Any]

CELLS = 1 << 18
"""Candidates that are computed at once: their arrays stay in a cache."""
WIDTHS = (LISTED, 8 * LISTED, 64 * LISTED)
"""Continuations of each order that are tried, one after the other; then all."""


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
    ends = np.cumsum([len(ids) for ids in documents])
    spans = [slice(min(end - len(ids) + 1, end), end) for ids, end in zip(documents, ends, strict=True)]
    return [PositionScores(*(torch.from_numpy(column[span]) for column in columns)) for span in spans]


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
    P = len(true)
    top, ids, rank = np.empty((P, K)), np.empty((P, K), np.int64), np.empty(P, np.int64)
    left, found = np.arange(P), positions
    for width in WIDTHS:
        if not len(left):
            break
        decided, *scores = _tried(found, true[left], K, width, width)
        for into, values in zip((top, ids, rank), scores, strict=True):
            into[left[decided]] = values[decided]
        left = left[~decided]
        found = found.take(np.flatnonzero(~decided))
    for row in _in_cells(found):  # every continuation of every context, and every token if there are ties
        part = found.take(row)
        decided, *scores = _tried(part, true[left[row]], K, None, WIDTHS[-1])
        if not decided.all():
            _, *scores = _tried(part, true[left[row]], K, None, None)
        for into, values in zip((top, ids, rank), scores, strict=True):
            into[left[row]] = values
    return _joined_scores(top, ids, true, rank)


def _in_cells(positions: Positions) -> list[Array]:
    """Return rows in groups of about `CELLS` candidates, if all continuations are candidates."""
    fanout = sum(positions.fanout[1:], np.zeros(len(positions.tokens), np.int64)) + WIDTHS[-1]
    group = np.cumsum(fanout) // CELLS
    return np.split(np.arange(len(group)), np.flatnonzero(np.diff(group)) + 1) if len(group) else []


def _joined_scores(top_PK: Array, ids_PK: Array, true: Array, rank: Array) -> CountScores:
    logprobs = np.log(top_PK)
    share = top_PK / top_PK.sum(1, keepdims=True)
    entropy, partial = (-(p * np.log(p)).sum(1) for p in (share, top_PK))
    return CountScores(entropy, partial, -np.log(true), rank, ids_PK, logprobs)


def _tried(
    positions: Positions, true: Array, K: int, width: int | None, unigrams: int | None
) -> tuple[Array, Array, Array, Array]:
    """Return which positions are decided by some candidates, their most likely tokens [P, K] with ids, and ranks.

    Args:
        positions: the positions.
        true: [P] probability of the true tokens.
        K: number of most likely tokens.
        width: continuations of each context that are candidates; None for all.
        unigrams: single tokens that are candidates; None for all.
    """
    row, token, p, alone, is_unigram = _candidates(positions, width, unigrams)
    ranks = _unigrams_before(positions, true)
    # A continuation before the true token, but not among those that the unigrams alone have there.
    x, own = true[row], positions.tokens[row]
    more = _before(p, token, x, own) & ~_before(alone, token, x, own) & ~is_unigram
    ranks += np.bincount(row[more], minlength=len(true))
    top, ids = _top(row, token, p, len(true), K)
    others = np.zeros(len(true)) if width is None else _bound(positions, width)
    decided = (true > others) & (top[:, -1] > others) if width is not None else np.ones(len(true), bool)
    if unigrams is not None and unigrams < positions.tables.vocab_size:
        decided &= top[:, -1] > _unigram_bound(positions, unigrams)
    return decided, top, ids, ranks


def _before(p: Array, token: Array, x: Array, than: Array) -> Array:
    """Return whether tokens of probability p come before another one of probability x: equal ones by id."""
    return (p > x) | ((p == x) & (token < than))


def _candidates(
    positions: Positions, width: int | None, unigrams: int | None
) -> tuple[Array, Array, Array, Array, Array]:
    """Return candidates, each token once a position: row, token, probability, that by unigrams alone, is it no more."""
    n = len(positions.contexts)
    rows, tokens, chances, alone = list[Array](), list[Array](), list[Array](), list[Array]()
    offsets, listed = list[Array](), list[Array]()
    for k in range(1, n + 1):
        order, most = positions.tables.orders[k - 1], width if k > 1 else unigrams
        size = positions.fanout[k - 1] if most is None else np.minimum(positions.fanout[k - 1], most)
        offset = np.cumsum(size) - size
        row = np.repeat(np.arange(len(size)), size)
        start = order.start[np.maximum(positions.contexts[k - 1], 0)]
        at = np.arange(len(row)) + (start - offset)[row]
        entry = at if most is None else order.best[at].astype(np.int64)
        chain = positions.chain(k, entry)
        p, by_unigrams = positions.probabilities(row, chain)
        for j, lower in enumerate(chain[1:], 2):  # order k + 1 − j has these as well: the longest context counts
            below = k - j
            if most is None and width is None and below > 0:
                place = lower - positions.tables.orders[below].start[np.maximum(positions.contexts[below], 0)][row]
            elif below == 0 and unigrams is None:
                place = lower
            else:
                place = positions.tables.orders[below].place[lower].astype(np.int64)
            there = place < listed[below][row]
            chances[below][(offsets[below][row] + place)[there]] = -1.0
        rows.append(row)
        tokens.append(chain[-1])
        chances.append(p)
        alone.append(by_unigrams)
        offsets.append(offset)
        listed.append(size)
    row, token, p, by_unigrams = (np.concatenate(part) for part in (rows, tokens, chances, alone))
    unigram = np.arange(len(row)) < len(rows[0])
    keep = np.flatnonzero(p >= 0)
    return row[keep], token[keep], p[keep], by_unigrams[keep], unigram[keep]


def _top(row: Array, token: Array, p: Array, P: int, K: int) -> tuple[Array, Array]:
    """Return the K greatest p [P, K] of each row in falling order, and their tokens; equal ones by id."""
    order = np.argsort(row, kind="stable")
    size = np.bincount(row, minlength=P)
    place = np.arange(len(row)) - np.repeat(np.cumsum(size) - size, size)
    table = np.full((P, max(K, size.max(initial=0))), -1.0)
    ids = np.full(table.shape, np.iinfo(np.int64).max)
    table[row[order], place] = p[order]
    ids[row[order], place] = token[order]
    if table.shape[1] > K:
        some = np.argpartition(-table, K - 1, axis=1)[:, :K]
        least = np.take_along_axis(table, some, 1).min(1)
        tied = np.flatnonzero((table >= least[:, None]).sum(1) > K)
        some[tied] = np.lexsort((ids[tied], -table[tied]), axis=1)[:, :K]
        table, ids = np.take_along_axis(table, some, 1), np.take_along_axis(ids, some, 1)
    falling = np.lexsort((ids, -table), axis=1)
    return np.take_along_axis(table, falling, 1), np.take_along_axis(ids, falling, 1)


def _bound(positions: Positions, width: int) -> Array:
    """Return what [P] a continuation of any context has at most that is not among the first `width`.

    With the document, it has no more than the first continuation that is left out; without the document, no more than
    the greatest factor by which any part of the sum can have grown times that.
    """
    found = np.zeros(len(positions.tokens))
    all_discounts = discounts(positions.tables.count_of_counts)
    for k in range(2, len(positions.contexts) + 1):
        row = np.flatnonzero(positions.fanout[k - 1] > width)
        if not len(row):
            continue
        order = positions.tables.orders[k - 1]
        chain = positions.chain(k, order.best[order.start[positions.contexts[k - 1][row]] + width].astype(np.int64))
        p = np.full(len(row), 1 / positions.tables.vocab_size)
        for j, entry in enumerate(chain[::-1]):
            below, context = positions.tables.orders[j], positions.contexts[j][row]
            total = np.maximum(below.total[context], 1)
            gamma = below.kinds[context] @ all_discounts[j] / total
            p = discounted(below.counts[entry], all_discounts[j]) / total + gamma * p
        left, greater = positions.bounds[k - 1]
        found[row] = np.maximum(found[row], left[row] * greater[row] * p * (1 + 1e-9))
    return found


def _unigram_bound(positions: Positions, unigrams: int) -> Array:
    """Return what [P] a token has at most by the unigrams alone that is not among the first `unigrams`."""
    order = positions.tables.orders[0]
    count = np.full(len(positions.tokens), order.counts[order.best[unigrams]], np.int64)
    return _by_unigrams(positions, count)


# ------------------------------------------------------------------------------------------- ranks by unigrams


def _by_unigrams(positions: Positions, count: Array) -> Array:
    """Return the probability [P] by unigrams alone of a token with this count [P], as `probabilities` computes it."""
    return positions.uniform + positions.weight[0] * positions.own.discounted(positions.document, 0, count)


def _unigrams_before(positions: Positions, true: Array) -> Array:
    """Return how many tokens [P] of the vocabulary come before the true one, if all had only their unigrams."""
    tables, own, P = positions.tables, positions.own, len(true)
    most = int(tables.orders[0].counts.max(initial=0))
    above = _least_count(positions, most, lambda p: p > true)
    equal = _least_count(positions, most, lambda p: p >= true)
    where = np.where(equal < above, positions.tokens, 0)
    keys = tables.rank_keys(np.where(equal < above, equal, above - 1), where)
    first = positions.document * tables.rank_size
    # All tokens, less those of the document as they were counted, plus those as they are without it.
    before = np.searchsorted(tables.unigram_ranks, keys)
    for sign, of_documents in ((-1, own.before), (1, own.after)):
        at, begin = np.searchsorted(of_documents, first + keys), np.searchsorted(of_documents, first)
        before += sign * (at - begin)
    return before.reshape(P)


def _least_count(positions: Positions, most: int, holds: Any) -> Array:
    """Return the least count [P] whose probability by unigrams satisfies a rising condition; `most` + 1 if none."""
    low, high = np.zeros(len(positions.tokens), np.int64), np.full(len(positions.tokens), most + 1)
    while (low < high).any():
        middle = (low + high) // 2
        good = holds(_by_unigrams(positions, middle)) | (middle > most)
        low, high = np.where(good, low, middle + 1), np.where(good, middle, high)
        low = np.minimum(low, high)
    return low
