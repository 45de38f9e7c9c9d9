"""Candidates for the most likely tokens at positions: the most probable continuations of each context.

Those of a context are stored in the order of their probability before the subtraction. The first few of each order are
computed, and what the others can have at most follows from the first of them (`Positions.most_after`). Where that is
not below what is needed, more are computed.

Shape names: P positions, F candidates of all positions end to end, W candidates of a position, K the most likely
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.scoring.count_leave_out import ragged
from pipeline.scoring.count_positions import Positions

Array = NDArray[Any]

MOST_PLACED = 0xFFFF
"""Longer lists are those of whole contexts: places end here."""


@dataclass(frozen=True)
class Candidates:
    """Candidates of positions, each token once a position."""

    raised: Array
    """[P] how many come before the true token, and by the unigrams alone would not."""
    parts: tuple[tuple[Array, Array, Array], ...]
    """Per order, the longest first: position, token and probability of its candidates, with rising positions."""

    @staticmethod
    def of(positions: Positions, true: Array, listed: Sequence[Array]) -> Candidates:
        """Return the first continuations of each context.

        The longest context that lists a token counts, so it comes first and marks the token in the others' lists.

        Args:
            positions: the positions.
            true: [P] probability of the true tokens.
            listed: per order, [P] number of continuations; more than `MOST_PLACED` only if these are all.
        """
        P, parts = len(true), list[tuple[Array, Array, Array]]()
        lists = [List.of(positions, k, size) for k, size in enumerate(listed, 1)]
        raised = np.zeros(P, np.int64)
        for k in range(len(lists), 0, -1):
            row, entry = lists[k - 1].left()
            chain = positions.chain(k, entry)
            for lower, entries in zip(lists[: k - 1], chain[:0:-1], strict=True):
                lower.take(row, entries)
            p, alone = positions.probabilities(row, chain)
            parts.append((row, chain[-1], p))
            if k > 1:
                raised += _raised(positions, row, chain[-1], p, alone, true)
        return Candidates(raised, tuple(parts))

    def top(self, K: int) -> tuple[Array, Array]:
        """Return the K greatest p [P, K] in falling order, and their tokens; equal ones by id."""
        p, token = self._tables(K)
        if p.shape[1] > K:
            least = np.partition(p, p.shape[1] - K, axis=1)[:, p.shape[1] - K]
            chosen = p >= least[:, None]
            _drop_ties(chosen, p, token, least, K)
            cell = np.flatnonzero(chosen)
            p, token = (values.ravel()[cell].reshape(-1, K) for values in (p, token))
        falling = np.lexsort((token, -p), axis=1)
        return np.take_along_axis(p, falling, 1), np.take_along_axis(token, falling, 1)

    def _tables(self, least: int) -> tuple[Array, Array]:
        """Return probabilities [P, W] with −1 where there are none, and tokens [P, W], for W of at least so many."""
        P = len(self.raised)
        sizes = [np.bincount(row, minlength=P) for row, _, _ in self.parts]
        W = max(least, int(np.sum(sizes, 0).max(initial=0)))
        p, token = np.full(P * W, -1.0), np.zeros(P * W, np.int64)
        begin = np.arange(P) * W
        for (_, tokens, p_F), size in zip(self.parts, sizes, strict=True):
            _, cell = ragged(begin, size)
            p[cell], token[cell] = p_F, tokens
            begin += size
        return p.reshape(P, W), token.reshape(P, W)


@dataclass(frozen=True)
class List:
    """The first continuations of the contexts of one order."""

    size: Array
    """[P] how many."""
    begin: Array
    """[P] where those of a position begin, end to end."""
    start: Array
    """[P] first entry of the context."""
    is_part: Array
    """[P] whether there are more. Whole contexts are listed in the order of their tokens."""
    best: Array
    place: Array
    taken: Array
    """Which of them a longer context lists as well."""

    @staticmethod
    def of(positions: Positions, k: int, size: Array) -> List:
        """Return the lists of order k."""
        context, order, ends = positions.contexts[k - 1], positions.tables.orders[k - 1], np.cumsum(size)
        taken = np.zeros(int(ends[-1]), bool)
        return List(size, ends - size, context.start, size < context.fanout, order.best, order.place, taken)

    def left(self) -> tuple[Array, Array]:
        """Return position and entry of those that no longer context lists."""
        row, entry = ragged(self.start, self.size)
        if self.taken.any():
            left = np.flatnonzero(~self.taken)
            row, entry = row[left], entry[left]
        if self.is_part.any():
            part = np.flatnonzero(self.is_part[row])
            entry[part] = self.best[entry[part]]
        return row, entry

    def take(self, row: Array, entry: Array) -> None:
        """Mark entries of the contexts of some positions, where they are listed."""
        if not len(self.taken):
            return
        place = entry - self.start[row]
        if self.is_part.any():
            part = np.flatnonzero(self.is_part[row])
            place[part] = self.place[entry[part]]
            there = np.flatnonzero(place < self.size[row])
            row, place = row[there], place[there]
        self.taken[self.begin[row] + place] = True


def _raised(positions: Positions, row: Array, token: Array, p: Array, alone: Array, true: Array) -> Array:
    """Return how many candidates [P] come before the true token, and by the unigrams alone would not."""
    x = true[row]
    some = np.flatnonzero((p >= x) & (alone <= x))
    row, token, x = row[some], token[some], x[some]
    than = positions.tokens[row]
    raised = _before(p[some], token, x, than) & ~_before(alone[some], token, x, than)
    return np.bincount(row[raised], minlength=len(true))


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
    _, place = ragged(np.zeros_like(size), size)
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
