"""The proxy: documents one at a time by plain `transformers` as the twin; models that must be refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from pipeline.core.config import ScoreConfig
from pipeline.core.errors import UserError
from pipeline.scoring.entropy import PositionScores, copy_logits, score_logits
from pipeline.scoring.proxy import as_proxy, load_proxy, score_documents
from pipeline.scoring.tokens import CorpusTokenizer
from tests.scoring.models import TEXTS, qwen, rewrite_config, save

NAMES = ("entropy", "entropy_partial", "nll", "rank", "top_ids", "top_logprobs")


def one_at_a_time(model: Any, ids: np.ndarray, bos_id: int | None, config: ScoreConfig, limit: int) -> PositionScores:
    """Plain twin: every position from the window that gives it most context, windows alone, without padding."""
    bos = [] if bos_id is None else [bos_id]
    tokens = min(config.window, limit) - len(bos)
    overlap = max(config.overlap * min(config.window, limit) // config.window, config.min_context_tokens)
    logits_of_start: dict[int, torch.Tensor] = {}
    logits = []
    for t in range(1, len(ids)):
        start = 0
        while t > start + tokens:
            start += tokens - overlap
        if start not in logits_of_start:
            with torch.no_grad():
                fed = torch.tensor([[*bos, *ids[start : start + tokens].tolist()]])
                logits_of_start[start] = model(fed).logits[0]
        logits.append(logits_of_start[start][len(bos) + t - start - 1])
    return score_logits(torch.stack(logits), torch.from_numpy(ids[1:]).long(), config.top_k, with_top=True)


def assert_close(found: PositionScores, expected: PositionScores) -> None:
    for name in ("entropy", "entropy_partial", "nll"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=2e-5, rtol=2e-5)
    assert (found.rank != expected.rank).float().mean() < 0.02  # two logits may change places by rounding


def random_documents(seed: int, lengths: list[int], vocab_size: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, vocab_size, n).astype(np.int32) for n in lengths]


@settings(deadline=None, max_examples=12)
@given(
    seed=st.integers(0, 1000),
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=5),
    window=st.integers(8, 60),
    overlap=st.floats(0.1, 0.7),
    top_k=st.integers(1, 60),
    batch_tokens=st.integers(1, 200),
    bos=st.booleans(),
)
def test_scores_like_one_document_at_a_time(
    seed: int, lengths: list[int], window: int, overlap: float, top_k: int, batch_tokens: int, bos: bool
) -> None:
    model, bos_id = qwen(50, context=24), 3 if bos else None
    config = ScoreConfig(
        top_k=top_k, window=window, overlap=max(1, int(window * overlap)), min_context_tokens=2,
        batch_tokens=batch_tokens, store_top=True,
    )  # fmt: skip
    documents = random_documents(seed, lengths, 50)
    found = score_documents(as_proxy(model, bos_id), documents, ["d"] * len(documents), config)
    for ids, scores in zip(documents, found, strict=True):
        assert len(scores.nll) == max(0, len(ids) - 1)
        if len(ids) > 1:
            assert_close(scores, one_at_a_time(model, ids, bos_id, config, 24))


def test_the_same_call_gives_the_same_bits_and_batches_only_round() -> None:
    proxy, documents = as_proxy(qwen(50), None), random_documents(0, [30, 7, 55, 12, 64, 3], 50)
    config = ScoreConfig(window=32, overlap=8, min_context_tokens=1, batch_tokens=64, store_top=True)
    first, again = (score_documents(proxy, documents, list("abcdef"), config) for _ in range(2))
    alone = [score_documents(proxy, [d], ["x"], config)[0] for d in documents]
    for a, b, c in zip(first, again, alone, strict=True):
        for name in NAMES:
            assert getattr(a, name).numpy().tobytes() == getattr(b, name).numpy().tobytes()
        assert_close(a, c)


def test_more_than_the_output_matrix_is_noticed() -> None:
    shape = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8,
             "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}  # fmt: skip
    torch.manual_seed(0)
    capped = Gemma2ForCausalLM(Gemma2Config(**shape, final_logit_softcapping=0.5, initializer_range=0.5)).eval()
    plain = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32)).eval()
    assert as_proxy(capped, None).write_logits is copy_logits
    assert as_proxy(plain, None).write_logits is not copy_logits
    config = ScoreConfig(window=32, overlap=8, min_context_tokens=1)
    for model in (capped, plain):
        ids = random_documents(1, [20], 50)[0]
        found = score_documents(as_proxy(model, None), [ids], ["d"], config)[0]
        assert_close(found, one_at_a_time(model, ids, None, config, 32))


def test_nan_weights_are_named_with_the_document() -> None:
    model = qwen(50)
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"NaN or infinite: document second"):
        score_documents(as_proxy(model, None), random_documents(0, [1, 9], 50), ["first", "second"], ScoreConfig())


def test_loads_what_transformers_saved(tmp_path: Path) -> None:
    model = qwen(300)
    tokenizer = CorpusTokenizer.load(save(tmp_path, model))
    proxy = load_proxy(tmp_path, tokenizer, "float32")
    assert (proxy.limit, proxy.vocab_size, proxy.bos_id) == (64, 300, tokenizer.id_of("<|document|>"))
    ids = tokenizer.encode(TEXTS[0])
    config = ScoreConfig(window=64, overlap=8)
    found = score_documents(proxy, [ids], ["d"], config)[0]
    assert_close(found, one_at_a_time(model, ids, proxy.bos_id, config, 64))
    half = load_proxy(tmp_path, tokenizer, "bfloat16")
    assert half.hidden(torch.ones(1, 3, dtype=torch.long)).dtype == torch.bfloat16


def test_a_vocabulary_that_is_not_the_tokenizers_is_refused(tmp_path: Path) -> None:
    tokenizer = CorpusTokenizer.load(save(tmp_path / "a", qwen(299)))
    with pytest.raises(UserError, match="299 token embeddings, the tokenizer 300 tokens"):
        load_proxy(tmp_path / "a", tokenizer, "float32")
    save(tmp_path / "b", qwen(1324))
    load_proxy(tmp_path / "b", tokenizer, "float32")
    save(tmp_path / "c", qwen(1325))
    with pytest.raises(UserError, match="1,325 token embeddings"):
        load_proxy(tmp_path / "c", tokenizer, "float32")


def test_pickled_missing_and_foreign_weights_are_refused(tmp_path: Path) -> None:
    model = qwen(300)
    tokenizer = CorpusTokenizer.load(save(tmp_path, model))
    weights = tmp_path / "model.safetensors"

    rewrite_config(tmp_path, num_hidden_layers=3, layer_types=["full_attention"] * 3)
    with pytest.raises(UserError, match=r"weights are missing.*layers\.2"):
        load_proxy(tmp_path, tokenizer, "float32")
    rewrite_config(tmp_path, num_hidden_layers=2, layer_types=["full_attention"] * 2)
    rewrite_config(tmp_path, model_type="sorcery", auto_map={"AutoConfig": "evil.Config"})
    with pytest.raises(UserError, match="not a causal language model"):
        load_proxy(tmp_path, tokenizer, "float32")
    rewrite_config(tmp_path, model_type="qwen2")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a causal language model"):
        load_proxy(tmp_path, tokenizer, "float32")
    weights.unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no safetensors weights; its pickled weights are not read"):
        load_proxy(tmp_path, tokenizer, "float32")


def test_real_weights_like_one_document_at_a_time(real_data: Path) -> None:
    """stories260k, with its BOS and its limit of 512 tokens, on a story, on LaTeX and on a long document."""
    folder = real_data / "models" / "stories260k"
    tokenizer = CorpusTokenizer.load(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    line = (real_data / "omnimath" / "omni_math_rule.jsonl").read_text(encoding="utf-8").split("\n")[0]
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    texts = [story, json.loads(line)["solution"][:300], story * 20]
    documents = tokenizer.encode_batch(texts)
    assert len(documents[2]) > 600
    config = ScoreConfig(window=512, overlap=128)
    found = score_documents(load_proxy(folder, tokenizer, "float32"), documents, texts, config)
    assert found[0].nll.mean() < 1.5 < 5 < found[1].nll.mean()
    for ids, scores in zip(documents[:2], found[:2], strict=True):
        assert_close(scores, one_at_a_time(model, ids, 1, config, 512))
    tail = slice(505, 530)  # around the seam of the first two windows
    with torch.no_grad():
        first = model(torch.tensor([[1, *documents[2][:511].tolist()]])).logits[0]
        second = model(torch.tensor([[1, *documents[2][383:894].tolist()]])).logits[0]
    logits = torch.cat([first[506:512], second[512 - 383 : 531 - 383]])
    expected = score_logits(logits, torch.from_numpy(documents[2][506:531]).long(), 16)
    assert_close(found[2].take(tail), expected)
