"""Accuracy as a function of training compute: P(C) = A / C^α + P* (arXiv 2506.08007, section 4.2 and Figure 5).

For a given α the law is linear in A and P*, so the fit is a search over α alone: least squares on a grid, every point
with the same weight, as the paper's curve is fitted. C counts in units of the largest compute measured, so that A is
how far accuracy was from P* there (negative where it rises). An interval contains the values of a parameter at which
the sum of squares, minimised over the other parameters, is at most some factor larger than at the best fit. The factor
is found by bootstrap: in many sets of points drawn around the fitted law with the residuals' variance, the sum of
squares at the fitted value stays within the factor of the best in 95 %. Intervals may be skewed or wide because α and
P* trade off.

A fit is not yet a law: `objections` lists the reasons not to claim one.

Shape names: N points, G values of α, B bootstrap draws, M values of compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.errors import UserError
from pipeline.evaluation.intervals import CONFIDENCE, t_quantile
from pipeline.grpo.run.metrics import read_metrics

Floats = NDArray[np.float64]

ALPHAS_G: Floats = np.geomspace(0.02, 8.0, 300)
"""Exponents of the grid search, 2 % apart."""
DRAWS = 400
AHEAD = (2.0, 4.0, 10.0)
"""Extrapolation points, as multiples of the compute spent."""
PARAMETERS = 3

MIN_POINTS = 6
"""Minimum number of points, the same as in the paper's curves."""
MIN_SPAN = 4.0
"""Minimum ratio of the largest to the smallest compute."""
MIN_R2 = 0.9
_NO_SPREAD = 1e-12
MAX_PLATEAU_WIDTH = 0.5
"""Width of the interval of P* above which the plateau counts as not determined."""


@dataclass(frozen=True)
class Parameter:
    """Fitted parameter with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Law:
    """Fitted law P(C) = A / (C / unit)^α + P*."""

    unit: float
    """Largest compute of the points, FLOPs."""
    amplitude: Parameter
    """Amplitude A."""
    alpha: Parameter
    plateau: Parameter
    """Plateau P*: the limit of accuracy for large compute."""
    r2: float
    points: int
    smallest: float
    """Smallest compute of the points, FLOPs."""
    draws_B3: Floats
    """Parameters (A, α, P*) of the bootstrap draws."""

    def at(self, compute_M: Sequence[float] | Floats) -> list[Parameter]:
        """Return accuracy at M values of compute; the percentile intervals are those of the law, not of a new point."""
        relative_M = np.asarray(compute_M, dtype=np.float64) / self.unit
        own = np.array([[self.amplitude.value, self.alpha.value, self.plateau.value]])
        value_M, drawn_BM = _predict(own, relative_M)[0], _predict(self.draws_B3, relative_M)
        low_M, high_M = np.quantile(drawn_BM, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
        return [Parameter(*map(float, row)) for row in zip(value_M, low_M, high_M, strict=True)]


def fit_law(compute_N: Sequence[float], accuracy_N: Sequence[float], *, seed: int = 0) -> Law:
    """Fit the law to the points with positive compute; the untrained policy has none and is left out.

    Args:
        compute_N: FLOPs spent on training.
        accuracy_N: Accuracies as fractions.
        seed: Seed of the bootstrap.

    Raises:
        UserError: There are fewer than four different computes, which three parameters always fit.
    """
    kept = [(c, p) for c, p in zip(compute_N, accuracy_N, strict=True) if c > 0]
    if len({c for c, _ in kept}) <= PARAMETERS:
        raise UserError(
            f"{len(kept)} points for a law with {PARAMETERS} parameters",
            hint="measure accuracy more often (`budget.evaluate_every`)",
        )
    compute, accuracy = np.array(kept).T
    unit, points = float(compute.max()), len(kept)
    curves = _Curves(compute / unit)
    best = curves.fit(accuracy[None])
    fitted_N = _predict(best.law_B3, compute / unit)[0]
    residual, spread = float(best.squares_BG.min()), float(((accuracy - accuracy.mean()) ** 2).sum())
    noise = np.random.default_rng(seed).standard_normal((DRAWS, points))
    # Parametric bootstrap: refit points scattered around the law with the variance of the residuals.
    drawn = curves.fit(fitted_N + noise * np.sqrt(residual / (points - PARAMETERS)))
    amplitude, alpha, plateau = curves.intervals(best, drawn)
    r2 = 1 - residual / spread if spread > _NO_SPREAD else 0.0
    return Law(unit, amplitude, alpha, plateau, r2, points, float(compute.min()), drawn.law_B3)


def objections(law: Law) -> list[str]:
    """Return the reasons not to claim a law of this form; empty if there are none.

    The reasons are too few points, too small a range of compute, a bad fit, accuracy that does not rise, and an
    exponent or plateau that the data do not determine.
    """
    found = []
    if law.points < MIN_POINTS:
        found.append(f"{law.points} points, at least {MIN_POINTS} are needed")
    if law.unit < MIN_SPAN * law.smallest:
        found.append(f"compute spans a factor of {law.unit / law.smallest:.1f}, at least {MIN_SPAN:g} is needed")
    if law.r2 < MIN_R2:
        found.append(f"R² is {law.r2:.3f}, at least {MIN_R2} is needed")
    if law.amplitude.value >= 0:
        found.append("accuracy does not rise with compute")
    if law.alpha.low <= ALPHAS_G[0] or law.alpha.high >= ALPHAS_G[-1]:
        found.append(f"α is not determined: its interval is [{law.alpha.low:.2f}, {law.alpha.high:.2f}]")
    if law.plateau.high - law.plateau.low > MAX_PLATEAU_WIDTH or law.plateau.low > 1:
        found.append(f"P* is not determined: its interval is [{law.plateau.low:.2f}, {law.plateau.high:.2f}]")
    return found


def scaling_of(metrics: Sequence[Path], bands: Sequence[str]) -> dict[str, Any]:
    """Return accuracy over compute during training and the fitted law, by band, as JSON values.

    Args:
        metrics: `metrics.jsonl` of runs that differ in their seeds; the law is fitted to means over them.
        bands: Bands to fit.
    """
    rows = [[row for row in read_metrics(path) if "compute/flops" in row] for path in metrics]
    found: dict[str, Any] = {}
    for band in bands:
        key = f"eval/{band}/reasoning"
        series = [{row["step"]: (row["compute/flops"], row[key]) for row in own if key in row} for own in rows]
        steps = sorted(set.intersection(*map(set, series))) if series else []
        points = [[float(np.mean([s[step][i] for s in series])) for i in (0, 1)] for step in steps]
        found[band] = {"steps": steps, "points": points, "law": None, "objections": []}
        try:
            law = fit_law([c for c, _ in points], [p for _, p in points])
        except UserError as error:
            found[band]["objections"] = [error.message]
            continue
        found[band]["objections"] = objections(law)
        found[band]["law"] = {
            **{name: asdict(getattr(law, name)) for name in ("amplitude", "alpha", "plateau")},
            "unit": law.unit,
            "r2": law.r2,
            "ahead": {
                f"{times:g}": asdict(at) for times, at in zip(AHEAD, law.at([t * law.unit for t in AHEAD]), strict=True)
            },
        }
    return found


def _predict(law_B3: Floats, relative_M: Floats) -> Floats:
    """Return the accuracy [B, M] of B laws at M values of compute, given in the laws' unit."""
    amplitude_B1, alpha_B1, plateau_B1 = law_B3.T[:, :, None]
    return amplitude_B1 * relative_M**-alpha_B1 + plateau_B1


