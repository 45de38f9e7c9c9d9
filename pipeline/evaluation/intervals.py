"""Shares of hits with 95 % intervals clustered by document, and paired differences of two shares.

Sites of one document share its text, so their hits are correlated: intervals that count sites as independent are
too narrow. Here the document is the unit of sampling: the cluster-robust variance of hits/sites gives a design
effect, which turns the number of sites into an effective number for Wilson's interval (Korn &
Graubard 1998, Survey Methodology 24:193). Differences of two readings of the same sites combine the two intervals
with the clustered correlation between the readings (Newcombe 1998, Statistics in Medicine 17:2635, method 10); their
p-values are those of an exact sign-flip test over documents.

Shape names: N sites, D documents. Shares are fractions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)


@dataclass(frozen=True)
class Estimate:
    """Share of hits with its interval."""

    value: float
    low: float
    high: float
    sites: int
    documents: int

    def overlaps(self, other: Estimate) -> bool:
        """Return True if the two intervals share a point."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Difference:
    """Share of hits of one reading minus that of another on the same sites."""

    value: float
    low: float
    high: float
    standard_error: float | None
    """Cluster-robust standard error; None with a single document, from which it cannot be estimated."""
    sites: int
    documents: int
    p_value: float
    """Two-sided p-value of the hypothesis that there is no difference."""
    detectable: float | None = None
    """Over seeds: the smallest true difference that is seen with the probability `power.POWER`; None if unknown."""
    seeds_needed: int | None = None
    """Over seeds: how many see the difference asked for (`power.AIM`) at as many documents; None if no number does."""


def to_json_value(estimate: Estimate | Difference | None) -> dict[str, Any] | None:
    """Return an estimate as a JSON object; None without one."""
    return None if estimate is None else asdict(estimate)


def proportion(
    hits_N: NDArray[np.bool_] | NDArray[np.float64], documents_N: Sequence[str] | NDArray[np.str_]
) -> Estimate | None:
    """Return the share of hits with its interval; None without sites.

    A site may count as a fraction of a hit (`samples.py`). With one site per document this is Wilson's interval. Where
    the design effect cannot be estimated (every site is a hit, none is, or there is a single document) each document
    counts as one observation. Negative correlation within documents, mostly chance, never makes the interval narrower
    than Wilson's.

    Example:
        >>> estimate = proportion(np.array([True] * 8 + [False] * 2), [f"document {i}" for i in range(10)])
        >>> f"{estimate.value:.2f} in [{estimate.low:.4f}, {estimate.high:.4f}]"
        '0.80 in [0.4902, 0.9433]'
    """
    if len(hits_N) == 0:
        return None
    mean, errors_D = _mean_and_errors(hits_N, documents_N)
    low, high = _wilson(mean, _effective_sites(mean, errors_D, len(hits_N)))
    return Estimate(mean, low, high, len(hits_N), len(errors_D))


def difference(
    after_N: NDArray[np.bool_], before_N: NDArray[np.bool_], documents_N: Sequence[str] | NDArray[np.str_]
) -> Difference | None:
    """Return the share of hits of `after` minus that of `before` on the same sites, paired; None without sites.

    Args:
        after_N: Hits of one reading.
        before_N: Hits of the other, in the same order.
        documents_N: The sites' documents.
    """
    after, before = proportion(after_N, documents_N), proportion(before_N, documents_N)
    if after is None or before is None:
        return None
    _, after_D = _mean_and_errors(after_N, documents_N)
    _, before_D = _mean_and_errors(before_N, documents_N)
    gains_D = by_document(after_N.astype(np.int64) - before_N.astype(np.int64), documents_N)
    # Paired readings are usually correlated, which makes the interval of their difference narrower.
    scale = math.sqrt(float(after_D @ after_D) * float(before_D @ before_D))
    correlation = float(after_D @ before_D) / scale if scale > 0 else 0.0

    def distance(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * correlation * a * b + b * b))

    value = after.value - before.value
    return Difference(
        value,
        value - distance(after.value - after.low, before.high - before.value),
        value + distance(after.high - after.value, before.value - before.low),
        math.sqrt(_variance(after_D - before_D, after.sites)) if after.documents > 1 else None,
        after.sites,
        after.documents,
        sign_flip_test(np.rint(gains_D).astype(np.int64)),
    )


