from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from pipeline.config.errors import UserError
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.model.prefix_attention import can_share
from pipeline.grpo.rollout.sampler import Sampler
from pipeline.grpo.rollout.token_sampling import rollout_seed, sample_token, uniform
from pipeline.grpo.types import SamplingRequest
from pipeline.task.reward import UNKNOWN
from tests.grpo.models import EOS, VOCAB, assert_same_draws, plain_logprobs, tiny

KNOWN = VOCAB - 1
TOKENIZER = CorpusTokenizer({"model": {"type": "BPE", "vocab": {f"<{i}>": i for i in range(KNOWN)}, "merges": []}})
"""Knows one id less than the models have."""


def sampler_of(model: PreTrainedModel, **options: int) -> Sampler:
    return Sampler(model, TOKENIZER, {EOS}, **options)


def some_prompts(count: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(VOCAB) for _ in range(rng.randint(1, 20))] for _ in range(count)]


def seeds_of(prompts: list[list[int]], size: int) -> list[int]:
    return [rollout_seed(0, 0, str(prompt), g) for prompt in prompts for g in range(size)]


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2", "sliding"])
def test_logprobs_are_those_of_reading_the_response_alone(kind: str) -> None:
    model, prompts = tiny(kind), some_prompts(6)
    responses = sampler_of(model).sample(SamplingRequest(prompts, 3, 0.7, 90, seeds_of(prompts, 3)))
    assert len({len(response.ids) for response in responses}) > 5, "rows end at different times"
    assert max(len(response.ids) for response in responses) > 70, "buffers had to grow"
    for row, response in enumerate(responses):
        with torch.no_grad():
            expected = plain_logprobs(model, prompts[row // 3], response.ids, 0.7)
        torch.testing.assert_close(torch.tensor(response.logprobs), expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2"])
def test_contexts_held_once_and_contexts_repeated_give_the_same(kind: str) -> None:
    model, prompts = tiny(kind), some_prompts(7)
    assert can_share(model) and not can_share(tiny("sliding"))
    request = SamplingRequest(prompts, 5, 1.0, 40, seeds_of(prompts, 5))
    shared = sampler_of(model).sample(request)
    model._supports_attention_backend = False  # as of models whose attention cannot be exchanged
    assert not can_share(model)
    repeated = sampler_of(model).sample(request)
    assert_same_draws(model, request, [r.ids for r in shared], [r.ids for r in repeated])
    for a, b in zip(shared, repeated, strict=True):
        assert a.ids != b.ids or a.logprobs == pytest.approx(b.logprobs, abs=2e-4)


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "sliding"])
def test_greedy_is_what_generate_does(kind: str) -> None:
    model, prompts = tiny(kind), some_prompts(8)
    request, expected = SamplingRequest(prompts, 1, 0.0, 30, [0] * 8), []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False)
        expected.append(made[0, len(prompt) :].tolist())
    assert_same_draws(model, request, [response.ids for response in sampler_of(model).sample(request)], expected)


@pytest.mark.parametrize("options", [{"batch_rows": 3}, {"batch_rows": 8}, {"prefill_tokens": 25}], ids=str)
def test_a_response_does_not_depend_on_who_is_in_the_batch(options: dict[str, int]) -> None:
    model, prompts = tiny(), some_prompts(9)
    forward, backward = (SamplingRequest(p, 4, 1.0, 25, seeds_of(p, 4)) for p in (prompts, prompts[::-1]))
    together = [response.ids for response in sampler_of(model).sample(forward)]
    assert len(set(together)) > 30
    apart = [response.ids for response in sampler_of(model, **options).sample(forward)]
    assert_same_draws(model, forward, apart, together)
    reversed_ = [response.ids for response in sampler_of(model).sample(backward)]
    assert_same_draws(model, backward, reversed_, [ids for p in reversed(range(9)) for ids in together[4 * p :][:4]])


def test_ends_bytes_and_unknown_ids() -> None:
    model, prompts = tiny(), some_prompts(40)
    responses = sampler_of(model).sample(SamplingRequest(prompts, 2, 1.0, 12, seeds_of(prompts, 2)))
    for response in responses:
        assert response.finished == (response.ids[-1] == EOS)
        assert EOS not in response.ids[:-1]
        assert response.finished or len(response.ids) == 12
        spoken = response.ids[:-1] if response.finished else response.ids
        assert response.text == b"".join(b"<%d>" % i if i < KNOWN else UNKNOWN for i in spoken)
    assert {response.finished for response in responses} == {True, False}
    assert any(UNKNOWN in response.text for response in responses)


