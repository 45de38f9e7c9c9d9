"""What a selection, or a way to draw from it, is worth: policies trained at equal sampled tokens, compared over seeds.

Before it runs, a comparison says which difference it will see, by what is assumed of it. Afterwards every verdict goes
by what was measured, and a difference smaller than the comparison can see is never claimed:

- *better*, *worse*: the 95 % interval leaves out 0, and the difference is at least the smallest that is seen with the
  probability `POWER` (`Difference.detectable`);
- *as good*: the interval lies between −`see` and +`see`;
- *not told apart*: all else.

There are two verdicts: on held-out accuracy, and on the share of the sampled groups that have a gradient.

Shape names: S seeds, N sites, D documents, M points of a curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.config.selection import BandsConfig
from pipeline.core.progress import counted
from pipeline.evaluation.accuracy import band_members
from pipeline.evaluation.intervals import Difference, by_document, t_quantile, to_json_value
from pipeline.evaluation.study.multiseed import combine, difference_over_seeds, share_over_seeds
from pipeline.evaluation.study.power import MOST_SEEDS, POWER, detectable, seeds_needed
from pipeline.evaluation.study.summary import Arm, hits_of, read_responses, sites_of
from pipeline.grpo.run.metrics import read_metrics

DISAGREE = 0.25
"""Assumed before a run: share of the sites at which one of two policies is right and the other wrong."""
ALIKE = 0.1
"""Assumed before a run: correlation between two sites of a document."""
CURVE_POINTS = 21
"""Points of a learning curve, at equal numbers of sampled tokens."""

Verdict = Literal["better", "worse", "as good", "not told apart"]


@dataclass(frozen=True)
class Power:
    """What a comparison will see, by what is assumed of it."""

    seeds: int
    sites: int
    documents: int
    see: float
    """Difference that it is to see, as a share."""
    spread: float
    """Assumed standard deviation of a policy's accuracy between seeds, as a share."""
    detectable: float
    """Smallest true difference that it sees with the probability `POWER`."""
    needed: int | None
    """Fewest seeds that see `see`; None if `MOST_SEEDS` do not."""

    def says(self) -> str:
        """Return the power in a sentence."""
        return (
            f"{counted(self.seeds, 'seed')} and {counted(self.sites, 'site')} of "
            f"{counted(self.documents, 'document')} see a true difference of {100 * self.detectable:.1f} points with a "
            f"probability of {100 * POWER:.0f} % (assumed: seeds differ by {100 * self.spread:g} points, two policies "
            f"at {100 * DISAGREE:.0f} % of the sites)"
        )


def power_of(documents_N: NDArray[np.str_], seeds: int | None, *, see: float, spread: float) -> Power:
    """Return the power of a comparison of two selections before it is run.

    Args:
        documents_N: documents of the held-out sites.
        seeds: runs of each selection; None: the fewest that see `see`, or `MOST_SEEDS`.
        see: difference to see, as a share.
        spread: standard deviation of accuracy between seeds, as a share.
    """
    sites_D = by_document(np.ones(len(documents_N)), documents_N)
    sites = int(sites_D.sum())
    pairs = float((sites_D * (sites_D - 1)).sum())
    of_documents = (DISAGREE * (sites + ALIKE * pairs) / sites**2, max(1, len(sites_D) - 1))

    def with_seeds(count: int) -> tuple[float, float]:
        of_seeds = (spread**2 / count, count - 1)
        return combine([of_documents, of_seeds, of_seeds])

    needed = seeds_needed(with_seeds, see)
    taken = seeds or needed or MOST_SEEDS
    return Power(taken, sites, len(sites_D), see, spread, detectable(*with_seeds(taken)), needed)


def verdict_of(change: Difference, see: float) -> Verdict:
    """Return what a measured difference says, by the rules at the top of this page.

    Example:
        >>> def measured(value, reach, sees): return Difference(value, value - reach, value + reach, 1, 9, 9, 1, sees)
        >>> [verdict_of(measured(*of), 0.05) for of in ((0.1, 0.05, 0.07), (0.06, 0.05, 0.07), (-0.01, 0.03, 0.04))]
        ['better', 'not told apart', 'as good']
    """
    seen = change.detectable is not None and abs(change.value) >= change.detectable
    if seen and not change.low <= 0 <= change.high:
        return "better" if change.value > 0 else "worse"
    return "as good" if -see < change.low and change.high < see else "not told apart"


