"""`proxy: auto` on texts in the likeness of three languages: it beats plain counts, and its selection selects."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.loading import load
from pipeline.config.manifest import Manifest
from pipeline.core.artifact import current_record
from pipeline.core.parquet import read_table
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.scoring.baselines import zlib_bits_per_byte
from pipeline.scoring.own_tokenizer import vocabulary_size
from stages.certificate import certify
from stages.ingest import ingest
from stages.score import score
from stages.select import select
from tests.corpora.languages import GRAMMARS, documents
from tests.stages.published import InProcess


def certified(
    folder: Path, texts: list[str], repository: Path, *overrides: str, accept: bool = False
) -> dict[str, Any]:
    """The certificate of the packaged manifest of text folders, with each text a file."""
    (folder / "texts").mkdir()
    for number, text in enumerate(texts):
        (folder / "texts" / f"{number:03d}.txt").write_text(text, encoding="utf-8")
    manifest = load(Manifest, repository / "data_manifests" / "text-folder.yaml", overrides)
    work, executor = folder / "work", InProcess()
    read = ingest(manifest, work=work, executor=executor, source=str(folder / "texts"))
    scores = score(manifest, read, work=work, executor=executor)
    sites = select(manifest, read, scores, work=work, executor=executor)
    return certify(manifest, read, scores, sites, work=work, executor=executor, accept=accept)


def held_out_bits(work: Path) -> dict[str, float]:
    """Bits per byte on the documents that are in no count: of the proxy's scores, and of counts of the others."""
    documents = read_table(current_record(work, "ingest").files("documents")[0]).to_pylist()
    scores = {row["doc_id"]: row for row in read_table(current_record(work, "score").files("scores")[0]).to_pylist()}
    model = current_record(work, "proxy").files("model")[-1].path
    vocab_size = CorpusTokenizer.load(model).vocab_size
    one, two = np.zeros(vocab_size), np.zeros((vocab_size, vocab_size))
    for row in documents:
        if row["split"] == "train":
            ids = scores[row["doc_id"]]["token_ids"]
            np.add.at(one, ids, 1)
            np.add.at(two, (ids[:-1], ids[1:]), 1)
    unigram = (one + 0.5) / (one.sum() + 0.5 * vocab_size)
    # A pair's share, and as much weight for the unigram as there are kinds of pairs.
    kinds, totals = (two > 0).sum(1, keepdims=True), two.sum(1, keepdims=True)
    bigram = (two + kinds * unigram) / np.maximum(totals + kinds, 1) + (totals == 0) * unigram
    nats, size = dict.fromkeys(("proxy", "unigram", "bigram"), 0.0), 0
    held = [row for row in documents if row["split"] == "validation"]
    for row in held:
        scored = scores[row["doc_id"]]
        ids, ends = scored["token_ids"], scored["token_ends"]
        for t in range(1, len(ids)):
            if scored["nll"][t] is not None and math.isfinite(scored["nll"][t]):
                nats["proxy"] += scored["nll"][t]
                nats["unigram"] -= math.log(unigram[ids[t]])
                nats["bigram"] -= math.log(bigram[ids[t - 1], ids[t]])
                size += ends[t] - ends[t - 1]
    bits = {name: value / math.log(2) / size for name, value in nats.items()}
    return bits | {"zlib": zlib_bits_per_byte([row["text"] for row in held])}


@pytest.mark.slow
@pytest.mark.parametrize("language", sorted(GRAMMARS))
def test_a_language_without_a_model(language: str, repository: Path, tmp_path: Path) -> None:
    """Better than counts and zlib, on the sample and on documents that nothing has seen."""
    found = certified(tmp_path, documents(language, 400), repository)
    assert found["verdict"] == "pass", found["findings"]
    held_out = held_out_bits(tmp_path / "work")
    for bits in (found["bits_per_byte"], held_out):
        assert bits["proxy"] < min(bits["unigram"], bits["bigram"], bits["zlib"])
    # Nothing is learned by heart: documents that were counted are not easier than those that were not.
    assert found["bits_per_byte"]["proxy"] > 0.9 * held_out["proxy"]


@pytest.mark.slow
def test_a_vocabulary_of_whole_clauses_is_noticed(repository: Path, tmp_path: Path) -> None:
    """4,096 tokens on 160 KB of Chinese: nearly every position is called hard, and pairs of tokens are as good."""
    bounds = "select.certificate.least_tokens=1000"
    large = "proxy={auto: {count: {vocab_size: 4096}, train: {vocab_size: 4096}}}"
    texts, rule = documents("chinese", 400), "select.top_fraction=null"
    found = certified(tmp_path, texts, repository, large, bounds, rule, accept=True)
    assert found["verdict"] != "pass" and found["hard"]["share"] > 0.95  # refused where the pairs are not worse
    assert {finding["rule"] for finding in found["findings"]} >= {"excess_surprise", "hard_share"}


def test_the_vocabulary_goes_by_the_bytes_of_the_text() -> None:
    assert vocabulary_size(["é" * 256_000] * 2) == 1000  # 1,024,000 bytes
    assert vocabulary_size([]) == 384 and vocabulary_size(["a" * 99] * 99_999) == 4096
