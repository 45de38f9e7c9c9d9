"""The output head's kernels against autograd: on a GPU if there is one, else in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.grpo.kernel_head import KernelPasses
from pipeline.grpo.logprobs import ChunkedLogprobs

pytest.importorskip("triton", reason="triton is not installed: the kernels for GPUs are not tested")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor]:
    """The same in four lines."""
    logits = (hidden @ weight.t()).float() / temperature
    logprobs = logits.log_softmax(dim=-1)
    entropies = -(logprobs.exp() * logprobs).sum(dim=-1) if entropy else torch.zeros(len(logits), device=DEVICE)
    return logprobs.gather(1, targets[:, None])[:, 0], entropies


def by_kernels(*given: Any) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = ChunkedLogprobs.apply(*given, KernelPasses())
    return found


def compare(tokens: int, words: int, chunk: int, temperature: float, entropy: bool, dtype: torch.dtype) -> None:
    """Values and gradients, of some tokens none."""
    torch.manual_seed(tokens * words)
    states = [(torch.randn(n, 8) * 1.5).to(DEVICE, dtype) for n in (tokens, words)]
    grads = torch.randn(2, tokens, device=DEVICE) * (torch.rand(2, tokens, device=DEVICE) > 0.2)
    targets = torch.randint(words, (tokens,), device=DEVICE)
    found, expected = [], []
    for into, function in ((found, lambda *x: by_kernels(*x, chunk)), (expected, plain)):
        own = [state.clone().requires_grad_() for state in states]
        made = function(*own, targets, temperature, entropy)
        assert entropy or not made[1].any()
        used = 2 if entropy else 1
        into += [*made, *torch.autograd.grad(made[:used], own, tuple(grads[:used]))]
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 3e-2, "atol": 3e-2}
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.float(), b.float(), **close)


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 7),
    words=st.sampled_from([1, 5, 4095, 4096, 4097, 9000]),
    chunk=st.integers(1, 8),
    temperature=st.sampled_from([1.0, 0.6, 1.7]),
    entropy=st.booleans(),
)
def test_values_and_gradients(tokens: int, words: int, chunk: int, temperature: float, entropy: bool) -> None:
    compare(tokens, words, chunk, temperature, entropy, torch.float32)


@pytest.mark.parametrize("entropy", [False, True])
def test_in_16_bits(entropy: bool) -> None:
    compare(9, 5000, 4, 0.8, entropy, torch.bfloat16)


def test_words_that_cannot_follow_have_no_gradient() -> None:
    """A probability that is 0 in fp32: 0 · log 0 is 0 here."""
    hidden, weight = torch.ones(1, 1, device=DEVICE), torch.tensor([[0.0], [-300.0], [1.0]], device=DEVICE)
    own = [state.requires_grad_() for state in (hidden, weight)]
    made = by_kernels(*own, torch.tensor([2], device=DEVICE), 1.0, True, 8)
    gradients = torch.autograd.grad(sum(made), own)
    assert all(torch.isfinite(x).all() for x in (*made, *gradients))
    assert gradients[1][1] == 0
    p = torch.tensor([1.0, torch.e]) / (1 + torch.e)
    assert made[1].item() == pytest.approx(float(-(p * p.log()).sum()), abs=1e-6)


def test_an_interface_without_learning() -> None:
    """As of a head whose weight is frozen."""
    hidden, weight = torch.randn(5, 4, device=DEVICE, requires_grad=True), torch.randn(30, 4, device=DEVICE)
    made = by_kernels(hidden, weight, torch.arange(5, device=DEVICE), 1.0, False, 2)[0]
    (found,) = torch.autograd.grad(made.sum(), hidden)
    expected = torch.autograd.grad(plain(hidden, weight, torch.arange(5, device=DEVICE), 1.0, False)[0].sum(), hidden)
    torch.testing.assert_close(found, expected[0])


def test_a_backward_can_be_taken_twice() -> None:
    """Of one chunk, whose logits are kept."""
    own = [torch.randn(n, 4, device=DEVICE, requires_grad=True) for n in (5, 30)]
    made = by_kernels(*own, torch.arange(5, device=DEVICE), 1.0, False, 8)[0].sum()
    first, second = (torch.autograd.grad(made, own, retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))
