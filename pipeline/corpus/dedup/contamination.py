"""Contamination: documents that share an n-gram of words with an evaluation set (Brown et al. 2020, appendix C)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.config.corpus import CorpusConfig, EvaluationSetConfig, ReadingConfig, ValidationConfig
from pipeline.corpus.dedup.words import ngrams, words
from pipeline.corpus.quarantine import Unusable
from pipeline.corpus.readers.dispatch import read_records
from pipeline.corpus.readers.records import Slice
from pipeline.corpus.sources.splits import EVERY, EVERY_CONFIGURATION
from pipeline.corpus.template import Template


class Overlap(NamedTuple):
    """The first n-gram that a document shares with an evaluation set, and a record that has it."""

    file: str
    row: int
    ngram: str


@dataclass(frozen=True)
class EvaluationIndex:
    """All n-grams of an evaluation set, by hash. Shape: G distinct n-grams."""

    n: int
    hash_G: NDArray[np.uint64]
    """Sorted hashes of the n-grams."""
    record_G: NDArray[np.int64]
    """Index in `origins` of the first record that has the n-gram."""
    origins: Sequence[tuple[str, int]]
    """File and row of every record."""
    counters: Counter[str]
    """`evaluation.records`, and those that no document can match: `evaluation.unusable` (no text) and
    `evaluation.too_short` (fewer than n words)."""

    def find(self, document: Sequence[str]) -> Overlap | None:
        """Return the first n-gram of a document's words that the set has as well, or None."""
        hash_D = ngrams(document, self.n)
        if not len(self.hash_G):
            return None
        # `searchsorted` gives len(hash_G) for hashes above all of them, which is no index.
        at_D = np.minimum(np.searchsorted(self.hash_G, hash_D), len(self.hash_G) - 1)
        hits = np.flatnonzero(self.hash_G[at_D] == hash_D)
        if not len(hits):
            return None
        first = int(hits[0])
        file, row = self.origins[self.record_G[at_D[first]]]
        return Overlap(file, row, " ".join(document[first : first + self.n]))


def to_corpus_config(config: EvaluationSetConfig) -> CorpusConfig:
    """Return the configuration with which the readers of corpora read an evaluation set."""
    reading = {field: getattr(config, field) for field in ReadingConfig.model_fields}
    return CorpusConfig(
        **reading,
        source=config.source,
        splits=(EVERY,),
        configuration=EVERY_CONFIGURATION,
        text=config.text,
        validation=ValidationConfig(documents=0),
    )


def evaluation_index(config: EvaluationSetConfig, slices: Iterable[Slice]) -> EvaluationIndex:
    """Read an evaluation set and index its n-grams.

    Raises:
        UserError: one of its files cannot be read.
    """
    corpus, template = to_corpus_config(config), Template.parse(config.text)
    counters: Counter[str] = Counter()
    origins: list[tuple[str, int]] = []
    hashes: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
    for part in slices:
        for row, _, _, value in read_records(part, corpus):
            counters["evaluation.records"] += 1
            try:
                if isinstance(value, Unusable):
                    raise value
                found = ngrams(words(template.render(value)[0]), config.ngram)
            except (Unusable, UnicodeEncodeError):
                counters["evaluation.unusable"] += 1
                continue
            counters["evaluation.too_short"] += not len(found)
            origins.append((part.file.name, row))
            hashes.append(found)
    record = np.repeat(np.arange(len(origins)), [len(found) for found in hashes[1:]])
    hash_G, first = np.unique(np.concatenate(hashes), return_index=True)
    return EvaluationIndex(config.ngram, hash_G, record[first], origins, counters)
