"""A plain twin of the counting proxy: n-grams in dictionaries, counted anew for every text that is left out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.scoring.count_ngrams import count
from pipeline.scoring.count_tables import CountTables, discounts, open_tables

START = "start"


def tables_of(documents: Sequence[Sequence[int]], vocab_size: int, orders: int, folder: Path) -> CountTables:
    """Count documents that lie in two files."""
    for name in ("tables", "scratch"):
        (folder / name).mkdir(parents=True)
    streams = [folder / "a.npy", folder / "b.npy"]
    for path, part in zip(streams, (documents[::2], documents[1::2]), strict=True):
        np.save(path, np.array([i for ids in part for i in (vocab_size, *ids)], np.int32))
    count(streams, vocab_size, orders, folder / "tables", folder / "scratch")
    return open_tables(folder / "tables")


class Twin:
    """Interpolated modified Kneser-Ney smoothing as the textbook has it."""

    def __init__(self, documents: Sequence[Sequence[int]], vocab_size: int, orders: int) -> None:
        self.vocab_size, self.orders = vocab_size, orders
        seen = [Counter[tuple[Any, ...]]() for _ in range(orders + 1)]
        for ids in documents:
            text = (START, *ids)
            for k in range(1, orders + 1):
                seen[k].update(text[i : i + k] for i in range(len(text) - k + 1) if text[i : i + k] != (START,))
        self.counts = [Counter[tuple[Any, ...]](), *seen[1:]]
        for k in range(1, orders):
            before = defaultdict(set)
            for gram in seen[k + 1]:
                before[gram[1:]].add(gram[0])
            self.counts[k] = Counter({g: seen[k][g] if g[0] == START else len(before[g]) for g in seen[k]})
        kinds = [[sum(n == b for n in counts.values()) for b in (1, 2, 3, 4)] for counts in self.counts]
        self.discounts = [discounts(np.array(of_order)) for of_order in kinds]
        self.after: list[dict[Any, dict[int, int]]] = [defaultdict(dict) for _ in range(orders + 1)]
        for k in range(1, orders + 1):
            for gram, n in self.counts[k].items():
                self.after[k][gram[:-1]][gram[-1]] = n

    def probabilities(self, before: Sequence[int]) -> np.ndarray[Any, Any]:
        """The distribution of the token that follows a document's first tokens."""
        context, p = (START, *before), np.full(self.vocab_size, 1 / self.vocab_size)
        for k in range(1, min(self.orders, len(context) + 1) + 1):
            found = self.after[k].get(context[len(context) - k + 1 :])
            if found:
                total, taken = sum(found.values()), 0.0
                q = np.zeros(self.vocab_size)
                for token, n in found.items():
                    discount = self.discounts[k][min(n, 3) - 1]
                    q[token], taken = (n - discount) / total, taken + discount
                p = q + taken / total * p
        return p
