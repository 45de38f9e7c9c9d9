"""The kernel against plain PyTorch: on a GPU if there is one, else in Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.scoring import entropy
from pipeline.scoring.head import output_matrix
from tests.scoring.plain import NAMES, plain_scores

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
entropy_triton = pytest.importorskip(
    "pipeline.scoring.entropy_triton", reason="triton is not installed: the kernel for GPUs is not tested"
)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 7),
    vocab=st.sampled_from([1, 2, 50, 128, 129, 4096, 4097, 9000]),
    top_k=st.sampled_from([1, 7, 16, 32, 200]),
    levels=st.sampled_from([None, 1, 30]),
    chunk_tokens=st.integers(1, 9),
    impossible=st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_like_log_softmax_and_a_stable_sort(
    seed: int, tokens: int, vocab: int, top_k: int, levels: int | None, chunk_tokens: int, impossible: float,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(tokens, vocab, generator=generator)
    if levels:
        logits = torch.randint(-levels, levels, (tokens, vocab), generator=generator) / 2.0
    targets = torch.randint(vocab, (tokens,), generator=generator)
    allowed = torch.rand(tokens, vocab, generator=generator) >= impossible
    logits[~allowed.scatter(1, targets[:, None], True)] = -math.inf
    logits = logits.to(dtype)
    found = entropy_triton.score_hidden(
        logits.to(DEVICE), entropy.copy_logits, vocab, targets.to(DEVICE), top_k,
        with_top=True, chunk_tokens=chunk_tokens,
    )  # fmt: skip
    expected = plain_scores(logits.float(), targets, top_k)
    for name in NAMES:
        torch.testing.assert_close(getattr(found, name).cpu(), getattr(expected, name), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_output_shows_in_the_nll(bad: float) -> None:
    logits = torch.zeros(2, 5000, device=DEVICE)
    logits[1, 4999] = bad
    targets = torch.tensor([3, 3], device=DEVICE)
    nll = entropy_triton.score_hidden(logits, entropy.copy_logits, 5000, targets, 4).nll
    assert torch.isfinite(nll).tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_output_matrix(dtype: torch.dtype) -> None:
    """In bf16 the product is rounded as the model's own logits are, so both sides have the same ones."""
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 700, device=DEVICE, dtype=dtype)
    hidden, targets = torch.randn(23, 8, device=DEVICE, dtype=dtype), torch.randint(700, (23,), device=DEVICE)
    with torch.no_grad():
        write = output_matrix(head.weight, None)
        found = entropy_triton.score_hidden(hidden, write, 700, targets, 16, with_top=True, chunk_tokens=10)
        expected = plain_scores((hidden @ head.weight.T).float().cpu(), targets.cpu(), 16)
    for name in NAMES:
        torch.testing.assert_close(getattr(found, name).cpu(), getattr(expected, name), atol=1e-5, rtol=1e-5)
