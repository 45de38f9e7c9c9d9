"""Leave-one-document-out baselines against hand-worked probabilities and counts made anew for each document."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.scoring.baselines import DISCOUNT, bigram_nats, unigram_nats, zlib_bits_per_byte

Documents = list[list[int]]
V = 5


def arrays(documents: Documents) -> tuple[np.ndarray, np.ndarray]:
    sizes = [len(document) for document in documents]
    return np.array([i for d in documents for i in d], dtype=np.int64), np.repeat(np.arange(len(documents)), sizes)


def unigram(others: Documents, w: int) -> float:
    counts = Counter(i for document in others for i in document)
    if not counts:
        return 1 / V
    return (max(counts[w] - DISCOUNT, 0) + DISCOUNT * len(counts) / V) / counts.total()


def bigram(others: Documents, v: int | None, w: int) -> float:
    after = Counter(b for document in others for a, b in pairwise(document) if a == v)
    if not after:
        return unigram(others, w)
    return (max(after[w] - DISCOUNT, 0) + DISCOUNT * len(after) * unigram(others, w)) / after.total()


@given(st.lists(st.lists(st.integers(0, V - 1), max_size=8), max_size=6))
def test_they_equal_counts_made_without_the_document(documents: Documents) -> None:
    expected_1, expected_2 = [], []
    for n, document in enumerate(documents):
        others = documents[:n] + documents[n + 1 :]
        expected_1 += [-math.log(unigram(others, w)) for w in document]
        expected_2 += [-math.log(bigram(others, document[t - 1] if t else None, w)) for t, w in enumerate(document)]
    ids, document_of = arrays(documents)
    assert unigram_nats(ids, document_of, V).tolist() == pytest.approx(expected_1, abs=1e-12)
    assert bigram_nats(ids, document_of, V).tolist() == pytest.approx(expected_2, abs=1e-12)


@given(st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=6), min_size=2, max_size=5))
def test_probabilities_of_all_tokens_sum_to_one(documents: Documents) -> None:
    """Every other document must price the same first document whatever its last token is."""
    *_, v = documents[0]
    ids = [arrays([[v, w], *documents[1:]]) for w in range(V)]
    for nats in (unigram_nats, bigram_nats):
        assert sum(math.exp(-nats(*each, V)[1]) for each in ids) == pytest.approx(1, abs=1e-12)


def test_a_document_does_not_teach_its_own_price() -> None:
    """Document 0 repeats "3 4", which no other has: seen, it would be nearly free."""
    ids, document_of = arrays([[3, 4] * 50, [0, 1, 2], [0, 1, 0]])
    p = np.exp(-bigram_nats(ids, document_of, V)[:100])
    # 3 and 4 are in no other document: D · 3 types / 6 tokens, spread over five tokens.
    assert p.tolist() == pytest.approx([DISCOUNT * 3 / 6 / 5] * 100)


def test_zlib_is_told_where_documents_begin() -> None:
    assert zlib_bits_per_byte(["ab" * 500, "ab" * 500]) < 0.2 < zlib_bits_per_byte(["abc"])
