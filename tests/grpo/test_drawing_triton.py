"""The kernels that draw tokens against plain PyTorch: on a GPU if there is one, else in Triton's interpreter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.grpo import drawing

drawing_triton = pytest.importorskip(
    "pipeline.grpo.drawing_triton", reason="triton is not installed: the kernels for GPUs are not tested"
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BLOCK = drawing_triton.BLOCK


def some(rows: int, words: int, spread: float = 3.0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    noise = drawing.uniform(np.arange(rows, dtype=np.uint64), 0)
    logits = torch.randn(rows, words, generator=random) * spread
    return logits.to(DEVICE, dtype), torch.from_numpy(noise).to(DEVICE)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
@pytest.mark.parametrize("words", [1, 61, BLOCK, BLOCK + 1, 3 * BLOCK - 5])
def test_tokens_and_logprobs_are_the_same(words: int, temperature: float) -> None:
    logits, noise = some(40, words)
    ids, logprobs = drawing_triton.draw(logits, temperature, noise)
    expected, expected_logprobs = drawing.draw(logits, temperature, noise)
    assert (ids != expected).sum() <= (temperature > 0), "rounding may move one draw to a neighbour"
    same = ids == expected
    torch.testing.assert_close(logprobs[same], expected_logprobs[same], rtol=1e-5, atol=1e-5)


def test_logits_of_16_bits_in_a_part_of_a_wider_tensor() -> None:
    logits, noise = some(20, 2 * BLOCK, dtype=torch.bfloat16)
    part = logits[:, : BLOCK + 100]
    ids, logprobs = drawing_triton.draw(part, 1.0, noise)
    expected, expected_logprobs = drawing.draw(part, 1.0, noise)
    assert torch.equal(ids, expected)
    torch.testing.assert_close(logprobs, expected_logprobs, rtol=1e-5, atol=1e-5)


def test_a_draw_at_either_end_has_a_probability() -> None:
    """Blocks, and words at both ends of one, that cannot be drawn; the largest and the smallest draw."""
    logits, _ = some(2, 3 * BLOCK)
    logits[:, : BLOCK + 3] = -torch.inf
    logits[:, 2 * BLOCK - 4 :] = -torch.inf
    ids, logprobs = drawing_triton.draw(logits, 1.0, torch.tensor([0.0, 1 - 2**-24], device=DEVICE))
    assert ids.tolist() == [BLOCK + 3, 2 * BLOCK - 5]
    torch.testing.assert_close(logprobs, logits.log_softmax(dim=1).gather(1, ids[:, None])[:, 0])


def test_rounding_lets_no_draw_pass_the_last_word_that_can_be_drawn() -> None:
    """Blocks summed in another order than they are passed in; behind them one that cannot be drawn."""
    logits, _ = some(40, 6 * BLOCK)
    logits[:, 5 * BLOCK - 7 :] = -torch.inf
    _, logprobs = drawing_triton.draw(logits, 1.0, torch.full((40,), 1 - 2**-24, device=DEVICE))
    assert logprobs.isfinite().all()


def test_of_equals_the_greedy_takes_the_first() -> None:
    logits, noise = some(3, 2 * BLOCK + 9, spread=0.0)
    logits[1, [70, BLOCK, 2 * BLOCK + 1]] = 2.0
    logits[2, [2 * BLOCK + 1, 2 * BLOCK + 8]] = 2.0
    assert drawing_triton.draw(logits, 0.0, noise)[0].tolist() == [0, 70, 2 * BLOCK + 1]


def test_frequencies_are_the_probabilities() -> None:
    """Of words in several blocks, by 600 draws: χ² with 5 degrees of freedom is above 20.5 once in a thousand."""
    logits = torch.full((1, 2 * BLOCK), -torch.inf)
    words, weights = [0, 7, BLOCK - 1, BLOCK, BLOCK + 9, 2 * BLOCK - 1], torch.tensor([1.0, 2, 3, 4, 5, 6])
    logits[0, words] = weights.log()
    rows = 600
    noise = torch.from_numpy(drawing.uniform(np.arange(rows, dtype=np.uint64), 0)).to(DEVICE)
    ids, _ = drawing_triton.draw(logits.expand(rows, -1).to(DEVICE), 1.0, noise)
    counts = torch.tensor([(ids == word).sum().item() for word in words])
    expected = rows * weights / weights.sum()
    assert counts.sum() == rows
    assert ((counts - expected) ** 2 / expected).sum() < 20.5
