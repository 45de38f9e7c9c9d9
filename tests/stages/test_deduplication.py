"""De-duplication of a whole corpus: the same documents as in every version so far, however it is cut up in memory."""

from __future__ import annotations

import hashlib
import json
import random
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasketch import MinHash
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.dedup import near, results
from pipeline.corpus.dedup import words as dedup_words
from pipeline.corpus.dedup.near import PERMUTATIONS, bands, batches, linked, signatures
from pipeline.corpus.dedup.words import ngrams, ngrams_of_all, shingles
from stages.ingest import ASSIGN, INGEST
from tests.corpus.corpora import jsonl, run
from tests.stages.test_matches import corpus, matches

HELD_OUT = {"column": "split", "value": "test"}
CASES: dict[str, dict[str, Any]] = {
    "documents": {"validation": {"documents": 17}, "near_duplicates": {"within_training": True}},
    "fraction": {"validation": {"fraction": 0.2}, "near_duplicates": {"within_training": True, "threshold": 0.5}},
    "column": {"validation": HELD_OUT, "near_duplicates": {"within_training": False}},
    "none": {"validation": {"documents": 0}, "near_duplicates": None},
    "contaminated": {"validation": HELD_OUT, "near_duplicates": {"within_training": True}, "decontaminate": True},
}
GOLDEN = {
    "documents": ("e89c3de127fafd73", "563247136897e429"),
    "fraction": ("bac038e45bbb0c03", "8279b61649bbed95"),
    "column": ("2c254a568ab161e8", "29795e0979b740e6"),
    "none": ("208aaaa41e9d1bd2", "4f53cda18c2baa0c"),
    "contaminated": ("353fca186cadf561", "b6aca14fa5f42d80"),
}
"""Hashes of what ingest publishes, and of the matches, as `assign` 3 found them, which held everything in memory."""


def records() -> list[dict[str, Any]]:
    """Near-duplicates in groups, exact copies of many, texts without words, records that cannot be used."""
    rows = corpus(0) + corpus(1)
    rows += random.Random(5).sample(rows, 40)
    rows += [{"text": f"... {i % 7} !?", "split": "train"} for i in range(9)]
    rows += [{"text": "?! " * (i + 1), "split": "train"} for i in range(3)]
    rows[20:20] = [{"text": None, "split": "train"}, {"text": ""}]
    return rows


@pytest.mark.parametrize(("at_once", "group"), [(results.AT_ONCE, results.GROUP), (17, 1)])
@pytest.mark.parametrize("name", CASES)
def test_golden(tmp_path: Path, name: str, at_once: int, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever changes the output must raise a stage's VERSION: it is all that tells old output from new."""
    monkeypatch.setattr(results, "AT_ONCE", at_once)
    monkeypatch.setattr(results, "GROUP", group)
    rows, case = records(), dict(CASES[name])
    if case.get("decontaminate"):
        questions = [{"text": " ".join(rows[i]["text"].split()[20:50])} for i in (3, 45, 70)]
        case["decontaminate"] = [{"source": str(jsonl(tmp_path / "eval.jsonl", questions))}]
    result = run(tmp_path / "work", jsonl(tmp_path / "x.jsonl", rows), slice_bytes=9000, shard_documents=13, **case)
    found = hashlib.sha256(json.dumps(matches(result), sort_keys=True).encode()).hexdigest()
    assert (ASSIGN.version, INGEST.version) == (4, 2)
    assert (result.record.content[:16], found[:16]) == GOLDEN[name]


WORDS = st.lists(st.sampled_from(["a", "b", "ç"]), max_size=30)


@given(st.lists(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40), max_size=5), st.sampled_from([1, 7, 999]))
def test_signatures_are_those_of_datasketch(texts: list[list[int]], block: int) -> None:
    expected = list[list[int]]()
    for values in texts:
        minhash = MinHash(PERMUTATIONS, seed=1, scheme="affine64", hashfunc=int)
        minhash.update_batch(values)
        expected.append(minhash.hashvalues.tolist())
    hashes, counts = np.array(list(chain(*texts)), np.uint64), np.array([len(values) for values in texts], np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "_BLOCK", block)
        assert signatures(hashes, counts).T.tolist() == expected