@dataclass(frozen=True)
class _Fits:
    """Least-squares fits of B sets of points, for every α of the grid."""

    amplitude_BG: Floats
    plateau_BG: Floats
    squares_BG: Floats
    """Sums of squared residuals."""

    @property
    def law_B3(self) -> Floats:
        """Return (A, α, P*) at the smallest sum of squares of each set."""
        rows, best = np.arange(len(self.squares_BG)), self.squares_BG.argmin(axis=1)
        return np.stack([self.amplitude_BG[rows, best], ALPHAS_G[best], self.plateau_BG[rows, best]], axis=1)


class _Curves:
    """The curves C^−α for all α at N values of compute, and linear least squares with each of them."""

    def __init__(self, relative_N: Floats) -> None:
        power_GN = relative_N ** -ALPHAS_G[:, None]
        self._mean_G = power_GN.mean(axis=1)
        self._centred_GN = power_GN - self._mean_G[:, None]
        self._square_G = (self._centred_GN**2).sum(axis=1)
        self._points = len(relative_N)

    def fit(self, accuracy_BN: Floats) -> _Fits:
        """Fit A and P* for every α."""
        mean_B1 = accuracy_BN.mean(axis=1, keepdims=True)
        amplitude_BG = (accuracy_BN - mean_B1) @ self._centred_GN.T / self._square_G
        squares_BG = ((accuracy_BN - mean_B1) ** 2).sum(axis=1, keepdims=True) - amplitude_BG**2 * self._square_G
        return _Fits(amplitude_BG, mean_B1 - amplitude_BG * self._mean_G, squares_BG.clip(1e-18))

    def _max_factor(self, factor_B: Floats) -> float:
        """Return the factor that 95 % of the draws stay within, but at least F's, exact for a linear parameter."""
        freedom = self._points - PARAMETERS
        return float(max(np.quantile(factor_B, CONFIDENCE), 1 + t_quantile(freedom) ** 2 / freedom))

    def intervals(self, best: _Fits, drawn: _Fits) -> tuple[Parameter, Parameter, Parameter]:
        """Return A, α and P* with the intervals in which the sum of squares is within the factor given by the draws."""
        own, least = best.law_B3[0], best.squares_BG.min()
        smallest_B = drawn.squares_BG.min(axis=1)
        allowed = self._max_factor(drawn.squares_BG[:, best.squares_BG[0].argmin()] / smallest_B) * least
        within_G = best.squares_BG[0] <= allowed
        first, last = np.flatnonzero(within_G)[[0, -1]] + (-1, 1)  # the edges lie between points of the grid
        low, high = ALPHAS_G[[max(first, 0), min(last, len(ALPHAS_G) - 1)]]
        found = [Parameter(float(own[1]), float(low), float(high))]
        # Besides α, the sum of squares is a parabola in A, and in P*, of these curvatures.
        curvatures = (self._square_G, 1 / (1 / self._points + self._mean_G**2 / self._square_G))
        for value, own_G, drawn_BG, bend_G in zip(
            own[::2], (best.amplitude_BG[0], best.plateau_BG[0]), (drawn.amplitude_BG, drawn.plateau_BG), curvatures,
            strict=True,
        ):  # fmt: skip
            forced_B = (drawn.squares_BG + bend_G * (drawn_BG - value) ** 2).min(axis=1)
            allowed = self._max_factor(forced_B / smallest_B) * least
            within_G = best.squares_BG[0] <= allowed
            reach_G = np.sqrt((allowed - best.squares_BG[0][within_G]) / bend_G[within_G])
            low, high = (own_G[within_G] - reach_G).min(), (own_G[within_G] + reach_G).max()
            found.append(Parameter(float(value), float(low), float(high)))
        alpha, amplitude, plateau = found
        return amplitude, alpha, plateau