def summarize_worth(
    arms: Sequence[Arm], rules: Mapping[str, str], bands: BandsConfig, power: Power, band: str, tokens: int
) -> dict[str, Any]:
    """Return every figure of the report, as JSON values.

    Args:
        arms: the policy before training, and then the selections; those after the first are compared with the first.
        rules: of each selection, its expression or manifest.
        bands: thresholds in nats.
        power: as it was before the runs.
        band: whose accuracy decides.
        tokens: that each run has sampled.
    """
    responses = {arm.name: read_responses(arm.evaluation / "responses.parquet") for arm in arms}
    first, *others = rules
    base = responses[arms[0].name]
    named = base["sets"].explode().drop_nulls().to_list()
    sites = sites_of(base, "headline" if "headline" in named else "all")
    members = band_members(sites.frame["entropy"].to_list(), bands)
    hits = {name: hits_of(frame, "reasoning", sites) for name, frame in responses.items()}
    documents_N, mine_N = sites.documents_N, members[band]
    live = {arm.name: np.array([live_share(run) for run in arm.runs]) for arm in arms if arm.runs}
    comparisons = []
    for other in others:
        by_band = {
            name: difference_over_seeds(hits[other][:, own_N], hits[first][:, own_N], documents_N[own_N], aim=power.see)
            for name, own_N in members.items()
        }
        change = by_band[band]
        assert change is not None  # the plan has refused a band without sites
        found = {"selection": other, "baseline": first, "verdict": verdict_of(change, power.see)}
        told: dict[str, Any] = {"says": f"Accuracy: {sentence(other, first, change, power.see)}"}
        told["gradient"] = gradient_verdict(other, first, live, power.see)
        comparisons.append(found | told | {"bands": {name: to_json_value(own) for name, own in by_band.items()}})
    of_seeds = [float(hits[name][:, mine_N].mean(axis=1).var(ddof=1)) for name in rules]
    return {
        "selections": dict(rules),
        "band": band,
        "bands": bands.model_dump(),
        "band_sites": {name: int(own_N.sum()) for name, own_N in members.items()},
        "tokens": tokens,
        "power": asdict(power),
        "planned": power.says(),
        "spread": math.sqrt(float(np.mean(of_seeds))),
        "accuracy": {
            name: {
                band: to_json_value(share_over_seeds(hits_SN[:, own_N], documents_N[own_N]))
                for band, own_N in members.items()
            }
            for name, hits_SN in hits.items()
        },
        "comparisons": comparisons,
        "curves": {arm.name: curve_of(arm, band, tokens) for arm in arms if arm.runs},
        "sampling": sampling_of([arm for arm in arms if arm.runs], band, tokens),
    }


def gradient_verdict(
    selection: str, baseline: str, live: Mapping[str, NDArray[np.float64]], see: float
) -> dict[str, Any]:
    """Return the difference of two shares of groups with a gradient [S], its verdict, and both in words."""
    after, before = (live[name][:, None] for name in (selection, baseline))
    change = difference_over_seeds(after, before, ["all groups"], aim=see)  # only seeds vary
    assert change is not None
    says = f"Groups with a gradient: {sentence(selection, baseline, change, see)}"
    figures = {
        name: getattr(change, name) for name in ("value", "low", "high", "p_value", "detectable", "seeds_needed")
    }
    return {**figures, "verdict": verdict_of(change, see), "says": says}


def sentence(selection: str, baseline: str, change: Difference, see: float) -> str:
    """Return the verdict on a selection in words, with the interval and what the comparison sees."""
    points = f"{100 * change.value:+.1f} points [{100 * change.low:.1f}, {100 * change.high:.1f}]".replace("-", "−")
    sees = "unknown" if change.detectable is None else f"{100 * change.detectable:.1f} points"
    power = f"The smallest difference that this comparison sees is {sees}"
    match verdict_of(change, see):
        case "better" | "worse" as verdict:
            return f"`{selection}` is {verdict} than `{baseline}`: {points}. {power}."
        case "as good":
            return f"`{selection}` is as good as `{baseline}`, to within {100 * see:g} points: {points}. {power}."
    seeds = f"{change.seeds_needed} seeds" if change.seeds_needed else f"more sites, or more than {MOST_SEEDS} seeds"
    return (
        f"`{selection}` and `{baseline}` are not told apart: {points}. {power}; to see {100 * see:g} points takes "
        f"{seeds}."
    )


