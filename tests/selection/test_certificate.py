"""The certificate: its figures against hand-worked ones and SQL, and the verdict of every rule."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.selection import CertificateConfig, SelectConfig
from pipeline.scoring.baselines import zlib_bits_per_byte
from pipeline.selection.certificate import certificate
from pipeline.selection.positions import DOCUMENT_COLUMNS, SCORE_TABLE_COLUMNS
from pipeline.selection.proxy_measures import (
    CALIBRATION,
    EDGES,
    SAMPLE_SCORES,
    add_calibrations,
    bits_per_byte,
    calibration,
    sample,
)
from pipeline.selection.sites import TRAIN, select_sites
from tests.selection.tables import documents_of, scores_of
from tests.stages.test_select import tables

GOOD = {"documents": 50, "tokens": 20_000, "bytes": 80_000, "proxy": 1.5, "unigram": 3.0, "bigram": 2.0, "zlib": 2.5}
COUNTERS = {
    "kept.train": 1000,
    f"{TRAIN}selectable.band.none": 15_000,
    f"{TRAIN}selectable.band.hard": 5_000,
    f"{TRAIN}passed": 5_000,
    f"{TRAIN}sites.class.digit": 200,
    f"{TRAIN}sites.names": 100,
}


def bins(entropy: tuple[float, ...], surprise: tuple[float, ...], positions: int = 10_000) -> pa.Table:
    """Sums over bins with as many positions each, whose mean entropies and surprises are given."""
    sums = calibration(scores_of(documents_of([]), [], []))
    rows = sums.to_pylist()
    for e, s in zip(entropy, surprise, strict=True):
        b = max(i for i, edge in enumerate(EDGES) if edge <= e)
        rows[b] = {"positions": positions} | {
            name: round(value * positions * 2**20) for name, value in zip(CALIBRATION.names[1:], (e, e, s), strict=True)
        }
    return pa.Table.from_pylist(rows, schema=CALIBRATION)


def judged(bits: dict[str, Any] | None = None, counters: dict[str, int] | None = None, **bounds: Any) -> list[str]:
    """The verdict and the broken rules; the bins are those of a calibrated proxy unless they are given."""
    sums = bounds.pop("bins", bins((0.1, 1.1, 2.1), (0.1, 1.2, 2.9)))
    shared, own = bounds.pop("agreement", None), bounds.pop("made_here", False)
    measured = GOOD | (bits or {}), sums, COUNTERS | (counters or {}), shared
    found = certificate(CertificateConfig(**bounds), *measured, made_here=own)
    return [found["verdict"], *(finding["rule"] for finding in found["findings"])]


def test_the_verdict_of_every_rule() -> None:
    assert judged() == ["pass"]
    assert judged({"proxy": 2.0}) == ["warn", "bigram"]  # as many bits as pairs of tokens: nothing gained
    assert judged({"proxy": 1.9, "zlib": 1.8}) == ["warn", "zlib"]
    # A proxy that was made from the corpus has read the same documents as the pairs.
    assert judged({"proxy": 2.0}, made_here=True) == ["refuse", "bigram"]
    assert judged({"proxy": 1.9, "zlib": 1.8}, made_here=True) == ["warn", "zlib"]
    assert judged({"proxy": 3.0}) == ["refuse", "unigram", "bigram", "zlib"]
    assert judged(bins=bins((0.1, 1.1), (0.7, 1.7))) == ["warn", "excess_surprise"]  # 0.6 in both
    assert judged(bins=bins((0.1, 2.1), (0.1, 3.5))) == ["pass"]  # above 1.4 nats the sixteen tokens are not all
    assert judged(bins=bins((0.1, 1.1), (0.4, 0.8))) == ["warn", "least_slope"]  # 0.4 nats per nat
    assert judged(counters={f"{TRAIN}passed": 12_100}) == ["warn", "hard_share"]  # of 20,000
    assert judged(counters={f"{TRAIN}passed": 12_000}) == ["pass"]
    # 15,400 of 20,000 pass `where` and 9,000 of 10,000 are left by `top_fraction`: 0.77 · 0.9 = 0.693; then 0.77 · 0.75
    tops = {f"{TRAIN}passed": 15_400, "kept.train": 1000, "dropped.corpus_cap": 8000, "dropped.top_fraction": 1000}
    assert judged(counters=tops) == ["warn", "hard_share"]
    assert judged(counters=tops | {"dropped.corpus_cap": 6500, "dropped.top_fraction": 2500}) == ["pass"]
    assert judged(counters={f"{TRAIN}sites.names": 301}) == ["warn", "names_and_digits"]  # 501 of 1,000
    assert judged(agreement={"kappa": 0.39}) == ["warn", "least_agreement"]
    assert judged(agreement={"kappa": None}) == ["pass"]
    assert judged({"proxy": 9.0}, least_tokens=30_001) == ["too small to judge", "unigram", "bigram", "zlib"]
    assert judged({"proxy": 9.0, "documents": 9})[0] == "too small to judge"
    assert judged({"proxy": 9.0}, least_tokens=30_000)[0] == "refuse"


def test_bounds_are_those_of_the_manifest() -> None:
    assert judged(counters={f"{TRAIN}passed": 20_000}, hard_share=1) == ["pass"]
    assert judged(names_and_digits=0.29) == ["warn", "names_and_digits"]
    assert judged(excess_surprise=0.04)[1:] == ["excess_surprise"]  # (0 + 0.1) / 2 below 1.4 nats
    assert judged(least_slope=1.5)[1:] == ["least_slope"]


def test_calibration_by_hand() -> None:
    """Two documents: the last bin is open, and a position without a score counts nowhere."""
    documents = documents_of(["abc", "de"])
    scores = scores_of(documents, [[1, 2, 3], [1, 2]], [[None, 0.25, 0.375], [2.75, 3.0]])  # nll: twice the entropy
    found = certificate(CertificateConfig(), GOOD, calibration(scores), COUNTERS)["calibration"]
    rows = [row for row in found["bins"] if row["positions"]]
    assert [row["from"] for row in rows] == [0.2, 2.6] and found["positions"] == 4
    assert [row["entropy"] for row in rows] == [0.3125, 2.875]
    assert [row["surprise"] for row in rows] == [0.625, 5.75]
    assert [row["entropy_partial"] for row in rows] == [0.1562, 1.4375]  # 0.15625 to four digits
    assert (found["excess"], found["slope"]) == (0.3125, 2)


def test_calibration_against_sql() -> None:
    _, scores = tables()
    flat = pl.DataFrame(pl.from_arrow(scores.select(["entropy", "entropy_partial", "nll"])))  # noqa: F841 (read by SQL)
    rows = duckdb.sql("""
        WITH p AS (SELECT unnest(entropy) e, unnest(entropy_partial) f, unnest(nll) n FROM flat)
        SELECT least(floor(e / 0.2 + 1e-9), 13)::INT b, count(*), sum(e), sum(f), sum(n) FROM p WHERE e IS NOT NULL GROUP BY b
    """).fetchall()  # noqa: E501
    expected = [[0, 0, 0, 0] for _ in EDGES]
    for b, *sums in rows:
        expected[b] = sums
    units = calibration(scores).to_pylist()
    assert [[r["positions"], *(r[n] / 2**20 for n in CALIBRATION.names[1:])] for r in units] == expected


@lru_cache
def measured(share: float, size: int) -> tuple[pa.Table, dict[str, Any]]:
    """The sums and bits per byte of sixty documents in shards of so many, which come in reverse order."""
    documents, scores = tables()
    texts, scores = documents.select(DOCUMENT_COLUMNS), scores.select(SAMPLE_SCORES)
    parts = [scores.slice(begin, size) for begin in range(0, 60, size)]
    sampled = pa.concat_tables([sample(texts, part, share) for part in reversed(parts)])
    return add_calibrations([calibration(part) for part in parts]), bits_per_byte(sampled)


@settings(max_examples=20)
@given(st.sampled_from([1.0, 0.4]), st.integers(1, 59))
def test_it_does_not_matter_how_the_corpus_is_cut(share: float, size: int) -> None:
    assert measured(share, size) == measured(share, 60)


def test_the_sample_has_about_the_share_that_was_asked_for() -> None:
    assert measured(1.0, 60)[1]["documents"] == 60
    assert 10 < measured(0.4, 60)[1]["documents"] < 40


def test_bits_per_byte_by_hand() -> None:
    """Document 1 is "aXb" as tokens 0, 1, 2 with scores at 1 and 2, document 2 is "aX" with one at 1."""
    documents = documents_of(["aéb", "aé"])
    scores = scores_of(documents, [[1, 3, 4], [1, 3]], [[None, 0.5, 1.0], [None, 1.5]])  # é has two bytes
    found = bits_per_byte(sample(documents, scores, 1.0))
    assert {name: found[name] for name in ("documents", "tokens", "bytes")} == {
        "documents": 2,
        "tokens": 3,
        "bytes": 2 + 1 + 2,
    }
    nats = {
        "proxy": 1.0 + 2.0 + 3.0,
        # V = 3. For document 1 the others' tokens are 0, 1: p(1) = (0.25 + 0.75·2/3) / 2, p(2) = (0.75·2/3) / 2.
        # For document 2 they are 0, 1, 2: p(1) = (0.25 + 0.75·3/3) / 3.
        "unigram": -math.log(0.375) - math.log(0.25) - math.log(1 / 3),
        # Document 1: "0 1" once of one pair: 0.25 + 0.75·0.375; nothing follows 1. Document 2: 0.25 + 0.75/3.
        "bigram": -math.log(0.53125) - math.log(0.25) - math.log(0.5),
    }
    for name, value in nats.items():
        assert found[name] == pytest.approx(value / math.log(2) / 5, abs=1e-4), name
    assert found["zlib"] in [round(zlib_bits_per_byte(pair), 4) for pair in (["aéb", "aé"], ["aé", "aéb"])]


def test_nothing_to_measure() -> None:
    documents, scores = documents_of(["ab"]), scores_of(documents_of(["ab"]), [[1, 2]], [[None, None]])
    found = bits_per_byte(sample(documents, scores, 1.0))
    assert found["documents"] == 1 and found["proxy"] is None
    assert certificate(CertificateConfig(), found, calibration(scores), {"kept.train": 0})["verdict"] != "refuse"


def test_training_positions_are_counted_by_band_class_and_name() -> None:
    """ "Tom 7" is T·om· 7, of which "Tom" begins the sentence; in the second document it is a name."""
    documents = documents_of(["Tom 7 x", "a Tom", "a Tim"], ["train", "train", "validation"])
    ends = [[3, 5, 7], [1, 5], [1, 5]]
    scores = scores_of(documents, ends, [[2.0, 0.75, 1.25], [None, 1.75], [2.0, 2.0]])
    columns = documents.select(DOCUMENT_COLUMNS), scores.select(SCORE_TABLE_COLUMNS)
    _, counters = select_sites(SelectConfig(where="entropy > 1", max_per_document=1), *columns)
    counted = {name.removeprefix(TRAIN): n for name, n in counters.items() if name.startswith(TRAIN) and n}
    assert counted == {
        "selectable.band.easy": 1,
        "selectable.band.medium": 1,
        "selectable.band.hard": 2,
        "selectable.class.digit": 1,
        "selectable.class.word_start": 3,
        "passed": 3,
        "sites.band.hard": 2,  # the cap keeps the hardest of each document
        "sites.class.word_start": 2,
        "sites.names": 1,
    }
