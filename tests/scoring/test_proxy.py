"""The proxy: documents one at a time by plain `transformers` as the twin; models that must be refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from pipeline.config.errors import UserError
from pipeline.config.manifest import ScoreConfig
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.scoring.documents import score_documents
from pipeline.scoring.entropy import PositionScores
from pipeline.scoring.proxy import Proxy, as_proxy, load_proxy
from tests.scoring.models import TEXTS, qwen, rewrite_config, save
from tests.scoring.plain import NAMES, assert_close, plain_scores


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
    return plain_scores(torch.stack(logits), torch.from_numpy(ids[1:]).long(), config.top_k)


def random_documents(seed: int, lengths: list[int], vocab_size: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, vocab_size, n).astype(np.int32) for n in lengths]


@settings(deadline=None, max_examples=12)
@given(
    seed=st.integers(0, 1000),
    vocab_size=st.sampled_from([5, 50, 700]),
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=5),
    window=st.integers(8, 60),
    overlap=st.floats(0.1, 0.7),
    top_k=st.integers(1, 60),
    batch_tokens=st.integers(1, 200),
    bos=st.booleans(),
    packs=st.booleans(),
)
def test_scores_like_one_document_at_a_time(
    seed: int, vocab_size: int, lengths: list[int], window: int, overlap: float, top_k: int, batch_tokens: int,
    bos: bool, packs: bool,
) -> None:  # fmt: skip
    """Padded and packed."""
    model, bos_id = qwen(vocab_size, context=24, seed=seed), 3 if bos else None
    config = ScoreConfig(
        top_k=top_k, window=window, overlap=max(1, int(window * overlap)), min_context_tokens=2,
        batch_tokens=batch_tokens, store_top=True,
    )  # fmt: skip
    documents = random_documents(seed, lengths, vocab_size)
    proxy = replace(as_proxy(model, bos_id), packs=packs)
    found = score_documents(proxy, documents, ["d"] * len(documents), config)
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


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_output_is_named_with_its_document(bad: float) -> None:
    model = qwen(50)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.model.embed_tokens.weight.data[7] = bad
    documents = [np.where(ids == 7, 8, ids) for ids in random_documents(0, [9, 9, 1, 9], 50)]
    score_documents(as_proxy(model, None), documents, list("abcd"), ScoreConfig())
    documents[1][4] = 7
    with pytest.raises(UserError, match=r"NaN or infinite: document b"):
        score_documents(as_proxy(model, None), documents, list("abcd"), ScoreConfig())


def accelerator_is_full(tokens: int) -> None:
    raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {tokens} GiB.")


def machine_is_full(tokens: int) -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def small(proxy: Proxy, most: int, fail: Callable[[int], None]) -> tuple[Proxy, list[int]]:
    """The proxy on a device that holds batches of at most so many tokens, and the sizes of the batches it was given."""
    sizes: list[int] = []

    def hidden(ids_BT: torch.Tensor, lengths: Sequence[int] | None = None) -> torch.Tensor:
        sizes.append(ids_BT.numel())
        if ids_BT.numel() > most:
            fail(ids_BT.numel())
        return proxy.hidden(ids_BT, lengths)

    return replace(proxy, hidden=hidden), sizes


@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("fail", [accelerator_is_full, machine_is_full])
def test_out_of_memory_halves_the_batches(
    fail: Callable[[int], None], packs: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = replace(as_proxy(qwen(50), None), packs=packs)
    documents, first = random_documents(0, [30, 7, 55, 12, 64, 3, 20], 50), 126 if packs else 128
    config = ScoreConfig(window=32, overlap=8, min_context_tokens=1, batch_tokens=128, store_top=True)
    expected = score_documents(whole, documents, list("abcdefg"), config)
    proxy, sizes = small(whole, 70, fail)
    found = score_documents(proxy, documents, list("abcdefg"), config)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)
    assert [size for size in sizes if size > 70] == [first]
    assert (
        capsys.readouterr().err.count(f"out of memory: now {first // 2} tokens per batch (`score.batch_tokens`)") == 1
    )

    score_documents(proxy, documents, list("abcdefg"), config)  # the next group of documents is spared the lesson
    assert [size for size in sizes if size > 70] == [first]
    assert not capsys.readouterr().err


def test_a_window_that_memory_cannot_hold_is_named() -> None:
    proxy, _ = small(as_proxy(qwen(50), None), 20, accelerator_is_full)
    with pytest.raises(UserError, match=r"a window of 29 tokens does not fit in memory: document b"):
        score_documents(proxy, random_documents(0, [5, 30, 5], 50), list("abc"), ScoreConfig())


def test_other_errors_are_not_taken_for_it() -> None:
    def broken(_: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    proxy, sizes = small(as_proxy(qwen(50), None), 0, broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        score_documents(proxy, random_documents(0, [5], 50), ["a"], ScoreConfig())
    assert len(sizes) == 1


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


def test_spare_rows_are_no_reason_to_refuse_a_models_own_tokenizer(tmp_path: Path) -> None:
    """Models round their vocabulary up by any number: 102,400 rows for 100,015 tokens, 201,088 for 200,019."""
    tokenizer = CorpusTokenizer.load(save(tmp_path / "a", qwen(299)))
    with pytest.raises(UserError, match="299 token embeddings, the tokenizer 300 tokens"):
        load_proxy(tmp_path / "a", tokenizer, "float32")
    save(tmp_path / "b", qwen(3000))
    assert load_proxy(tmp_path / "b", tokenizer, "float32").vocab_size == 3000


def test_another_tokenizer_than_the_one_in_the_folder_must_number_tokens_like_it(tmp_path: Path) -> None:
    folder = save(tmp_path, qwen(3000))
    tree = json.loads((folder / "tokenizer.json").read_text())
    more = [{"id": 300, "content": "<think>", "special": False, "normalized": False, "single_word": False,
             "lstrip": False, "rstrip": False}]  # fmt: skip
    load_proxy(folder, CorpusTokenizer(tree | {"added_tokens": [*tree["added_tokens"], *more]}), "float32")
    first, second = (token for token, i in tree["model"]["vocab"].items() if i in (5, 6))
    tree["model"]["vocab"] |= {first: 6, second: 5}
    with pytest.raises(UserError, match=r"token 5 is .* in the tokenizer, but .* model's folder"):
        load_proxy(folder, CorpusTokenizer(tree), "float32")


@pytest.mark.parametrize(("rows", "fine"), [(333, True), (334, False)])
def test_a_folder_without_a_tokenizer_may_have_a_tenth_of_spare_rows(tmp_path: Path, rows: int, fine: bool) -> None:
    folder = save(tmp_path, qwen(rows))
    tokenizer = CorpusTokenizer.load(folder)
    (folder / "tokenizer.json").unlink()
    if fine:
        load_proxy(folder, tokenizer, "float32")
    else:
        with pytest.raises(UserError, match=r"334 token embeddings.*tokenizer\.json into the model's folder"):
            load_proxy(folder, tokenizer, "float32")


def test_an_added_token_that_no_text_holds_needs_no_embedding(tmp_path: Path) -> None:
    """Fine-tuned policies add a padding token behind a vocabulary that their model has no row for."""
    folder = save(tmp_path, qwen(300))
    tree = json.loads((folder / "tokenizer.json").read_text())
    pad = {"id": 300, "content": "[PAD]", "special": True, "normalized": False, "single_word": False, "lstrip": False,
           "rstrip": False}  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tree | {"added_tokens": [*tree["added_tokens"], pad]}))
    tokenizer = CorpusTokenizer.load(folder)
    assert tokenizer.vocab_size == 301
    load_proxy(folder, tokenizer, "float32")


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
    with pytest.raises(UserError, match=r"not a causal language model.*no file named model\.safetensors"):
        load_proxy(tmp_path, tokenizer, "float32")


def test_real_weights_at_every_position(real_data: Path) -> None:
    """stories260k, with its BOS and its limit of 512 tokens, on stories, LaTeX and Shakespeare, long and short."""
    folder = real_data / "models" / "stories260k"
    tokenizer = CorpusTokenizer.load(folder)
    lines = (real_data / "omnimath" / "omni_math_rule.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    plays = next((real_data / "tinyshakespeare").rglob("*.txt")).read_text(encoding="utf-8")
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    texts = [story, *(json.loads(line)["solution"] for line in lines), plays[:4000], story * 20]
    documents = tokenizer.encode_batch(texts)
    assert sum(len(ids) > 600 for ids in documents) > 5
    config = ScoreConfig(window=512, overlap=128, batch_tokens=2048)
    proxy, model = load_proxy(folder, tokenizer, "float32"), AutoModelForCausalLM.from_pretrained(folder)
    expected = [one_at_a_time(model, ids, tokenizer.bos_id, config, 512) for ids in documents]
    assert expected[0].nll.mean() < 1.5 < 5 < expected[1].nll.mean()
    for packs in (False, True):
        for a, b in zip(score_documents(replace(proxy, packs=packs), documents, texts, config), expected, strict=True):
            assert_close(a, b)
