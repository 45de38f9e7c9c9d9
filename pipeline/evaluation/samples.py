"""Unbiased mean accuracy and pass@k from several responses per site.

Shape names: N sites, S samples per site.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.intervals import Estimate, proportion


def pass_at(k: int, hits_NS: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the chance [N] that at least one of k responses, drawn without replacement from a site's S, is a hit.

    1 − C(S − hits, k) / C(S, k), the unbiased estimator of Chen et al. 2021 (arXiv 2107.03374, equation 1), as a
    product of ratios that neither overflows nor cancels.

    Raises:
        ValueError: There are fewer than k samples.

    Example:
        >>> pass_at(2, np.array([[True, False, False, False]])).tolist()  # 1 − C(3, 2) / C(4, 2)
        [0.5]
    """
    samples = hits_NS.shape[1]
    if k > samples:
        raise ValueError(f"pass@{k} of {samples} samples")
    misses_N = samples - hits_NS.sum(axis=1)
    drawn_K = np.arange(k)
    return 1.0 - np.prod(np.clip(misses_N[:, None] - drawn_K, 0, None) / (samples - drawn_K), axis=1)


def powers_of_two(samples: int) -> list[int]:
    """Return the k for which pass@k is reported: 1, 2, 4, … and the number of samples.

    Example:
        >>> powers_of_two(8), powers_of_two(6), powers_of_two(0)
        ([1, 2, 4, 8], [1, 2, 4, 6], [])
    """
    return [k for k in (1 << n for n in range(samples.bit_length())) if k < samples] + [samples] * (samples > 0)


def sampled_accuracy(
    hits_NS: NDArray[np.bool_], documents_N: Sequence[str] | NDArray[np.str_]
) -> dict[str, Estimate | None]:
    """Return `mean` over sites and samples and `pass@k`, with intervals clustered by document.

    The interval of the mean counts every sample and clusters those of a document. The interval of pass@k counts sites.
    """
    documents = np.asarray(documents_N, dtype=str)
    samples = hits_NS.shape[1]
    return {
        "mean": proportion(hits_NS.ravel(), np.repeat(documents, samples)),
        **{f"pass@{k}": proportion(pass_at(k, hits_NS), documents) for k in powers_of_two(samples)[1:]},
    }
