"""Summarise the rollouts of a step as metrics and as a progress line. Starts without torch."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from pipeline.task.reward import REASONS
from pipeline.task.thinking import BOX, Thinking

if TYPE_CHECKING:
    from pipeline.grpo.rollout.rollouts import Rollout

Metrics = dict[str, float]
"""Measurements by name."""


@dataclass(frozen=True)
class GroupSummary:
    """The figures of one group; small, because ranks send them to each other."""

    rewards: tuple[float, ...]
    reasons: tuple[str, ...]
    tokens: int
    logprob_sum: float
    """Of all its tokens, under the distribution they were sampled from."""
    boxed: int
    r"""Responses that contain a `\boxed{`, wherever it stands."""

    @classmethod
    def of(cls, rollout: Rollout, thinking: Thinking) -> GroupSummary:
        """Summarise one group of responses in the form that `thinking` describes."""
        return cls(
            tuple(outcome.reward for outcome in rollout.outcomes),
            tuple(outcome.reason for outcome in rollout.outcomes),
            sum(len(response.ids) for response in rollout.group.responses),
            sum(sum(response.logprobs) for response in rollout.group.responses),
            sum(BOX in thinking.whole(response.text) for response in rollout.group.responses),
        )


def rollout_metrics(groups: Sequence[GroupSummary]) -> Metrics:
    """Return the metrics of the groups of a step.

    Returns:
        `reward/mean`; `reward/<reason>`, responses by reason; `groups/sampled` and the shares of them with equal
        rewards (`groups/zero_variance`), all right and all wrong; `response/length`, mean tokens; `response/boxed`,
        responses that contain a box; `policy/entropy`, nats a token at the sampling temperature, estimated without bias
        as the mean of −log p of what was sampled.
    """
    responses = sum(len(group.rewards) for group in groups)
    tokens = sum(group.tokens for group in groups)
    reasons = Counter(reason for group in groups for reason in group.reasons)
    right = [[reason == "match" for reason in group.reasons] for group in groups]
    return {
        "reward/mean": sum(sum(group.rewards) for group in groups) / responses,
        **{f"reward/{reason}": reasons[reason] for reason in REASONS},
        "groups/sampled": len(groups),
        "groups/zero_variance": sum(len(set(group.rewards)) == 1 for group in groups) / len(groups),
        "groups/all_right": sum(map(all, right)) / len(groups),
        "groups/all_wrong": sum(not any(group) for group in right) / len(groups),
        "response/length": tokens / responses,
        "response/boxed": sum(group.boxed for group in groups),
        "tokens/sampled": tokens,
        "policy/entropy": -sum(group.logprob_sum for group in groups) / tokens,
    }


def held_out_accuracy(metrics: Mapping[str, float]) -> float | None:
    """Return the held-out accuracy with reasoning in the widest band measured; None without one.

    Example:
        >>> held_out_accuracy({"loss": 0.1, "eval/easy/reasoning": 0.5, "eval/hard/reasoning": 0.25})
        0.5
    """
    bands = (metrics.get(f"eval/{band}/reasoning") for band in ("all", "easy", "medium", "hard"))
    return next((value for value in bands if value is not None), None)


class Stopwatch:
    """A stopwatch for the parts of a step and for the whole step."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._parts: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Add the time of the block to `part`."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._parts[part] = self._parts.get(part, 0.0) + time.monotonic() - begin

    def seconds(self) -> Metrics:
        """Return `seconds/<part>` for every part."""
        return {f"seconds/{part}": round(seconds, 4) for part, seconds in self._parts.items()}

    def metrics(self, tokens: float) -> Metrics:
        """Return `seconds/<part>`, `seconds/step`, and tokens per second of the step and of sampling."""
        step, sample = time.monotonic() - self._begin, self._parts.get("sample")
        return {
            **self.seconds(),
            "seconds/step": round(step, 4),
            "tokens/per_second": round(tokens / step, 1),
            **({"tokens/per_second_sampling": round(tokens / sample, 1)} if sample else {}),
        }


class ProgressLine:
    """The progress line of a run, printed at most every few seconds."""

    def __init__(self, done: int, steps: int, every: float = 5.0) -> None:
        self._first, self._steps, self._every = done, steps, every
        self._begin = self._said = time.monotonic()
        self._accuracy = ""

    def line(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Return the line after `step` updates; None if the last one was printed only just now."""
        now = time.monotonic()
        bands = {name: value for name, value in metrics.items() if name.startswith("eval/") and name.count("/") == 2}
        values = {name.split("/")[1]: value for name, value in bands.items() if name.endswith("/reasoning")}
        if values:
            self._accuracy = "held-out " + " ".join(f"{band} {value:.1%}" for band, value in values.items())
        elif now - self._said < self._every and step < self._steps:
            return None
        self._said = now
        parts = [f"step {step}/{self._steps}"]
        if "reward/mean" in metrics:
            parts += [
                f"reward {metrics['reward/mean']:.3f}",
                f"entropy {metrics['policy/entropy']:.3f}",
                f"length {metrics['response/length']:.1f}",
            ]
        elif "loss" in metrics:
            parts.append(f"loss {metrics['loss']:.3f}")
        if "tokens/per_second" in metrics:
            left = (now - self._begin) / max(step - self._first, 1) * (self._steps - step)
            parts += [f"{metrics['tokens/per_second']:,.0f} tokens/s", f"{timedelta(seconds=round(left))} left"]
        return " · ".join([*parts, self._accuracy] if self._accuracy else parts)
