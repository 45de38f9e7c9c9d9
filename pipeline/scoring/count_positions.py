"""Positions of documents, and the probabilities of candidate tokens there by the counts of all other documents.

Shape names: P positions, F candidates of all positions end to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.scoring.count_leave_out import Own, Text
from pipeline.scoring.count_tables import CountTables, discounts

Array = NDArray[Any]


@dataclass(frozen=True)
class Positions:
    """Some positions, with what the probabilities of all tokens there have in common."""

    tables: CountTables
    own: Own
    document: Array
    tokens: Array
    entries: tuple[Array, ...]
    contexts: tuple[Array, ...]
    fanout: tuple[Array, ...]
    """Per order, [P]: continuations of the context; 0 where it was never counted."""
    weight: tuple[Array, ...]
    """Per order, [P]: by what a discounted count is multiplied."""
    uniform: Array
    """[P] what every token has."""
    bounds: tuple[tuple[Array, Array], ...]
    """Per order, two [P]: what is left to it and those below, and the factor by which p_k can have grown."""

    @staticmethod
    def of(tables: CountTables, text: Text, own: Own, at: Array) -> Positions:
        """Return the positions `at` of a text."""
        n, document = len(tables.orders), text.document[at]
        contexts, fanout = tuple(c[at] for c in text.contexts), list[Array]()
        shares, factors, gammas = list[Array](), list[Array](), list[Array]()
        all_discounts = discounts(tables.count_of_counts)
        greater = np.ones(len(at))
        for k in range(1, n + 1):
            order, context = tables.orders[k - 1], contexts[k - 1]
            there, safe = context >= 0, np.maximum(context, 0)
            fanout.append(np.where(there, order.start[safe + 1] - order.start[safe], 0))
            total, kinds = order.total[safe], order.kinds[safe].astype(np.int64)
            mine = own.totals[k - 1].at(document, safe)
            left, kinds_left = total - mine[:, 0], kinds + mine[:, 1:]
            use, used = there & (left > 0), there & (total > 0)
            share = np.where(use, 1 / np.maximum(left, 1), 0.0)
            gamma = np.where(use, (kinds_left * own.discount[document, k - 1]).sum(1) * share, 1.0)
            gamma_all = np.where(used, (kinds * all_discounts[k - 1]).sum(1) / np.maximum(total, 1), 1.0)
            greater = np.maximum(own.slack[document, k - 1] * share * total, greater * gamma / gamma_all)
            shares.append(share)
            gammas.append(gamma)
            factors.append(greater)
        weight, bounds = list[Array](), list[tuple[Array, Array]]()
        rest = np.ones(len(at))
        for k in range(n, 0, -1):
            weight.append(rest * shares[k - 1])
            bounds.append((rest, factors[k - 1]))
            rest = rest * gammas[k - 1]
        return Positions(
            tables, own, document, text.tokens[at], tuple(e[at] for e in text.entries), contexts, tuple(fanout),
            tuple(weight[::-1]), rest / tables.vocab_size, tuple(bounds[::-1]),
        )  # fmt: skip

    def take(self, rows: Array) -> Positions:
        """Return some of the positions."""
        return Positions(
            self.tables, self.own, self.document[rows], self.tokens[rows], tuple(e[rows] for e in self.entries),
            tuple(c[rows] for c in self.contexts), tuple(f[rows] for f in self.fanout),
            tuple(w[rows] for w in self.weight), self.uniform[rows], tuple((a[rows], b[rows]) for a, b in self.bounds),
        )  # fmt: skip

    def chain(self, k: int, entry: Array) -> list[Array]:
        """Return entries [F] of order k, their suffixes, and so on down to order 1."""
        found = [entry]
        for j in range(k, 1, -1):
            found.append(self.tables.orders[j - 1].suffix[found[-1]].astype(np.int64))
        return found

    def probabilities(self, row: Array, chain: Sequence[Array]) -> tuple[Array, Array]:
        """Return what candidates [F] have, and what they would have by the unigrams alone."""
        p, alone = self.uniform[row], self.uniform[row]
        document = self.document[row]
        for j, entry in enumerate(chain[::-1]):
            count = self.tables.orders[j].counts[entry] - self.own.counts[j].at(document, entry)
            p = p + self.weight[j][row] * self.own.discounted(document, j, count)
            alone = p if j == 0 else alone
        return p, alone

    def of_true(self) -> Array:
        """Return the probability [P] of the true tokens."""
        p = np.empty(len(self.tokens))
        longest = np.sum([entry >= 0 for entry in self.entries], 0)
        for k in range(1, len(self.entries) + 1):
            row = np.flatnonzero(longest == k)
            p[row] = self.probabilities(row, self.chain(k, self.entries[k - 1][row]))[0]
        return p
