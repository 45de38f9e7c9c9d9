"""Warm-ups on the colours, below one folder; `warmups_worker` makes them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from pipeline.config.loading import load
from pipeline.config.recipe import Recipe
from pipeline.config.selection import BandsConfig
from pipeline.core.artifact import current_record
from pipeline.grpo.run.flops import ComputeBudget
from stages.screen import screen
from stages.train import train
from stages.warmup import screening_for, warmup, warmup_recipe
from tests.grpo.colours import COLOURS, context, make_policy, publish_shards, write_recipe
from tests.stages.published import InProcess, publish_tables

SITES, HELD_OUT = 60, 40


def prepare(folder: Path) -> None:
    """A policy that knows the form, one that knows nothing, shards, documents and recipe."""
    policy = make_policy(folder / "policy")
    make_policy(folder / "blank", steps=0)
    publish_shards(folder / "work", policy, sites=SITES, held_out=HELD_OUT)
    texts = [f"{context(i)}{COLOURS[i % 4]}." for i in [*range(30), *range(100, 104)]]
    documents = pa.table({"text": texts, "split": ["train"] * 30 + ["validation"] * 4})
    publish_tables(folder / "work" / "colours", "ingest", [{"documents": documents}])
    write_recipe(
        folder / "recipe.yaml",
        policy,
        curriculum=[],
        objective={},
        warmup={"examples": 50, "lr": 0.01, "batch_tokens": 500},
        budget={"steps": 2, "evaluate_every": 2, "save_every": 3},
        evaluate={"progress_sites": 4, "sites": 12},
    )


def warm_up(folder: Path, run: str, tokens: str, *overrides: str) -> None:
    """`rpt warmup`, until it has learned from so many response tokens; `0`: each example once."""
    recipe, work = warmup_recipe(load(Recipe, folder / "recipe.yaml", overrides)), folder / "work" / "colours"
    documents, shards = (current_record(work, stage) for stage in ("ingest", "materialize"))
    budget, screening = ComputeBudget(tokens=int(tokens) or None), screening_for(recipe, shards, work)
    warmup(recipe, documents, shards, run=folder / run, budget=budget, screening=screening)


def screened(folder: Path) -> None:
    """`rpt screen`."""
    shards = current_record(folder / "work" / "colours", "materialize")
    recipe = load(Recipe, folder / "recipe.yaml")
    screen(recipe, shards, work=folder / "work" / "colours", executor=InProcess())


def learn(folder: Path, run: str, *overrides: str) -> None:
    """`rpt train`."""
    shards = current_record(folder / "work" / "colours", "materialize")
    train(load(Recipe, folder / "recipe.yaml", overrides), BandsConfig(), shards, run=folder / run)
