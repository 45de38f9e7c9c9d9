"""Rewards against what they are defined as, on a real tokenizer and a random policy."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import replace
from typing import get_args

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from pipeline.config.task import LengthRewardConfig, TaskConfig
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.rollout.rewards import REWARDS, RewardContext, RolloutGroup, compute_rewards
from pipeline.grpo.rollout.sampler import Sampler
from pipeline.grpo.types import Response
from pipeline.shards.reader import Site
from pipeline.task.thinking import Thinking
from tests.grpo.prompts import prompts_for
from tests.toys import byte_level_tokenizer

CONTEXT = b"an apple and a"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> RewardContext:
    folder = byte_level_tokenizer(
        tmp_path_factory.mktemp("policy"), ["an apple and a pear and a plum </think>\\boxed{}"] * 9, vocab_size=320
    )
    tokens = CorpusTokenizer.load(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=tokens.vocab_size + 5,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=16,
    )
    model = Qwen2ForCausalLM(config).eval()
    sampler = Sampler(model, tokens, [tokens.id_of("<|end|>") or 0], prefill_tokens=40)
    return RewardContext(sampler, prompts_for(folder), tokens)


def site(reader: RewardContext) -> Site:
    ids = reader.tokenizer.encode(" pear and")
    ends = tuple(reader.tokenizer.ends(ids).tolist())
    target = reader.tokenizer.token_bytes[ids[0]]
    assert target == b" pear" and ends[0] == 5
    return Site("d-1", "d", 1, 2.0, "hard", "text", CONTEXT, target, b" pear and", ends, "digit", 2.0, 3)


def said(reader: RewardContext, text: str) -> list[int]:
    """Ids as a policy says them: the end of thinking is a token of its own."""
    thought, closed, answer = text.partition("</think>")
    ids = [reader.tokenizer.encode(part).tolist() for part in (thought, answer)]
    return [*ids[0], *([reader.tokenizer.id_of(closed)] if closed else []), *ids[1]]


def answered(reader: RewardContext, *texts: str, finished: bool = True) -> RolloutGroup:
    end = reader.tokenizer.id_of("<|end|>")
    ids = [(*said(reader, text), *([end] if finished else [])) for text in texts]
    responses = [Response(i, text.encode(), finished, (0.0,) * len(i)) for i, text in zip(ids, texts, strict=True)]
    return RolloutGroup(site(reader), tuple(reader.prompts.ids(CONTEXT)), tuple(responses))


def plain_logprob(reader: RewardContext, ids: list[int], target: int) -> float:
    return float(reader.sampler.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[target])


TEXTS = (
    "</think>\\boxed{ pear}",
    "</think>\\boxed{ pear and}",
    "</think>\\boxed{ pear plum}",
    "</think>\\boxed{ plum}",
    "no end of thinking",
    "</think>\\boxed{}",
)


def test_first_token_and_dense_by_hand(reader: RewardContext) -> None:
    given = [answered(reader, *TEXTS), answered(reader, *TEXTS[:1], finished=False)]
    prefix, first, dense = (REWARDS[name](reader, given) for name in ("prefix", "first_token", "dense"))
    assert [o.reward for o in prefix[0]] == [1, 1, 0, 0, 0, 0]
    assert [o.reward for o in first[0]] == [1, 1, 1, 0, 0, 0], "what follows the first token is not judged"
    assert [o.reason for o in first[0]] == ["match", "match", "match", "mismatch", "missing", "empty"]
    plum = reader.tokenizer.encode(" plum").tolist()[0]
    expected = math.exp(plain_logprob(reader, reader.prompts.bare_ids(CONTEXT.decode()), plum))
    assert [o.reward for o in dense[0]] == [1, 1, 1, pytest.approx(expected, rel=1e-4), 0, 0]
    assert [[o.reason for o in outcomes[1]] for outcomes in (prefix, first, dense)] == [["unfinished"]] * 3


def test_the_form_alone_is_paid_whatever_is_predicted(reader: RewardContext) -> None:
    given = [answered(reader, *TEXTS), answered(reader, *TEXTS[:1], finished=False)]
    form, prefix = REWARDS["format_only"](reader, given), REWARDS["prefix"](reader, given)
    assert [[o.reward for o in group] for group in form] == [[1, 1, 1, 1, 0, 0], [0]]
    assert [[o.reason for o in group] for group in form] == [[o.reason for o in group] for group in prefix]


def test_information_gain_is_a_difference_of_log_likelihoods(reader: RewardContext) -> None:
    (outcomes,) = REWARDS["information_gain"](reader, [answered(reader, "a thought</think> the rest", "no end")])
    target = reader.tokenizer.encode(" pear").tolist()[0]
    bare = plain_logprob(reader, reader.prompts.bare_ids(CONTEXT.decode()), target)
    box = reader.tokenizer.encode("\\boxed{").tolist()
    for outcome, thought in zip(outcomes, ("a thought", "no end"), strict=True):
        ids = [*reader.prompts.ids(CONTEXT), *said(reader, f"{thought}</think>")]
        assert outcome.reward == pytest.approx(plain_logprob(reader, [*ids, *box], target) - bare, abs=1e-4)
        assert outcome.reason == "missing", "accuracy is that of prefix matching"


def thinking_as(reader: RewardContext, form: Thinking) -> RewardContext:
    """The same policy, whose responses are read in another form."""
    prompts = copy(reader.prompts)
    prompts.thinking = form
    return replace(reader, prompts=prompts)


def test_every_reward_reads_responses_in_the_recipes_form(reader: RewardContext) -> None:
    texts = ("It is\\boxed{ pear}", "\\boxed{ plum}, no: \\boxed{ pear}", " pear}", "</think>\\boxed{ plum}")
    given = [answered(reader, *texts)]
    expected = {
        Thinking("tags"): ["missing", "missing", "missing", "mismatch"],
        Thinking("free"): ["match", "match", "missing", "mismatch"],
        Thinking("none"): ["match", "match", "missing", "mismatch"],
        Thinking("none", prefill="\\boxed{"): ["match", "match", "match", "mismatch"],
        Thinking("tags", "[T]", "no:"): ["missing", "match", "missing", "missing"],
    }
    for form, reasons in expected.items():
        for name in ("prefix", "first_token", "dense", "format_only", "information_gain"):
            (outcomes,) = REWARDS[name](thinking_as(reader, form), given)
            assert [outcome.reason for outcome in outcomes] == reasons, (form, name)


@pytest.mark.parametrize(
    ("form", "text", "thought"),
    [
        (Thinking("free"), "a plum \\boxed{ plum} and \\boxed{ pear} and", "a plum \\boxed{ plum} and "),
        (Thinking("free"), "a plum", "a plum"),
        (Thinking("free", prefill="\\boxed"), "{ pear}", ""),
        (Thinking("tags", prefill="</think>"), "a plum \\boxed{ plum}", ""),
        (Thinking("tags", "[T]", "and"), "a plum and \\boxed{ plum}", "a plum and"),
    ],
)
def test_information_gain_is_of_the_thought_in_any_form(
    reader: RewardContext, form: Thinking, text: str, thought: str
) -> None:
    """A token that belongs to the box in part is no thought."""
    ids = reader.tokenizer.encode(text).tolist()
    count = int((reader.tokenizer.ends(ids) <= len(thought)).sum())
    (outcomes,) = REWARDS["information_gain"](thinking_as(reader, form), [answered(reader, text)])
    target = reader.tokenizer.encode(" pear").tolist()[0]
    bare = plain_logprob(reader, reader.prompts.bare_ids(CONTEXT.decode()), target)
    box = reader.tokenizer.encode("\\boxed{").tolist()
    read = [*reader.prompts.ids(CONTEXT), *ids[:count], *box]
    assert outcomes[0].reward == pytest.approx(plain_logprob(reader, read, target) - bare, abs=1e-4)


def test_length_is_paid_to_right_answers_and_overlong_ones_lose(reader: RewardContext) -> None:
    given = [answered(reader, "thought" * 3 + TEXTS[0], TEXTS[3])]
    lengths = [len(response.ids) for response in given[0].responses]
    budget = LengthRewardConfig(weight=0.5, budget=2 * lengths[0], decay=0.5, over_steps=10)
    task = TaskConfig(length_reward=budget, overlong_penalty_tokens=4)
    (outcomes,) = compute_rewards(task, reader, given, step=10, max_new_tokens=lengths[0] + 1)
    assert [outcome.reward for outcome in outcomes] == pytest.approx([1 + 0.5 - 3 / 4, 0])


def test_right_answers_pay_for_their_tokens(reader: RewardContext) -> None:
    given = [answered(reader, "thought" * 3 + TEXTS[0], TEXTS[0], TEXTS[3])]
    long, short, _ = (len(response.ids) for response in given[0].responses)
    (outcomes,) = compute_rewards(TaskConfig(token_price=0.25), reader, given, step=0, max_new_tokens=99)
    assert [outcome.reward for outcome in outcomes] == pytest.approx([1 / (1 + long / 4), 1 / (1 + short / 4), 0])
    assert [outcome.right for outcome in outcomes] == [True, True, False] and long > short
    both = TaskConfig(token_price=0.25, length_reward=LengthRewardConfig(weight=0.5, budget=short, over_steps=10))
    (outcomes,) = compute_rewards(both, reader, given, step=0, max_new_tokens=99)
    assert outcomes[1].reward == pytest.approx(1 / (1 + short / 4) + 0.5) and outcomes[2].reward == 0


def test_every_name_of_the_recipe_is_there() -> None:
    assert set(get_args(TaskConfig.model_fields["reward"].annotation)) == set(REWARDS)
