"""How a run's forecasts came true: the probability that a group has a gradient, and the share that had one.

A forecast is made before its group is sampled, so the model that makes it has not seen that group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation.intervals import proportion
from pipeline.grpo.data.outcomes import GroupOutcome
from pipeline.grpo.run.run_folder import latest_checkpoint, read_state
from pipeline.grpo.run.run_state import outcomes_of

BINS = 10
"""Bins of equally many groups, by rising forecast."""


def forecasts_of(run: Path) -> dict[str, Any] | None:
    """Return `calibration` of the newest groups of a run, as its last checkpoint has them; None if it has none.

    Raises:
        IntegrityError: the checkpoint is damaged.
    """
    checkpoint = latest_checkpoint(run)
    return calibration(outcomes_of(read_state(checkpoint))) if checkpoint else None


def calibration(outcomes: Sequence[GroupOutcome]) -> dict[str, Any] | None:
    """Return how the forecasts among some outcomes came true, as JSON values; None if nothing was foretold.

    Returns:
        `groups`, the steps from `first` to `last` that sampled them, `expected`, the mean forecast, `observed`, the
        share with a gradient; and `bins`, each with `expected`, `observed` and `groups`. An observed share is an
        `Estimate`, whose interval is clustered by site.
    """
    known = sorted((o for o in outcomes if o.foretold is not None), key=lambda outcome: outcome.foretold or 0.0)
    if not known:
        return None
    parts = [part for part in np.array_split(np.arange(len(known)), BINS) if len(part)]
    steps = [outcome.step for outcome in known]
    return {
        **_compared(known),
        "first": min(steps),
        "last": max(steps),
        "bins": [_compared([known[i] for i in part]) for part in parts],
    }


def _compared(groups: Sequence[GroupOutcome]) -> dict[str, Any]:
    live_N = np.array([outcome.live for outcome in groups])
    found = proportion(live_N, [f"{outcome.phase} {outcome.row}" for outcome in groups])
    assert found is not None  # there is a group
    expected = float(np.mean([outcome.foretold for outcome in groups]))
    observed = {name: value for name, value in asdict(found).items() if name in ("value", "low", "high")}
    return {"groups": len(groups), "expected": expected, "observed": observed}


def sentence(found: Mapping[str, Any]) -> str:
    """Return the result of `calibration` in a line.

    Example:
        >>> part = {"groups": 200, "expected": 0.6, "observed": {"value": 0.62, "low": 0.55, "high": 0.68}}
        >>> sentence(part | {"first": 4, "last": 9, "bins": [part, part | {"expected": 0.7}]})
        '200 groups, steps 4 to 9: 62 % had a gradient, 60 % were foretold; as foretold in 1 of 2 bins (95 % intervals)'
    """
    inside = sum(each["observed"]["low"] <= each["expected"] <= each["observed"]["high"] for each in found["bins"])
    return (
        f"{found['groups']:,} groups, steps {found['first']} to {found['last']}: "
        f"{100 * found['observed']['value']:.0f} % had a gradient, {100 * found['expected']:.0f} % were foretold; "
        f"as foretold in {inside} of {len(found['bins'])} bins (95 % intervals)"
    )
