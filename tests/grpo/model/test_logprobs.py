from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.grpo.algorithm.loss import LOSSES, ClipRange
from pipeline.grpo.algorithm.objective import Objective
from pipeline.grpo.model.batch import batch_of, idle_batch, micro_batches
from pipeline.grpo.model.logprobs import HeadLogprobs, PolicyLogprobs, checkpoint_layers
from tests.grpo.models import TEMPERATURE, VOCAB, groups_of, plain_gradients, plain_logprobs, some_groups, tiny

OBJECTIVE = Objective(LOSSES["dapo"], ClipRange(0.2, 0.2), TEMPERATURE, max_new_tokens=8)
KINDS = [("qwen2", True), ("qwen2", False), ("llama", False), ("gpt2", True), ("sliding", True)]


@pytest.mark.parametrize(("kind", "tied"), KINDS)
@pytest.mark.parametrize(
    "options",
    [{}, {"repeat_heads": True}, {"logits_at_once": 200}],
    ids=["as is", "as on a GPU", "chunks"],
)
@pytest.mark.parametrize("tokens", [90, 10**6])
def test_loss_and_every_gradient_equal_the_plain_computation(
    kind: str, tied: bool, options: dict[str, Any], tokens: int
) -> None:
    groups, model = some_groups(5, 3), tiny(kind, tied=tied)
    expected_loss, expected = plain_gradients(model, groups, TEMPERATURE)
    model.zero_grad()
    policy, loss = PolicyLogprobs(model, **options), 0.0
    batches = micro_batches(groups, tokens)
    assert (len(batches) > 1) == (tokens == 90)
    count = sum(int(batch.mask_RT.sum()) for batch in batches)
    for batch in batches:
        part = OBJECTIVE.summed(batch, *policy(batch, TEMPERATURE)) / count
        part.backward()
        loss += part.item()
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 0.01
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=largest * 1e-5, msg=name)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 12), st.lists(st.integers(1, 7), min_size=1, max_size=5)), min_size=1, max_size=6
    ),
    st.integers(0, 1000),
    st.integers(20, 400),
    st.integers(VOCAB, 3000),
    st.booleans(),
)
@example([(1, [2, 1]), (3, [4, 1]), (1, [1, 3])], 0, 400, 3000, False)  # contexts of no token beside one of two
@example([(1, [2, 1]), (1, [1, 3])], 0, 400, 3000, False)  # nothing but contexts of no token
def test_any_groups_in_any_micro_batches_give_the_plain_gradients(
    lengths: list[tuple[int, list[int]]], seed: int, tokens: int, logits_at_once: int, repeat_heads: bool
) -> None:
    groups, model = groups_of(lengths, seed), tiny()
    expected_loss, expected = plain_gradients(model, groups, TEMPERATURE)
    model.zero_grad()
    policy = PolicyLogprobs(model, repeat_heads=repeat_heads, logits_at_once=logits_at_once)
    batches = micro_batches(groups, tokens)
    valid, loss = sum(int(batch.mask_RT.sum()) for batch in batches), 0.0
    for batch in batches:
        part = OBJECTIVE.summed(batch, *policy(batch, TEMPERATURE)) / valid
        part.backward()
        loss += part.item()
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=2e-4, atol=largest * 1e-5, msg=name)


def test_logprobs_are_at_the_given_temperature_and_in_place() -> None:
    model, groups = tiny(), some_groups(3, 2)
    batch = batch_of(groups)
    with torch.no_grad():
        logprobs_RT, _ = PolicyLogprobs(tiny())(batch, 0.5)
        rows = [(group.prompt, response.ids) for group in groups for response in group.responses]
        for row, (prompt, response) in enumerate(rows):
            expected = plain_logprobs(model, prompt, response, 0.5)
            torch.testing.assert_close(logprobs_RT[row][batch.mask_RT[row]], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("repeat_heads", [False, True])
def test_gradient_checkpointing_changes_nothing(repeat_heads: bool) -> None:
    groups, model = some_groups(4, 2), tiny()
    _, expected = plain_gradients(model, groups, TEMPERATURE)
    model.zero_grad()
    checkpoint_layers(model)
    batch = batch_of(groups)
    policy = PolicyLogprobs(model, repeat_heads=repeat_heads)
    loss = OBJECTIVE.summed(batch, *policy(batch, TEMPERATURE)) / batch.mask_RT.sum()
    loss.backward()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=largest * 1e-5, msg=name)


@pytest.mark.parametrize("logits_at_once", [200, 1 << 20])
def test_entropy_and_its_gradient_equal_the_plain_computation(logits_at_once: int) -> None:
    groups, model = some_groups(3, 2), tiny(tied=False)
    rows = [(group.prompt, response.ids) for group in groups for response in group.responses]
    plain, expected = [], 0.0
    for prompt, response in rows:
        logits_TV = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
        plain.append(torch.distributions.Categorical(logits=logits_TV).entropy())
        picked = logits_TV.log_softmax(-1)[torch.arange(len(response)), torch.tensor(response)]
        expected = expected + (plain[-1] * torch.arange(len(response))).sum() - 0.3 * picked.sum()
    expected.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    batch = batch_of(groups)
    logprobs_RT, entropy_RT = PolicyLogprobs(model, logits_at_once=logits_at_once)(batch, TEMPERATURE, True)
    for row, entropy_T in enumerate(plain):
        torch.testing.assert_close(entropy_RT[row][batch.mask_RT[row]], entropy_T, rtol=1e-4, atol=1e-5)
    weights_T = torch.arange(batch.mask_RT.shape[1])
    (entropy_RT * weights_T - 0.3 * logprobs_RT).masked_fill(~batch.mask_RT, 0.0).sum().backward()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=largest * 1e-5, msg=name)


@pytest.mark.parametrize("repeat_heads", [False, True])
def test_an_idle_batch_has_a_zero_gradient(repeat_heads: bool) -> None:
    model, batch = tiny(), idle_batch()
    OBJECTIVE.summed(batch, *PolicyLogprobs(model, repeat_heads=repeat_heads)(batch, TEMPERATURE)).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("logits_at_once", [20, None])
def test_the_output_head_multiplies_in_16_bits_as_pytorch_declares_it(
    entropy: bool, logits_at_once: int | None
) -> None:
    hidden_NE = torch.empty(5, 8, dtype=torch.bfloat16, device="meta", requires_grad=True)
    linear = torch.nn.Linear(8, 11, bias=False, dtype=torch.bfloat16, device="meta")
    targets_N = torch.empty(5, dtype=torch.int64, device="meta")
    logprobs_N, entropy_N = HeadLogprobs(linear, logits_at_once)(hidden_NE, targets_N, 0.8, entropy)
    assert (logprobs_N.shape, logprobs_N.dtype) == ((5,), torch.float32)
    assert (entropy_N.shape, entropy_N.dtype) == ((5,), torch.float32)
    (logprobs_N + entropy_N).sum().backward()
    assert hidden_NE.grad is not None
    assert linear.weight.grad is not None


def test_an_output_head_with_a_bias_is_refused() -> None:
    with pytest.raises(UserError, match="output head"):
        HeadLogprobs(torch.nn.Linear(4, 7, bias=True), 100)
