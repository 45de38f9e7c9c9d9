"""What a proxy must beat: token frequencies, token pairs and zlib, on documents that they have not seen.

Frequencies of a document's tokens are counted over all *other* documents of the sample (leave one document out), so a
baseline never prices a document that it has counted. Shape names: T tokens of all documents end to end, D documents,
V vocabulary.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DISCOUNT = 0.75
"""Count that absolute discounting takes from everything seen, for what was not seen."""


def unigram_nats(ids_T: NDArray[np.int64], document_T: NDArray[np.int64], vocabulary: int) -> NDArray[np.float64]:
    """Return −ln p of every token by the token frequencies of the other documents, in nats.

    p(w) = (max(c(w) − D, 0) + D·N₁₊/V) / N: c and N count the other documents' tokens, N₁₊ their distinct ones, and D
    is `DISCOUNT`. With no other document, p = 1/V.

    Args:
        ids_T: token ids, each below `vocabulary`.
        document_T: the index of each token's document, from 0 and rising.
        vocabulary: V, the number of tokens that p is spread over.

    Example:
        >>> p = np.exp(-unigram_nats(np.array([0, 0, 1, 0, 2]), np.array([0, 0, 0, 1, 1]), 4))
        >>> p.tolist()[:3]  # the other document is "0 2": (1 − D + 2D/4) / 2, and 2D/4 / 2 for the unseen token
        [0.3125, 0.3125, 0.1875]
    """
    return -np.log(_unigram(ids_T, document_T, vocabulary))


def bigram_nats(ids_T: NDArray[np.int64], document_T: NDArray[np.int64], vocabulary: int) -> NDArray[np.float64]:
    """Return −ln p of every token given the one before it, by the pairs of the other documents, in nats.

    p(w | v) = (max(c(v, w) − D, 0) + D·N₁₊(v)·p(w)) / c(v), interpolated with the unigram p(w) (`unigram_nats`), which
    also prices first tokens and those after a token that no other document has.
    Source: Ney, Essen, Kneser, "On structuring probabilistic dependences in stochastic language modelling", 1994.

    Args:
        ids_T: token ids, each below `vocabulary`.
        document_T: the index of each token's document, from 0 and rising.
        vocabulary: V, the number of tokens that the unigram is spread over.
    """
    p_T = _unigram(ids_T, document_T, vocabulary)
    second_T = np.flatnonzero(document_T[1:] == document_T[:-1]) + 1
    before_S, document_S = ids_T[second_T - 1], document_T[second_T]
    pair_S = before_S * vocabulary + ids_T[second_T]
    pairs_S, pair_types_S = _others(pair_S, before_S, document_S)
    total_S, _ = _others(before_S, np.zeros_like(before_S), document_S)
    seen_S = total_S > 0
    discounted_S = np.maximum(pairs_S - DISCOUNT, 0) + DISCOUNT * pair_types_S * p_T[second_T]
    p_T[second_T[seen_S]] = discounted_S[seen_S] / total_S[seen_S]
    return -np.log(p_T)


def zlib_bits_per_byte(texts: Sequence[str]) -> float:
    """Return the bits per byte of zlib on the texts end to end."""
    joined = "\n".join(texts).encode()
    return 8 * len(zlib.compress(joined, 9)) / len(joined)


def _unigram(ids_T: NDArray[np.int64], document_T: NDArray[np.int64], vocabulary: int) -> NDArray[np.float64]:
    if not len(ids_T):
        return np.zeros(0)
    counts_T, types_T = _others(ids_T, np.zeros_like(ids_T), document_T)
    total_T = len(ids_T) - np.bincount(document_T)[document_T]
    mass_T = np.maximum(counts_T - DISCOUNT, 0) + DISCOUNT * types_T / vocabulary
    return np.where(total_T > 0, mass_T / np.maximum(total_T, 1), 1 / vocabulary)


def _others(
    event_T: NDArray[np.int64], group_T: NDArray[np.int64], document_T: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return, for each token, its event's count and the number of distinct events of its group in other documents.

    An event belongs to one group.
    """
    events_E, event_T = np.unique(event_T, return_inverse=True)
    counts_E = np.bincount(event_T, minlength=len(events_E))
    groups_G, group_T = np.unique(group_T, return_inverse=True)
    group_E = np.zeros(len(events_E), dtype=np.int64)
    group_E[event_T] = group_T
    types_G = np.bincount(group_E, minlength=len(groups_G))
    # Of each document and event: how often, and whether the event is nowhere else. Then it is no type for the document.
    own_O, own_T, size_O = np.unique(document_T * len(events_E) + event_T, return_inverse=True, return_counts=True)
    event_O, document_O = own_O % max(len(events_E), 1), own_O // max(len(events_E), 1)
    only_O = size_O == counts_E[event_O]
    of_document_O = document_O * len(groups_G) + group_E[event_O]
    of_document_T = document_T * len(groups_G) + group_T
    lost, lost_of = np.unique(of_document_O, return_inverse=True)
    lost_L = np.bincount(lost_of, weights=only_O, minlength=len(lost)).astype(np.int64)
    types_T = types_G[group_T] - lost_L[np.searchsorted(lost, of_document_T)]
    return counts_E[event_T] - size_O[own_T], types_T