@given(st.lists(WORDS, max_size=6), st.integers(1, 4), st.integers(1, 6))
def test_band_keys_are_polynomials_of_the_signature(texts: list[list[str]], n: int, rows: int) -> None:
    """The plain way, text by text and in integers without end."""

    def plain(text: list[str]) -> list[int]:
        if not text:
            return []
        minhash = MinHash(PERMUTATIONS, seed=1, scheme="affine64", hashfunc=int)
        minhash.update_batch(shingles(text, n).tolist())
        values = [int(value) for value in minhash.hashvalues]
        keys = []
        for band in range(PERMUTATIONS // rows):
            key = band
            for value in values[band * rows : (band + 1) * rows]:
                key = key * 0xD6E8FEB86659FD93 + value
            keys.append(key % 2**64)
        return keys

    assert [keys.tolist() for keys in bands(texts, n, rows)] == [plain(text) for text in texts]


@given(st.lists(st.text("ab c", max_size=9), max_size=12), st.integers(1, 8))
def test_batches_are_all_texts_in_order(texts: list[str], at_once: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "AT_ONCE", at_once)
        found = list(batches(texts))
    assert list(chain(*found)) == texts
    assert all(batch and sum(map(len, batch[:-1])) < at_once for batch in found)


@given(st.lists(WORDS, max_size=6), st.integers(1, 4))
def test_ngrams_of_several_texts_are_those_of_each(texts: list[list[str]], n: int) -> None:
    hashes, counts = ngrams_of_all(texts, n)
    each = [ngrams(text, min(n, len(text))).tolist() if text else [] for text in texts]
    assert hashes.tolist() == list(chain(*each)) and counts.tolist() == [len(found) for found in each]


@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=9), st.integers(1, 4))
def test_an_ngram_is_a_polynomial_of_the_hashes_of_its_words(text: list[str], n: int) -> None:
    hashes = [int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big") for word in text]
    expected = list[int]()
    for begin in range(len(text) - n + 1):
        total = 0
        for value in hashes[begin : begin + n]:
            total = (total * 0x9E3779B97F4A7C15 + value) % 2**64
        expected.append(total)
    assert ngrams(text, n).tolist() == expected


def test_few_and_short_words_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    text = [str(n) * (n % 30 + 1) for n in range(50)]
    expected = ngrams(text, 2).tolist()
    monkeypatch.setattr(dedup_words, "_KNOWN_WORDS", 3)
    monkeypatch.setattr(dedup_words, "_LONGEST", 5)
    dedup_words._hash_of.clear()
    assert ngrams(text, 2).tolist() == ngrams(text, 2).tolist() == expected
    assert 0 < len(dedup_words._hash_of) <= 3 and max(map(len, dedup_words._hash_of)) <= 5


@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=40), st.integers(1, 4))
def test_shingles_are_a_sorted_set(text: list[str], n: int) -> None:
    assert shingles(text, n).tolist() == sorted(set(ngrams(text, min(n, max(1, len(text)))).tolist()))


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=20), st.booleans())
def test_documents_with_one_key_are_joined(documents: list[tuple[int, bool]], within_training: bool) -> None:
    """The plain way: all pairs."""
    keys = np.array([key for key, _ in documents], np.uint64)
    held_out = np.array([held for _, held in documents], bool)
    first, other = linked(keys, held_out, within_training)
    joined = {key: {n for n, (k, _) in enumerate(documents) if k == key} for key, _ in documents}
    wanted = [
        group
        for group in joined.values()
        if len(group) > 1 and (within_training or len({documents[n][1] for n in group}) == 2)
    ]
    assert sorted(other.tolist() + sorted(set(first.tolist()))) == sorted(n for group in wanted for n in group)
    assert all(
        documents[a][0] == documents[b][0] and a < b for a, b in zip(first.tolist(), other.tolist(), strict=True)
    )
