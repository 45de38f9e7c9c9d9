"""Which documents a fitted proxy is made from: folds, and samples that fit a budget.

A fold's proxy scores the fold's documents and is trained on the others', so that no document is scored by a model that
has seen it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.config.errors import UserError
from pipeline.config.manifest import TrainProxyConfig
from pipeline.core.artifact import InputFile
from pipeline.core.parquet import read_table

HELD_OUT_BYTES = 200_000
"""Text a fitted proxy is measured on."""


def fold_of(doc_id: str, folds: int) -> int:
    """The fold a document belongs to: it is scored by the proxy that has seen none of that fold.

    Example:
        >>> fold_of("00000000000000ff0123456789abcdef", 2)
        1
    """
    return int(doc_id[:16], 16) % folds


@dataclass
class Sample:
    """Texts in the order of a hash of (seed, doc_id), at most about `limit` bytes of them: the same whatever the order
    they come in, and unmoved by documents that are not offered."""

    limit: int
    seed: int
    _kept: list[tuple[str, str]] = field(default_factory=list)
    _bytes: int = 0
    _end: str = "g"
    """Hashes from here on are out: the first that did not fit."""

    def offer(self, doc_id: str, text: str) -> None:
        key = hashlib.sha256(f"{self.seed}:{doc_id}".encode()).hexdigest()
        if key >= self._end:
            return
        self._kept.append((key, text))
        self._bytes += len(text.encode())
        if self._bytes > 2 * self.limit:
            self._prune()

    def texts(self) -> list[str]:
        self._prune()
        return [text for _, text in self._kept]

    def _prune(self) -> None:
        self._kept.sort()
        sizes = [len(text.encode()) for _, text in self._kept]
        count = max(1, int(np.searchsorted(np.cumsum(sizes), self.limit, side="right")))
        if count < len(self._kept):
            self._end = self._kept[count][0]
        self._kept, self._bytes = self._kept[:count], sum(sizes[:count])


@dataclass(frozen=True)
class Texts:
    """What a fold's proxy is made from and measured on."""

    tokenizer: list[str]
    """Training documents of all folds: one BPE for the whole corpus."""
    training: list[str]
    """Training documents of the other folds (of all, if there is one fold)."""
    held_out: list[str]
    """Documents the model never sees: its own fold's and the validation split's."""


def read_texts(files: Sequence[InputFile], fold: int, config: TrainProxyConfig) -> Texts:
    """Sample the documents table for one fold.

    Raises:
        UserError: no training document outside the fold.
    """
    tokenizer, training = (Sample(config.sample_bytes, config.seed) for _ in range(2))
    held_out = Sample(HELD_OUT_BYTES, config.seed)
    for file in files:
        for row in read_table(file, ["doc_id", "split", "text"]).to_pylist():
            own_fold = config.folds > 1 and fold_of(row["doc_id"], config.folds) == fold
            if row["split"] == "train":
                tokenizer.offer(row["doc_id"], row["text"])
                if not own_fold:
                    training.offer(row["doc_id"], row["text"])
            if own_fold or row["split"] != "train":
                held_out.offer(row["doc_id"], row["text"])
    if not training.texts():
        raise UserError(
            f"no training documents for the proxy of fold {fold}",
            where="proxy.train.folds",
            hint="use fewer folds, fewer validation documents, or a larger corpus",
        )
    return Texts(tokenizer.texts(), training.texts(), held_out.texts())
