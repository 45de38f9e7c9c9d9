"""The side of `benchmarks.near` that needs rensa, in an environment that has it and nothing of ours.

    PYTHON benchmarks/near_rensa.py TEXTS.jsonl THRESHOLD WORDS

It does what its users do, in its fastest form: word n-grams of texts split at white space, signatures of all texts in
one matrix, bands, and the true Jaccard similarity of each pair that shares a band. Of two near-duplicates the first
one stays. Last line: the pairs found, and seconds of processor time by part.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

PERMUTATIONS, BANDS = 125, 25
"""Five values a band, as `pipeline.corpus.dedup.near` has them at a threshold of 0.8."""
AT_ONCE = 1000
"""Texts whose n-grams are strings in memory at once."""


def ngrams(text: str, n: int) -> list[str]:
    """Return the word n-grams of a text."""
    words = text.split()
    return [" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))]


def main() -> None:
    from rensa import RMinHash, RMinHashLSH

    path, threshold, n = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    texts = [json.loads(line)["text"] for line in path.read_bytes().splitlines()]
    start = time.process_time()
    index = RMinHashLSH(threshold, PERMUTATIONS, BANDS)
    matrices, flagged = [], list[bool]()
    for begin in range(0, len(texts), AT_ONCE):
        grams = [ngrams(text, n) for text in texts[begin : begin + AT_ONCE]]
        matrices.append(RMinHash.digest_matrix_from_token_sets(grams, PERMUTATIONS, 1))
        index.insert_matrix(matrices[-1], begin)
    signed = time.process_time()
    for matrix in matrices:
        flagged += index.query_duplicate_flags_matrix(matrix)
    suspects = {i: frozenset(ngrams(texts[i], n)) for i, shares in enumerate(flagged) if shares}
    left, pairs = set[int](), list[list[int]]()
    for i, own in suspects.items():
        minhash = RMinHash(PERMUTATIONS, 1)
        minhash.update(list(own))
        for j in sorted(index.query(minhash)):
            if j < i and j not in left and len(own & suspects[j]) >= threshold * len(own | suspects[j]):
                left.add(i)
                pairs.append([j, i])
                break
    ended = time.process_time()
    seconds = {"signatures": signed - start, "pairs": ended - signed, "all": ended - start}
    print(json.dumps({"pairs": pairs, "seconds": seconds}))


if __name__ == "__main__":
    main()