def sign_flip_test(gains_D: NDArray[np.int64]) -> float:
    """Return the exact two-sided p-value of the gains under the hypothesis that gains and losses are equally likely.

    Every document's gain (hits of one reading minus those of the other) takes either sign with probability ½; the
    p-value is the chance of a sum at least as far from 0 as the observed one. With one site per document
    this is McNemar's exact test.

    Example:
        >>> sign_flip_test(np.array([1, 1, 1, 1, 0])), sign_flip_test(np.array([2, -1])), sign_flip_test(np.array([0]))
        (0.125, 1.0, 1.0)
    """
    chances = np.ones(1)  # probability of each sum −n … n, where n = Σ |gain| of the documents so far
    for gain in np.abs(gains_D[gains_D != 0]):
        wider = np.zeros(len(chances) + 2 * gain)
        wider[: len(chances)] = chances / 2
        wider[2 * gain :] += chances / 2
        chances = wider
    sums = np.arange(len(chances)) - len(chances) // 2
    return min(1.0, float(chances[np.abs(sums) >= abs(gains_D.sum())].sum()))


def by_document(
    values_N: NDArray[np.int64] | NDArray[np.float64], documents_N: Sequence[str] | NDArray[np.str_]
) -> NDArray[np.float64]:
    """Return the sum [D] of the values of each document's sites."""
    _, document_N = np.unique(np.asarray(documents_N), return_inverse=True)
    return np.bincount(document_N, weights=np.asarray(values_N, dtype=np.float64)).astype(np.float64)


def t_quantile(freedom: float) -> float:
    """Return the two-sided quantile of Student's t at the level `CONFIDENCE`."""
    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))


def _mean_and_errors(
    hits_N: NDArray[np.bool_] | NDArray[np.float64], documents_N: Sequence[str] | NDArray[np.str_]
) -> tuple[float, NDArray[np.float64]]:
    """Return the share p of hits, and hits − p · sites of each document [D]; these sum to 0."""
    hits_D = by_document(np.asarray(hits_N, dtype=np.float64), documents_N)
    sites_D = by_document(np.ones(len(hits_N)), documents_N)
    mean = float(hits_D.sum() / sites_D.sum())
    return mean, hits_D - mean * sites_D


def _variance(errors_D: NDArray[np.float64], sites: int) -> float:
    """Return the cluster-robust variance of a ratio estimator, D/(D−1) · Σ errors² / N², for D ≥ 2 documents."""
    documents = len(errors_D)
    return documents / (documents - 1) * float(errors_D @ errors_D) / sites**2


def _effective_sites(mean: float, errors_D: NDArray[np.float64], sites: int) -> float:
    """Return the number of independent sites that would leave the mean as uncertain as these clustered ones."""
    documents = len(errors_D)
    if documents == 1 or mean in (0.0, 1.0):
        return documents
    variance = _variance(errors_D, sites)
    if variance == 0:
        return sites
    design_effect = variance / (mean * (1 - mean) / (sites - 1))
    # With few documents the design effect is itself uncertain; the ratio of t quantiles corrects for it.
    few_documents = (t_quantile(sites - 1) / t_quantile(documents - 1)) ** 2
    return min(sites, sites / design_effect * few_documents)


def _wilson(mean: float, sites: float) -> tuple[float, float]:
    """Return Wilson's score interval (1927) of a share `mean` of `sites` independent sites."""
    shrink = 1 / (1 + _Z**2 / sites)
    centre = shrink * (mean + _Z**2 / (2 * sites))
    half = shrink * _Z * math.sqrt(mean * (1 - mean) / sites + _Z**2 / (4 * sites**2))
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))
