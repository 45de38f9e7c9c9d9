"""De-duplication of a whole corpus: the same documents as in every version so far, however it is cut up in memory."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasketch import MinHash
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.dedup import near, results
from pipeline.corpus.dedup.near import PERMUTATIONS, bands, linked, signature
from pipeline.corpus.dedup.words import ngrams, shingles, words
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


@pytest.mark.parametrize("block", [1, 7, 1 << 13])
def test_band_keys_do_not_depend_on_how_many_shingles_are_permuted_at_once(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [words(row["text"]) for row in corpus(0)[:20]] + [[str(n) for n in range(3000)]]
    expected = [bands(shingles(text, 5), 5) for text in texts]
    monkeypatch.setattr(near, "_BLOCK", block)
    assert [bands(shingles(text, 5), 5).tolist() for text in texts] == [keys.tolist() for keys in expected]


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=600))
def test_signatures_are_those_of_datasketch(values: list[int]) -> None:
    minhash = MinHash(PERMUTATIONS, seed=1, scheme="affine64", hashfunc=int)
    minhash.update_batch(values)
    assert signature(np.array(values, np.uint64)).tolist() == minhash.hashvalues.tolist()


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
