"""The charts of the Run tab: which metrics each has, in which unit, and what it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.audit.board.curves import Curves
from pipeline.audit.board.downsample import Floats, extremes, means
from pipeline.selection.sites import BANDS
from pipeline.task.reward import REASONS

DIGITS = 5
"""Significant digits of a number that is sent to a page."""


@dataclass(frozen=True)
class Curve:
    """A curve of a chart."""

    label: str
    metric: str
    low: str | None = None
    """Metric of the lower end of its interval."""
    high: str | None = None
    band: str | None = None
    """Difficulty band whose direct accuracy is drawn as a level line."""


@dataclass(frozen=True)
class Panel:
    """A chart."""

    key: str
    title: str
    unit: str
    """`share` (drawn in percent), or what follows the numbers."""
    note: str
    """What is shown, in a sentence."""
    curves: Sequence[Curve]
    stacked: bool = False


def _accuracy(band: str) -> Curve:
    name = f"eval/{band}/reasoning"
    return Curve(band, name, f"{name}_low", f"{name}_high", band)


OUTCOMES = tuple(Curve(reason.replace("_", " "), f"share/{reason}") for reason in REASONS)

PANELS = (
    Panel("reward", "Reward", "", "Mean reward of a step's responses.", [Curve("reward", "reward/mean")]),
    Panel(
        "accuracy",
        "Held-out accuracy",
        "share",
        "With reasoning, by difficulty band, with 95 % intervals. Dotted lines: direct prediction before training.",
        [_accuracy(band) for band in ("all", *BANDS)],
    ),
    Panel("outcomes", "Outcomes", "share", "Responses by outcome.", OUTCOMES, stacked=True),
    Panel("entropy", "Policy entropy", "nats", "Per sampled token.", [Curve("entropy", "policy/entropy")]),
    Panel("length", "Response length", "tokens", "Mean of a step's responses.", [Curve("length", "response/length")]),
    Panel("truncated", "Truncated", "share", "Responses cut at the limit of tokens.",
          [Curve("unfinished", "share/unfinished")]),
    Panel("groups", "Groups", "share", "Only groups of unequal rewards have a gradient.",
          [Curve("with a gradient", "share/gradient"), Curve("all right", "groups/all_right"),
           Curve("all wrong", "groups/all_wrong")]),
    Panel("foretold", "Forecasts", "share", "Groups with a gradient: as foretold, as it came, and for uniform drawing.",
          [Curve("foretold", "foretold/expected"), Curve("came true", "foretold/observed"),
           Curve("uniform drawing", "foretold/uniform")]),
    Panel("loss", "Loss", "", "The objective; with one on-policy update near 0. Watch the reward.",
          [Curve("loss", "loss"), Curve("held-out next token", "eval/next_token_loss")]),
    Panel("grad_norm", "Gradient norm", "", "Before clipping.", [Curve("gradient norm", "grad_norm")]),
    Panel("kl", "KL", "nats", "From the policy before training, per token.", [Curve("KL", "loss/kl")]),
    Panel("gap", "Sampler gap", "nats", "Trainer and sampler: mean difference of log-probabilities.",
          [Curve("gap", "sampler/logprob_gap")]),
    Panel("lr", "Learning rate", "", "Of all updates of a step.", [Curve("learning rate", "lr")]),
    Panel("throughput", "Throughput", "tokens/s", "Sampled tokens, over the whole step and over sampling alone.",
          [Curve("step", "tokens/per_second"), Curve("sampling", "tokens/per_second_sampling")]),
    Panel("seconds", "Seconds of a step", "s", "Where the time goes.",
          [Curve("sample", "seconds/sample"), Curve("score", "seconds/score"), Curve("update", "seconds/update"),
           Curve("hand-over", "seconds/sync")], stacked=True),
    Panel("memory", "Memory", "GiB", "Peak of the first rank so far.",
          [Curve("device", "memory/device"), Curve("host", "memory/host")]),
)  # fmt: skip
"""In the order of the page. A chart without measurements is left out, and so is a stacked curve that is always 0."""


def drawn(panel: Panel, curves: Curves, direct: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the curves of a chart as JSON values, with at most `POINTS` points each.

    Args:
        panel: The chart.
        curves: The metrics of a run.
        direct: Direct accuracy of the policy before training, by band.

    Returns:
        By curve: `label`, `slot` (its place in the panel, which decides its colour), `x`, `y`, `low`, `high` (null
        without an interval), `level` (the direct baseline or null), and `last`, the newest value.
    """
    if panel.stacked:
        return _stacked(panel, curves)
    found = []
    for slot, curve in enumerate(panel.curves):
        step_N, value_N = curves.of(curve.metric)
        if not len(step_N):
            continue
        chosen = extremes(value_N)
        found.append(
            {
                "label": curve.label,
                "slot": slot,
                "x": step_N[chosen].astype(int).tolist(),
                "y": _rounded(value_N[chosen]),
                "low": _at(curves, curve.low, step_N[chosen]),
                "high": _at(curves, curve.high, step_N[chosen]),
                "level": direct.get(curve.band) if curve.band else None,
                "last": _rounded(value_N[-1:])[0],
            }
        )
    return found


def _stacked(panel: Panel, curves: Curves) -> list[dict[str, Any]]:
    step_N, values = curves.together(curve.metric for curve in panel.curves)
    x = means(step_N).round().astype(int).tolist()
    return [
        {
            "label": curve.label,
            "slot": slot,
            "x": x,
            "y": _rounded(means(values[curve.metric])),
            "low": None,
            "high": None,
            "level": None,
            "last": _rounded(values[curve.metric][-1:])[0],
        }
        for slot, curve in enumerate(panel.curves)
        if values[curve.metric].any()
    ]


def _at(curves: Curves, metric: str | None, steps: Floats) -> list[float | None] | None:
    """Return the values of a metric at some steps, null where it was not measured; None without a metric."""
    if metric is None:
        return None
    known = dict(zip(*(values.tolist() for values in curves.of(metric)), strict=True))
    return [_significant(known[step]) if step in known else None for step in steps.tolist()]


def _rounded(values: Floats) -> list[float]:
    return [_significant(value) for value in values.tolist()]


def _significant(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
