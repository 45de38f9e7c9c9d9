"""Entropies against hand-worked numbers and against a plain twin."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.scoring.entropy import PositionScores, copy_logits, score_hidden, score_logits
from pipeline.scoring.head import output_matrix
from tests.scoring.plain import NAMES, plain_scores

LN2 = math.log(2)


def plain(logits: torch.Tensor, target: int, top_k: int) -> dict[str, float]:
    """One position, in fp64, straight from the definitions."""
    logprobs = logits.double().log_softmax(-1)
    order = sorted(range(len(logits)), key=lambda i: (-logits[i].item(), i))
    top = [logprobs[i].exp().item() for i in order[:top_k]]
    renormalised = [p / sum(top) for p in top]
    return {
        "entropy": -sum(p * math.log(p) for p in renormalised if p > 0),
        "entropy_partial": -sum(p * math.log(p) for p in top if p > 0),
        "nll": -logprobs[target].item(),
        "rank": order.index(target),
    }


def assert_like_plain(scores: PositionScores, logits_TV: torch.Tensor, targets: torch.Tensor, top_k: int) -> None:
    for t, (logits, target) in enumerate(zip(logits_TV, targets.tolist(), strict=True)):
        expected = plain(logits, target, top_k)
        for name in ("entropy", "entropy_partial", "nll"):
            assert getattr(scores, name)[t].item() == pytest.approx(expected[name], abs=1e-5)
        assert scores.rank[t].item() == expected["rank"]


def test_hand_worked() -> None:
    # p = ½, ¼, ¼: H = ½ ln 2 + 2·¼ ln 4 = 1.5 ln 2. The top 2 renormalised are ⅔, ⅓: ln 3 − ⅔ ln 2.
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log() + 7.0
    full = score_logits(logits, torch.tensor([2]), top_k=3)
    assert full.entropy.item() == pytest.approx(1.5 * LN2, abs=1e-6)
    assert full.entropy_partial.item() == pytest.approx(1.5 * LN2, abs=1e-6)
    assert full.nll.item() == pytest.approx(2 * LN2, abs=1e-6)
    two = score_logits(logits, torch.tensor([0]), top_k=2)
    assert two.entropy.item() == pytest.approx(math.log(3) - 2 / 3 * LN2, abs=1e-6)
    assert two.entropy_partial.item() == pytest.approx(0.5 * LN2 + 0.25 * 2 * LN2, abs=1e-6)
    assert (two.nll.item(), two.rank.item()) == (pytest.approx(LN2, abs=1e-6), 0)


def test_ties_rank_by_id() -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 1.0, 3.0]]).repeat(5, 1)
    scores = score_logits(logits, torch.arange(5), top_k=3, with_top=True)
    assert scores.rank.tolist() == [2, 0, 3, 4, 1]
    assert scores.top_ids.tolist() == [[1, 4, 0]] * 5


def test_more_tokens_asked_for_than_there_are() -> None:
    logits = torch.randn(4, 5)
    scores = score_logits(logits, torch.tensor([0, 1, 2, 3]), top_k=16, with_top=True)
    torch.testing.assert_close(scores.entropy, torch.distributions.Categorical(logits=logits).entropy())
    assert scores.top_ids.shape == (4, 5)


def test_impossible_tokens_cost_nothing() -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.0, -math.inf]])
    scores = score_logits(logits, torch.tensor([0]), top_k=4)
    assert scores.entropy.item() == pytest.approx(LN2)
    assert scores.entropy_partial.item() == pytest.approx(LN2)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 9),
    vocab=st.integers(1, 40),
    top_k=st.integers(1, 50),
    levels=st.sampled_from([None, 3]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_like_the_plain_twin(
    seed: int, tokens: int, vocab: int, top_k: int, levels: int | None, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(tokens, vocab, generator=generator)
    if levels:  # many equal logits
        logits = torch.randint(levels, (tokens, vocab), generator=generator).float()
    logits = logits.to(dtype)
    targets = torch.randint(vocab, (tokens,), generator=generator)
    scores = score_logits(logits, targets, top_k, with_top=True)
    assert_like_plain(scores, logits.float(), targets, top_k)
    expected = [sorted(range(vocab), key=lambda i: (-row[i], i))[:top_k] for row in logits.tolist()]
    assert scores.top_ids.tolist() == expected
    logprobs = logits.double().log_softmax(-1).gather(-1, torch.tensor(expected))
    torch.testing.assert_close(scores.top_logprobs.double(), logprobs, atol=1e-5, rtol=1e-5)


@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 40),
    vocab=st.integers(1, 1500),
    top_k=st.sampled_from([1, 2, 7, 16, 130, 2000]),
    levels=st.sampled_from([None, 1, 3, 40]),
    chunk_tokens=st.integers(1, 50),
    tile_ids=st.integers(1, 2000),
    impossible=st.floats(0, 1),
)
def test_like_log_softmax_and_a_stable_sort(
    seed: int, tokens: int, vocab: int, top_k: int, levels: int | None, chunk_tokens: int, tile_ids: int,
    impossible: float,
) -> None:  # fmt: skip
    """Chunks, tiles, tied logits, impossible ids, more asked for than there are: plain fp32 says the same."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(tokens, vocab, generator=generator)
    if levels:
        logits = torch.randint(-levels, levels, (tokens, vocab), generator=generator) / 2.0
    targets = torch.randint(vocab, (tokens,), generator=generator)
    allowed = torch.rand(tokens, vocab, generator=generator) >= impossible
    logits[~allowed.scatter(1, targets[:, None], True)] = -math.inf

    scores = score_hidden(
        logits, copy_logits, vocab, targets, top_k, with_top=True, chunk_tokens=chunk_tokens, tile_ids=tile_ids
    )
    expected = plain_scores(logits, targets, top_k)
    for name in NAMES:
        torch.testing.assert_close(getattr(scores, name), getattr(expected, name), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk_tokens", [1, 10, 1000])
@pytest.mark.parametrize("tile_ids", [100, 300, 10_000])
def test_the_output_matrix_by_chunks_and_tiles(chunk_tokens: int, tile_ids: int) -> None:
    """Of halves: their sums are exact in any order, so that ranks are the same on every machine, many ties included."""
    torch.manual_seed(0)
    hidden, head, targets = torch.randint(-4, 5, (23, 8)) / 2, torch.nn.Linear(8, 700), torch.randint(700, (23,))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randint(-4, 5, parameter.shape) / 2)
        whole = score_logits(head(hidden), targets, 16, with_top=True)
        write = output_matrix(head.weight, head.bias)
        found = score_hidden(
            hidden, write, 700, targets, 16, with_top=True, chunk_tokens=chunk_tokens, tile_ids=tile_ids
        )
    for name in NAMES:
        torch.testing.assert_close(getattr(found, name), getattr(whole, name))
    assert (found.top_ids.dtype, found.rank.dtype, found.entropy.dtype) == (torch.int32, torch.int32, torch.float32)


def test_memory_is_that_of_a_chunk() -> None:
    """Eight times the positions ask for no larger tensor, and none is larger than a chunk's logits."""

    def largest(positions: int) -> int:
        targets = torch.zeros(positions, dtype=torch.long)
        with Sizes() as seen:
            score_hidden(torch.randn(positions, 4), write, 5000, targets, 16, chunk_tokens=32, tile_ids=1000)
        return seen.largest

    write = output_matrix(torch.randn(5000, 4), None)
    assert largest(32) == largest(256) <= 32 * 5120


class Sizes(TorchDispatchMode):
    """Notes how many elements the largest tensor has that an operation gives."""

    largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self.largest = max([self.largest, *(t.numel() for t in tree_leaves(made) if isinstance(t, torch.Tensor))])
        return made


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_output_shows_in_the_nll(bad: float) -> None:
    logits = torch.zeros(2, 30)
    logits[1, 29] = bad
    nll = score_logits(logits, torch.tensor([3, 3]), top_k=4).nll
    assert torch.isfinite(nll).tolist() == [True, False]
