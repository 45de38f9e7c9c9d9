"""Rewards by name: outcomes of all responses to a step's sites. Shape names: P sites, G responses per site."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from pipeline.config.task import TaskConfig
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.rollout.prompt import PromptBuilder
from pipeline.grpo.rollout.sampler import Sampler
from pipeline.grpo.types import Response
from pipeline.shards.reader import Site
from pipeline.task.answers import Judge, score_answer, score_math
from pipeline.task.extraction import extract_prediction
from pipeline.task.length import overlong_penalty, token_budget, triangular
from pipeline.task.reward import Outcome, dense_reward, first_token_reward, priced, response_bytes, score_response
from pipeline.task.thinking import BOX, Thinking


@dataclass(frozen=True)
class RolloutGroup:
    """A site, its prompt, and the policy's responses, not yet rewarded."""

    site: Site
    prompt: tuple[int, ...]
    responses: tuple[Response, ...]
    importance: float = 1.0
    """How much more often the site is drawn than by uniform drawing."""


@dataclass(frozen=True)
class RewardContext:
    """The policy that sampled and its tokenizer, for rewards that need more than the responses."""

    sampler: Sampler
    prompts: PromptBuilder
    tokenizer: CorpusTokenizer


Outcomes = list[list[Outcome]]
"""[P][G] Outcome of each response."""


def prefix(context: RewardContext, rollout_groups: Sequence[RolloutGroup]) -> Outcomes:
    """Return 1 iff the prediction is a prefix of the continuation that ends at a token boundary.

    Source: arXiv 2506.08007, equation 3.
    """
    return _score_with(score_response, context, rollout_groups)


def first_token(context: RewardContext, rollout_groups: Sequence[RolloutGroup]) -> Outcomes:
    """Return 1 iff the prediction's first token is the true next token (arXiv 2506.08007, appendix A)."""
    return [[_first_token(context, a.site, r)[0] for r in a.responses] for a in rollout_groups]


def dense(context: RewardContext, rollout_groups: Sequence[RolloutGroup]) -> Outcomes:
    """Return the `first_token` reward, but the policy's direct probability of the token if it is wrong.

    Source: arXiv 2506.08007, appendix A, which does not specify the model that the probability comes from.
    """
    scored = [[_first_token(context, a.site, r) for r in a.responses] for a in rollout_groups]
    contexts = [_bare(context, a.site) for a in rollout_groups]
    logprobs = context.sampler.next_logprobs(contexts, [[token for _, token in group] for group in scored])
    return [
        [dense_reward(outcome, math.exp(logprob)) for (outcome, _), logprob in zip(group, of_group, strict=True)]
        for group, of_group in zip(scored, logprobs, strict=True)
    ]


def information_gain(context: RewardContext, rollout_groups: Sequence[RolloutGroup]) -> Outcomes:
    """Return RLP's reward (arXiv 2510.01265, section 2): log p(x_t | x_<t, thought) − log p(x_t | x_<t), in nats.

    The thought is the response up to the end of thinking, which is appended if it never came; with `free`, up to its
    last box. The true token x_t then follows in a box. The second term comes from the policy itself without a thought.
    RLP takes it from a slow copy, but the term is the same for the whole group, so it cancels in every advantage
    offered here. Outcomes' reasons are those of `prefix`.
    """
    outcomes = prefix(context, rollout_groups)
    targets = [_token_of(context.tokenizer, a.site.target, a.site.target) for a in rollout_groups]
    bare = context.sampler.next_logprobs(
        [_bare(context, a.site) for a in rollout_groups], [[target] for target in targets]
    )
    thought = context.sampler.next_logprobs(
        [[*a.prompt, *_up_to_box(context, r)] for a in rollout_groups for r in a.responses],
        [[target] for a, target in zip(rollout_groups, targets, strict=True) for _ in a.responses],
    )
    gains = iter(thought)
    return [
        [outcome._replace(reward=next(gains)[0] - before) for outcome in group]
        for group, (before,) in zip(outcomes, bare, strict=True)
    ]


def format_only(context: RewardContext, rollout_groups: Sequence[RolloutGroup]) -> Outcomes:
    """Return 1 iff the response has ended and boxes anything in its answer (a control).

    Training on it can teach the form of answers only, not their content. Outcomes' reasons are those of `prefix`.
    """
    formless = ("missing", "empty", "unfinished")
    return [
        [outcome._replace(reward=float(outcome.reason not in formless)) for outcome in group]
        for group in prefix(context, rollout_groups)
    ]


def answer(context: RewardContext, rollout_groups: Sequence[RolloutGroup]) -> Outcomes:
    """Return 1 iff the prediction is the answer to the question: the same text or the same number."""
    return _score_with(score_answer, context, rollout_groups)


