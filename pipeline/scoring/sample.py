"""Chooses the documents that a proxy is fitted on: folds, and samples within a budget of bytes.

The proxy of a fold scores the fold's documents and is trained on the other folds, so no document is scored by a model
that has seen it.
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
"""Amount of text that a fitted proxy is measured on."""


def fold_of(doc_id: str, folds: int) -> int:
    """Return the fold of a document, which is scored by the proxy that was not trained on that fold.

    Example:
        >>> fold_of("00000000000000ff0123456789abcdef", 2)
        1
    """
    return int(doc_id[:16], 16) % folds


@dataclass
class Sample:
    """A sample of at most about `limit` bytes of text: the texts with the smallest hashes of (seed, doc_id).

    It does not depend on the order in which texts are offered.
    """

    limit: int
    seed: int
    _kept: list[tuple[str, str, bool]] = field(default_factory=list)
    _bytes: int = 0
    _end: str = "g"
    """The smallest hash that did not fit; larger ones are rejected. Hexadecimal digits sort before "g"."""

    def offer(self, doc_id: str, text: str, mark: bool = False) -> None:
        """Add a text to the sample, with a mark that it keeps, if its hash is small enough."""
        key = hashlib.sha256(f"{self.seed}:{doc_id}".encode()).hexdigest()
        if key >= self._end:
            return
        self._kept.append((key, text, mark))
        self._bytes += len(text.encode())
        if self._bytes > 2 * self.limit:
            self._prune()

    def texts(self) -> list[str]:
        """Return the sampled texts in the order of their hashes."""
        self._prune()
        return [text for _, text, _ in self._kept]

    def marks(self) -> list[bool]:
        """Return the marks of the sampled texts in the order of their hashes."""
        self._prune()
        return [mark for _, _, mark in self._kept]

    def _prune(self) -> None:
        self._kept.sort()
        sizes = [len(text.encode()) for _, text, _ in self._kept]
        count = max(1, int(np.searchsorted(np.cumsum(sizes), self.limit, side="right")))
        if count < len(self._kept):
            self._end = self._kept[count][0]
        self._kept, self._bytes = self._kept[:count], sum(sizes[:count])


@dataclass(frozen=True)
class Texts:
    """The texts that a fold's proxy is fitted and measured on."""

    tokenizer: list[str]
    """Training documents of all folds, because the whole corpus shares one BPE."""
    training: list[str]
    """Training documents of the other folds (of all, if there is only one fold)."""
    held_out: list[str]
    """Documents that the model is not trained on: its own fold and the validation split."""
    held_out_counted: list[bool] = field(default_factory=list)
    """Whether each of them is of the training split, which counts are of."""


def read_texts(files: Sequence[InputFile], fold: int, config: TrainProxyConfig) -> Texts:
    """Sample the documents table for one fold.

    Raises:
        UserError: there is no training document outside the fold.
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
                held_out.offer(row["doc_id"], row["text"], row["split"] == "train")
    if not training.texts():
        raise UserError(
            f"no training documents for the proxy of fold {fold}",
            where="proxy.train.folds",
            hint="use fewer folds, fewer validation documents, or a larger corpus",
        )
    return Texts(tokenizer.texts(), training.texts(), held_out.texts(), held_out.marks())
