"""Runs with foretold sites on the colours, below one folder; `foretold_worker` makes them."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.loading import load
from pipeline.config.recipe import Recipe
from pipeline.config.selection import BandsConfig
from pipeline.core.artifact import current_record
from stages.train import train
from tests.grpo.colours import make_policy, publish_shards, write_manifest, write_recipe


def prepare(folder: Path) -> None:
    """Policy, shards, manifest and recipe; a checkpoint after every third step."""
    policy = make_policy(folder / "policy")
    publish_shards(folder / "work", policy, sites=120)
    write_manifest(folder / "manifest.yaml", policy)
    write_recipe(
        folder / "recipe.yaml",
        policy,
        data="manifest.yaml",
        curriculum=[],
        objective={},
        rollout={"sites_per_step": 16, "group_size": 4, "temperature": 1.0, "max_new_tokens": 16, "batch_rows": 64},
        sites={"by": "foretold", "candidates": 4},
        budget={"steps": 7, "evaluate_every": 7, "save_every": 3, "save_rollouts_every": 1},
    )


def learn(folder: Path, run: str) -> None:
    """`rpt train`."""
    shards = current_record(folder / "work" / "colours", "materialize")
    train(load(Recipe, folder / "recipe.yaml"), BandsConfig(), shards, run=folder / run)
