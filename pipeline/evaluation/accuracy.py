"""Accuracy by band, field, token class and metadata, differences between readings, and reasons of failures.

Shape name: N sites.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.selection import BandsConfig
from pipeline.evaluation.intervals import Difference, Estimate, difference, proportion, to_json_value
from pipeline.evaluation.policies import WARM_UP
from pipeline.evaluation.samples import sampled_accuracy
from pipeline.task.reward import REASONS

if TYPE_CHECKING:
    from pipeline.evaluation.predictions import Predictions, Samples
    from pipeline.shards.reader import Site

FORMAT_FAILURES = ("missing", "empty")
"""Reasons that mean a response ended without a boxed prediction."""
LENGTH_QUANTILES = (0.5, 0.95, 1.0)
"""Quantiles of response lengths: median, 95th percentile, maximum."""


def band_members(entropy_N: Sequence[float], bands: BandsConfig) -> dict[str, NDArray[np.bool_]]:
    """Return a mask [N] of the sites in each band, easiest first.

    Bands are nested: a hard site is medium and easy too.

    Example:
        >>> {band: member.tolist() for band, member in band_members([0.5, 0.6, 1.2, 3.0], BandsConfig()).items()}
        {'easy': [False, True, True, True], 'medium': [False, False, True, True], 'hard': [False, False, False, True]}
    """
    entropy = np.asarray(entropy_N, dtype=np.float64)
    return {band: entropy > threshold for band, threshold in bands.model_dump().items()}


def accuracy_by_band(
    hits_N: NDArray[np.bool_], sites_N: Sequence[Site], bands: BandsConfig
) -> dict[str, Estimate | None]:
    """Return the accuracy in each band with an interval clustered by document; None for a band without sites."""
    documents_N = np.array([site.doc_id for site in sites_N], dtype=str)
    members = band_members([site.entropy for site in sites_N], bands)
    return {band: proportion(hits_N[member_N], documents_N[member_N]) for band, member_N in members.items()}


def accuracy_by_label(
    hits_N: NDArray[np.bool_], documents_N: NDArray[np.str_], labels_N: Sequence[str]
) -> dict[str, Estimate | None]:
    """Return the accuracy at the sites of each label, such as the corpus column that contains them.

    Labels that are numbers come first, by value; the others follow by alphabet.
    """
    label_N = np.array(labels_N, dtype=object)
    members = {label: np.asarray(label_N == label, dtype=bool) for label in sorted(set(labels_N), key=_by_value)}
    return {label: proportion(hits_N[own_N], documents_N[own_N]) for label, own_N in members.items()}


def progress_metrics(by_band: Mapping[str, Estimate | None]) -> dict[str, float]:
    """Return metrics of an evaluation during training, named as `plots.py` expects; bands without sites have none.

    Example:
        >>> progress_metrics({"easy": Estimate(0.5, 0.25, 0.75, 8, 4), "medium": None})
        {'eval/easy/reasoning': 0.5, 'eval/easy/reasoning_low': 0.25, 'eval/easy/reasoning_high': 0.75}
    """
    return {
        f"eval/{band}/reasoning{suffix}": value
        for band, estimate in by_band.items()
        if estimate is not None
        for suffix, value in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high))
    }


def table_order(policies: Sequence[str]) -> list[str]:
    """Return the names of the readings in the order in which tables list them.

    Example:
        >>> table_order(["before", "after"])
        ['direct before', 'reasoning before', 'reasoning after', 'direct after']
    """
    first, *later = policies
    return [f"direct {first}", *(f"reasoning {name}" for name in policies), *(f"direct {name}" for name in later)]


def comparisons(policies: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs (reading, baseline) to compare: readings of each later policy against those of the first.

    What follows a warm-up is compared with it as well: that is what RL itself has added.

    Example:
        >>> comparisons(["before", "after"])[:2]
        [('reasoning after', 'reasoning before'), ('reasoning after', 'direct before')]
        >>> comparisons(["before", "after"])[2:], comparisons(["model"])
        ([('direct after', 'direct before')], [('reasoning model', 'direct model')])
        >>> comparisons(["before", "warm-up", "after"])[-2:]
        [('reasoning after', 'reasoning warm-up'), ('direct after', 'direct warm-up')]
    """
    first, *later = policies
    if not later:
        return [(f"reasoning {first}", f"direct {first}")]
    pairs = (("reasoning", "reasoning"), ("reasoning", "direct"), ("direct", "direct"))
    after = later[later.index(WARM_UP) + 1 :] if WARM_UP in later else []
    return [
        *((f"{own} {name}", f"{other} {first}") for name in later for own, other in pairs),
        *((f"{how} {name}", f"{how} {WARM_UP}") for name in after for how in ("reasoning", "direct")),
    ]


