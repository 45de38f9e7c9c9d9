"""Two ways to obtain a policy's prediction at a site: direct (arg-max of the next token) and by reasoning.

Both are scored by the same prefix-matching reward. Shape names: N sites, S samples per site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.core.progress import log
from pipeline.core.random_keys import random_key
from pipeline.grpo.rollout.excerpt import excerpt
from pipeline.task.answers import Judge
from pipeline.task.gate import Known
from pipeline.task.reward import Outcome, prefix_reward, score_response

if TYPE_CHECKING:
    from pipeline.config.recipe import Recipe
    from pipeline.core.tokenizer import CorpusTokenizer
    from pipeline.grpo.rollout.prompt import PromptBuilder
    from pipeline.grpo.rollout.sampler import Sampler
    from pipeline.grpo.types import ResponseSampler
    from pipeline.shards.reader import Site

Advance = Callable[[int, int], None]
"""Progress callback `advance(sites, tokens)` of `pipeline.core.progress`."""


@dataclass(frozen=True)
class Prediction:
    """One answer of a policy at a site."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    response: bytes
    """With its given beginning, which belongs to `prompt_ids`."""
    outcome: Outcome
    known: Known | None = None
    """What was known before a thought; of direct predictions only."""

    @property
    def hit(self) -> bool:
        """Return True if the prediction was rewarded."""
        return self.outcome.reward > 0


@dataclass(frozen=True)
class Predictions:
    """One policy's answers at N sites, all direct or all by reasoning."""

    policy: str
    kind: Literal["direct", "reasoning"]
    answers_N: tuple[Prediction, ...]

    @property
    def name(self) -> str:
        """Return the name used in tables, such as `reasoning after`."""
        return f"{self.kind} {self.policy}"

    @property
    def hits_N(self) -> NDArray[np.bool_]:
        """Return a mask [N] of the rewarded answers."""
        return np.array([answer.hit for answer in self.answers_N], dtype=bool)

    def at(self, indices: Sequence[int]) -> Predictions:
        """Return the answers at some of the sites."""
        return replace(self, answers_N=tuple(self.answers_N[i] for i in indices))


@dataclass(frozen=True)
class Samples:
    """One policy's responses to N sites, S per site, sampled at a temperature."""

    policy: str
    samples: int
    answers_NS: tuple[tuple[Prediction, ...], ...]

    @property
    def hits_NS(self) -> NDArray[np.bool_]:
        """Return a mask [N, S] of the rewarded answers."""
        hits = [answer.hit for answers in self.answers_NS for answer in answers]
        return np.array(hits, dtype=bool).reshape(-1, self.samples)

    def at(self, indices: Sequence[int]) -> Samples:
        """Return the samples at some of the sites."""
        return replace(self, answers_NS=tuple(self.answers_NS[i] for i in indices))


def predict_direct(
    policy: Sampler, tokenizer: CorpusTokenizer, sites_N: Sequence[Site], *, batch: int, advance: Advance
) -> list[Prediction]:
    """Predict the most likely next token after each bare context, without prompt template or reasoning.

    Args:
        policy: Sampler of the policy.
        tokenizer: Tokenizer of the policy; its BOS token, if it has one, precedes the context.
        sites_N: Sites to predict at.
        batch: Sites between two calls of `advance`.
        advance: Progress callback.
    """
    beginning = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    answers: list[Prediction] = []
    for part in _batches(sites_N, batch):
        texts = [site.context.decode("utf-8", errors="replace") for site in part]
        contexts = [(*beginning, *ids.tolist()) for ids in tokenizer.encode_batch(texts)]
        for site, text, context, found in zip(part, texts, contexts, policy.next_tokens(contexts), strict=True):
            # Output layers are often padded with rows that are no token; such a prediction is empty.
            token = tokenizer.token_bytes[found.best] if found.best < tokenizer.vocab_size else b""
            outcome = prefix_reward(token, site.continuation, site.boundaries)
            known = Known(found.entropy, found.logprob, found.margin, len(context), token, text[-1:])
            answers.append(Prediction(context, (found.best,), token, outcome, known))
        advance(len(part), len(part))
    return answers


def predict_with_reasoning(
    policy: ResponseSampler,
    prompts: PromptBuilder,
    sites_N: Sequence[Site],
    recipe: Recipe,
    *,
    advance: Advance,
    judge: Judge = score_response,
) -> list[Prediction]:
    """Predict with one response per site, sampled as the recipe evaluates: `evaluate.temperature`, `seed` and lengths.

    See `predict_samples` for the other arguments.
    """
    answers_N1 = predict_samples(
        policy,
        prompts,
        sites_N,
        samples=1,
        temperature=recipe.evaluate.temperature,
        max_new_tokens=recipe.rollout.max_new_tokens,
        seed=recipe.seed,
        batch=recipe.rollout.batch_rows,
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
    """Sample responses [N, S] to the prompts of the sites and score them.

    Args:
        policy: Sampler of the policy.
        prompts: Builds the prompt of a context.
        sites_N: Sites to predict at.
        samples: Responses per site, S.
        temperature: Sampling temperature; 0 is greedy.
        max_new_tokens: Maximum length of a response; one that has not ended by then is unfinished and not a hit.
        seed: Random seed; with the site's id and the sample's index it determines the response.
        batch: Responses between two calls of `advance`.
        advance: Progress callback.
        judge: Scores a response; prefix matching by default, another one if the sites are questions.
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
                        prompts.thinking.whole(response.text),
                        judge(
                            response.text,
                            response.finished,
                            site.continuation,
                            site.boundaries,
                            prompts.thinking,
                        ),
                    )
                    for response in responses[i * samples : (i + 1) * samples]
                )
            )
        advance(len(part), sum(len(response.ids) for response in responses))
    return answers


def log_first(title: str, sites_N: Sequence[Site], answers_N: Sequence[Prediction], prompts: PromptBuilder) -> None:
    """Log the answer at the first site on a few lines, so that a person sees what is measured; `title` begins each."""
    for site, answer in zip(sites_N[:1], answers_N[:1], strict=True):
        for line in excerpt(site.context, prompts.after, answer.response, site.continuation, answer.outcome):
            log(f"{title:<12} {line}")


def _batches(sites_N: Sequence[Site], size: int) -> Iterator[Sequence[Site]]:
    for start in range(0, len(sites_N), size):
        yield sites_N[start : start + size]
