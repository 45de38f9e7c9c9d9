"""Stateless random numbers: pure functions of a name, independent of order and number of shards."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def random_key(*parts: object) -> int:
    """Return 64 random bits for a name: the first eight bytes of the sha256 of the parts' text.

    Example:
        >>> random_key("site", 0, "a") == random_key("site", 0, "a") != random_key("site", 1, "a")
        True
    """
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:8], "little")


def random_unit(*parts: object) -> float:
    """Return a uniform number in [0, 1) for a name: the first 53 bits of its key.

    Example:
        >>> 0 <= random_unit("site", 0, "a") < 1 and random_unit("site", 0, "a") != random_unit("site", 1, "a")
        True
    """
    return (random_key(*parts) >> 11) / 2**53


def random_keys(base: NDArray[np.uint64] | int, index: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Return uniform 64-bit keys of (base, index), elementwise: output `index` of SplitMix64 seeded with `base`.

    Under one base no two indices share a key (both steps are bijections of 64 bits).
    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.

    Example:
        >>> random_keys(0, np.array([0, 1])).tolist()  # the published test vector of SplitMix64 with seed 0
        [16294208416658607535, 7960286522194355700]
    """
    z = np.asarray(base, dtype=np.uint64) + (index.astype(np.uint64) + np.uint64(1)) * _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
