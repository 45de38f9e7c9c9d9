"""Summarise the rollouts of a step as metrics and as a progress line. Starts without torch."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    at_once: int
    """Responses without a thought."""

    @classmethod
    def of(cls, rollout: Rollout, thinking: Thinking) -> GroupSummary:
        """Summarise one group of responses in the form that `thinking` describes."""
        return cls(
            tuple(outcome.reward for outcome in rollout.outcomes),
            tuple(outcome.reason for outcome in rollout.outcomes),
            sum(len(response.ids) for response in rollout.group.responses),
            sum(sum(response.logprobs) for response in rollout.group.responses),
            sum(BOX in thinking.whole(response.text) for response in rollout.group.responses),
            sum(thinking.at_once(response.text) for response in rollout.group.responses),
        )


def rollout_metrics(groups: Sequence[GroupSummary]) -> Metrics:
    """Return the metrics of the groups of a step.

    Returns:
        `reward/mean`; `reward/<reason>`, responses by reason; `groups/sampled` and the shares of them with equal
        rewards (`groups/zero_variance`), all right and all wrong; `response/length`, mean tokens; `response/boxed`,
        responses that contain a box; `response/at_once`, responses without a thought; `policy/entropy`, nats a token at
        the sampling temperature, estimated without bias as the mean of −log p of what was sampled.
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
        "response/at_once": sum(group.at_once for group in groups),
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
    """The progress of a run on the terminal: a line now and then, and one for every measured accuracy.

    A line is due if the last one is `EVERY` seconds old, and a tenth of the steps or `LONGEST` seconds have passed.

        step 20/60  reward 0.312  70 % taught  grad 0.42  entropy 0.61  22 tokens  3.9 s/step  3 min left
        step 20/60  held-out accuracy by reasoning: easy 25.3 %, medium 56.7 %, hard 56.8 %

    `taught` are the groups of responses with unequal rewards, which alone have a gradient; `grad` is the gradient's
    norm before it is clipped, `entropy` the policy's in nats a token, `tokens` the mean length of a response.
    """

    EVERY, LONGEST, LINES = 5.0, 60.0, 10

    def __init__(self, done: int, steps: int) -> None:
        self._first, self._steps, self._said_step = done, steps, done
        self._begin = self._said = time.monotonic()

    def lines(self, step: int, metrics: Mapping[str, float], now: float | None = None) -> list[str]:
        """Return the lines after `step` updates, often none.

        Args:
            step: number of updates.
            metrics: what the step, and an evaluation after it, measured; accuracy is told only where it was measured.
            now: seconds on the clock of `time.monotonic`; by default the current ones.
        """
        now = time.monotonic() if now is None else now
        title = f"step {step:>{len(str(self._steps))}}/{self._steps}"
        told = (
            [f"{title}  {words}"] if self._is_due(step, now) and (words := self._training(step, metrics, now)) else []
        )
        if told:
            self._said, self._said_step = now, step
        bands = {name: band for name in metrics if (band := _band(name))}
        if bands:
            values = ", ".join(f"{band} {100 * metrics[name]:.1f} %" for name, band in bands.items())
            told.append(f"{title}  held-out accuracy by reasoning: {values}")
        return told

    def _is_due(self, step: int, now: float) -> bool:
        if step in (self._first + 1, self._steps):
            return True
        seconds = now - self._said
        enough = step - self._said_step >= self._steps / self.LINES
        return seconds >= self.LONGEST or (seconds >= self.EVERY and enough)

    def _training(self, step: int, metrics: Mapping[str, float], now: float) -> str:
        """Return what is known of the step itself; nothing before the first."""
        parts = []
        if "reward/mean" in metrics:
            parts += [
                f"reward {metrics['reward/mean']:.3f}",
                f"{100 * (1 - metrics['groups/zero_variance']):.0f} % taught",
            ]
            if "foretold/expected" in metrics:
                observed, expected = metrics["foretold/observed"], metrics["foretold/expected"]
                parts.append(f"with a gradient {100 * observed:.0f} % (foretold {100 * expected:.0f} %)")
        elif "loss" in metrics:
            parts.append(f"loss {metrics['loss']:.3f}")
        if "grad_norm" in metrics:
            parts.append(f"grad {metrics['grad_norm']:.2f}")
        if "reward/mean" in metrics:
            parts += [f"entropy {metrics['policy/entropy']:.2f}", f"{metrics['response/length']:.0f} tokens"]
        if "seconds/step" in metrics:
            left = (now - self._begin) / max(step - self._first, 1) * (self._steps - step)
            parts += [f"{metrics['seconds/step']:.1f} s/step", f"{_roughly(left)} left"]
        return "  ".join(parts)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's `metrics.jsonl`, without an unfinished last line (of a killed run)."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line.strip()]


def ending_lines(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Return what a run has changed, in words: the reward of its first and last step, held-out accuracy likewise.

    Args:
        rows: the lines of `metrics.jsonl`, in their order.

    Example:
        >>> ending_lines([{"step": 0, "eval/hard/reasoning": 0.02}, {"step": 9, "eval/hard/reasoning": 0.531}])
        ['held-out accuracy: hard 2.0 → 53.1 %']
    """
    lines = []
    rewards = [row["reward/mean"] for row in rows if "reward/mean" in row]
    if rewards:
        lines.append(f"reward {rewards[0]:.3f} → {rewards[-1]:.3f} in {rows[-1]['step']:.0f} steps")
    measured = [row for row in rows if any(_band(name) for name in row)]
    if measured:
        first, last = measured[0], measured[-1]
        changes = [
            f"{band} {100 * first[name]:.1f} → {100 * last[name]:.1f} %"
            for name in last
            if (band := _band(name)) and name in first
        ]
        lines.append(f"held-out accuracy: {', '.join(changes)}")
    return lines


def _band(name: str) -> str:
    """Return the band whose accuracy by reasoning a metric is; empty if it is another metric."""
    parts = name.split("/")
    return parts[1] if len(parts) == 3 and (parts[0], parts[2]) == ("eval", "reasoning") else ""


def _roughly(seconds: float) -> str:
    """Return a duration in one unit.

    Example:
        >>> _roughly(42), _roughly(160), _roughly(7_500), _roughly(200_000)
        ('42 s', '3 min', '2.1 h', '2.3 d')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86_400:.1f} d"
