"""Probe a policy before the first step: sample responses to some training sites, and refuse to train in vain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.config.errors import UserError
from pipeline.config.recipe import Recipe
from pipeline.core.progress import log
from pipeline.core.random_keys import random_key
from pipeline.core.sealed import write_json
from pipeline.grpo.algorithm.advantage import ADVANTAGES
from pipeline.grpo.data.curriculum import Curriculum
from pipeline.grpo.policy import distributed
from pipeline.grpo.rollout.excerpt import excerpt
from pipeline.grpo.rollout.prompt import PromptBuilder
from pipeline.grpo.rollout.rewards import RewardContext, compute_rewards
from pipeline.grpo.rollout.rollouts import Rollout, group_advantages, roll_out
from pipeline.grpo.run.metrics import GroupSummary, Metrics, Stopwatch, rollout_metrics
from pipeline.grpo.run.probe import SampleCounts, Verdict, judge

SHOWN = 3
"""Responses shown when a policy can hardly learn."""


@dataclass(frozen=True)
class Probe:
    """The outcome of a probe, the same on every rank but for `seconds/probe`."""

    metrics: Metrics
    """`probe/` and the names of `rollout_metrics`; `seconds/probe`."""
    verdict: Verdict
    excerpts: Sequence[Sequence[str]]
    """Lines that show the first response to each of the first `SHOWN` sites."""


def probe_policy(reader: RewardContext, curriculum: Curriculum, recipe: Recipe, sites: int) -> Probe:
    """Return what the policy's responses to `sites` training sites come to. Every rank calls it.

    The responses are sampled as in a step, but by a seed of their own: the draws of the steps do not change.
    """
    recipe = recipe.model_copy(update={"seed": random_key("probe", recipe.seed)})
    clock, room, thinking = Stopwatch(), recipe.rollout.max_new_tokens, reader.prompts.thinking
    drawn = curriculum.sample(sites, recipe.seed)
    with clock("probe"):
        answered = roll_out(reader.sampler, reader.prompts, distributed.shard(drawn), recipe, step=0)
        outcomes = compute_rewards(recipe.task, reader, answered, 0, room)
        rollouts = group_advantages(answered, outcomes, ADVANTAGES[recipe.objective.advantage])
    metrics = rollout_metrics(distributed.all_gather([GroupSummary.of(rollout, thinking) for rollout in rollouts]))
    shown = distributed.all_gather([excerpt_of(rollout, reader.prompts) for rollout in rollouts[:SHOWN]])
    return Probe(
        {f"probe/{name}": value for name, value in metrics.items()} | clock.seconds(),
        judge(SampleCounts.of(metrics), room, thinking.mode),
        shown[:SHOWN],
    )


def excerpt_of(rollout: Rollout, prompts: PromptBuilder) -> list[str]:
    """Return lines that show the first response of a rollout."""
    site, response = rollout.site, rollout.group.responses[0]
    return excerpt(
        site.context, prompts.after, prompts.thinking.whole(response.text), site.continuation, rollout.outcomes[0]
    )


def report(probe: Probe, run: Path) -> None:
    """Store a probe in the run's folder and log its figures; of a policy that hardly learns, also some responses."""
    write_json(run / "probe.json", asdict(probe))
    for line in probe_lines(probe):
        log(f"train        {line}")
    verdict = probe.verdict
    if verdict.learns == "hardly":
        log(f"train        warning, before step 1: {'; '.join(verdict.causes)} ({'; '.join(verdict.advice)})")


def probe_lines(probe: Probe) -> list[str]:
    """Return the lines of `report`."""
    counts = SampleCounts.of({name.removeprefix("probe/"): value for name, value in probe.metrics.items()})
    reasons = sorted(counts.reasons.items(), key=lambda item: -item[1])
    shares = ", ".join(f"{name.replace('_', ' ')} {100 * n / counts.responses:.1f} %" for name, n in reasons if n)
    length, seconds = probe.metrics["probe/response/length"], probe.metrics["seconds/probe"]
    lines = [
        f"probe: {counts.unequal} of {counts.groups} groups of {counts.responses // counts.groups} have a gradient; "
        f"{length:.1f} tokens a response; {seconds:.1f} s",
        f"probe: {shares}",
    ]
    if probe.verdict.learns != "yes":
        lines += [line for shown in probe.excerpts for line in shown]
    return lines


def must_learn(probe: Probe) -> None:
    """Check that a policy can learn.

    Raises:
        UserError: no group has a gradient; the message says why and what to change.
    """
    if probe.verdict.learns == "no":
        groups = int(probe.metrics["probe/groups/sampled"])
        raise UserError(
            f"nothing can be learned, because none of {groups} groups has unequal rewards: "
            f"{'; '.join(probe.verdict.causes)}",
            where="probe before step 1",
            hint=f"{'; '.join(probe.verdict.advice)}; `budget.stop.probe_sites: null` skips the probe",
        )
