"""Rewards by name: outcomes of all responses to a step's sites. Shape names: P sites, G responses a site."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.config.task import TaskConfig
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.rollout.prompt import PromptBuilder
from pipeline.grpo.rollout.sampler import Sampler
from pipeline.grpo.types import Response
from pipeline.shards.reader import Site
from pipeline.task.answers import Judge, score_answer, score_math
from pipeline.task.extraction import BOX, END_OF_THINKING, extract_prediction
from pipeline.task.length import overlong_penalty, token_budget, triangular
from pipeline.task.reward import Outcome, dense_reward, first_token_reward, score_response


@dataclass(frozen=True)
class RolloutGroup:
    """A site, the prompt made of it, and the policy's responses."""

    site: Site
    prompt: tuple[int, ...]
    responses: tuple[Response, ...]


@dataclass(frozen=True)
class RewardContext:
    """What a reward may ask besides the responses: the policy that gave them, and its tokens."""

    sampler: Sampler
    prompts: PromptBuilder
    tokenizer: CorpusTokenizer


Outcomes = list[list[Outcome]]
"""[P][G]"""


def prefix(reader: RewardContext, answered: Sequence[RolloutGroup]) -> Outcomes:
    """1 iff the prediction is a prefix of the continuation that ends where a token ends (arXiv 2506.08007, Eq. 3)."""
    return _judged(score_response, answered)


def first_token(reader: RewardContext, answered: Sequence[RolloutGroup]) -> Outcomes:
    """1 iff the prediction's first token is the true next token (arXiv 2506.08007, appendix A)."""
    return [[_first_token(reader.tokenizer, a.site, r)[0] for r in a.responses] for a in answered]


def dense(reader: RewardContext, answered: Sequence[RolloutGroup]) -> Outcomes:
    """As `first_token`; a wrong first token earns the probability that the policy, asked directly, gives it.

    (arXiv 2506.08007, appendix A, which does not say which model's probability it takes.)
    """
    judged = [[_first_token(reader.tokenizer, a.site, r) for r in a.responses] for a in answered]
    contexts = [_bare(reader, a.site) for a in answered]
    logprobs = reader.sampler.next_logprobs(contexts, [[token for _, token in group] for group in judged])
    return [
        [dense_reward(outcome, math.exp(logprob)) for (outcome, _), logprob in zip(group, of_group, strict=True)]
        for group, of_group in zip(judged, logprobs, strict=True)
    ]


def information_gain(reader: RewardContext, answered: Sequence[RolloutGroup]) -> Outcomes:
    """RLP's reward (arXiv 2510.01265, section 2): log p(x_t | x_<t, thought) − log p(x_t | x_<t), in nats.

    The thought is the response up to the end of thinking, which is added where it never ended; the true token x_t is
    then read in a box. The second term is the policy's own, read directly: RLP takes a slow copy's, but the term is
    common to a group, and every advantage here is of differences within groups. Outcomes' reasons are `prefix`'s.
    """
    outcomes = prefix(reader, answered)
    targets = [_token_of(reader.tokenizer, a.site.target, a.site.target) for a in answered]
    bare = reader.sampler.next_logprobs([_bare(reader, a.site) for a in answered], [[target] for target in targets])
    box = encoded(reader.tokenizer, BOX)
    thought = reader.sampler.next_logprobs(
        [[*a.prompt, *_thought(reader.tokenizer, r), *box] for a in answered for r in a.responses],
        [[target] for a, target in zip(answered, targets, strict=True) for _ in a.responses],
    )
    gains = iter(thought)
    return [
        [outcome._replace(reward=next(gains)[0] - before) for outcome in group]
        for group, (before,) in zip(outcomes, bare, strict=True)
    ]


def format_only(reader: RewardContext, answered: Sequence[RolloutGroup]) -> Outcomes:
    """A control: 1 iff the response has ended and boxes something after the end of thinking, whatever that is.

    What training on it gains is the form of answers, not what they say. Outcomes' reasons are `prefix`'s.
    """
    formless = ("missing", "empty", "unfinished")
    return [
        [outcome._replace(reward=float(outcome.reason not in formless)) for outcome in group]
        for group in prefix(reader, answered)
    ]


