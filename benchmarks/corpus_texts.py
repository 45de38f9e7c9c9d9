"""The generated corpus of `benchmarks/corpus.py`: short documents, in files of a fixed number of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

FILE_DOCUMENTS = 50_000
COPIES = 0.03
"""Share of the documents that are copies of others."""


class Texts:
    """Draws documents: ten words or so, and a number, without which many would be equal by chance.

    A file's documents depend on its number alone.
    """

    WORDS = 300

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        syllables = [a + b + c for a in "bdfgklmnprstvz" for b in "aeiou" for c in "lmnrst"]
        drawn = rng.integers(len(syllables), size=(2 * self.WORDS, 3)).tolist()
        self.words = list(dict.fromkeys("".join(syllables[s] for s in word) for word in drawn))[: self.WORDS]
        share = 1 / np.arange(1, self.WORDS + 1) ** 1.1
        self.until = np.cumsum(share / share.sum())
        self.follower = rng.integers(self.WORDS, size=self.WORDS)
        """The word that mostly comes after each one; every second word has none."""
        self.follower[::2] = -1
        self.first = self._drawn(0, FILE_DOCUMENTS)

    def of_file(self, number: int, count: int) -> list[str]:
        """Return the documents of a file, some of which are copies of earlier ones or of the first file's."""
        texts = self.first[:count] if number == 0 else self._drawn(number, count)
        rng = np.random.default_rng([1, number])
        most = np.arange(1, count + 1) if number == 0 else np.full(count, len(self.first))
        origins = (rng.random(count) * most).astype(int).tolist()
        copied = (rng.random(count) < COPIES).tolist()
        return [self.first[o] if copy else text for text, o, copy in zip(texts, origins, copied, strict=True)]

    def _drawn(self, number: int, count: int) -> list[str]:
        rng = np.random.default_rng([0, number])
        lengths = rng.integers(8, 13, count)
        drawn = np.searchsorted(self.until, rng.random((count, lengths.max())))
        follows = rng.random(drawn.shape) < 0.9
        for place in range(1, drawn.shape[1]):
            next_one = self.follower[drawn[:, place - 1]]
            drawn[:, place] = np.where((next_one >= 0) & follows[:, place], next_one, drawn[:, place])
        rows = zip(drawn.tolist(), lengths.tolist(), rng.integers(1000, 10_000, count).tolist(), strict=True)
        return [f"{' '.join([self.words[word] for word in row[:length]])} {number}" for row, length, number in rows]


def write_corpus(folder: Path, documents: int) -> None:
    """Write the files of a corpus that are not there yet."""
    texts = Texts()
    folder.mkdir(parents=True, exist_ok=True)
    for number, begin in enumerate(range(0, documents, FILE_DOCUMENTS)):
        path = folder / f"part-{number:05d}.jsonl"
        if not path.exists():
            drawn = texts.of_file(number, min(FILE_DOCUMENTS, documents - begin))
            path.with_suffix(".new").write_text("".join(f'{{"text": "{text}"}}\n' for text in drawn))
            path.with_suffix(".new").rename(path)
