"""Fit a gate: learn from a policy's answers at held-out sites where thinking pays, and judge it on other documents.

Only sites where the two answers differ say anything: thinking *pays* where reasoning is right and the direct prediction
wrong, and *costs* where it is the other way round. A logistic regression over these sites estimates the chance p that
it pays. Thinking raises the expected accuracy exactly where p > ½, whatever happens at the other sites.

Shape names: N sites, F features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.random_keys import random_key
from pipeline.task.gate import FEATURES, Gate, Known, features

FOLDS = 5
"""Parts into which documents are divided by hash; each is judged by a gate that was fitted on the others."""
LEAST = 10
"""Sites where thinking pays, and where it costs, below which the gate is a constant."""
BINS = 5
"""Bins of equal size in the table of calibration."""


@dataclass(frozen=True)
class Observed:
    """What a policy knew before a thought at N sites, and whether its two answers were right."""

    values_NF: NDArray[np.float64]
    """Values of `FEATURES`."""
    direct_N: NDArray[np.bool_]
    """Hits of the direct predictions."""
    reasoning_N: NDArray[np.bool_]
    """Hits by reasoning."""
    tokens_N: NDArray[np.int64]
    """Tokens of the responses by reasoning."""
    documents_N: NDArray[np.str_]

    @classmethod
    def of(
        cls,
        known_N: Sequence[Known],
        direct_N: Sequence[bool] | NDArray[np.bool_],
        reasoning_N: Sequence[bool] | NDArray[np.bool_],
        tokens_N: Sequence[int],
        documents_N: Sequence[str],
    ) -> Observed:
        """Return the observations of N sites."""
        return cls(
            np.array([features(known) for known in known_N], dtype=np.float64).reshape(-1, len(FEATURES)),
            np.asarray(direct_N, dtype=bool),
            np.asarray(reasoning_N, dtype=bool),
            np.asarray(tokens_N, dtype=np.int64),
            np.asarray(documents_N, dtype=str),
        )

    @property
    def differs_N(self) -> NDArray[np.bool_]:
        """Return a mask [N] of the sites where only one of the two answers is right."""
        return self.direct_N != self.reasoning_N

    def at(self, chosen_N: NDArray[np.bool_] | Sequence[int]) -> Observed:
        """Return the observations of some of the sites, given by a mask or by indices."""
        chosen = np.asarray(chosen_N) if len(chosen_N) else np.zeros(0, dtype=np.int64)
        return Observed(
            self.values_NF[chosen],
            self.direct_N[chosen],
            self.reasoning_N[chosen],
            self.tokens_N[chosen],
            self.documents_N[chosen],
        )


def fit_gate(observed: Observed) -> Gate:
    """Return the gate that logistic regression (L2, C = 1, on standardised features) learns from the observations.

    With fewer than `LEAST` sites where thinking pays, or where it costs, there is too little to learn from: the gate is
    then a constant, ln((pays + 1) / (costs + 1)), which thinks everywhere or nowhere.
    """
    differing = observed.at(observed.differs_N)
    pays_N = differing.reasoning_N
    pays, costs = int(pays_N.sum()), int((~pays_N).sum())
    count = len(FEATURES)
    if min(pays, costs) < LEAST:
        return Gate((0.0,) * count, (1.0,) * count, (0.0,) * count, math.log((pays + 1) / (costs + 1)))
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(differing.values_NF)
    model = LogisticRegression(C=1.0, max_iter=1000).fit(scaler.transform(differing.values_NF), pays_N)
    return Gate(
        tuple(scaler.mean_.tolist()),
        tuple(scaler.scale_.tolist()),
        tuple(model.coef_[0].tolist()),
        float(model.intercept_[0]),
    )


def fold_of(document: str) -> int:
    """Return the fold of a document, which depends on its id only."""
    return random_key("gate", document) % FOLDS


def cross_fitted(observed: Observed) -> NDArray[np.float64]:
    """Return the chance [N] that thinking pays, each by a gate that was fitted without the site's whole fold."""
    fold_N = np.array([fold_of(document) for document in observed.documents_N], dtype=np.int64)
    chance_N = np.zeros(len(fold_N))
    for fold in set(fold_N.tolist()):
        gate = fit_gate(observed.at(fold_N != fold))
        for n in np.flatnonzero(fold_N == fold):
            chance_N[n] = gate.probability(observed.values_NF[n].tolist())
    return chance_N


def threshold_for(chance_N: NDArray[np.float64], most: float) -> float:
    """Return the lowest threshold, at least ½, above which at most a share `most` of the sites lies.

    Example:
        >>> chances = np.array([0.1, 0.6, 0.7, 0.9])
        >>> threshold_for(chances, 1.0), threshold_for(chances, 0.5), threshold_for(chances, 0.0)
        (0.5, 0.6, 0.9)
    """
    allowed = math.floor(most * len(chance_N))
    falling_N = np.sort(chance_N)[::-1]
    return max(0.5, float(falling_N[allowed])) if allowed < len(falling_N) else 0.5


def calibration(observed: Observed, chance_N: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Return, for bins of sites where the answers differ, the mean chance that thinking pays and how often it did.

    Args:
        observed: The observations.
        chance_N: Chances from `cross_fitted`.
    """
    differs_N = observed.differs_N
    pays_N, own_N = observed.reasoning_N[differs_N], chance_N[differs_N]
    order = np.argsort(own_N, kind="stable")
    return [
        {"expected": float(own_N[part].mean()), "observed": float(pays_N[part].mean()), "sites": len(part)}
        for part in np.array_split(order, BINS)
        if len(part)
    ]
