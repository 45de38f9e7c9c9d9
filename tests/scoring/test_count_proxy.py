"""Scores by counts: against hand-worked numbers, and against a model counted anew without each document."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.manifest import ScoreConfig
from pipeline.core.artifact import content_hash
from pipeline.scoring import count_candidates, count_columns, count_ngrams, count_proxy
from pipeline.scoring.count_proxy import CountScores, score_by_counts, score_counted
from pipeline.scoring.count_tables import CountTables, discounts
from pipeline.scoring.own_tokenizer import write_tokenizer
from tests.scoring.count_twin import Twin, tables_of

Documents = Sequence[Sequence[int]]


def arrays(documents: Documents) -> list[np.ndarray]:
    return [np.array(ids, np.int32) for ids in documents]


def assert_as_counted_anew(
    scores: CountScores, documents: Documents, counted: Sequence[bool], vocab_size: int, orders: int, K: int
) -> None:
    """Every score equals that of a twin that never saw the document, to 1e-9."""
    at = 0
    for d, ids in enumerate(documents):
        others = [other for e, other in enumerate(documents) if counted[e] and e != d]
        twin = Twin(others, vocab_size, orders)
        for t, token in enumerate(ids):
            p = twin.probabilities(ids[:t])
            assert p.sum() == pytest.approx(1)
            assert scores.nll[at] == pytest.approx(-math.log(p[token]), abs=1e-9)
            # Probabilities that are equal but for rounding may rank either way.
            before, not_after = (p > p[token] + 1e-12).sum(), (p >= p[token] - 1e-12).sum() - 1
            assert before <= scores.rank[at] <= not_after
            top = np.sort(p)[::-1][:K]
            assert np.exp(scores.top_logprobs[at]) == pytest.approx(top, abs=1e-9)
            assert p[scores.top_ids[at]] == pytest.approx(top, abs=1e-9)
            share = top / top.sum()
            assert scores.entropy[at] == pytest.approx(-(share * np.log(share)).sum(), abs=1e-9)
            assert scores.entropy_partial[at] == pytest.approx(-(top * np.log(top)).sum(), abs=1e-9)
            at += 1
    assert at == len(scores.nll)


def test_hand_worked(tmp_path: Path) -> None:
    """Two documents "0 1" and "0 2": without the first, the other says 0, then 2, and the rest is uniform."""
    documents = [[0, 1], [0, 2]]
    scores = score_counted(tables_of(documents, 4, 2, tmp_path), arrays(documents), [True, True], 4)
    # One entry of count 1 each for "start 0", "0 2"; continuations of 0 and 2: one each. No entry of count 2, so the
    # share n₁ / (n₁ + 2 n₂) is 1 and D₁ = 1 − 2·1·0/2 = 1, kept at 0.95.
    unigram = [(1 - 0.95) / 2 + 0.95 / 4, 0.95 / 4]  # seen, unseen
    first = (1 - 0.95) + 0.95 * unigram[0]
    assert math.exp(-scores.nll[0]) == pytest.approx(first)
    assert math.exp(-scores.nll[1]) == pytest.approx(0.95 * unigram[1])  # 1 after 0: never there
    assert scores.rank.tolist() == [0, 2, 0, 2]
    assert scores.top_ids[1].tolist() == [2, 0, 1, 3]


def test_discounts_stay_within_bounds() -> None:
    for counts in ([0, 0, 0, 0], [5, 0, 9, 0], [0, 7, 1, 100], [100, 1, 1, 1]):
        first, second, third = discounts(np.array(counts))
        assert 0 < first < 1 and second < 2 and third < 3
        assert 1 - first < 2 - second < 3 - third, "what is left rises with the count"


@st.composite
def corpora(draw: st.DrawFn) -> tuple[Documents, list[bool], int]:
    vocab_size = draw(st.sampled_from([1, 2, 5, 40]))
    # Small ids are more frequent, so that n-grams repeat.
    token = st.builds(lambda x: min(int(vocab_size * x**3), vocab_size - 1), st.floats(0, 1))
    documents = draw(st.lists(st.lists(token, max_size=12), min_size=1, max_size=5))
    counted = draw(st.lists(st.booleans(), min_size=len(documents), max_size=len(documents)))
    return documents, counted, vocab_size


@settings(deadline=None, max_examples=150)
@given(corpora(), st.integers(2, 4), st.sampled_from([1, 3, 16]), st.booleans())
def test_scores_are_those_of_a_model_counted_anew_without_the_document(
    corpus: tuple[Documents, list[bool], int], orders: int, top_k: int, narrow: bool
) -> None:
    """Also where few candidates are tried at first, few are computed at once, and counts are sorted in many files."""
    documents, counted, vocab_size = corpus
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        if narrow:
            patch.setattr(count_ngrams, "LISTED", 1)
            patch.setattr(count_ngrams, "BUCKET", 3)
            patch.setattr(count_columns, "CHUNK", 2)
            patch.setattr(count_proxy, "LISTED", 1)
            patch.setattr(count_proxy, "CELLS", 8)
            patch.setattr(count_candidates, "MOST_PLACED", 3)
        trained = [ids for ids, yes in zip(documents, counted, strict=True) if yes]
        tables = tables_of(trained, vocab_size, orders, Path(folder))
        K = min(top_k, vocab_size)
        assert_as_counted_anew(
            score_counted(tables, arrays(documents), counted, top_k), documents, counted, vocab_size, orders, K
        )


def test_tables_do_not_depend_on_order_or_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    documents = [(rng.pareto(0.8, 40).astype(int) % 90).tolist() for _ in range(60)]
    tables_of(documents, 90, 4, tmp_path / "a")
    monkeypatch.setattr(count_ngrams, "BUCKET", 100)
    monkeypatch.setattr(count_columns, "CHUNK", 77)
    tables_of(documents[::-1], 90, 4, tmp_path / "b")
    assert content_hash(tmp_path / "a" / "tables") == content_hash(tmp_path / "b" / "tables")


def test_scores_do_not_depend_on_the_other_documents_of_a_call(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    documents = arrays([(rng.pareto(0.8, n).astype(int) % 300).tolist() for n in (40, 0, 1, 90, 200)])
    tables: CountTables = tables_of(documents, 300, 3, tmp_path)
    config = ScoreConfig(store_top=True)
    together = score_by_counts(tables, documents, [True] * 5, config)
    for ids, scores in zip(documents, together, strict=True):
        (alone,) = score_by_counts(tables, [ids], [True], config)
        assert scores.top_ids.shape == (max(0, len(ids) - 1), 16)
        for name in ("entropy", "entropy_partial", "nll", "rank", "top_ids", "top_logprobs"):
            assert getattr(scores, name).equal(getattr(alone, name))


@pytest.mark.slow
def test_ten_thousand_positions_of_cmath(real_data: Path, tmp_path: Path) -> None:
    """Documents of a real corpus until 10,000 positions are compared."""
    rows = map(json.loads, (real_data / "cmath" / "cmath_dev.jsonl").read_text(encoding="utf-8").splitlines())
    texts = list(dict.fromkeys(f"{row['input']}\n答案：{row['golden']}" for row in rows))
    tokenizer = write_tokenizer(texts, 1000, tmp_path / "tokenizer")
    documents = tokenizer.encode_batch(texts)
    tables = tables_of(documents, tokenizer.vocab_size, 3, tmp_path / "counts")
    some = int(np.searchsorted(np.cumsum([len(ids) for ids in documents]), 10_000)) + 1
    scores = score_counted(tables, documents[:some], [True] * some, 16)
    at = 0
    for d, ids in enumerate(documents[:some]):
        twin = Twin([other.tolist() for e, other in enumerate(documents) if e != d], tokenizer.vocab_size, 3)
        for t, token in enumerate(ids.tolist()):
            p = twin.probabilities(ids[:t].tolist())
            top = np.sort(p)[::-1][:16]
            assert scores.nll[at] == pytest.approx(-math.log(p[token]), abs=1e-9)
            assert np.exp(scores.top_logprobs[at]) == pytest.approx(top, abs=1e-9)
            assert (p > p[token] + 1e-12).sum() <= scores.rank[at] <= (p >= p[token] - 1e-12).sum() - 1
            at += 1
    assert at >= 10_000
