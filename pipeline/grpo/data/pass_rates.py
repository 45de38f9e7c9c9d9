"""Pass rates: the share of correct responses of a policy per site, estimated from a few responses.

Sites at which the policy is always or never correct give no gradient: at pass rate p, a group of G responses has a
gradient with probability 1 − p^G − (1 − p)^G.
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
        pa.field("right_responses", pa.list_(pa.list_(pa.int32())), nullable=False),
    ]
)
"""Schema with one row per screened site: share of correct responses, mean length of all responses in tokens, and token
ids of the first correct ones."""


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
    keep: int = 0,
) -> Iterator[dict[str, object]]:
    """Yield rows of `PASS_RATES`, one per site, in the order of the sites.

    Args:
        sampler: samples the policy's responses.
        prompts: builds the prompt of a context.
        sites: rows with `site_id`, `context`, `continuation` and `token_lengths`.
        samples: responses per site.
        temperature: sampling temperature.
        max_new_tokens: maximum length of a response; one that has not ended by then is not correct.
        seed: with the site and the sample's number, the seed of a response.
        batch_rows: responses decoded at once; affects memory, not results.
        keep: most correct responses to return per site.
    """
    from pipeline.grpo.types import SamplingRequest

    at_once, thinking = max(1, batch_rows // samples), prompts.thinking
    for start in range(0, len(sites), at_once):
        part = sites[start : start + at_once]
        ids = [prompts.ids(site["context"]) for site in part]  # type: ignore[arg-type]
        seeds = [random_key("screen", seed, site["site_id"], sample) for site in part for sample in range(samples)]
        responses = iter(sampler.sample(SamplingRequest(ids, samples, temperature, max_new_tokens, seeds)))
        for site in part:
            group = [next(responses) for _ in range(samples)]
            continuation, boundaries = site["continuation"], boundaries_of(site["token_lengths"])  # type: ignore[arg-type]
            right = [score_response(r.text, r.finished, continuation, boundaries, thinking).right for r in group]  # type: ignore[arg-type]
            length = sum(len(response.ids) for response in group) / samples
            yield {
                "site_id": site["site_id"],
                "pass_rate": sum(right) / samples,
                "screened_length": length,
                "right_responses": [r.ids for r, is_right in zip(group, right, strict=True) if is_right][:keep],
            }


def read_pass_rates(screened: Record) -> pl.DataFrame:
    """Return the pass rates and lengths of a screening by `site_id`, which `ShardReader` joins to the sites."""
    columns = ["site_id", *PASS_RATE_COLUMNS]
    tables = [read_table(file, columns) for file in screened.files("pass_rates")]
    return pl.DataFrame(pl.from_arrow(pa.concat_tables([PASS_RATES.empty_table().select(columns), *tables])))


def read_right_responses(screened: Record) -> dict[str, list[list[int]]]:
    """Return the token ids of the correct responses that a screening stored, by site; sites without any are absent."""
    tables = [read_table(file, ["site_id", "right_responses"]) for file in screened.files("pass_rates")]
    rows = (row for table in tables for row in table.to_pylist())
    return {row["site_id"]: row["right_responses"] for row in rows if row["right_responses"]}


def screening_of(recipe: Recipe, shards: Record, work: Path) -> Record | None:
    """Return the screening that the recipe's filters use; None if they name no column of it.

    Args:
        recipe: the recipe, of which `sites.where` and the curriculum are read.
        shards: record of `materialize`.
        work: the manifest's folder.

    Raises:
        UserError: the sites were not screened, or the screening is of other sites.
    """
    expressions = [recipe.sites.where, *(phase.where for phase in recipe.curriculum)]
    named = [column for column in PASS_RATE_COLUMNS if any(column in expression for expression in expressions)]
    return last_screening(shards, work, f"the recipe names `{named[0]}`") if named else None


def last_screening(shards: Record, work: Path, why: str) -> Record:
    """Return the last screening.

    Args:
        shards: record of `materialize`.
        work: the manifest's folder.
        why: what needs it, for the error.

    Raises:
        UserError: the sites were not screened, or the screening is of other sites.
    """
    made = read_pointer(work / "screen" / CURRENT)
    found = published_record(made) if made else None
    if found is None or found.inputs["shards"] != shards.content:
        what = "the sites were not screened" if found is None else "other sites were screened than are trained on"
        raise UserError(what, where=why, hint="run `rpt screen` with the same manifest")
    return found
