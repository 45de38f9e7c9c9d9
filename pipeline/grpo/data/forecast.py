"""Foretell which sites' groups will have a gradient: a logistic regression on the run's own outcomes.

It reads two things of a site: its own numbers (`site_features.NUMBERS`), and how the groups of sites like it came out
so far, newer ones counting more. The policy drifts, so it is fitted anew for every step: a fraction of a second,
against the seconds or minutes in which the step samples. Logistic regression is calibrated by construction: over what
it was fitted to, the mean prediction is the weighted share that had a gradient.

Shape names: N groups with known outcomes, M sites that are asked about, S = N + M, F numbers, K kinds of likeness.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from pipeline.grpo.data.outcomes import Outcomes
from pipeline.grpo.data.site_features import SiteFeatures

HALF_LIFE = 5.0
"""Steps after which an outcome counts half."""
PRIOR = 2.0
"""Weight of the rate over all groups in the rate of a kind of site, in groups: a kind seen once is not trusted."""
LEAST = 10
"""Groups with a gradient, and groups without one, that must be known before anything is foretold."""


class Rates:
    """Rates of the outcomes so far, over all groups and by likeness, weighted by 2^(−age / `HALF_LIFE`)."""

    def __init__(self, alike_SK: NDArray[np.int64]) -> None:
        """`alike_SK` has, for each kind of likeness, a number from 0 on that sites which are alike share."""
        self._alike_SK = alike_SK
        self._all, self._by_kind = np.zeros(3), [np.zeros((size, 3)) for size in alike_SK.max(axis=0) + 1]

    def add(self, sites_N: NDArray[np.int64], live_N: NDArray[np.bool_], right_N: NDArray[np.float64]) -> None:
        """Count the outcomes of a step."""
        counts_N3 = np.stack([np.ones(len(sites_N)), live_N, right_N], axis=1)
        self._all += counts_N3.sum(axis=0)
        for kind, sums in enumerate(self._by_kind):
            np.add.at(sums, self._alike_SK[sites_N, kind], counts_N3)

    def age(self, steps: int) -> None:
        """Let all that was counted grow older."""
        self._all *= 0.5 ** (steps / HALF_LIFE)
        for sums in self._by_kind:
            sums *= 0.5 ** (steps / HALF_LIFE)

    def of(self, sites_N: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return [N, 3K], for each kind of likeness: log-odds of a gradient, share of right responses, log of weight.

        Both rates are drawn towards the rate over all groups, as if `PRIOR` groups more had come out like that.
        """
        total, live, right = self._all
        everywhere = (live + 1) / (total + 2), (right + 1) / (total + 2)
        columns = []
        for kind, sums in enumerate(self._by_kind):
            weight_N, live_N, right_N = sums[self._alike_SK[sites_N, kind]].T
            gradient_N, correct_N = (
                (sum_N + PRIOR * rate) / (weight_N + PRIOR)
                for sum_N, rate in zip((live_N, right_N), everywhere, strict=True)
            )
            columns += [np.log(gradient_N / (1 - gradient_N)), correct_N, np.log1p(weight_N)]
        return np.stack(columns, axis=1)


def enough(outcomes: Outcomes) -> bool:
    """Return True if `LEAST` groups with a gradient and as many without one are known."""
    live = sum(outcome.live for outcome in outcomes)
    return min(live, len(outcomes) - live) >= LEAST


def foretell(
    outcomes: Outcomes, seen_N: Sequence[SiteFeatures], asked_M: Sequence[SiteFeatures], step: int
) -> NDArray[np.float64]:
    """Return the probability [M] that a group has a gradient, by a model that is fitted to the outcomes so far.

    Each outcome is an example with the rates that were known before its step, so that the model learns what such rates
    are worth.

    Args:
        outcomes: of earlier steps, `enough` of them.
        seen_N: features of their sites.
        asked_M: features of the sites that are asked about.
        step: the step that is foretold.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    sites = [*seen_N, *asked_M]
    numbers_SF, rates = np.array([site.numbers for site in sites]), Rates(_codes([site.alike for site in sites]))
    step_N, live_N, right_N = (
        np.array([getattr(outcome, name) for outcome in outcomes]) for name in ("step", "live", "right")
    )
    inputs, now = [], outcomes[0].step
    for at in np.unique(step_N).tolist():
        rates.age(at - now)
        of_step, now = np.flatnonzero(step_N == at), at
        inputs.append(np.concatenate([numbers_SF[of_step], rates.of(of_step)], axis=1))
        rates.add(of_step, live_N[of_step], right_N[of_step])
    rates.age(step - now)
    asked = np.arange(len(outcomes), len(sites))
    weight_N = 0.5 ** ((step - step_N) / HALF_LIFE)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    with _one_thread():
        model.fit(np.concatenate(inputs), live_N, logisticregression__sample_weight=weight_N)
        known_M = np.concatenate([numbers_SF[asked], rates.of(asked)], axis=1)
        found: NDArray[np.float64] = model.predict_proba(known_M)[:, 1]
    return found


def _codes(alike: Sequence[tuple[object, ...]]) -> NDArray[np.int64]:
    """Return [S, K] a number for each value, from 0 on, the same for equal values of a kind.

    Example:
        >>> _codes([("a", 1), ("b", 1), ("a", 2)]).tolist()
        [[0, 0], [1, 0], [0, 1]]
    """
    kinds: list[dict[object, int]] = [{} for _ in alike[0]]
    pairs = (zip(kinds, values, strict=True) for values in alike)
    return np.array([[codes.setdefault(value, len(codes)) for codes, value in of_site] for of_site in pairs])


def _one_thread() -> AbstractContextManager[object]:
    """Return a context in which BLAS has one thread: how it rounds must not depend on how many the process has."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[object] = threadpool_limits(1)
    return limits


def calibration(
    foretold_N: NDArray[np.float64], live_N: NDArray[np.bool_], importance_N: NDArray[np.float64]
) -> dict[str, float]:
    """Return how forecasts compare with what came of them; the model had not seen these groups.

    Args:
        foretold_N: probability of a gradient that was foretold for each group.
        live_N: whether it has one.
        importance_N: how much more often its site is drawn than by uniform drawing.

    Returns:
        `foretold/expected`, the mean forecast, and `foretold/observed`, the share with a gradient; `foretold/brier`,
        the mean squared error; `foretold/auc`, the probability that a group with a gradient had a higher forecast than
        one without, if there are both; `foretold/uniform`, the share that uniform drawing would have had, estimated
        without bias from these groups (Horvitz and Thompson, 1952).

    Example:
        >>> one = np.ones(2)
        >>> calibration(np.array([0.75, 0.25]), np.array([True, False]), one)["foretold/brier"]
        0.0625
    """
    metrics = {
        "foretold/expected": float(foretold_N.mean()),
        "foretold/observed": float(live_N.mean()),
        "foretold/brier": float(((foretold_N - live_N) ** 2).mean()),
        "foretold/uniform": float((live_N / importance_N).mean()),
    }
    if live_N.any() and not live_N.all():
        from sklearn.metrics import roc_auc_score

        metrics["foretold/auc"] = float(roc_auc_score(live_N, foretold_N))
    return metrics