def test_draws_follow_the_distribution() -> None:
    torch.manual_seed(0)
    logits_V = torch.randn(9) * 2
    logits_V[3] = -torch.inf
    count, temperature = 40_000, 0.7
    seeds = np.arange(count, dtype=np.uint64)
    noise = torch.from_numpy(uniform(seeds, 5))
    assert noise.min() >= 0 and noise.max() < 1
    ids, logprobs = sample_token(logits_V.expand(count, 9), temperature, noise)
    expected_V = (logits_V / temperature).softmax(-1)
    counts = Counter(ids.tolist())
    assert 3 not in counts
    for token, share in enumerate(expected_V.tolist()):
        assert counts[token] / count == pytest.approx(share, abs=4 * (share * (1 - share) / count) ** 0.5 + 1e-9)
    torch.testing.assert_close(logprobs.exp(), expected_V[ids])


@pytest.mark.parametrize(("noise", "token"), [(0.0, 1), (1 - 2.0**-24, 2)])
def test_extreme_draws_never_take_a_token_of_no_probability(noise: float, token: int) -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    assert sample_token(logits, 1.0, torch.tensor([noise]))[0].item() == token


def test_a_total_that_rounding_leaves_below_one_is_not_passed() -> None:
    logits_RV = torch.randn(400, 3000, generator=torch.Generator().manual_seed(0))
    logits_RV[:, -5:] = -torch.inf
    totals_R = logits_RV.softmax(dim=-1).cumsum(dim=-1)[:, -1]
    assert (totals_R < 1 - 2.0**-24).any()
    ids_R, logprobs_R = sample_token(logits_RV, 1.0, torch.full((400,), 1 - 2.0**-24))
    assert (ids_R < 2995).all() and logprobs_R.isfinite().all()


def test_draws_of_one_seed_are_independent_of_each_other() -> None:
    seeds = np.array([rollout_seed(0, step, "site", g) for step in range(50) for g in range(8)], dtype=np.uint64)
    draws = np.stack([uniform(seeds, t) for t in range(50)])
    assert abs(np.corrcoef(draws)[np.triu_indices(50, 1)]).mean() < 0.08  # of 400 values: 0.04 is expected
    assert draws.mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("tied", [True, False])
def test_new_weights_are_used(tied: bool) -> None:
    old, new, prompts = tiny(tied=tied), tiny(tied=tied, seed=1), some_prompts(5)
    sampler = sampler_of(old)
    before = sampler.sample(SamplingRequest(prompts, 2, 1.0, 9, seeds_of(prompts, 2)))
    sampler.load_weights((name, tensor.clone()) for name, tensor in new.named_parameters())
    after = sampler.sample(SamplingRequest(prompts, 2, 1.0, 9, seeds_of(prompts, 2)))
    assert after == sampler_of(new).sample(SamplingRequest(prompts, 2, 1.0, 9, seeds_of(prompts, 2))) != before


def test_weights_that_are_missing_or_unknown_are_refused() -> None:
    sampler, weights = sampler_of(tiny(tied=False)), dict(tiny(tied=False).named_parameters())
    with pytest.raises(ValueError, match=r"lm_head\.weight"):
        sampler.load_weights((name, tensor) for name, tensor in weights.items() if name != "lm_head.weight")
    with pytest.raises(KeyError, match="elsewhere"):
        sampler.load_weights([*weights.items(), ("elsewhere", torch.zeros(1))])


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_the_next_token_and_its_distribution_are_the_models(kind: str) -> None:
    model, contexts = tiny(kind), some_prompts(12)
    with torch.no_grad():
        rows = [model(torch.tensor([context])).logits[0, -1].double().softmax(dim=-1).tolist() for context in contexts]
    for prefill_tokens in (16384, 30):
        found = sampler_of(model, prefill_tokens=prefill_tokens).next_tokens(contexts)
        for row, own in zip(rows, found, strict=True):
            second, first = sorted(row)[-2:]
            assert own.best == row.index(first)
            assert own.logprob == pytest.approx(math.log(first), abs=1e-4)
            assert own.margin == pytest.approx(math.log(first / second), abs=1e-4)
            assert own.entropy == pytest.approx(-sum(p * math.log(p) for p in row if p), abs=1e-4)
    assert sampler_of(model).next_tokens([]) == []


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_a_prompt_and_its_room_beyond_the_positions_are_refused(kind: str) -> None:
    sampler = sampler_of(tiny(kind))
    request = SamplingRequest([[5] * 10, [5] * 200], 1, 1.0, 57, [1, 2])  # positions 0 to 255
    assert len(sampler.sample(request)) == 2
    with pytest.raises(UserError, match=r"prompt of 200 tokens and a response of 58 .* 256 positions"):
        sampler.sample(SamplingRequest(request.prompts, 1, 1.0, 58, [1, 2]))
