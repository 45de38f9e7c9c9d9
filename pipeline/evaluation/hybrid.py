"""The hybrid reading: a policy that thinks only where its gate says so, beside the two readings and the oracle.

Shape name: N sites.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.selection import BandsConfig
from pipeline.evaluation.accuracy import band_members
from pipeline.evaluation.gate import FOLDS, Observed, calibration, cross_fitted, fit_gate, threshold_for
from pipeline.evaluation.intervals import difference, proportion, to_json_value
from pipeline.task.gate import Gate

if TYPE_CHECKING:
    from pipeline.evaluation.predictions import Predictions
    from pipeline.shards.reader import Site


@dataclass(frozen=True)
class Gated:
    """A policy's gate, and where gates that did not see a site's document would think."""

    gate: Gate
    """Fitted on all sites."""
    observed: Observed
    chance_N: NDArray[np.float64]
    """Chance that thinking pays, cross-fitted."""

    @property
    def thinks_N(self) -> NDArray[np.bool_]:
        """Return a mask [N] of the sites that think."""
        return self.chance_N > self.gate.threshold

    def about(self) -> dict[str, Any]:
        """Return the gate and how it was fitted, as JSON values."""
        differs_N = self.observed.differs_N
        return {
            "gate": json.loads(self.gate.text()),
            "folds": FOLDS,
            "sites": len(differs_N),
            "documents": len(set(self.observed.documents_N.tolist())),
            "pays": int((differs_N & self.observed.reasoning_N).sum()),
            "costs": int((differs_N & self.observed.direct_N).sum()),
            "calibration": calibration(self.observed, self.chance_N),
        }


def gated(observed: Observed, most: float = 1.0) -> Gated:
    """Fit the gate of a policy.

    Args:
        observed: The policy's answers at held-out sites.
        most: Share of the sites that may think.
    """
    chance_N = cross_fitted(observed)
    gate = fit_gate(observed)._replace(threshold=threshold_for(chance_N, most))
    return Gated(gate, observed, chance_N)


def observe(direct: Predictions, reasoning: Predictions, sites_N: Sequence[Site]) -> Observed:
    """Return what an evaluation observed of one policy."""
    known_N = [answer.known for answer in direct.answers_N if answer.known is not None]
    tokens_N = [len(answer.response_ids) for answer in reasoning.answers_N]
    return Observed.of(known_N, direct.hits_N, reasoning.hits_N, tokens_N, [site.doc_id for site in sites_N])


def summarize_hybrid(found: Gated, entropy_N: Sequence[float], bands: BandsConfig, chosen: Sequence[int]) -> Any:
    """Return the figures of the hybrid reading at some of the sites, by band, as JSON values; None without sites.

    Args:
        found: A policy's gate and answers.
        entropy_N: The entropy of all sites, which decides their bands.
        bands: Thresholds in nats.
        chosen: Indices of the sites.

    Returns:
        By band: accuracy of `direct`, `reasoning`, `hybrid` and `oracle` (right if either answer is); `thinks`, the
        share of sites that think; `tokens`, sampled per site by the hybrid (a direct answer is one), and
        `tokens_reasoning`, by reasoning everywhere; `over_direct` and `over_reasoning`, paired differences.
    """
    observed, thinks_N = found.observed.at(chosen), found.thinks_N[list(chosen)]
    members = band_members([entropy_N[i] for i in chosen], bands)
    return {band: _band(observed.at(own_N), thinks_N[own_N]) for band, own_N in members.items()}


def _band(own: Observed, thinks_N: NDArray[np.bool_]) -> dict[str, Any] | None:
    if not len(thinks_N):
        return None
    hybrid_N = np.where(thinks_N, own.reasoning_N, own.direct_N)
    tokens_N = np.where(thinks_N, own.tokens_N, 1)

    def share(hits_N: NDArray[np.bool_]) -> dict[str, Any] | None:
        return to_json_value(proportion(hits_N, own.documents_N))

    return {
        "direct": share(own.direct_N),
        "reasoning": share(own.reasoning_N),
        "hybrid": share(hybrid_N),
        "oracle": share(own.direct_N | own.reasoning_N),
        "thinks": share(thinks_N),
        "tokens": float(tokens_N.mean()),
        "tokens_reasoning": float(own.tokens_N.mean()),
        "over_direct": to_json_value(difference(hybrid_N, own.direct_N, own.documents_N)),
        "over_reasoning": to_json_value(difference(hybrid_N, own.reasoning_N, own.documents_N)),
    }


def hybrids_of(
    readings: Mapping[str, Predictions], policies: Sequence[str], sites_N: Sequence[Site]
) -> dict[str, Gated]:
    """Return the gate of every policy of an evaluation, fitted on all its sites."""
    return {
        name: gated(observe(readings[f"direct {name}"], readings[f"reasoning {name}"], sites_N)) for name in policies
    }
