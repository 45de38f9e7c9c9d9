"""The fitted proxy: what it may see, what it makes of it, and that it makes it again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.config.manifest import TrainProxyConfig
from pipeline.core.artifact import InputFile
from pipeline.core.model_files import model_digest
from pipeline.core.parquet import write_rows
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.corpus.documents import DOCUMENTS
from pipeline.scoring.fit import (
    bits_per_byte,
    fit_proxy,
    mean_loss,
    new_model,
    packed_batches,
    sized,
    split_off,
    steps_for,
    train,
    unigram_bits_per_byte,
)
from pipeline.scoring.muon import orthogonalise
from pipeline.scoring.own_tokenizer import fit_tokenizer
from pipeline.scoring.proxy import load_proxy
from pipeline.scoring.sample import Sample, Texts, fold_of, read_texts
from tests.scoring.models import TEXTS

SMALL = TrainProxyConfig(
    folds=2, vocab_size=300, hidden_size=32, layers=1, heads=2, context=64, batch_tokens=256, max_steps=60, epochs=20
)
Row = tuple[str, str, str]
"""doc_id, split, text"""


def quietly(line: str) -> None:
    """Progress that nobody reads."""


def documents(path: Path, rows: list[Row]) -> InputFile:
    full = [
        {"doc_id": i, "split": s, "text": t, "fields": [], "source_file": "f", "source_row": n, "meta": "{}"}
        for n, (i, s, t) in enumerate(rows)
    ]
    write_rows(path, DOCUMENTS, full)
    return InputFile(path)


def corpus(change: int | None = None) -> list[Row]:
    """Documents of both folds and both splits. Those of fold `change` have their sentences in another order: other
    texts of the same words, so that the tokenizer is the same."""
    rows = []
    for n, text in enumerate(TEXTS):
        doc_id = f"{n:016x}" + "0" * 16
        if fold_of(doc_id, 2) == change:
            text = text.replace("apples and", "\0").replace("pears", "apples and").replace("\0", "pears")
        rows.append((doc_id, "validation" if n % 10 == 9 else "train", text))
    return rows


# --------------------------------------------------------------------------------------------- who sees what


def test_a_fold_trains_on_the_training_documents_of_the_others(tmp_path: Path) -> None:
    rows = corpus()
    file = documents(tmp_path / "d.parquet", rows)
    for fold in (0, 1):
        texts = read_texts([file], fold, SMALL)
        own = [r for r in rows if fold_of(r[0], 2) == fold]
        others = [r for r in rows if fold_of(r[0], 2) != fold]
        assert sorted(texts.training) == sorted(t for _, split, t in others if split == "train")
        unseen = own + [row for row in others if row[1] == "validation"]
        assert sorted(texts.held_out) == sorted(text for _, _, text in unseen)
        assert not set(texts.training) & set(texts.held_out)
        assert len(texts.tokenizer) == sum(split == "train" for _, split, _ in rows)


def test_one_fold_trains_on_all_and_validation_trains_nothing(tmp_path: Path) -> None:
    rows = corpus()
    texts = read_texts([documents(tmp_path / "d.parquet", rows)], 0, SMALL.model_copy(update={"folds": 1}))
    assert sorted(texts.training) == sorted(t for _, split, t in rows if split == "train")
    assert sorted(texts.held_out) == sorted(t for _, split, t in rows if split == "validation")


def test_a_folds_model_does_not_depend_on_the_folds_documents(tmp_path: Path) -> None:
    digests = {}
    for name, change in (("as it is", None), ("own fold changed", 0), ("other fold changed", 1)):
        texts = read_texts([documents(tmp_path / f"{name}.parquet", corpus(change))], 0, SMALL)
        fit_proxy(texts, SMALL.model_copy(update={"max_steps": 5}), tmp_path / name, quietly)
        digests[name] = model_digest(tmp_path / name)
        assert CorpusTokenizer.load(tmp_path / name).digest == CorpusTokenizer.load(tmp_path / "as it is").digest
    assert digests["own fold changed"] == digests["as it is"]
    assert digests["other fold changed"] != digests["as it is"]


def test_a_fold_without_training_documents_is_an_error(tmp_path: Path) -> None:
    rows = [(f"{2 * n:016x}" + "0" * 16, "train", f"text {n}") for n in range(3)]
    with pytest.raises(UserError, match="no training documents for the proxy of fold 0"):
        read_texts([documents(tmp_path / "d.parquet", rows)], 0, SMALL)


@given(count=st.integers(0, 60), limit=st.integers(1, 400), seed=st.integers(0, 3), order=st.randoms())
def test_a_sample_does_not_depend_on_the_order_documents_come_in(
    count: int, limit: int, seed: int, order: object
) -> None:
    offered = [(f"{n:032x}", "x" * (n % 17 + 1) + str(n)) for n in range(count)]
    shuffled = sorted(offered, key=lambda _: order.random())  # type: ignore[attr-defined]
    samples = []
    for documents_ in (offered, shuffled):
        sample = Sample(limit, seed)
        for doc_id, text in documents_:
            sample.offer(doc_id, text)
        samples.append(sample.texts())
    assert samples[0] == samples[1]
    assert (len(samples[0]) == 1 if count else not samples[0]) or sum(map(len, samples[0])) <= limit
    everything = Sample(10**9, seed)
    for doc_id, text in offered:
        everything.offer(doc_id, text)
    assert samples[0] == everything.texts()[: len(samples[0])]


# ---------------------------------------------------------------------------------------------------- pieces


@given(st.text())
def test_the_fitted_tokenizer_is_lossless_on_text_it_never_saw(text: str) -> None:
    assert TOKENIZER.is_lossless(text, TOKENIZER.encode(text))


TOKENIZER = CorpusTokenizer(json.loads(fit_tokenizer(TEXTS, 300).to_str()))


def test_the_fitted_tokenizer_declares_its_bos_and_keeps_digits_apart() -> None:
    assert TOKENIZER.bos_id == TOKENIZER.id_of("<|document|>") == 0
    pieces = [TOKENIZER.token_bytes[i] for i in TOKENIZER.encode("Problem 1234:")]
    assert pieces[-5:] == [b"1", b"2", b"3", b"4", b":"]
    many = CorpusTokenizer(json.loads(fit_tokenizer(TEXTS, 5000).to_str()))
    assert all(len(token) == 1 for token in many.token_bytes if any(48 <= byte < 58 for byte in token))


def test_batches_are_the_documents_end_to_end_in_a_new_order_every_epoch() -> None:
    ids = [np.arange(n * 100, n * 100 + 7) for n in range(30)]  # 210 tokens
    config = TrainProxyConfig(context=8, batch_tokens=32)
    stream = packed_batches(ids, config)
    batches = [next(stream) for _ in range(18)]
    inputs = torch.cat([i.flatten() for i, _ in batches]).tolist()
    targets = torch.cat([t.flatten() for _, t in batches]).tolist()
    assert inputs[1:] == targets[:-1]
    assert batches[0][0].shape == (4, 8)
    epochs = [inputs[n * 210 : (n + 1) * 210] for n in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(np.concatenate(ids).tolist())
    assert epochs[0] != epochs[1]
    tiny = next(packed_batches([np.arange(5)], config))
    assert tiny[0].tolist() == [[0, 1, 2, 3]] and tiny[1].tolist() == [[1, 2, 3, 4]]


def test_steps_are_epochs_or_the_maximum() -> None:
    config = TrainProxyConfig(epochs=2, batch_tokens=100, max_steps=50)
    assert [steps_for(n, config) for n in (10, 1000, 10**6)] == [1, 20, 50]


@pytest.mark.parametrize("shape", [(4, 4), (3, 9), (9, 3)])
def test_orthogonalised_keeps_directions_and_evens_lengths(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    U, _, Vh = torch.linalg.svd(matrix, full_matrices=False)
    core = U.T @ orthogonalise(matrix) @ Vh.T
    assert ((core.diagonal() > 0.5) & (core.diagonal() < 1.3)).all()
    torch.testing.assert_close(core, core.diagonal().diag(), atol=1e-4, rtol=0)


# ------------------------------------------------------------------------------------------------------- fit


def test_fit_learns_saves_and_repeats(tmp_path: Path) -> None:
    texts = Texts(TEXTS[:100], TEXTS[:100:2], TEXTS[1:100:2])
    report = fit_proxy(texts, SMALL, tmp_path / "a", quietly)
    assert report["bits_per_byte"] < 0.6 * report["unigram_bits_per_byte"]
    assert json.loads((tmp_path / "a" / "training.json").read_text()) == report

    fit_proxy(texts, SMALL, tmp_path / "b", quietly)
    for name in ("model.safetensors", "tokenizer.json", "config.json", "training.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name

    tokenizer = CorpusTokenizer.load(tmp_path / "a")
    assert load_proxy(tmp_path / "a", tokenizer, "float32").limit == SMALL.context
    fit_proxy(texts, SMALL.model_copy(update={"seed": 1}), tmp_path / "c", quietly)
    assert model_digest(tmp_path / "c") != model_digest(tmp_path / "a")


def test_training_stops_when_it_learns_by_heart() -> None:
    """Random tokens can only be memorised: after a few passes the loss on other documents rises."""
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 50, 60) for _ in range(40)]
    config = SMALL.model_copy(update={"epochs": 60.0, "max_steps": 1000, "batch_tokens": 256, "context": 32})
    training, checked = split_off(documents)
    assert [len(training), len(checked)] == [38, 2] and checked[0] is documents[19]
    models = [new_model(50, 0, config) for _ in range(2)]
    kept = train(models[0], training, checked, config, quietly)
    every = train(models[1], training, [], config, quietly)
    assert kept < 0.7 * every == 0.7 * steps_for(38 * 60, config)
    stopped, memorised = (mean_loss(model, checked, config) for model in models)
    assert stopped < memorised - 0.1


def test_the_size_goes_by_the_corpus_unless_it_is_given() -> None:
    sizes = [(c.hidden_size, c.layers) for n in (10_000, 10**6) for c in (sized(TrainProxyConfig(), n),)]
    assert sizes == [(64, 2), (128, 3)]
    assert sized(TrainProxyConfig(hidden_size=32), 10**6).hidden_size == 32


def test_bits_per_byte_by_hand() -> None:
    tokenizer = CorpusTokenizer({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2}, "merges": []}})
    # training "aab": counts a 2, b 1, c 0; add one: 3/6, 2/6, 1/6. Text "abc": its b and c cost log2 3 + log2 6.
    assert unigram_bits_per_byte(tokenizer, ["aab"], ["abc"]) == pytest.approx((np.log2(3) + np.log2(6)) / 3)


def test_an_untrained_model_needs_log2_of_the_vocabulary_a_token() -> None:
    model = new_model(TOKENIZER.vocab_size, 0, SMALL)
    torch.nn.init.zeros_(model.get_input_embeddings().weight)
    text = TEXTS[0]
    tokens = len(TOKENIZER.encode(text)) - 1
    expected = tokens * np.log2(TOKENIZER.vocab_size) / len(text.encode())
    assert bits_per_byte(model.eval(), TOKENIZER, [text]) == pytest.approx(expected, rel=1e-5)
