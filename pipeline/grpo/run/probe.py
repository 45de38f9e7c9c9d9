"""Judge by counts of responses whether a policy can learn from them, and say what to change. Starts without torch.

A group whose rewards are all equal has no gradient. If all groups are like this, no step changes the policy, however
long the run: its responses then fail, or succeed, for reasons that the counts show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

FEW = 0.05
"""Share of groups with a gradient below which learning is called slow, and of responses with a box below which the
policy is said not to know the form."""
MANY = 0.1
"""Share of the responses from which on a cause is named."""


@dataclass(frozen=True)
class SampleCounts:
    """Counts of groups of responses, and of the responses in them."""

    groups: int = 0
    unequal: int = 0
    """Groups whose rewards differ: they alone have a gradient."""
    boxed: int = 0
    r"""Responses that contain a `\boxed{`, wherever it stands."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Responses by the reason of their outcome."""

    @classmethod
    def of(cls, metrics: Mapping[str, float]) -> SampleCounts:
        """Return the counts in a step's `rollout_metrics`."""
        groups = int(metrics["groups/sampled"])
        reasons = {name.removeprefix("reward/"): int(value) for name, value in metrics.items() if _is_reason(name)}
        unequal = round(groups * (1 - metrics["groups/zero_variance"]))
        return cls(groups, unequal, int(metrics["response/boxed"]), reasons)

    def plus(self, other: SampleCounts) -> SampleCounts:
        """Return the sums of two counts."""
        names = {**self.reasons, **other.reasons}
        reasons = {name: self.reasons.get(name, 0) + other.reasons.get(name, 0) for name in names}
        sums = (self.groups + other.groups, self.unequal + other.unequal, self.boxed + other.boxed)
        return SampleCounts(*sums, reasons)

    @property
    def responses(self) -> int:
        """Return the number of responses."""
        return sum(self.reasons.values())

    @property
    def right(self) -> int:
        """Return the number of right responses."""
        return self.reasons.get("match", 0)


def _is_reason(name: str) -> bool:
    return name.startswith("reward/") and name != "reward/mean"


@dataclass(frozen=True)
class Verdict:
    """Whether a policy can learn from what it samples, with the causes seen and what may help against each."""

    learns: Literal["yes", "hardly", "no"]
    causes: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()


def judge(counts: SampleCounts, max_new_tokens: int, thinking: str) -> Verdict:
    r"""Return whether the policy can learn: `no` without a gradient, `hardly` with few, or if no response is right.

    Args:
        counts: of a sample of the policy's responses; at least one group.
        max_new_tokens: the limit at which responses were cut.
        thinking: `task.thinking`, so that the advice is another mode.

    Returns:
        The verdict. Causes that at least a tenth of the responses show are named, the most frequent first.

    Example:
        >>> judge(SampleCounts(64, 0, 0, {"unfinished": 400, "missing": 112}), 64, "tags").causes[0]
        '0 of 512 responses have a `\\boxed{…}`: the policy does not know the form of an answer'
    """
    share = counts.unequal / counts.groups
    if share >= FEW and counts.right:
        return Verdict("yes")
    named = sorted(_causes(counts, max_new_tokens, thinking), key=lambda cause: -cause[0])
    chosen = [cause for cause in named if cause[0] >= MANY * counts.responses]
    causes, advice = tuple(cause[1] for cause in chosen), tuple(cause[2] for cause in chosen)
    if share >= FEW:
        causes = ("no response is right: rewards differ by something else", *causes)
    return Verdict("hardly" if counts.unequal else "no", causes, advice)


def _causes(counts: SampleCounts, limit: int, thinking: str) -> list[tuple[int, str, str]]:
    """Return (responses that show it, cause, advice) of every possible cause."""
    total, right, unfinished = counts.responses, counts.right, counts.reasons.get("unfinished", 0)
    missing = counts.reasons.get("missing", 0) + counts.reasons.get("empty", 0)
    free = ", or count a box wherever it stands (`task.thinking: free`)" if thinking == "tags" else ""
    at_once = "" if thinking == "none" else ", or answer at once (`task.thinking: none`)"
    knows_form = counts.boxed >= FEW * total
    form = (
        missing + unfinished,
        f"{counts.boxed} of {total} responses have a `\\boxed{{…}}`: the policy does not know the form of an answer",
        f"teach the form with `rpt warmup`, begin the response with `task.prefill`, try another `task.template`{free}",
    )
    misplaced = (
        missing,
        f"{missing} of {total} box nothing, or not where a box counts",
        f"teach the form with `rpt warmup`{free}",
    )
    cut = (
        unfinished,
        f"{unfinished} of {total} were cut at {limit} tokens",
        f"raise `rollout.max_new_tokens`{at_once}",
    )
    wrong = (
        total - right - missing - unfinished,
        f"{total - right - missing - unfinished} of {total} box a wrong prediction",
        "take easier sites: a lower entropy in `sites.where`, or `rpt screen` and `sites.where: pass_rate > 0`",
    )
    alike = right < (1 - MANY) * total
    success = (
        right,
        f"{right} of {total} are right, at sites where nearly every response is",
        "sample responses that differ: raise `rollout.temperature` or `rollout.group_size`"
        if alike
        else "take harder sites: a higher entropy in `sites.where`, or `rpt screen` and `sites.where: pass_rate < 1`",
    )
    return [misplaced if knows_form else form, cut, wrong, success]
