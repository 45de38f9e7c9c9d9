"""The examples of `rpt warmup`: training sites with right responses, written by rule or sampled by the policy."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

import numpy as np

from pipeline.config.errors import UserError
from pipeline.config.recipe import Recipe
from pipeline.core.random_keys import random_key
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.data.examples import Example
from pipeline.grpo.data.rule_thoughts import rule_thought
from pipeline.grpo.data.written import ResponseWriter
from pipeline.grpo.rollout.prompt import PromptBuilder
from pipeline.shards.order import PART, permutation
from pipeline.shards.reader import ShardReader, Site
from pipeline.task.reward import response_bytes, score_response


def warmup_examples(
    recipe: Recipe,
    sites: ShardReader,
    responses: Mapping[str, Sequence[Sequence[int]]] | None,
    prompts: PromptBuilder,
    tokens: CorpusTokenizer,
    end: int,
) -> list[Example]:
    """Return the examples of a warm-up, from at most `warmup.examples` sites.

    Args:
        recipe: its `warmup` and `seed` are used.
        sites: sites of the training split.
        responses: right responses by site, as `read_right_responses` returns them; None: thoughts are written by rule.
        prompts: builds the prompts of the contexts, and knows the form of responses.
        tokens: the policy's tokenizer.
        end: the token that ends a response.

    Raises:
        UserError: there is no response to any of the sites, or one is not right.
    """
    most, seed = recipe.warmup.examples, recipe.seed
    if responses is None:
        return rule_examples(chosen_sites(sites, most, seed), prompts, tokens, end, seed, recipe.warmup.at_once)
    found = right_examples(chosen_sites(sites, most, seed, responses), responses, prompts, tokens)
    if not found:
        raise UserError(
            "the policy gave no right response at any of these sites",
            where=recipe.sites.where,
            hint="begin with `warmup.thoughts: rules`, then screen the policy that comes out",
        )
    return found


def chosen_sites(sites: ShardReader, most: int, seed: int, among: Container[str] | None = None) -> list[Site]:
    """Return at most `most` of the sites, chosen by seed, in their order.

    Args:
        sites: sites of the training split.
        most: number of sites.
        seed: of the recipe; RL draws its sites in another order.
        among: ids of the sites to choose from; by default all.
    """
    n = len(sites)
    taken = np.ones(n, bool) if among is None else np.fromiter((i in among for i in sites.site_ids()), bool, n)
    chosen: list[int] = []
    for start in range(0, n, PART):
        order = permutation(n, random_key("warmup", seed), 0, start, start + PART)
        chosen += order[taken[order]][: most - len(chosen)].tolist()
        if len(chosen) == most:
            break
    return [sites[i] for i in sorted(chosen)]


def rule_examples(
    sites: Iterable[Site],
    prompts: PromptBuilder,
    tokens: CorpusTokenizer,
    end: int,
    seed: int,
    at_once: float = 0.0,
) -> list[Example]:
    """Return the sites with a thought by rule and the true next token in a box; without a thought where none can stand.

    Args:
        sites: sites of the training split.
        prompts: builds the prompts of the contexts, and knows the form of responses.
        tokens: the policy's tokenizer.
        end: the token that ends a response.
        seed: with a site's id, chooses the wording of its thought, and whether there is one.
        at_once: share of the sites that are answered without a thought.
    """
    writer = ResponseWriter(tokens, prompts.thinking, end)

    def response(site: Site) -> list[int]:
        if random_key("at once", seed, site.site_id) < at_once * 2**64:
            return writer.ids_after((), site.target)
        context = tokens.encode(site.context.decode("utf-8", errors="replace")).tolist()
        key = random_key("thought", seed, site.site_id)
        return writer.ids_after(
            rule_thought(tokens, context, writer.exact(site.target), site.token_class, key), site.target
        )

    return [_example(prompts.ids(site.context), response(site)) for site in sites]


def right_examples(
    sites: Iterable[Site],
    responses: Mapping[str, Sequence[Sequence[int]]],
    prompts: PromptBuilder,
    tokens: CorpusTokenizer,
) -> list[Example]:
    """Return the sites with the right responses that the policy itself has sampled (rejection sampling).

    Args:
        sites: sites of the training split; those without a response give no example.
        responses: token ids by site, as `read_right_responses` returns them.
        prompts: builds the prompts of the contexts, and knows the form of responses.
        tokens: the policy's tokenizer.

    Raises:
        UserError: a response is not right in this recipe's form.
    """
    examples = []
    for site in sites:
        for ids in responses.get(site.site_id, ()):
            said = response_bytes(ids[:-1], tokens.token_bytes)  # the last id ends the response
            if not score_response(said, True, site.continuation, site.boundaries, prompts.thinking).right:
                raise UserError(
                    "a stored response is not right for this recipe",
                    where=f"site {site.site_id}",
                    hint="run `rpt screen` again, with the policy and the `task` of this recipe",
                )
            examples.append(_example(prompts.ids(site.context), ids))
    return examples


def _example(prompt: Sequence[int], response: Sequence[int]) -> Example:
    return Example(np.array(prompt, dtype=np.int32), np.array(response, dtype=np.int32))
