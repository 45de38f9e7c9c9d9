"""Positions of documents, and the probabilities of candidate tokens there by the counts of all other documents.

Shape names: P positions, F candidates of all positions end to end, R some of the positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.scoring.count_leave_out import Own, Text
from pipeline.scoring.count_tables import CountTables, discounted, discounts

Array = NDArray[Any]


@dataclass(frozen=True)
class Context:
    """The contexts of some positions of one order."""

    number: Array
    """[P] −1 where it was never counted."""
    entry: Array
    """[P] of the true token, or −1."""
    start: Array
    """[P] first entry."""
    fanout: Array
    """[P] number of continuations; 0 where it was never counted."""
    total: Array
    """[P] sum of counts with the document, at least 1."""
    gamma: Array
    """[P] share that the order below has, with the document."""
    weight: Array
    """[P] by what a discounted count is multiplied."""
    rest: Array
    """[P] what is left to this order and those below."""
    growth: Array
    """[P] the factor by which the probability of this order can have grown when the document was subtracted."""


@dataclass(frozen=True)
class Positions:
    """Some positions, with what the probabilities of all tokens there have in common."""

    tables: CountTables
    own: Own
    document: Array
    tokens: Array
    contexts: tuple[Context, ...]
    """Of all orders, the lowest first."""
    uniform: Array
    """[P] what every token has."""

    @staticmethod
    def of(tables: CountTables, text: Text, own: Own, at: Array) -> Positions:
        """Return the positions `at` of a text."""
        document, with_all = text.document[at], discounts(tables.count_of_counts)
        found, gammas = list[dict[str, Array]](), list[Array]()
        growth = np.ones(len(at))
        for k, order in enumerate(tables.orders, 1):
            number = text.contexts[k - 1][at]
            there, safe = number >= 0, np.maximum(number, 0)
            start = order.start[safe]
            total, kinds = order.total[safe], order.kinds[safe].astype(np.int64)
            mine = own.totals[k - 1].at(document, safe)
            left, kinds_left = total - mine[:, 0], kinds + mine[:, 1:]
            use, used = there & (left > 0), there & (total > 0)
            share = np.where(use, 1 / np.maximum(left, 1), 0.0)
            gammas.append(np.where(use, (kinds_left * own.discount[document, k - 1]).sum(1) * share, 1.0))
            gamma = np.where(used, (kinds * with_all[k - 1]).sum(1) / np.maximum(total, 1), 1.0)
            growth = np.maximum(own.slack[document, k - 1] * share * total, growth * gammas[-1] / gamma)
            found.append(
                {
                    "number": number,
                    "entry": text.entries[k - 1][at],
                    "start": start,
                    "fanout": np.where(there, order.start[safe + 1] - start, 0),
                    "total": np.maximum(total, 1),
                    "gamma": gamma,
                    "weight": share,
                    "growth": growth,
                }
            )
        rest = np.ones(len(at))
        for own_k, gamma in zip(found[::-1], gammas[::-1], strict=True):
            own_k["rest"], own_k["weight"] = rest, rest * own_k["weight"]
            rest = rest * gamma
        contexts = tuple(Context(**own_k) for own_k in found)
        return Positions(tables, own, document, text.tokens[at], contexts, rest / tables.vocab_size)

    def take(self, rows: Array) -> Positions:
        """Return some of the positions."""
        contexts = tuple(Context(*(getattr(c, field.name)[rows] for field in fields(c))) for c in self.contexts)
        return Positions(self.tables, self.own, self.document[rows], self.tokens[rows], contexts, self.uniform[rows])

    def chain(self, k: int, entry: Array) -> list[Array]:
        """Return entries [F] of order k, their suffixes, and so on down to order 1, whose entries are tokens."""
        found = [entry]
        for order in self.tables.orders[k - 1 : 0 : -1]:
            found.append(order.suffix[found[-1]].astype(np.int64))
        return found

    def probabilities(self, row: Array, chain: Sequence[Array]) -> tuple[Array, Array]:
        """Return what candidates [F] have, and what they would have by the unigrams alone."""
        p = alone = self.uniform[row]
        document = self.document[row]
        mine = self.own.tokens.may_have(document, chain[-1])
        its_document = document[mine]
        for j, entry in enumerate(chain[::-1]):
            count = self.tables.orders[j].counts[entry].astype(np.int64)
            count[mine] -= self.own.counts[j].at(its_document, entry[mine])
            p = p + self.contexts[j].weight[row] * self.own.discounted(document, j, count)
            alone = p if j == 0 else alone
        return p, alone

    def of_true(self) -> Array:
        """Return the probability [P] of the true tokens."""
        p = np.empty(len(self.tokens))
        longest = np.sum([context.entry >= 0 for context in self.contexts], 0)
        for k, context in enumerate(self.contexts, 1):
            row = np.flatnonzero(longest == k)
            p[row] = self.probabilities(row, self.chain(k, context.entry[row]))[0]
        return p

    def by_unigrams(self, row: Array, count: Array) -> Array:
        """Return the probability [R] by unigrams alone of tokens with these counts [R], as `probabilities` does."""
        weight = self.contexts[0].weight[row]
        return self.uniform[row] + weight * self.own.discounted(self.document[row], 0, count)

    def most_after(self, k: int, row: Array, listed: Array) -> Array:
        """Return what [R] a token has at most that the context of order k does not list among its first [R].

        Of a longer context, with the document it has no more than the first that is left out; without the document no
        more than the greatest factor by which any part of the sum can have grown times that.
        """
        order = self.tables.orders[k - 1]
        entry = order.best[self.contexts[k - 1].start[row] + listed].astype(np.int64)
        if k == 1:
            return self.by_unigrams(row, order.counts[entry].astype(np.int64))
        with_all, p = discounts(self.tables.count_of_counts), np.full(len(row), 1 / self.tables.vocab_size)
        for j, lower in enumerate(self.chain(k, entry)[::-1]):
            context, counts = self.contexts[j], self.tables.orders[j].counts[lower]
            p = discounted(counts, with_all[j]) / context.total[row] + context.gamma[row] * p
        context = self.contexts[k - 1]
        return context.rest[row] * context.growth[row] * p * (1 + 1e-9)
