"""Scoring on a GPU gives what it gives on the CPU, and waits for it once a batch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import modeling_flash_attention_utils as flash

from pipeline.core.config import ScoreConfig
from pipeline.core.hardware import Gpu
from pipeline.scoring import documents as scoring
from pipeline.scoring import precision
from pipeline.scoring.entropy import PositionScores
from pipeline.scoring.proxy import as_proxy, load_proxy
from pipeline.scoring.tokens import CorpusTokenizer
from tests.gpu import plain_flash_attn
from tests.gpu.simulated import SimulatedGpu
from tests.scoring.models import TEXTS, qwen, save
from tests.scoring.plain import NAMES
from tests.scoring.test_architectures import VOCABULARY, small
from tests.scoring.test_proxy import random_documents

OF_THEIR_OWN = ("qwen2", "qwen3_moe", "gpt2", "gemma2", "phi3", "bloom", "opt", "cohere2", "deepseek_v3", "mamba")
"""Families whose masks, positions, experts or logits are made in ways of their own."""
CONFIG = ScoreConfig(window=40, overlap=8, min_context_tokens=1, batch_tokens=100, store_top=True)


def assert_same(found: list[PositionScores], expected: list[PositionScores]) -> None:
    for a, b in zip(found, expected, strict=True):
        for name in NAMES:
            torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", OF_THEIR_OWN)
def test_models(family: str, gpu: SimulatedGpu | None) -> None:
    documents = random_documents(3, [12, 7, 18, 5], VOCABULARY)
    expected = scoring.score_documents(as_proxy(small(family), None), documents, list("abcd"), CONFIG)
    proxy = as_proxy(small(family).to("cuda"), None)
    assert proxy.device.type == "cuda"
    assert_same(scoring.score_documents(proxy, documents, list("abcd"), CONFIG), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_proxy_is_loaded_onto_it(dtype: str, tmp_path: Path, gpu: SimulatedGpu | None) -> None:
    tokenizer = CorpusTokenizer.load(save(tmp_path, qwen(300)))
    ids = [ids[:12] for ids in tokenizer.encode_batch(TEXTS[:6])]
    proxy = load_proxy(tmp_path, tokenizer, dtype)
    assert proxy.device.type == "cuda"
    found = scoring.score_documents(proxy, ids, TEXTS[:6], CONFIG)
    assert all(torch.isfinite(scores.nll).all() for scores in found)


def test_the_host_waits_for_nothing_but_the_scores(gpu: SimulatedGpu | None) -> None:
    """One batch is looked at while the next is computed. (`transformers` looks at its positions once a batch.)"""
    if gpu is None:
        pytest.skip("a real GPU does not tell what was waited for")
    proxy, documents = as_proxy(qwen(50).to("cuda"), None), random_documents(0, [10, 7, 25, 12, 4, 3], 50)
    gpu.syncs.clear()
    scoring.score_documents(proxy, documents, list("abcdef"), CONFIG.model_copy(update={"batch_tokens": 30}))
    assert [line for line in gpu.syncs if "transformers/masking_utils" not in line] == []


def test_flash_attention_packs(tmp_path: Path, gpu: SimulatedGpu | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is installed, windows lie end to end: the scores are those of padded rows, up to bf16's rounding."""
    tokenizer = CorpusTokenizer.load(save(tmp_path, qwen(300, std=0.1)))
    ids = [ids[:12] for ids in tokenizer.encode_batch(TEXTS[:6])]
    padded = scoring.score_documents(load_proxy(tmp_path, tokenizer, "bfloat16"), ids, TEXTS[:6], CONFIG)
    monkeypatch.setitem(sys.modules, "flash_attn", plain_flash_attn)
    monkeypatch.setitem(sys.modules, "flash_attn.bert_padding", plain_flash_attn)
    for module in (transformers.utils, flash):
        monkeypatch.setattr(module, "is_flash_attn_2_available", lambda: True)
    matrix = flash.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]
    for check in ("general_availability_check", "pkg_availability_check"):
        monkeypatch.setitem(matrix, check, lambda **_: True)
    proxy = load_proxy(tmp_path, tokenizer, "bfloat16")
    assert proxy.packs
    plain_flash_attn.calls.clear()
    packed = scoring.score_documents(proxy, ids, TEXTS[:6], CONFIG)
    assert set(plain_flash_attn.calls) == {"packed"}
    for a, b in zip(packed, padded, strict=True):
        torch.testing.assert_close(a.nll, b.nll, atol=0.05, rtol=0.05)
    monkeypatch.setattr(flash, "_loaded_implementation", None)


def test_auto_is_16_bits_where_there_is_one(
    gpu: SimulatedGpu | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(precision, "gpus", lambda: (Gpu("0", "NVIDIA H200"),))
    assert precision.resolve_dtype("auto") == "bfloat16"
    assert not capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # a build for CPUs, or a driver too old
    assert precision.resolve_dtype("auto") == "float32"
    assert "PyTorch cannot use this machine's GPU" in capsys.readouterr().err
