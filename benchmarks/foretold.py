"""Compare ways to draw sites on the demo: uniform, foretold, dynamic sampling, and an oracle that knows the pass rates.

Two comparisons. *At equal sampled tokens*: one run each with uniform drawing, foretold sites and dynamic sampling, from
the same policy, until each has sampled what uniform drawing samples in `--steps` steps. *At equal policies*: of the
foretold run's policy after some steps (`--at`), the same candidates are drawn from uniformly, by forecast and by an
oracle. The oracle knows each candidate's pass rate from 32 further responses, which are not counted, and has no floor.
A fresh group at every candidate gives the share of groups with a gradient of each way, on average over its draws.

    python -m benchmarks.foretold [--seeds 0 1 2] [--steps 60] [--at 5 10 20 40 60] [--out build/foretold]

What is in --out is not done again: kill it, and the same command goes on.

Last line: JSON with the figures (an entry per seed), ratios with 95 % intervals over the seeds, bars and whether they
hold.
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
from scipy.special import stdtrit

from pipeline.config.loading import load
from pipeline.config.recipe import Recipe
from pipeline.core.artifact import Record, current_record
from pipeline.core.files import replace_text
from pipeline.grpo.data.forecast import enough, foretell
from pipeline.grpo.data.foretold_draw import inclusion
from pipeline.grpo.data.pass_rates import pass_rates
from pipeline.grpo.data.site_features import site_features
from pipeline.grpo.rollout.prompt import prompts_of
from pipeline.grpo.run.policy_loading import load_sampler
from pipeline.grpo.run.run_folder import latest_checkpoint, read_state
from pipeline.grpo.run.run_state import RunState
from pipeline.shards.order import sites_of_step
from pipeline.shards.reader import ShardReader, Site

ARMS = {
    "uniform": [],
    "foretold": ["sites.by=foretold"],
    "dynamic": ["objective.dynamic_sampling_from=0"],
}
"""What each arm changes in the recipe."""
KNOWN = 32
"""Responses from which the oracle knows a site's pass rate."""
BARS = {"gap_closed": 0.5, "tokens_to_uniform_accuracy": 0.75}
"""The least share of the gap between uniform drawing and the oracle, and the most of uniform drawing's tokens."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60, help="of the uniform run")
    parser.add_argument(
        "--at", type=int, nargs="+", default=[5, 10, 20, 40, 60], help="steps after which policies are compared"
    )
    parser.add_argument("--evaluate-every", type=int, default=10)
    parser.add_argument("--set", action="append", default=[], help="of every arm's recipe, as for `rpt train`")
    parser.add_argument("--out", type=Path, default=Path("build/foretold"))
    arguments = parser.parse_args()
    bench = Bench(arguments)
    rpt("data", "demo", "--work", str(arguments.out / "work"))
    arms: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    policies: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for steps in sorted({*(at for at in arguments.at if at <= arguments.steps), arguments.steps}):
            bench.train("foretold", seed, steps)
            if steps in arguments.at:
                policies.append({"seed": seed, "step": steps, **bench.at_equal_policies(seed, steps)})
                print(json.dumps(policies[-1]), flush=True)
        tokens = bench.train("uniform", seed, arguments.steps)
        bench.spend("dynamic", seed, tokens)
        for arm in ARMS:
            arms[arm].append(summary(bench.metrics(arm, seed), tokens))
            print(json.dumps({"seed": seed, "arm": arm, **arms[arm][-1]}), flush=True)
    gap = [[share_of_gap(found) for found in policies if found["seed"] == seed] for seed in arguments.seeds]
    tokens_to_uniform = [tokens_to(own, other) for own, other in zip(arms["foretold"], arms["uniform"], strict=True)]
    ratios = {
        "gap_closed": over_seeds([float(np.mean(of_seed)) for of_seed in gap if of_seed]),
        "tokens_to_uniform_accuracy": over_seeds(tokens_to_uniform),
    }
    closed, needed = (ratio["mean"] for ratio in ratios.values())
    held = {
        "gap_closed": closed is not None and closed >= BARS["gap_closed"],
        "tokens_to_uniform_accuracy": needed is not None and needed <= BARS["tokens_to_uniform_accuracy"],
    }
    figures = {"equal_tokens": arms, "equal_policies": policies}
    print(json.dumps({"figures": figures, "ratios": ratios, "bars": BARS, "holds": held}))


class Bench:
    """The runs of the benchmark, below one folder."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._out, self._set, self._every = arguments.out, arguments.set, arguments.evaluate_every

    def train(self, arm: str, seed: int, steps: int) -> float:
        """Bring an arm's run to so many steps and return the tokens that it has sampled."""
        changes = [
            *(f"budget.{name}={self._every}" for name in ("evaluate_every", "save_every")),
            f"seed={seed}",
            f"budget.steps={steps}",
            *ARMS[arm],
            *self._set,
        ]
        overrides = [part for change in changes for part in ("--set", change)]
        rpt("train", "demo", "--work", str(self._out / "work"), "--run", str(self._run(arm, seed)), *overrides)
        if self.metrics(arm, seed)[-1]["step"] < steps:
            sys.exit(f"the run {self._run(arm, seed)} was stopped: run the same command again")
        return sum(row.get("tokens/sampled", 0) for row in self.metrics(arm, seed))

    def spend(self, arm: str, seed: int, tokens: float) -> None:
        """Let an arm's run go on until it has sampled so many tokens."""
        steps, spent = 2, self.train(arm, seed, 2)
        while spent < tokens:
            steps += max(1, int((tokens - spent) / (spent / steps) / 2))
            spent = self.train(arm, seed, steps)

    def metrics(self, arm: str, seed: int) -> list[dict[str, float]]:
        """Return the lines of an arm's `metrics.jsonl`."""
        return [json.loads(line) for line in (self._run(arm, seed) / "metrics.jsonl").read_text().splitlines()]

    def at_equal_policies(self, seed: int, step: int) -> dict[str, float]:
        """Return what `compare` finds of the foretold run's policy after a step."""
        run = self._run("foretold", seed)
        stored = run / f"policies-{step:06d}.json"
        if not stored.exists():
            shards = current_record(self._out / "work" / "demo", "materialize")
            if self.metrics("foretold", seed)[-1]["step"] != step:
                sys.exit(f"the run {run} has gone past step {step}, its policy of that step is gone: remove its folder")
            replace_text(stored, json.dumps(compare(run, shards)))
        return dict(json.loads(stored.read_text()))

    def _run(self, arm: str, seed: int) -> Path:
        return self._out / f"{arm}-{seed}"


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


