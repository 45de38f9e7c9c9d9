"""Compare ways to draw sites on the demo: uniform, foretold, dynamic sampling, and an oracle that knows the pass rates.

Two comparisons. *At equal sampled tokens*: `rpt worth` trains with uniform drawing, foretold sites, dynamic sampling
and a curriculum by band. *At equal policies*: of a foretold run's policy after some steps (`--at`), the same candidates
are drawn from uniformly, by forecast and by an oracle. The oracle knows each candidate's pass rate from 32 further
responses, which are not counted, and has no floor. A fresh group at every candidate gives the share of groups with a
gradient of each way, on average over its draws.

    python -m benchmarks.foretold [--seeds 3] [--tokens 700000] [--at 5 10 20 40] [--out build/foretold]

What is in --out is not done again: kill it, and the same command goes on.

Last line: JSON with the figures, ratios with 95 % intervals over the seeds, bars and whether they hold.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.loading import load
from pipeline.config.recipe import Recipe
from pipeline.core.artifact import Record, current_record
from pipeline.core.files import replace_text
from pipeline.evaluation.study.worth import over_seeds
from pipeline.grpo.data.forecast import enough, foretell
from pipeline.grpo.data.foretold_draw import inclusion
from pipeline.grpo.data.pass_rates import pass_rates
from pipeline.grpo.data.site_features import site_features
from pipeline.grpo.rollout.prompt import prompts_of
from pipeline.grpo.run.metrics import read_metrics
from pipeline.grpo.run.policy_loading import load_sampler
from pipeline.grpo.run.run_folder import latest_checkpoint, read_state
from pipeline.grpo.run.run_state import RunState
from pipeline.shards.order import sites_of_step
from pipeline.shards.reader import ShardReader, Site

ARMS = {
    "uniform": "sites.by=uniform",
    "foretold": "sites.by=foretold",
    "dynamic": "objective.dynamic_sampling_from=0",
    "bands": """curriculum=[{until_step: 20, where: "entropy < 1.5"}]""",
}
"""What each arm changes in the recipe; the first is what the others are compared with."""
ACCURACY = ("--band", "hard", "--see", "30", "--spread", "8")
"""Accuracy at hard sites decides; three seeds that differ by 8 points see no difference below about 27."""
KNOWN = 32
"""Responses from which the oracle knows a site's pass rate."""
BARS = {"gap_closed": 0.5, "tokens_to_uniform_accuracy": 0.75}
"""The least share of the gap between uniform drawing and the oracle, and the most of uniform drawing's tokens."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=700_000, help="sampled tokens of each run")
    parser.add_argument("--at", type=int, nargs="+", default=[5, 10, 20, 40], help="steps at which policies are taken")
    parser.add_argument("--evaluate-every", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], help="of every arm's recipe, as for `rpt train`")
    parser.add_argument("--out", type=Path, default=Path("build/foretold"))
    arguments = parser.parse_args()
    out, work = arguments.out, ("--work", str(arguments.out / "work"))
    rpt("data", "demo", *work)
    changes = [f"budget.evaluate_every={arguments.evaluate_every}", *arguments.set]
    ways = [f"{name}={change}" for name, change in ARMS.items()]
    budget = ["--tokens", str(arguments.tokens), "--seeds", str(arguments.seeds), *ACCURACY]
    rpt("worth", "demo", *ways, *budget, *work, "--run", str(out / "worth"), "--workers", "1", *overrides(changes))
    worth = json.loads((out / "worth" / "worth.json").read_text(encoding="utf-8"))
    worth["gradient_by_step"] = {arm: by_step(out / "worth", arm) for arm in ARMS}
    policies: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        for step in sorted(arguments.at):
            policies.append({"seed": seed, "step": step, **at_step(out, seed, step, arguments.set)})
            print(json.dumps(policies[-1]), flush=True)
    gap_S = [np.mean([share_of_gap(p) for p in policies if p["seed"] == seed]) for seed in range(arguments.seeds)]
    needed = worth["sampling"]["foretold"]["to_baseline"]
    ratios = {
        "gap_closed": dict(zip(("mean", "low", "high"), map(float, over_seeds(np.array(gap_S))), strict=True)),
        "tokens_to_uniform_accuracy": {"mean": needed["value"], "low": needed["low"], "high": needed["high"]},
    }
    tokens = needed["value"]
    held = {
        "gap_closed": ratios["gap_closed"]["mean"] >= BARS["gap_closed"],
        "tokens_to_uniform_accuracy": tokens is not None and tokens <= BARS["tokens_to_uniform_accuracy"],
    }
    figures = {"equal_tokens": worth, "equal_policies": policies}
    print(json.dumps({"figures": figures, "ratios": ratios, "bars": BARS, "holds": held}))


def by_step(comparison: Path, arm: str) -> list[list[float]]:
    """Return the share of groups with a gradient of every step of an arm's runs, one list per seed."""
    runs = sorted(comparison.glob(f"{arm}-[0-9]*.*/metrics.jsonl"))
    rows = [[row for row in read_metrics(run) if "groups/sampled" in row] for run in runs]
    return [[round(1 - row["groups/zero_variance"], 3) for row in of_run] for of_run in rows]


