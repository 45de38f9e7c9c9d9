"""Stop a run by the recipe's rules once further steps cannot help. Starts without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from pipeline.config.errors import UserError
from pipeline.config.recipe import Recipe
from pipeline.grpo.run.probe import SampleCounts, judge


@dataclass
class EarlyStopping:
    """Counts of consecutive steps in which something was wrong; part of a checkpoint."""

    dead: int = 0
    """Steps without a group of unequal rewards."""
    collapsed: int = 0
    """Steps with less entropy than the rules want."""
    apart: int = 0
    """Steps at which trainer and sampler differed by enough for a warning."""
    sampled: SampleCounts = field(default_factory=SampleCounts)
    """What the responses of the `dead` steps came to."""

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Self:
        """Return the counts that a checkpoint stores."""
        return cls(**{**state, "sampled": SampleCounts(**state.get("sampled", {}))})

    def update(self, metrics: Mapping[str, float], recipe: Recipe) -> str | None:
        """Take in a step's metrics, the same on every rank.

        Args:
            metrics: of the step.
            recipe: has the rules in `budget.stop`, and settings that the messages name.

        Returns:
            A warning for the user, at the first of several such steps in a row; otherwise None.

        Raises:
            UserError: a rule stops the run; the message says why and what may help.
        """
        rules = recipe.budget.stop
        entropy, norm = metrics["policy/entropy"], metrics.get("grad_norm", 0.0)
        is_dead = metrics["groups/zero_variance"] == 1
        self.dead = self.dead + 1 if is_dead else 0
        self.sampled = self.sampled.plus(SampleCounts.of(metrics)) if is_dead else SampleCounts()
        self.collapsed = self.collapsed + 1 if rules.entropy is not None and entropy < rules.entropy else 0
        gap, warned = metrics.get("sampler/logprob_gap", 0.0), rules.logprob_gap_warning
        self.apart = self.apart + 1 if warned is not None and gap > warned else 0
        if rules.logprob_gap is not None and gap > rules.logprob_gap:
            raise _stopped(
                f"trainer and sampler differ by {gap:.3g} nats a token about what was sampled",
                "logprob_gap",
                "one of them computes another policy: compare with `rollout.sampler: built_in` and "
                "`policy.dtype: float32`",
            )
        if rules.grad_norm is not None and norm > rules.grad_norm:
            raise _stopped(
                f"the gradient explodes: its norm is {norm:.3g}",
                "grad_norm",
                "lower `optimizer.lr`, raise `optimizer.warmup_steps`, or look at the step's rollouts",
            )
        if rules.dead_reward_steps is not None and self.dead >= rules.dead_reward_steps:
            verdict = judge(self.sampled, recipe.rollout.max_new_tokens, recipe.task.thinking)
            raise _stopped(
                f"no group had unequal rewards for {self.dead} steps: {'; '.join(verdict.causes)}",
                "dead_reward_steps",
                "; ".join(verdict.advice),
            )
        if self.collapsed >= rules.entropy_steps:
            raise _stopped(
                f"the policy's entropy has collapsed: {entropy:.2g} nats a token, and low for {self.collapsed} steps",
                "entropy",
                "give `objective.entropy` or `objective.kl` a weight, or lower `optimizer.lr`",
            )
        if self.apart == 1:
            return (
                f"trainer and sampler differ by {gap:.3g} nats a token (`sampler/logprob_gap`): rounding to bfloat16 "
                "makes about 0.05; `objective.importance_cap: 2` weighs tokens by what is left"
            )
        return None

    def state(self) -> dict[str, Any]:
        """Return the state to store in a checkpoint; restore it with `of`."""
        return asdict(self)


def _stopped(message: str, rule: str, hint: str) -> UserError:
    return UserError(
        message, where=f"rule `budget.stop.{rule}`", hint=f"{hint}; the last checkpoint can be resumed from"
    )
