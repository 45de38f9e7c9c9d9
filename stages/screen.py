"""Screen: estimate the policy's pass rate at each training site before training, from a few cheap responses.

Input:   the `train` shards of materialize; the recipe's policy.
Output:  `pass_rates`, one row per site, in the same shards: `sites.where` and the curriculum may then use `pass_rate`,
         and `rpt warmup` may learn from the right responses.
Command: rpt screen RECIPE [--manifest MANIFEST] [--set screen.samples=8]

Sites that the policy always or never gets right have no gradient: `sites: {where: pass_rate > 0 AND pass_rate < 1}`
spends rollouts on the others. With k samples, a site of true pass rate p is measured as 0 with probability (1 − p)^k.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import polars as pl

from pipeline.config.base import Config
from pipeline.config.errors import UserError
from pipeline.config.recipe import Recipe
from pipeline.config.task import ScreenConfig
from pipeline.core.artifact import Counters, Record, Shard
from pipeline.core.executor import Executor
from pipeline.core.model_files import model_digest, resolve_model
from pipeline.core.parquet import read_table, write_rows
from pipeline.core.stage import Stage, run_stage
from pipeline.grpo.rollout.prompt import PromptBuilder, PromptText, prompts_of
from pipeline.grpo.run.policy_dtype import with_dtype
from pipeline.grpo.run.policy_loading import load_sampler
from pipeline.grpo.run.run_folder import policy_tokenizer
from pipeline.selection.where import filter_rows, row_filter
from pipeline.shards.reader import columns_of
from pipeline.task.thinking import Thinking

if TYPE_CHECKING:
    from pipeline.grpo.rollout.sampler import Sampler

VERSION = 2
COLUMNS = ("context", "continuation", "token_lengths")
"""The columns that judging a response needs, besides those that `where` may name."""


class ScreenStageConfig(Config):
    """The part of the recipe that `run` needs. The policy enters the fingerprint by its content instead."""

    locations: ClassVar[frozenset[str]] = frozenset({"policy"})
    execution: ClassVar[frozenset[str]] = frozenset({"batch_rows"})

    screen: ScreenConfig
    prompt: tuple[str, str]
    """The text before and after each context, as the policy's chat template rendered it when the stage began."""
    thinking: Thinking
    temperature: float
    max_new_tokens: int
    dtype: str
    seed: int
    policy: str
    batch_rows: int
    longest_context: int
    longest_response: int
    """Maximum length of a response in the training run, which decides how many positions the policy needs."""


def screen(recipe: Recipe, shards: Record, *, work: Path, executor: Executor) -> Record:
    """Bring the pass rates up to date.

    Raises:
        UserError: `screen.where` is invalid or matches no site, or the shards were made with another tokenizer.
    """
    row_filter(recipe.screen.where, columns_of(shards.files("train")), "screen.where")
    recipe = with_dtype(recipe, "screen")
    folder = resolve_model(recipe.policy.model, recipe.policy.revision)
    prompt = prompts_of({"policy": folder}, recipe.task)["policy"]
    policy_tokenizer(folder, shards)
    config = ScreenStageConfig(
        screen=recipe.screen,
        prompt=(prompt.before, prompt.after),
        thinking=prompt.thinking,
        temperature=recipe.rollout.temperature,
        max_new_tokens=recipe.screen.max_new_tokens or recipe.rollout.max_new_tokens,
        dtype=recipe.policy.dtype,
        seed=recipe.seed,
        policy=str(folder),
        batch_rows=recipe.rollout.batch_rows,
        longest_context=shards.config["max_context_tokens"],
        longest_response=recipe.rollout.max_new_tokens,
    )
    plan = [Shard(i, {"train": file}, {}) for i, file in enumerate(shards.files("train"))]
    inputs = {"shards": shards.content, "policy": model_digest(folder)}
    stage = Stage("screen", VERSION, run, unit="tokens", accelerated=True)
    record = run_stage(stage, config, plan, inputs, work, executor)
    if not record.counters["sites"]:
        raise UserError("no site to screen", where=recipe.screen.where, hint="widen `screen.where`")
    return record


def run(config: ScreenStageConfig, shard: Shard, out: Path) -> Counters:
    """Write the pass rates of one shard of sites."""
    from pipeline.grpo.data.pass_rates import PASS_RATES, pass_rates

    columns = columns_of([shard.files["train"]])
    table = pl.DataFrame(pl.from_arrow(read_table(shard.files["train"], [*columns, *COLUMNS])))
    sites = filter_rows(table, row_filter(config.screen.where, columns, "screen.where"), "`screen.where`")
    sampler, prompts = _policy(config)
    rows = list(
        pass_rates(
            sampler,
            prompts,
            sites.select("site_id", *COLUMNS).to_dicts(),
            samples=config.screen.samples,
            temperature=config.temperature,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
            batch_rows=config.batch_rows,
            keep=config.screen.keep_right,
        )
    )
    write_rows(out / "pass_rates.parquet", PASS_RATES, rows)
    pass_rate_S = np.array([row["pass_rate"] for row in rows], dtype=float)
    length_S = np.array([row["screened_length"] for row in rows], dtype=float)
    never, always = int((pass_rate_S == 0).sum()), int((pass_rate_S == 1).sum())
    return {
        "sites": len(rows),
        "never_right": never,
        "sometimes_right": len(rows) - never - always,
        "always_right": always,
        "right_responses": sum(len(row["right_responses"]) for row in rows),  # type: ignore[arg-type, misc]
        "tokens": round(float(length_S.sum()) * config.screen.samples),
        "dropped.screen_where": len(table) - len(rows),
    }


@lru_cache(maxsize=1)
def _policy(config: ScreenStageConfig) -> tuple[Sampler, PromptBuilder]:
    """Load the policy and its prompt builder once per worker process."""
    return load_sampler(
        Path(config.policy),
        PromptText(*config.prompt, config.thinking),
        dtype=config.dtype,
        batch_rows=config.batch_rows,
        longest_context=config.longest_context,
        max_new_tokens=max(config.max_new_tokens, config.longest_response),
    )
