"""Accuracy of readings by difficulty band and by field, their differences, and why they failed.

Shape name: N sites.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.config import BandsConfig
from pipeline.evaluation.intervals import Difference, Estimate, difference, proportion
from pipeline.task.reward import REASONS

if TYPE_CHECKING:
    from pipeline.evaluation.readings import Reading
    from pipeline.shards.reader import Site


def band_members(entropy_N: Sequence[float], bands: BandsConfig) -> dict[str, NDArray[np.bool_]]:
    """Which sites belong to each band [N], easiest first. Bands are nested: a hard site is medium and easy too.

    Example:
        >>> {band: member.tolist() for band, member in band_members([0.5, 0.6, 1.2, 3.0], BandsConfig()).items()}
        {'easy': [False, True, True, True], 'medium': [False, False, True, True], 'hard': [False, False, False, True]}
    """
    entropy = np.asarray(entropy_N, dtype=np.float64)
    return {band: entropy > threshold for band, threshold in bands.model_dump().items()}


def accuracy_by_band(
    hits_N: NDArray[np.bool_], sites_N: Sequence[Site], bands: BandsConfig
) -> dict[str, Estimate | None]:
    """Accuracy in each band with an interval clustered by document; None where a band has no site."""
    documents_N = np.array([site.doc_id for site in sites_N], dtype=str)
    members = band_members([site.entropy for site in sites_N], bands)
    return {band: proportion(hits_N[member_N], documents_N[member_N]) for band, member_N in members.items()}


def accuracy_by_field(hits_N: NDArray[np.bool_], sites_N: Sequence[Site]) -> dict[str, Estimate | None]:
    """Accuracy in each column of the corpus; `""` is the template's own text."""
    documents_N = np.array([site.doc_id for site in sites_N], dtype=str)
    field_N = np.array([site.field for site in sites_N], dtype=str)
    return {
        str(field): proportion(hits_N[field_N == field], documents_N[field_N == field]) for field in np.unique(field_N)
    }


def progress_metrics(by_band: Mapping[str, Estimate | None], kind: str = "reasoning") -> dict[str, float]:
    """Metrics of an evaluation during training, by the names `picture.py` looks for; none for bands without sites.

    Example:
        >>> progress_metrics({"easy": Estimate(0.5, 0.25, 0.75, 8, 4), "medium": None})
        {'eval/easy/reasoning': 0.5, 'eval/easy/reasoning_low': 0.25, 'eval/easy/reasoning_high': 0.75}
    """
    return {
        f"eval/{band}/{kind}{suffix}": value
        for band, estimate in by_band.items()
        if estimate is not None
        for suffix, value in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high))
    }


def table_order(policies: Sequence[str]) -> list[str]:
    """Names of the readings as tables list them: what training starts from, what it changed, what it cost.

    Example:
        >>> table_order(["before", "after"])
        ['direct before', 'reasoning before', 'reasoning after', 'direct after']
    """
    first, *later = policies
    return [f"direct {first}", *(f"reasoning {name}" for name in policies), *(f"direct {name}" for name in later)]


def comparisons(policies: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs (reading, baseline) whose difference matters: the last policy's reasoning against the first's two readings.

    Example:
        >>> comparisons(["before", "after"])
        [('reasoning after', 'reasoning before'), ('reasoning after', 'direct before')]
    """
    first, last = policies[0], policies[-1]
    baselines = [f"reasoning {first}", f"direct {first}"] if len(policies) > 1 else [f"direct {first}"]
    return [(f"reasoning {last}", baseline) for baseline in baselines]


def summarize(
    sites_N: Sequence[Site], readings: Mapping[str, Reading], policies: Sequence[str], bands: BandsConfig, where: str
) -> dict[str, Any]:
    """Everything an evaluation says about one set of sites, as JSON values.

    Args:
        sites_N: the set; may be empty.
        readings: by name, each with its answers at exactly these sites in this order.
        policies: names in the order of training.
        bands: thresholds in nats.
        where: the expression that chose the set, for the record.

    Returns:
        `sites`, `documents`; `bands` (threshold and size of each); `readings` (accuracy by band and field, reasons,
        mean response length in tokens); `differences` (with paired intervals, and whether the two intervals overlap).
    """
    documents_N = np.array([site.doc_id for site in sites_N], dtype=str)
    members = band_members([site.entropy for site in sites_N], bands)
    hits = {name: readings[name].hits_N for name in table_order(policies)}
    accuracy = {name: accuracy_by_band(hits_N, sites_N, bands) for name, hits_N in hits.items()}
    return {
        "where": where,
        "sites": len(sites_N),
        "documents": len(set(documents_N)),
        "bands": {
            band: {"above": above, "sites": int(members[band].sum()), "documents": len(set(documents_N[members[band]]))}
            for band, above in bands.model_dump().items()
        },
        "readings": {
            name: {
                "accuracy": {band: _plain(estimate) for band, estimate in by_band.items()},
                "by_field": {f: _plain(e) for f, e in accuracy_by_field(hits[name], sites_N).items()},
                **_responses(readings[name]),
            }
            for name, by_band in accuracy.items()
        },
        "differences": [
            {
                "reading": reading,
                "baseline": baseline,
                "bands": {
                    band: _compared(
                        accuracy[reading][band],
                        accuracy[baseline][band],
                        difference(hits[reading][member_N], hits[baseline][member_N], documents_N[member_N]),
                    )
                    for band, member_N in members.items()
                },
            }
            for reading, baseline in comparisons(policies)
        ],
    }


def _compared(own: Estimate | None, other: Estimate | None, change: Difference | None) -> dict[str, Any] | None:
    if own is None or other is None or change is None:
        return None
    return asdict(change) | {"intervals_overlap": own.overlaps(other)}


def _responses(reading: Reading) -> dict[str, Any]:
    reasons = Counter(answer.outcome.reason for answer in reading.answers_N)
    lengths = [len(answer.response_ids) for answer in reading.answers_N]
    return {
        "reasons": {reason: reasons[reason] for reason in REASONS},
        "mean_length": sum(lengths) / len(lengths) if lengths else None,
    }


def _plain(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else asdict(estimate)