def at_step(out: Path, seed: int, step: int, changes: Sequence[str]) -> dict[str, float]:
    """Bring the seed's own foretold run to a step, and return what `compare` finds of its policy there."""
    run = out / f"foretold-{seed}"
    stored = run / f"policies-{step:06d}.json"
    if not stored.exists():
        own = [ARMS["foretold"], f"seed={seed}", f"budget.steps={step}", "budget.evaluate_every=1000", *changes]
        rpt("train", "demo", "--work", str(out / "work"), "--run", str(run), *overrides(own))
        checkpoint = latest_checkpoint(run)
        if checkpoint is None or read_state(checkpoint)["step"] != step:
            sys.exit(f"the policy of step {step} of {run} is not there: remove the folder, or run the command again")
        replace_text(stored, json.dumps(compare(run, current_record(out / "work" / "demo", "materialize"))))
    return dict(json.loads(stored.read_text(encoding="utf-8")))


def compare(run: Path, shards: Record) -> dict[str, float]:
    """Return the shares of groups with a gradient of three ways to draw from one step's candidates."""
    recipe, checkpoint = load(Recipe, run / "recipe.yaml"), latest_checkpoint(run)
    assert checkpoint
    state, take, floor = RunState.of(read_state(checkpoint)), recipe.rollout.sites_per_step, recipe.sites.floor
    reader = ShardReader(shards.files("train"), recipe.sites.where)
    rows_M = sites_of_step(len(reader), recipe.seed, state.draws, min(recipe.sites.candidates * take, len(reader)))
    sites = [reader[int(row)] for row in rows_M]
    known_M = rates(run, recipe, shards, sites, KNOWN)
    fresh_M = rates(run, recipe, shards, sites, recipe.rollout.group_size)
    live_M = (fresh_M > 0) & (fresh_M < 1)
    size = recipe.rollout.group_size
    drawn = {
        "uniform": inclusion(np.zeros(len(rows_M)), take, 1.0),
        "oracle": inclusion(1 - known_M**size - (1 - known_M) ** size, take, 0.0),
    }
    drawn["foretold"] = drawn["uniform"]
    if enough(state.outcomes):
        seen = [site_features(reader[outcome.row]) for outcome in state.outcomes]
        forecast_M = foretell(state.outcomes, seen, [site_features(site) for site in sites], state.step)
        drawn["foretold"] = inclusion(forecast_M, take, floor)
    return {name: float(live_M @ inclusion_M / take) for name, inclusion_M in drawn.items()}


def rates(run: Path, recipe: Recipe, shards: Record, sites: Sequence[Site], samples: int) -> NDArray[np.float64]:
    """Return the pass rate of a run's policy at each site, by so many responses of their own."""
    policy, room = run / "policy", recipe.rollout.max_new_tokens
    sampler, prompts = load_sampler(
        policy,
        prompts_of({"policy": policy}, recipe.task)["policy"],
        dtype=recipe.policy.dtype,
        batch_rows=recipe.rollout.batch_rows,
        longest_context=shards.config["max_context_tokens"],
        max_new_tokens=room,
    )
    rows: list[dict[str, object]] = [
        {
            "site_id": site.site_id,
            "context": site.context,
            "continuation": site.continuation,
            "token_lengths": np.diff([0, *site.boundaries]).tolist(),
        }
        for site in sites
    ]
    found = pass_rates(
        sampler, prompts, rows, samples=samples, temperature=recipe.rollout.temperature,
        max_new_tokens=room, seed=samples, batch_rows=recipe.rollout.batch_rows,
    )  # fmt: skip
    return np.array([row["pass_rate"] for row in found], dtype=float)


def share_of_gap(found: dict[str, float]) -> float:
    """Return the share of the gap between uniform drawing and the oracle that forecasts close."""
    return (found["foretold"] - found["uniform"]) / (found["oracle"] - found["uniform"])


def overrides(changes: Sequence[str]) -> list[str]:
    """Return the options that change a recipe so."""
    return [word for change in changes for word in ("--set", change)]


def rpt(*arguments: str) -> None:
    """Run a command of `rpt`, whose output goes to the error stream."""
    subprocess.run([sys.executable, "-m", "commands.cli", *arguments], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