def answer(reader: RewardContext, answered: Sequence[RolloutGroup]) -> Outcomes:
    """1 iff the prediction is the answer to the question: the same text or the same number."""
    return _judged(score_answer, answered)


def math_answer(reader: RewardContext, answered: Sequence[RolloutGroup]) -> Outcomes:
    """1 iff the prediction is the answer to the question by the rules of `math-verify`."""
    return _judged(score_math, answered)


REWARDS: dict[str, Callable[[RewardContext, Sequence[RolloutGroup]], Outcomes]] = {
    "prefix": prefix,
    "first_token": first_token,
    "dense": dense,
    "information_gain": information_gain,
    "format_only": format_only,
    "answer": answer,
    "math": math_answer,
}
"""By the names of `task.reward`."""


def compute_rewards(
    task: TaskConfig, reader: RewardContext, answered: Sequence[RolloutGroup], step: int, room: int
) -> Outcomes:
    """What the recipe pays: the reward it names, and what a response's length adds to it or takes off.

    Args:
        task: the recipe's.
        reader: the policy and its tokens.
        answered: the responses to P sites.
        step: decides the token budget.
        room: tokens a response may have.
    """
    outcomes = REWARDS[task.reward](reader, answered)
    return [
        [
            outcome._replace(reward=outcome.reward + _by_length(task, outcome, len(response.ids), step, room))
            for outcome, response in zip(group, a.responses, strict=True)
        ]
        for group, a in zip(outcomes, answered, strict=True)
    ]


def _judged(judge: Judge, answered: Sequence[RolloutGroup]) -> Outcomes:
    return [[judge(r.text, r.finished, a.site.continuation, a.site.boundaries) for r in a.responses] for a in answered]


def _by_length(task: TaskConfig, outcome: Outcome, length: int, step: int, room: int) -> float:
    earned, config = 0.0, task.length_reward
    if config and outcome.right:  # a wrong answer is not paid for being short
        budget = token_budget(step, config.budget, config.decay, config.over_steps, config.least)
        earned += config.weight * triangular(length, budget)
    if task.overlong_penalty_tokens:
        earned += overlong_penalty(length, room, task.overlong_penalty_tokens)
    return earned


def _bare(reader: RewardContext, site: Site) -> list[int]:
    return reader.prompts.bare_ids(site.context.decode("utf-8", errors="replace"))


def _first_token(tokenizer: CorpusTokenizer, site: Site, response: Response) -> tuple[Outcome, int]:
    """The outcome of a response by its first token, and that token's id (any, if there is none)."""
    if not response.finished:
        return Outcome(0.0, "unfinished"), 0
    prediction = extract_prediction(response.text)
    token = _token_of(tokenizer, prediction, site.target) if prediction else 0
    return first_token_reward(prediction, tokenizer.token_bytes[token], site.target), token


def _token_of(tokenizer: CorpusTokenizer, text: bytes, target: bytes) -> int:
    """The id of the first token of a text; a target, which may end inside a character, is looked up by its bytes."""
    if text == target and target in tokenizer.token_bytes:
        return tokenizer.token_bytes.index(target)
    return int(tokenizer.encode(text.decode("utf-8", errors="replace"))[0])


def encoded(tokenizer: CorpusTokenizer, literal: bytes) -> list[int]:
    """The ids of a literal: its own token if it has one."""
    own = tokenizer.id_of(literal.decode())
    return tokenizer.encode(literal.decode()).tolist() if own is None else [own]


def _thought(tokenizer: CorpusTokenizer, response: Response) -> list[int]:
    """The ids of a response up to the token that ends its thinking; that end is added if it never comes."""
    text, known = b"", tokenizer.token_bytes
    for count, token in enumerate(response.ids, start=1):
        text += known[token] if token < len(known) else b""
        if END_OF_THINKING in text:
            return list(response.ids[:count])
    return [*(response.ids[:-1] if response.finished else response.ids), *encoded(tokenizer, END_OF_THINKING)]