def summarize(
    sites_N: Sequence[Site],
    classes_N: Sequence[str],
    metadata: Mapping[str, Sequence[str]],
    readings: Mapping[str, Predictions],
    samples: Mapping[str, Samples],
    policies: Sequence[str],
    bands: BandsConfig,
    where: str,
) -> dict[str, Any]:
    """Return all figures of an evaluation of one set of sites, as JSON values.

    Args:
        sites_N: The set of sites, which may be empty.
        classes_N: Token classes of the sites.
        metadata: By column of declared metadata, the sites' labels [N].
        readings: Answers by name of the reading, at exactly these sites in this order.
        samples: Several responses per site, by policy; empty if none were sampled.
        policies: Names of the policies in the order of training.
        bands: Thresholds in nats.
        where: The expression that selected the set; it is only recorded.

    Returns:
        `sites`, `documents`; `bands` (threshold and size of each); `readings` (accuracy by band, field, token class
        and metadata, reasons, format failures, truncation, response lengths in tokens); `samples` (mean accuracy and
        pass@k by band); `differences` (with paired intervals and p-values, and whether the two intervals overlap).
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
                "accuracy": {band: to_json_value(estimate) for band, estimate in by_band.items()},
                "by_field": _by_label(hits[name], documents_N, [site.field for site in sites_N]),
                "by_class": _by_label(hits[name], documents_N, classes_N),
                "by_metadata": {
                    column: _by_label(hits[name], documents_N, labels_N) for column, labels_N in metadata.items()
                },
                **_responses(readings[name], documents_N),
            }
            for name, by_band in accuracy.items()
        },
        "samples": {
            f"sampled {policy}": {
                band: {
                    name: to_json_value(estimate)
                    for name, estimate in sampled_accuracy(drawn.hits_NS[member_N], documents_N[member_N]).items()
                }
                for band, member_N in members.items()
            }
            for policy, drawn in samples.items()
        },
        "differences": [
            {
                "reading": reading,
                "baseline": baseline,
                "bands": {
                    band: _with_overlap(
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


def _with_overlap(own: Estimate | None, other: Estimate | None, change: Difference | None) -> dict[str, Any] | None:
    if own is None or other is None or change is None:
        return None
    return asdict(change) | {"intervals_overlap": own.overlaps(other)}


def _responses(reading: Predictions, documents_N: NDArray[np.str_]) -> dict[str, Any]:
    reason_N = [answer.outcome.reason for answer in reading.answers_N]
    lengths = np.array([len(answer.response_ids) for answer in reading.answers_N])
    return {
        "reasons": {reason: reason_N.count(reason) for reason in REASONS},
        "format_failures": to_json_value(proportion(np.isin(reason_N, FORMAT_FAILURES), documents_N)),
        "truncated": to_json_value(proportion(np.isin(reason_N, ["unfinished"]), documents_N)),
        "mean_length": float(lengths.mean()) if len(lengths) else None,
        "length_quantiles": np.quantile(lengths, LENGTH_QUANTILES).tolist() if len(lengths) else None,
    }


def _by_label(hits_N: NDArray[np.bool_], documents_N: NDArray[np.str_], labels_N: Sequence[str]) -> dict[str, Any]:
    return {
        label: to_json_value(estimate) for label, estimate in accuracy_by_label(hits_N, documents_N, labels_N).items()
    }


def _by_value(label: str) -> tuple[float, str]:
    """Return a key that sorts numbers by value before all other labels."""
    is_number = re.fullmatch(r"-?\d+(\.\d+)?(e[+-]?\d+)?", label)
    return (float(label) if is_number else math.inf, label)