def math_answer(context: RewardContext, rollout_groups: Sequence[RolloutGroup]) -> Outcomes:
    """Return 1 iff the prediction is the answer to the question by the rules of `math-verify`."""
    return _score_with(score_math, context, rollout_groups)


REWARDS: dict[str, Callable[[RewardContext, Sequence[RolloutGroup]], Outcomes]] = {
    "prefix": prefix,
    "first_token": first_token,
    "dense": dense,
    "information_gain": information_gain,
    "format_only": format_only,
    "answer": answer,
    "math": math_answer,
}
"""Rewards by the names that `task.reward` accepts."""


def compute_rewards(
    task: TaskConfig, context: RewardContext, rollout_groups: Sequence[RolloutGroup], step: int, max_new_tokens: int
) -> Outcomes:
    """Return the outcomes with the recipe's reward, including its price, bonus or penalty for a response's length.

    Args:
        task: the recipe's task.
        context: the policy and its tokenizer.
        rollout_groups: the responses to P sites.
        step: number of the step, which decides the token budget.
        max_new_tokens: maximum length of a response.
    """
    outcomes = REWARDS[task.reward](context, rollout_groups)
    return [
        [
            paid._replace(reward=paid.reward + _by_length(task, paid, len(response.ids), step, max_new_tokens))
            for outcome, response in zip(group, a.responses, strict=True)
            for paid in [priced(outcome, len(response.ids), task.token_price)]
        ]
        for group, a in zip(outcomes, rollout_groups, strict=True)
    ]


def _score_with(judge: Judge, context: RewardContext, rollout_groups: Sequence[RolloutGroup]) -> Outcomes:
    thinking = context.prompts.thinking
    return [
        [judge(r.text, r.finished, a.site.continuation, a.site.boundaries, thinking) for r in a.responses]
        for a in rollout_groups
    ]


def _by_length(task: TaskConfig, outcome: Outcome, length: int, step: int, max_new_tokens: int) -> float:
    earned, config = 0.0, task.length_reward
    if config and outcome.right:  # wrong answers get no bonus for being short
        budget = token_budget(step, config.budget, config.decay, config.over_steps, config.least)
        earned += config.weight * triangular(length, budget)
    if task.overlong_penalty_tokens:
        earned += overlong_penalty(length, max_new_tokens, task.overlong_penalty_tokens)
    return earned


def _bare(context: RewardContext, site: Site) -> list[int]:
    return context.prompts.bare_ids(site.context.decode("utf-8", errors="replace"))


def _first_token(context: RewardContext, site: Site, response: Response) -> tuple[Outcome, int]:
    """Return the outcome of a response by its first token, and that token's id (0 if there is none)."""
    if not response.finished:
        return Outcome(0.0, "unfinished"), 0
    tokenizer, prediction = context.tokenizer, extract_prediction(response.text, context.prompts.thinking)
    token = _token_of(tokenizer, prediction, site.target) if prediction else 0
    return first_token_reward(prediction, tokenizer.token_bytes[token], site.target), token


def _token_of(tokenizer: CorpusTokenizer, text: bytes, target: bytes) -> int:
    """Return the id of a text's first token; the target is looked up by its bytes, as it may end inside a character."""
    if text == target and target in tokenizer.token_bytes:
        return tokenizer.token_bytes.index(target)
    return int(tokenizer.encode(text.decode("utf-8", errors="replace"))[0])


def encoded(tokenizer: CorpusTokenizer, literal: bytes) -> list[int]:
    """Return the token ids of a literal: its own token if the tokenizer has one."""
    own = tokenizer.id_of(literal.decode())
    return tokenizer.encode(literal.decode()).tolist() if own is None else [own]


def _up_to_box(context: RewardContext, response: Response) -> list[int]:
    """Return a response's ids up to the end of its thought, and then those that open the box of the answer."""
    thinking, sampled = context.prompts.thinking, response.ids[:-1] if response.finished else response.ids
    texts = [response_bytes([id], context.tokenizer.token_bytes) for id in sampled]
    count = _thought_length(texts, thinking)
    ids = list(sampled[:count])
    for literal in thinking.to_box(b"".join(texts[:count])):
        ids += encoded(context.tokenizer, literal)
    return ids


def _thought_length(texts_T: Sequence[bytes], thinking: Thinking) -> int:
    """Return how many of a response's tokens are its thought; all of them, if nothing ends it.

    With `tags` it includes the token with the end of the mark; otherwise it ends before the token in which the last
    box begins.
    """
    whole, mark = thinking.whole(b"".join(texts_T)), thinking.end.encode()
    found = whole.find(mark) if thinking.mode == "tags" else whole.rfind(BOX)
    if found < 0:
        return len(texts_T)
    bounds = list(accumulate(map(len, texts_T), initial=len(thinking.whole(b""))))
    if thinking.mode == "tags":
        return sum(begin < found + len(mark) for begin in bounds[:-1])
    return sum(end <= found for end in bounds[1:])
