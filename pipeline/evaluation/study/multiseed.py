"""Accuracy over several seeds, with intervals that account for another seed and other documents.

The variance of a mean over S runs and N sites has two parts: the variance between documents of the sites' means over
runs, clustered as in `intervals.py`, and the variance between the runs' means over sites. Student's t has the degrees
of freedom of Satterthwaite (1946, Biometrics Bulletin 2:110).

Shape names: S seeds, N sites, D documents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from pipeline.evaluation.intervals import CONFIDENCE, Difference, Estimate, by_document, proportion, t_quantile
from pipeline.evaluation.study.power import AIM, detectable, seeds_needed

Part = tuple[float, int]
"""A variance and its degrees of freedom."""


def share_over_seeds(
    hits_SN: NDArray[np.bool_] | NDArray[np.float64], documents_N: Sequence[str] | NDArray[np.str_]
) -> Estimate | None:
    """Return the mean share of hits over seeds and sites; None without sites.

    With one seed, or where nothing varies (all are hits, or none is), the interval is that of `proportion`.
    """
    if hits_SN.shape[1] == 0:
        return None
    parts = [_between_documents(hits_SN.mean(axis=0), documents_N), _between_seeds(hits_SN)]
    error, freedom = combine(parts)
    if len(hits_SN) == 1 or error == 0:
        return proportion(hits_SN.mean(axis=0), documents_N)
    value, reach = float(hits_SN.mean()), t_quantile(freedom) * error
    documents = len(set(documents_N))
    return Estimate(value, max(0.0, value - reach), min(1.0, value + reach), hits_SN.shape[1], documents)


def difference_over_seeds(
    after_SN: NDArray[np.bool_] | NDArray[np.float64],
    before_SN: NDArray[np.bool_] | NDArray[np.float64],
    documents_N: Sequence[str] | NDArray[np.str_],
    *,
    aim: float = AIM,
) -> Difference | None:
    """Return the mean share of hits of one arm minus that of another at the same sites; None without sites.

    Sites are paired, seeds are not: the arms may have different numbers of seeds. An untrained policy is a single
    run without variance between seeds. The p-value is that of Student's t. Where nothing varies, the interval is as
    wide as the largest share of documents that could differ without one of them having been observed.
    """
    if after_SN.shape[1] == 0:
        return None
    gains_N = after_SN.mean(axis=0) - before_SN.mean(axis=0)
    of_documents, of_seeds = _between_documents(gains_N, documents_N), list(map(_between_seeds, (after_SN, before_SN)))
    error, freedom = combine([of_documents, *of_seeds])

    def with_seeds(count: int) -> tuple[float, float]:
        return combine([of_documents, *(_with_seeds(part, count) for part in of_seeds)])

    value, reach = float(gains_N.mean()), t_quantile(freedom) * error or _largest_unseen_share(len(set(documents_N)))
    p_value = 2 * float(stdtr(freedom, -abs(value) / error)) if error else float(value == 0)
    low, high, documents = max(-1.0, value - reach), min(1.0, value + reach), len(set(documents_N))
    power = (detectable(error, freedom), seeds_needed(with_seeds, aim)) if error else (None, None)
    return Difference(value, low, high, error, len(gains_N), documents, p_value, *power)


def _largest_unseen_share(documents: int) -> float:
    """Return the bound of Clopper and Pearson (1934) on the share of documents that differ when none of them did."""
    return 1.0 - ((1 - CONFIDENCE) / 2) ** (1 / documents)


def _between_documents(values_N: NDArray[np.float64], documents_N: Sequence[str] | NDArray[np.str_]) -> Part:
    """Return the cluster-robust variance of the mean; it counts as 0 for one document, which has no estimate."""
    errors_D = by_document(values_N - values_N.mean(), documents_N)
    documents = len(errors_D)
    if documents == 1:
        return 0.0, 0
    return documents / (documents - 1) * float(errors_D @ errors_D) / len(values_N) ** 2, documents - 1


def _between_seeds(hits_SN: NDArray[np.bool_] | NDArray[np.float64]) -> Part:
    seeds = len(hits_SN)
    return (float(hits_SN.mean(axis=1).var(ddof=1)) / seeds, seeds - 1) if seeds > 1 else (0.0, 0)


def _with_seeds(part: Part, seeds: int) -> Part:
    """Return what the variance between seeds would be with another number of them; a single run has none."""
    variance, freedom = part
    return (variance * (freedom + 1) / seeds, seeds - 1) if freedom else part


def combine(parts: Sequence[Part]) -> tuple[float, float]:
    """Return the standard error of the sum of independent parts and its degrees of freedom (Satterthwaite)."""
    total = sum(variance for variance, _ in parts)
    weight = sum(variance**2 / freedom for variance, freedom in parts if freedom)
    return math.sqrt(total), total**2 / weight if weight else 1.0
