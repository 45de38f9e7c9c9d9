"""Finds what documents have themselves added to the counts, so that it can be subtracted.

Where the subtraction leaves an n-gram without an occurrence, the count of its suffix falls by one, and so on down the
orders. Sums, numbers of kinds and discounts follow.

Shape names: P positions of all documents end to end, D documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.scoring.count_tables import CountTables, discounts

Array = NDArray[Any]


@dataclass(frozen=True)
class Text:
    """Documents end to end, with the entry and the context of each order at every position; −1: never counted."""

    tokens: Array
    document: Array
    place: Array
    """[P] number of tokens of the document before this one."""
    entries: tuple[Array, ...]
    contexts: tuple[Array, ...]

    @staticmethod
    def of(tables: CountTables, documents: Sequence[Array]) -> Text:
        """Return documents, given their token ids, with their n-grams looked up."""
        lengths = np.array([len(ids) for ids in documents], np.int64)
        tokens = np.concatenate([*documents, np.empty(0, np.int64)]).astype(np.int64)
        document = np.repeat(np.arange(len(documents)), lengths)
        place = np.arange(len(tokens)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        entries, contexts = [tokens], [np.zeros_like(tokens)]
        for order in tables.orders[1:]:
            context = np.where(place == 0, -1, np.concatenate([[-1], entries[-1][:-1]])[: len(tokens)])
            if len(entries) == 1:
                context[place == 0] = tables.vocab_size
            entries.append(find(order.keys, np.where(context >= 0, context * tables.width + tokens, -1)))
            contexts.append(context)
        return Text(tokens, document, place, tuple(entries), tuple(contexts))


def find(table: Array, keys: Array) -> Array:
    """Return where keys are in a rising table, −1 where they are not.

    They are looked up in rising order: the table is then read from its beginning to its end.
    """
    if not len(table):
        return np.full(len(keys), -1)
    order = np.argsort(keys)
    rising = keys[order]
    at = np.minimum(np.searchsorted(table, rising), len(table) - 1)
    found = np.empty(len(keys), np.int64)
    found[order] = np.where(table[at] == rising, at, -1)
    return found


def ragged(begin: Array, size: Array) -> tuple[Array, Array]:
    """Return the numbers of ranges end to end, as (number of the range, number), given where each begins and its size.

    Example:
        >>> [numbers.tolist() for numbers in ragged(np.array([7, 0, 3]), np.array([2, 0, 1]))]
        [[0, 0, 2], [7, 8, 3]]
    """
    row = np.repeat(np.arange(len(size)), size)
    return row, np.arange(len(row)) + np.repeat(begin - np.cumsum(size) + size, size)


class Pairs:
    """Pairs of a document and a number, without most of those that are not among them."""

    MASK = (1 << 20) - 1

    def __init__(self, document: Array, number: Array) -> None:
        self._maybe = np.zeros(self.MASK + 1, bool)
        self._maybe[self._hash(document, number)] = True

    def may_have(self, document: Array, number: Array) -> Array:
        """Return the places of pairs that may be among them; all others are not."""
        return np.flatnonzero(self._maybe[self._hash(document, number)])

    def _hash(self, document: Array, number: Array) -> Array:
        return (number + document * 40503) & self.MASK


class Sums:
    """Sparse numbers by (document, entry or context): all that is not there is zero."""

    def __init__(self, size: int, keys: Array, values: Array) -> None:
        self._size, self._keys, self._values = size, keys, values
        self._pairs = Pairs(*np.divmod(keys, size))

    def at(self, document: Array, number: Array) -> Array:
        """Return the values of pairs."""
        found = np.zeros((len(number), *self._values.shape[1:]), self._values.dtype)
        maybe = self._pairs.may_have(document, number)
        if len(maybe) and len(self._keys):
            keys = document[maybe] * self._size + number[maybe]
            at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
            there = self._keys[at] == keys
            found[maybe[there]] = self._values[at[there]]
        return found

    def between(self, document: Array, number: Array, size: Array) -> tuple[Array, Array, Array]:
        """Return the pairs of documents with numbers of ranges, as (number of the range, number, value)."""
        first = document * self._size + number
        begin, end = np.searchsorted(self._keys, first), np.searchsorted(self._keys, first + size)
        row, at = ragged(begin, end - begin)
        return row, self._keys[at] % self._size, self._values[at]


@dataclass(frozen=True)
class Own:
    """What documents have themselves added to the counts."""

    tokens: Pairs
    """The tokens of each document: those alone are the last ones of n-grams that it has added."""
    counts: tuple[Sums, ...]
    totals: tuple[Sums, ...]
    """By context: sum of counts, and change of the number of kinds of counts, [4]."""
    discount: Array
    """[D, orders, 3] discounts without the document."""
    discount_by_count: Array
    """[D · orders · 4] the same end to end, with 0 for a count of 0 before each three."""
    slack: Array
    """[D, orders] by what factor a discounted count can be greater than with the document."""
    before: Array
    """Unigrams whose count falls: (document, rank key) with the old count, rising; see `rank_keys`."""
    becomes: Array
    """The same unigrams with the new count, in the same order."""
    after: Array
    """The same, rising."""

    @staticmethod
    def of(tables: CountTables, text: Text, counted: Array) -> Own:
        """Return what the documents have added that are `counted` [D]."""
        n = len(tables.orders)
        changes = np.repeat(tables.count_of_counts[None], len(counted), 0)
        counts, totals = list[Sums](), list[Sums]()
        gone = np.empty((2, 0), np.int64)  # (document, entry of this order) once per n-gram that disappeared above
        before = becomes = np.empty(0, np.int64)
        for k in range(n, 0, -1):
            order, entries = tables.orders[k - 1], text.entries[k - 1]
            # Occurrences count for the longest n-grams and at the start of a document.
            occurs = counted[text.document] & (entries >= 0) & ((text.place == k - 2) | (k == n))
            pairs = np.concatenate([gone, np.stack([text.document, entries])[:, occurs]], 1)
            size = max(1, len(order.counts))
            keys, own = np.unique(pairs[0] * size + pairs[1], return_counts=True)
            document, entry = np.divmod(keys, size)
            old = order.counts[entry].astype(np.int64)
            new = old - own
            counts.append(Sums(size, keys, own))
            totals.append(_context_sums(tables, k, document, entry, old, new))
            for b in range(1, 5):
                np.subtract.at(changes[:, k - 1, b - 1], document[old == b], 1)
                np.add.at(changes[:, k - 1, b - 1], document[new == b], 1)
            lost = new == 0
            gone = np.stack([document[lost], order.suffix[entry[lost]].astype(np.int64)])
            if k == 1:
                before, becomes = (document * tables.rank_size + tables.rank_keys(c, entry) for c in (old, new))
                order_of_before = np.argsort(before)
                before, becomes = before[order_of_before], becomes[order_of_before]
        with_D, ours_D = discounts(tables.count_of_counts), discounts(changes)
        least = np.array([1.0, 2.0, 3.0])
        slack = np.maximum(((least - ours_D) / (least - with_D)).max(-1), 1.0)
        flat = np.pad(ours_D, ((0, 0), (0, 0), (1, 0))).ravel()
        own_tokens = Pairs(text.document[counted[text.document]], text.tokens[counted[text.document]])
        return Own(
            own_tokens, tuple(counts[::-1]), tuple(totals[::-1]), ours_D, flat, slack, before, becomes, np.sort(becomes)
        )

    def fallen(self, document: Array, keys: Array, rank_size: int, width: int) -> tuple[Array, Array]:
        """Return (number of the rank key, token) where a unigram's key is less with the document, and not without."""
        first = document * rank_size
        least = np.maximum(keys - int((self.becomes - self.before).max(initial=0)), 0)
        begin, end = np.searchsorted(self.before, first + least), np.searchsorted(self.before, first + keys)
        row, at = ragged(begin, end - begin)
        fallen = self.becomes[at] >= (first + keys)[row]
        return row[fallen], self.before[at[fallen]] % width

    def discounted(self, document: Array, j: int, count: Array) -> Array:
        """Return counts of order j + 1 less the discounts without the document of each."""
        return count - self.discount_by_count[document * (4 * len(self.counts)) + 4 * j + np.minimum(count, 3)]


def _context_sums(tables: CountTables, k: int, document: Array, entry: Array, old: Array, new: Array) -> Sums:
    order = tables.orders[k - 1]
    contexts = max(1, len(order.total))
    context = order.keys[entry] // tables.width if k > 1 else np.zeros_like(entry)
    keys, group = np.unique(document * contexts + context, return_inverse=True)
    sums = np.zeros((len(keys), 4), np.int64)
    np.add.at(sums[:, 0], group, old - new)
    for b in (1, 2, 3):
        change = (np.minimum(new, 3) == b).astype(np.int64) - (np.minimum(old, 3) == b)
        np.add.at(sums[:, b], group, change)
    return Sums(contexts, keys, sums)
