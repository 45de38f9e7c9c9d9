"""Pass rates: how often a policy is right at a site, from a few responses.

Where it always or never is, there is nothing to learn: a group of G responses has a gradient with probability
1 − p^G − (1 − p)^G at a site of pass rate p.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa

from pipeline.config.errors import UserError
from pipeline.config.recipe import Recipe
from pipeline.core.artifact import CURRENT, Record, published_record, read_pointer
from pipeline.core.parquet import read_table
from pipeline.core.random_keys import random_key
from pipeline.shards.reader import PASS_RATE_COLUMNS
from pipeline.shards.schema import boundaries_of
from pipeline.task.reward import score_response

if TYPE_CHECKING:
    from pipeline.grpo.rollout.prompt import PromptBuilder
    from pipeline.grpo.rollout.sampler import Sampler

PASS_RATES = pa.schema(
    [
        pa.field("site_id", pa.string(), nullable=False),
        pa.field("pass_rate", pa.float32(), nullable=False),
        pa.field("screened_length", pa.float32(), nullable=False),
    ]
)
"""A row is a site that was screened: share of right responses, and their mean length in tokens."""


def pass_rates(
    sampler: Sampler,
    prompts: PromptBuilder,
    sites: Sequence[dict[str, object]],
    *,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    batch_rows: int,
) -> Iterator[dict[str, object]]:
    """Rows of `PASS_RATES`, one a site, in the order of the sites.

    Args:
        sampler: the policy.
        prompts: builds the prompt of a context.
        sites: rows with `site_id`, `context`, `continuation` and `token_lengths`.
        samples: responses a site.
        temperature: of the responses.
        max_new_tokens: room for a response; one that has not ended by then is not right.
        seed: with the site and the sample's number, decides what is drawn.
        batch_rows: responses decoded at once: memory, not results.
    """
    from pipeline.grpo.types import SamplingRequest

    at_once = max(1, batch_rows // samples)
    for start in range(0, len(sites), at_once):
        part = sites[start : start + at_once]
        ids = [prompts.ids(site["context"]) for site in part]  # type: ignore[arg-type]
        seeds = [random_key("screen", seed, site["site_id"], sample) for site in part for sample in range(samples)]
        responses = iter(sampler.sample(SamplingRequest(ids, samples, temperature, max_new_tokens, seeds)))
        for site in part:
            group = [next(responses) for _ in range(samples)]
            continuation, boundaries = site["continuation"], boundaries_of(site["token_lengths"])  # type: ignore[arg-type]
            right = [score_response(r.text, r.finished, continuation, boundaries).right for r in group]  # type: ignore[arg-type]
            length = sum(len(response.ids) for response in group) / samples
            yield {"site_id": site["site_id"], "pass_rate": sum(right) / samples, "screened_length": length}


def read_pass_rates(screened: Record) -> pl.DataFrame:
    """All rows of a screening, as `ShardReader` joins them to the sites."""
    tables = [read_table(file) for file in screened.files("pass_rates")]
    return pl.DataFrame(pl.from_arrow(pa.concat_tables([PASS_RATES.empty_table(), *tables])))


def screening_of(recipe: Recipe, shards: Record, work: Path) -> Record | None:
    """The screening that the recipe chooses its training sites by; None if it names no pass rate.

    Args:
        recipe: its `sites.where` and curriculum count.
        shards: record of `materialize`.
        work: the manifest's folder.

    Raises:
        UserError: the sites were not screened, or others were.
    """
    expressions = [recipe.sites.where, *(phase.where for phase in recipe.curriculum)]
    named = [column for column in PASS_RATE_COLUMNS if any(column in expression for expression in expressions)]
    if not named:
        return None
    made = read_pointer(work / "screen" / CURRENT)
    found = published_record(made) if made else None
    if found is None or found.inputs["shards"] != shards.content:
        what = "the sites were not screened" if found is None else "other sites were screened than are trained on"
        raise UserError(what, where=f"the recipe names `{named[0]}`", hint="run `rpt screen` with the same manifest")
    return found