def summary(metrics: Sequence[dict[str, float]], tokens: float) -> dict[str, Any]:
    """Return what a run came to with so many sampled tokens."""
    steps = [row for row in metrics if "tokens/sampled" in row]
    spent = np.cumsum([row["tokens/sampled"] for row in steps])
    within = [row for row, sum_ in zip(steps, spent.tolist(), strict=True) if sum_ <= tokens * 1.001]
    groups = sum(row["groups/sampled"] for row in within)
    of_step = dict(zip([row["step"] for row in steps], spent.tolist(), strict=True))
    accuracy = [
        (of_step.get(row["step"], 0.0), row["eval/hard/reasoning"]) for row in metrics if "eval/hard/reasoning" in row
    ]
    return {
        "steps": len(within),
        "tokens": float(sum(row["tokens/sampled"] for row in within)),
        "groups_sampled": groups,
        "groups_trained": sum(row["groups/trained"] for row in within),
        "live_share": sum((1 - row["groups/zero_variance"]) * row["groups/sampled"] for row in within) / groups,
        "live_share_by_step": [round(1 - row["groups/zero_variance"], 3) for row in within],
        "expected_by_step": [round(row["foretold/expected"], 3) for row in within if "foretold/expected" in row],
        "hard_accuracy_by_tokens": accuracy,
    }


def share_of_gap(found: dict[str, float]) -> float:
    """Return the share of the gap between uniform drawing and the oracle that forecasts close."""
    return (found["foretold"] - found["uniform"]) / (found["oracle"] - found["uniform"])


def tokens_to(own: dict[str, Any], uniform: dict[str, Any]) -> float | None:
    """Return after what share of its tokens a run had the last accuracy of the uniform one; None if never."""
    goal = uniform["hard_accuracy_by_tokens"][-1][1]
    reached = (tokens / uniform["tokens"] for tokens, accuracy in own["hard_accuracy_by_tokens"] if accuracy >= goal)
    return next(reached, None)


def over_seeds(values: Sequence[float | None]) -> dict[str, Any]:
    """Return the values of the seeds, their mean, and its 95 % interval (t, from two seeds on); None if one is."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return {"by_seed": list(values), "mean": None}
    found = {"by_seed": [round(value, 3) for value in known], "mean": round(float(np.mean(known)), 3)}
    if len(known) > 1:
        half = float(stdtrit(len(known) - 1, 0.975)) * float(np.std(known, ddof=1)) / len(known) ** 0.5
        found |= {"low": round(found["mean"] - half, 3), "high": round(found["mean"] + half, 3)}
    return found


def rpt(*arguments: str) -> None:
    """Run a command of `rpt`, whose output goes to the error stream."""
    subprocess.run([sys.executable, "-m", "commands.cli", *arguments], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