def curve_of(arm: Arm, band: str, tokens: int) -> list[dict[str, float]]:
    """Return accuracy during training at equal numbers of sampled tokens: means over the runs, with intervals of t.

    A run's accuracy between two of its measurements is interpolated. Every seed measures other sites.
    """
    at_M = np.linspace(0, tokens, CURVE_POINTS)
    curves_SM = np.stack([np.interp(at_M, *measured(run, band)) for run in arm.runs])
    mean_M, low_M, high_M = over_seeds(curves_SM)
    columns = zip(at_M, mean_M, np.clip(low_M, 0, 1), np.clip(high_M, 0, 1), strict=True)
    return [dict(zip(("tokens", "value", "low", "high"), map(float, row), strict=True)) for row in columns]


def sampling_of(arms: Sequence[Arm], band: str, tokens: int) -> dict[str, Any]:
    """Return what the sampled tokens of each selection came to; the first one is the baseline.

    Returns:
        By selection: `gradient`, the share of the sampled groups that have a gradient; and `to_baseline`, the share of
        `tokens` after which a run's accuracy first is the last one of the baseline's run with the same seed, which is
        measured at the same sites: `by_seed`, None where it never is, and with all seeds their mean and its interval.
        The baseline has an entry, too, because a rough curve is above its own end for a moment.
    """
    goals_S = [float(np.interp(tokens, *measured(run, band))) for run in arms[0].runs]
    found = {}
    for arm in arms:
        gradient = dict(
            zip(("value", "low", "high"), over_seeds(np.array(list(map(live_share, arm.runs)))), strict=True)
        )
        spent_S = [first_at(*measured(run, band), goal) for run, goal in zip(arm.runs, goals_S, strict=True)]
        reached_S = [spent / tokens for spent in spent_S if spent is not None and spent <= tokens]
        mean = over_seeds(np.array(reached_S)) if len(reached_S) == len(spent_S) else (None,) * 3
        by_seed = [None if spent is None or spent > tokens else spent / tokens for spent in spent_S]
        reached = dict(zip(("value", "low", "high"), mean, strict=True))
        found[arm.name] = {"gradient": gradient, "to_baseline": reached | {"by_seed": by_seed}}
    return found


def measured(run: Path, band: str) -> tuple[list[float], list[float]]:
    """Return after how many sampled tokens a run measured its accuracy by reasoning, and what it was."""
    rows = [row for row in read_metrics(run / "metrics.jsonl") if f"eval/{band}/reasoning" in row]
    return [row["compute/sampled"] for row in rows], [row[f"eval/{band}/reasoning"] for row in rows]


def live_share(run: Path) -> float:
    """Return the share of a run's sampled groups that have a gradient."""
    rows = [row for row in read_metrics(run / "metrics.jsonl") if "groups/sampled" in row]
    live = sum((1 - row["groups/zero_variance"]) * row["groups/sampled"] for row in rows)
    return live / sum(row["groups/sampled"] for row in rows)


def first_at(spent_M: Sequence[float], accuracy_M: Sequence[float], goal: float) -> float | None:
    """Return after how many tokens a curve first has an accuracy, on straight lines between its points; None if never.

    Example:
        >>> first_at([0, 100, 200], [0.0, 0.25, 0.75], 0.5), first_at([0, 100], [0.0, 0.25], 0.5)
        (150.0, None)
    """
    for m, accuracy in enumerate(accuracy_M):
        if accuracy >= goal:
            before = max(m - 1, 0)
            return float(np.interp(goal, [accuracy_M[before], accuracy], [spent_M[before], spent_M[m]]))
    return None


def over_seeds(values_SM: NDArray[np.float64]) -> tuple[Any, Any, Any]:
    """Return the means over seeds, and the ends of their 95 % intervals (Student's t)."""
    seeds = len(values_SM)
    mean_M = values_SM.mean(axis=0)
    reach_M = t_quantile(seeds - 1) * values_SM.std(axis=0, ddof=1) / math.sqrt(seeds)
    return mean_M, mean_M - reach_M, mean_M + reach_M
