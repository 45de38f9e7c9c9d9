"""Candidates for the most likely tokens at positions: the most probable continuations of each context.

Those of a context are stored in the order of their probability before the subtraction. The first few of each order are
computed, and what the others can have at most follows from the first of them (`Positions.most_after`). Where that is
not below what is needed, more are computed.

Shape names: P positions, R some of them, W candidates of a position, K the most likely tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.scoring.count_positions import Positions

Array = NDArray[Any]

MOST_PLACED = 0xFFFF
"""Longer lists are those of whole contexts: places end here."""


@dataclass(frozen=True)
class Candidates:
    """A table of candidates, each token once a position."""

    p: Array
    """[P, W] probability; −1 where there is no candidate."""
    token: Array
    raised: Array
    """[P, W] whether it comes before the true token, and by the unigrams alone would not."""

    @staticmethod
    def of(positions: Positions, true: Array, listed: Sequence[Array], least: int) -> Candidates:
        """Return the first continuations of each context.

        The longest context that lists a token counts, so it comes first and marks the token in the others' lists.

        Args:
            positions: the positions.
            true: [P] probability of the true tokens.
            listed: per order, [P] number of continuations; more than `MOST_PLACED` only if these are all.
            least: smallest W.
        """
        begins = np.cumsum(np.stack(listed), axis=None).reshape(len(listed), -1) - listed
        taken, parts = np.zeros(int(np.sum(listed)), bool), list[tuple[Array, ...]]()
        filled = np.zeros(len(true), np.int64)
        for k in range(len(listed), 0, -1):
            row = np.repeat(np.arange(len(true)), listed[k - 1])
            left = np.flatnonzero(~taken[begins[k - 1][0] : begins[k - 1][0] + len(row)])
            row, place = row[left], left - (begins[k - 1] - begins[k - 1][0])[row[left]]
            chain = positions.chain(k, _entries(positions, k, listed[k - 1], row, place))
            for j in range(1, k):
                where = _place(positions, j, listed[j - 1], row, chain[k - j])
                there = np.flatnonzero(where < listed[j - 1][row])
                taken[begins[j - 1][row[there]] + where[there]] = True
            p, alone = positions.probabilities(row, chain)
            x, than = true[row], positions.tokens[row]
            raised = _before(p, chain[-1], x, than) & ~_before(alone, chain[-1], x, than) & (k > 1)
            size = np.bincount(row, minlength=len(true))
            column = np.arange(len(row)) + (filled - np.cumsum(size) + size)[row]
            parts.append((row, column, p, chain[-1], raised))
            filled += size
        return Candidates._table(parts, len(true), max(least, int(filled.max(initial=0))))

    @staticmethod
    def _table(parts: Sequence[tuple[Array, ...]], P: int, W: int) -> Candidates:
        found = Candidates(np.full((P, W), -1.0), np.zeros((P, W), np.int64), np.zeros((P, W), bool))
        for row, column, *values in parts:
            for into, of in zip((found.p, found.token, found.raised), values, strict=True):
                into[row, column] = of
        return found

    def top(self, K: int) -> tuple[Array, Array]:
        """Return the K greatest p [P, K] in falling order, and their tokens; equal ones by id."""
        p, token = self.p, self.token
        if p.shape[1] > K:
            least = np.partition(p, p.shape[1] - K, axis=1)[:, p.shape[1] - K]
            chosen = p >= least[:, None]
            _drop_ties(chosen, p, token, least, K)
            column = np.nonzero(chosen)[1].reshape(len(p), K)
            p, token = np.take_along_axis(p, column, 1), np.take_along_axis(token, column, 1)
        falling = np.lexsort((token, -p), axis=1)
        return np.take_along_axis(p, falling, 1), np.take_along_axis(token, falling, 1)


def _entries(positions: Positions, k: int, listed: Array, row: Array, place: Array) -> Array:
    """Return the entries of order k at places of the lists of their contexts."""
    context = positions.contexts[k - 1]
    entry = context.start[row] + place
    part = np.flatnonzero((listed < context.fanout)[row])  # whole contexts are listed in the order of their tokens
    entry[part] = positions.tables.orders[k - 1].best[entry[part]]
    return entry


def _place(positions: Positions, k: int, listed: Array, row: Array, entry: Array) -> Array:
    """Return the places of entries of order k in the lists of their contexts."""
    context = positions.contexts[k - 1]
    place = entry - context.start[row]
    part = np.flatnonzero((listed < context.fanout)[row])
    place[part] = positions.tables.orders[k - 1].place[entry[part]]
    return place


def _before(p: Array, token: Array, x: Array, than: Array) -> Array:
    """Return whether tokens of probability p come before another one of probability x: equal ones by id."""
    return (p > x) | ((p == x) & (token < than))


def _drop_ties(chosen: Array, p: Array, token: Array, least: Array, K: int) -> None:
    """Leave K of the `chosen` [P, W] in each row: of those that are equal to `least` [P], those with small ids."""
    many = chosen.sum(1) - K
    tied = np.flatnonzero(many)
    row, column = np.nonzero(p[tied] == least[tied, None])
    order = np.lexsort((-token[tied[row], column], row))
    row, column = row[order], column[order]
    size = np.bincount(row, minlength=len(tied))
    place = np.arange(len(row)) - np.repeat(np.cumsum(size) - size, size)
    drop = place < many[tied][row]
    chosen[tied[row[drop]], column[drop]] = False


def needed(positions: Positions, k: int, listed: Array, target: Array) -> Array:
    """Return how many [P] continuations of the contexts of order k there are among which all above a target [P] are.

    Args:
        positions: the positions.
        k: the order.
        listed: [P] number that is tried first; it is doubled as long as more are needed.
        target: probabilities; a token that is not listed has less.
    """
    size, fanout = listed.copy(), positions.contexts[k - 1].fanout
    row = np.flatnonzero(size < fanout)
    while len(row):
        row = row[positions.most_after(k, row, size[row]) >= target[row]]
        size[row] = np.maximum(2 * size[row], 1)
        size[row[size[row] > MOST_PLACED]] = np.iinfo(np.int64).max
        size[row] = np.minimum(size[row], fanout[row])
        row = row[size[row] < fanout[row]]
    return size
