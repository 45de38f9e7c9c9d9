"""Runs of every baseline and control on the colours, below one folder; `baselines_worker` makes them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa

from pipeline.config.loading import load
from pipeline.config.recipe import Recipe
from pipeline.config.selection import BandsConfig
from pipeline.core.artifact import Record, current_record
from pipeline.grpo.run.flops import ComputeBudget
from stages.finetune import questions, report
from stages.ntp import ntp
from stages.sft import sft, tables_of
from stages.train import train
from tests.grpo.colours import COLOURS, context, make_policy, metrics_of, publish_shards, write_recipe
from tests.stages.published import InProcess, publish_tables

STEPS, SAVE_EVERY = 12, 3
SUPERVISED = {"batch_tokens": 900, "window": 14, "plain_text": 0.5}


def prepare(folder: Path) -> None:
    """Policy, shards, documents (longer than a window) and recipe."""
    policy = make_policy(folder / "policy")
    publish_shards(folder / "work", policy, sites=120, held_out=40)
    texts = [f"{context(i)}{COLOURS[i % 4]}. And so on." for i in [*range(30), *range(100, 108)]]
    documents = pa.table({"text": texts, "split": ["train"] * 30 + ["validation"] * 8})
    publish_tables(folder / "work" / "colours", "ingest", [{"documents": documents}])
    write_recipe(
        folder / "recipe.yaml",
        policy,
        curriculum=[],
        objective={},
        supervised=SUPERVISED,
        budget={"steps": STEPS, "evaluate_every": 6, "save_every": SAVE_EVERY, "save_rollouts_every": 1},
        evaluate={"progress_sites": 40, "sites": 40},
    )


def learn_text(folder: Path, run: str, as_long_as: str = "") -> None:
    """`rpt ntp`, for its steps or until it has spent what another run had after five."""
    budget = ComputeBudget(flops=metrics_of(folder / as_long_as)[5]["compute/flops"]) if as_long_as else ComputeBudget()
    ntp(_recipe(folder), _record(folder, "ingest"), run=folder / run, budget=budget)


def learn(folder: Path, run: str, *overrides: str) -> None:
    """`rpt train`, fast."""
    fast = ("budget.steps=30", "budget.evaluate_every=30", "rollout.sites_per_step=16", "optimizer.lr=0.01")
    train(_recipe(folder, *fast, *overrides), BandsConfig(), _record(folder, "materialize"), run=folder / run)


def imitate(folder: Path, run: str, *rollouts: str) -> None:
    """`rpt sft`, on the rollouts of other runs or on true tokens."""
    tables = [table for name in rollouts for table in tables_of(folder / name)]
    documents, shards = (_record(folder, stage) for stage in ("ingest", "materialize"))
    sft(_recipe(folder, "supervised.window=40"), documents, shards, tables, run=folder / run, budget=ComputeBudget())


def answer(folder: Path, run: str) -> None:
    """`rpt finetune`, on questions whose answer is always the same."""
    rows = [{"question": context(i), "answer": "pink", "part": "train" if i < 60 else "validation"} for i in range(90)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = _recipe(
        folder,
        "task.reward=answer",
        f"questions={{source: {folder}/questions.jsonl, held_out: {{column: part}}}}",
        "optimizer.lr=0.01",
        "budget.steps=20",
        "rollout.sites_per_step=16",
    )
    asked = questions(recipe, work=folder / "work" / "colours", executor=InProcess())
    train(recipe, None, asked, run=folder / run)
    report(recipe, asked, run=folder / run)


def _recipe(folder: Path, *overrides: str) -> Recipe:
    return load(Recipe, folder / "recipe.yaml", overrides)


def _record(folder: Path, stage: str) -> Record:
    return current_record(folder / "work" / "colours", stage)
