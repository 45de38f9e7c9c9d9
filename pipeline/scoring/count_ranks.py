"""Ranks of the true tokens: how many tokens come before them.

A rank is the number of tokens that come before the true one by the unigrams alone, which follows from their sorted
counts, and the number of those that come before it by longer contexts only. The latter are found among candidates
(`count_candidates.py`). A true token that is less likely than everything ever counted after the token before it would
need all of that as candidates; there the number follows from sorted ranks, too (`raised_above_rare`).

Shape names: P positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.scoring.count_leave_out import find
from pipeline.scoring.count_positions import Positions

Array = NDArray[Any]


def unigram_keys(positions: Positions, true: Array) -> Array:
    """Return the rank keys [P] of which all lesser ones come before the true token, if all had only their unigrams."""
    tables = positions.tables
    most = int(tables.orders[0].counts.max(initial=0))
    above = _least_count(positions, most, lambda p: p > true)
    equal = _least_count(positions, most, lambda p: p >= true)
    where = np.where(equal < above, positions.tokens, 0)
    return tables.rank_keys(np.where(equal < above, equal, above - 1), where)


def _least_count(positions: Positions, most: int, holds: Callable[[Array], Array]) -> Array:
    """Return the least count [P] whose probability by unigrams satisfies a rising condition; `most` + 1 if none."""
    row = np.arange(len(positions.tokens))
    low, high = np.zeros(len(row), np.int64), np.full(len(row), most + 1)
    while (low < high).any():
        middle = (low + high) // 2
        good = holds(positions.by_unigrams(row, middle)) | (middle > most)
        low, high = np.where(good, low, middle + 1), np.where(good, middle, high)
        low = np.minimum(low, high)
    return low


def before_by_unigrams(positions: Positions, keys: Array) -> Array:
    """Return how many tokens [P] of the vocabulary have less than a rank key without the document."""
    own = positions.own
    first = positions.document * positions.tables.rank_size
    # All tokens, less those of the document as they were counted, plus those as they are without it.
    before = np.searchsorted(positions.tables.unigram_ranks, keys)
    for sign, of_documents in ((-1, own.before), (1, own.after)):
        at, begin = np.searchsorted(of_documents, first + keys), np.searchsorted(of_documents, first)
        before += sign * (at - begin)
    return before


def is_rare(positions: Positions, true: Array) -> Array:
    """Return whether [P] the true token has less than any token that other documents have after the one before it.

    Such a token has at least what a bigram that was counted once adds to the uniform distribution.
    """
    once = positions.own.discounted(positions.document, 1, np.ones(len(true), np.int64))
    return true < positions.uniform + positions.contexts[1].weight * once


def raised_above_rare(positions: Positions, keys: Array) -> Array:
    """Return how many tokens [P] come before the true one, and by unigrams alone would not, where it `is_rare`.

    These are the continuations of the token before it whose unigrams do not have less than the rank keys [P].
    """
    tables, own, document, context = positions.tables, positions.own, positions.document, positions.contexts[1]
    order, P = tables.orders[1], len(keys)
    rank = np.searchsorted(tables.unigram_ranks, keys)
    before = np.searchsorted(tables.bigram_ranks, context.number * tables.width + rank) - context.start
    # Bigrams of this document alone are none without it.
    row, entry, mine = own.counts[1].between(document, context.start, context.fanout)
    gone = order.counts[entry] == mine
    row, token = row[gone], order.keys[entry[gone]] % tables.width
    counts = tables.orders[0].counts[token] - own.counts[0].at(document[row], token)
    less = np.bincount(row[tables.rank_keys(counts, token) >= keys[row]], minlength=P)
    # Unigrams that come before the true token with this document, but not without it.
    row, token = own.fallen(document, keys, tables.rank_size, tables.width)
    there = find(order.keys, context.number[row] * tables.width + token) >= 0
    return context.fanout - before - less + np.bincount(row[there], minlength=P)
