"""Two ways of reading a policy's prediction at a site: directly (arg-max of the next token) and by reasoning.

Both are judged by the same prefix-matching reward. Shape names: N sites, S samples a site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.core.random_keys import random_key
from pipeline.task.answers import Judge
from pipeline.task.reward import Outcome, prefix_reward, score_response

if TYPE_CHECKING:
    from pipeline.core.tokenizer import CorpusTokenizer
    from pipeline.grpo.rollout.prompt import PromptBuilder
    from pipeline.grpo.types import ResponseSampler
    from pipeline.shards.reader import Site

Advance = Callable[[int, int], None]
"""`advance(steps, units)` of `pipeline.core.progress`: sites answered, tokens generated."""


@dataclass(frozen=True)
class Prediction:
    """What a policy answered at a site."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    response: bytes
    outcome: Outcome

    @property
    def hit(self) -> bool:
        """The prediction was rewarded."""
        return self.outcome.reward > 0


@dataclass(frozen=True)
class Predictions:
    """One policy's answers at N sites, read in one way."""

    policy: str
    kind: Literal["direct", "reasoning"]
    answers_N: tuple[Prediction, ...]

    @property
    def name(self) -> str:
        """As tables call it: `reasoning after`."""
        return f"{self.kind} {self.policy}"

    @property
    def hits_N(self) -> NDArray[np.bool_]:
        """Whether each answer was rewarded [N]."""
        return np.array([answer.hit for answer in self.answers_N], dtype=bool)

    def at(self, indices: Sequence[int]) -> Predictions:
        """The reading at some of its sites."""
        return replace(self, answers_N=tuple(self.answers_N[i] for i in indices))


@dataclass(frozen=True)
class Samples:
    """One policy's responses to N sites, S to each, drawn at a temperature."""

    policy: str
    samples: int
    answers_NS: tuple[tuple[Prediction, ...], ...]

    @property
    def hits_NS(self) -> NDArray[np.bool_]:
        """Whether each answer was rewarded [N, S]."""
        hits = [answer.hit for answers in self.answers_NS for answer in answers]
        return np.array(hits, dtype=bool).reshape(-1, self.samples)

    def at(self, indices: Sequence[int]) -> Samples:
        """The samples at some of the sites."""
        return replace(self, answers_NS=tuple(self.answers_NS[i] for i in indices))


def choose_sites(site_ids: Sequence[str], count: int, seed: int) -> list[int]:
    """Indices, rising, of `count` sites (all, if there are fewer) chosen by a hash of (seed, site_id).

    The same sites are chosen from any superset in which they rank first, and a smaller choice is part of a larger one:
    accuracy during training and after it is measured on nested sets.

    Example:
        >>> sites = [f"document-{i}" for i in range(100)]
        >>> set(choose_sites(sites, 3, seed=0)) < set(choose_sites(sites, 10, seed=0))
        True
    """
    keys = [random_key("evaluate", seed, site_id) for site_id in site_ids]
    return sorted(sorted(range(len(keys)), key=keys.__getitem__)[:count])


def predict_direct(
    policy: ResponseSampler, tokenizer: CorpusTokenizer, sites_N: Sequence[Site], *, batch: int, advance: Advance
) -> list[Prediction]:
    """The most likely next token after each bare context: no prompt template, no thought.

    Args:
        policy: its sampler.
        tokenizer: its tokenizer; the token it declares for the beginning of a text stands before the context.
        sites_N: where.
        batch: sites between two calls of `advance`.
        advance: told of progress.
    """
    beginning = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    answers: list[Prediction] = []
    for part in _batches(sites_N, batch):
        texts = [site.context.decode("utf-8", errors="replace") for site in part]
        contexts = [(*beginning, *ids.tolist()) for ids in tokenizer.encode_batch(texts)]
        for site, context, best in zip(part, contexts, policy.direct(contexts), strict=True):
            # Models have spare rows in their output that are no token: such a prediction is empty.
            token = tokenizer.token_bytes[best] if best < tokenizer.vocab_size else b""
            outcome = prefix_reward(token, site.continuation, site.boundaries)
            answers.append(Prediction(context, (best,), token, outcome))
        advance(len(part), len(part))
    return answers


def predict_with_reasoning(
    policy: ResponseSampler,
    prompts: PromptBuilder,
    sites_N: Sequence[Site],
    *,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    batch: int,
    advance: Advance,
    judge: Judge = score_response,
) -> list[Prediction]:
    """One response to the prompt of each site: `predict_samples` with a single one."""
    answers_N1 = predict_samples(
        policy,
        prompts,
        sites_N,
        samples=1,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        seed=seed,
        batch=batch,
        advance=advance,
        judge=judge,
    )
    return [answer for (answer,) in answers_N1]


def predict_samples(
    policy: ResponseSampler,
    prompts: PromptBuilder,
    sites_N: Sequence[Site],
    *,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    batch: int,
    advance: Advance,
    judge: Judge = score_response,
) -> list[tuple[Prediction, ...]]:
    """Responses [N, S] to the prompts of the sites.

    Args:
        policy: its sampler.
        prompts: builds the prompt of a context.
        sites_N: where.
        samples: S.
        temperature: 0 is greedy.
        max_new_tokens: room for a response; one that has not ended by then is unfinished, and no hit.
        seed: with the site's id and the sample's number, decides what is drawn at temperatures above 0.
        batch: responses between two calls of `advance`.
        advance: told of progress.
        judge: says which response is right; prefix matching, unless the sites are questions.
    """
    from pipeline.grpo.types import SamplingRequest

    answers: list[tuple[Prediction, ...]] = []
    for part in _batches(sites_N, max(1, batch // samples)):
        prompt_ids = [prompts.ids(site.context) for site in part]
        seeds = [random_key("evaluate", seed, site.site_id, sample) for site in part for sample in range(samples)]
        responses = policy.sample(SamplingRequest(prompt_ids, samples, temperature, max_new_tokens, seeds))
        for i, (site, prompt) in enumerate(zip(part, prompt_ids, strict=True)):
            answers.append(
                tuple(
                    Prediction(
                        tuple(prompt),
                        tuple(response.ids),
                        response.text,
                        judge(response.text, response.finished, site.continuation, site.boundaries),
                    )
                    for response in responses[i * samples : (i + 1) * samples]
                )
            )
        advance(len(part), sum(len(response.ids) for response in responses))
    return answers


def _batches(sites_N: Sequence[Site], size: int) -> Iterator[Sequence[Site]]:
    for start in range(0, len(sites_N), size):
        yield sites_N[start : start + size]
