"""The calibration of a run's forecasts: by hand, and of forecasts that are known to be right and to be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.foretold import BINS, calibration, forecasts_of, sentence
from pipeline.grpo.data.outcomes import GroupOutcome
from pipeline.grpo.run.run_state import RunState, outcomes_of


def test_by_hand() -> None:
    """Twenty groups with the forecasts 0.01 to 0.20 in any order, of which those from 0.11 on have a gradient."""
    order = [7, 3, 19, 0, 12, 5, 16, 1, 9, 14, 2, 18, 6, 11, 4, 17, 8, 13, 10, 15]
    known = [GroupOutcome(4 + i % 2, 0, 19 - i, i >= 10, 0.5, (i + 1) / 100) for i in order]
    found = calibration([GroupOutcome(0, 0, 99, True, 0.5), *known])  # the first was drawn without a forecast
    assert found and (found["groups"], found["first"], found["last"]) == (20, 4, 5)
    assert (found["expected"], found["observed"]["value"]) == (pytest.approx(0.105), 0.5)
    assert [each["groups"] for each in found["bins"]] == [2] * BINS
    assert [each["expected"] for each in found["bins"]] == pytest.approx([(2 * b + 1.5) / 100 for b in range(BINS)])
    assert [each["observed"]["value"] for each in found["bins"]] == [0] * 5 + [1] * 5
    # Wilson's interval of 0 of 2: up to z² / (2 + z²), which holds every forecast; of 2 of 2 none.
    assert found["bins"][0]["observed"]["high"] == pytest.approx(3.8415 / 5.8415, abs=1e-4)
    assert sentence(found) == (
        "20 groups, steps 4 to 5: 50 % had a gradient, 10 % were foretold; as foretold in 5 of 10 bins (95 % intervals)"
    )


def test_without_forecasts_there_is_nothing_to_judge(tmp_path: Path) -> None:
    assert calibration([]) is None and calibration([GroupOutcome(0, 0, 0, True, 0.5)]) is None
    assert forecasts_of(tmp_path) is None


def test_an_older_checkpoint_has_outcomes_without_forecasts() -> None:
    assert outcomes_of({"outcomes": [[3, 0, 7, True, 0.25]]}) == (GroupOutcome(3, 0, 7, True, 0.25, None),)
    assert outcomes_of({}) == ()
    outcome = GroupOutcome(3, 0, 7, True, 0.25, 0.1 + 0.2)
    assert outcomes_of(RunState(outcomes=(outcome,)).state()) == (outcome,)


@pytest.mark.parametrize(("distortion", "least", "most"), [(1.0, 8, 10), (3.0, 0, 4)])
def test_right_forecasts_agree_and_wrong_ones_do_not(distortion: float, least: int, most: int) -> None:
    """Groups whose chances are known; the wrong forecasts are their cubes."""
    rng = np.random.default_rng(0)
    chance = rng.random(4000)
    groups = [
        GroupOutcome(0, 0, row, bool(live), 0.5, float(p**distortion))
        for row, (p, live) in enumerate(zip(chance, rng.random(4000) < chance, strict=True))
    ]
    found = calibration(groups)
    assert found
    inside = [each["observed"]["low"] <= each["expected"] <= each["observed"]["high"] for each in found["bins"]]
    assert least <= sum(inside) <= most
    assert f"in {sum(inside)} of 10 bins" in sentence(found)


def test_groups_of_one_site_are_not_counted_as_independent() -> None:
    one = calibration([GroupOutcome(step, 0, 0, step < 25, 0.5, 0.5) for step in range(50)])
    many = calibration([GroupOutcome(step, 0, step, step < 25, 0.5, 0.5) for step in range(50)])
    assert one and many
    assert one["observed"]["low"] < many["observed"]["low"] < many["observed"]["high"] < one["observed"]["high"]
