"""The order of steps: a pure function of (seed, epoch, step), the same however much of it is computed at once."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.random_keys import random_key, random_keys
from pipeline.shards.order import PART, permutation, sites_of_step


def whole(n: int, seed: int, epoch: int) -> np.ndarray:
    """The plain way: all keys at once."""
    return np.argsort(random_keys(random_key("epoch", seed, epoch), np.arange(n)), kind="stable")


def test_the_order_is_that_of_every_version_so_far() -> None:
    """Runs of earlier versions go on with the sites that they would have taken."""
    drawn = np.concatenate(
        [sites_of_step(100_000, seed, step, 256) for seed in range(3) for step in (0, 390, 391, 7000)]
    )
    assert (
        hashlib.sha256(drawn.astype("<i8").tobytes()).hexdigest()
        == "2336aedcc246524b620cf32399cb3653b6b44329d960fa11854bc0bc88689f92"
    )


@pytest.mark.parametrize("n", [PART - 1, PART, PART + 1, 2 * PART + 12_345])
def test_parts_join_to_the_order_by_keys(n: int) -> None:
    expected = whole(n, seed=3, epoch=1)
    for start, stop in [(0, 10), (PART - 5, PART + 5), (n - 7, n)]:
        assert permutation(n, 3, 1, start, stop).tolist() == expected[start:stop].tolist()
    assert np.array_equal(permutation(n, 3, 1), expected)
    assert np.array_equal(permutation(n, 3, 1, stop=n + 5), expected)


@given(st.integers(1, 300), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    assert sorted(permutation(n, seed, epoch).tolist()) == list(range(n))


def test_epochs_and_seeds_differ_and_are_mixed_well() -> None:
    """A random permutation keeps one row in place on average, and its rank correlation with another is about 0."""
    orders = [permutation(1000, seed, epoch) for seed in range(3) for epoch in range(3)]
    for i, a in enumerate(orders):
        assert np.sum(a == np.arange(1000)) < 10
        for b in [np.arange(1000), *orders[:i]]:
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.15
    with pytest.raises(ValueError, match="read-only"):
        orders[0][0] = 0


@given(st.integers(1, 40), st.integers(0, 3), st.integers(1, 50), st.integers(1, 12))
def test_steps_walk_through_the_epochs_without_loss_or_doubling(n: int, seed: int, per_step: int, steps: int) -> None:
    """Steps may be smaller or larger than an epoch, and each can be asked for alone, in any order."""
    drawn = [sites_of_step(n, seed, step, per_step) for step in reversed(range(steps))][::-1]
    assert all(len(step) == per_step for step in drawn)
    walk = np.concatenate(drawn).tolist()
    for begin in range(0, len(walk), n):
        epoch = walk[begin : begin + n]
        assert epoch == permutation(n, seed, begin // n).tolist()[: len(epoch)]
        assert max(Counter(epoch).values()) == 1
