"""pass@k against counting subsets, and how the mean's interval treats samples."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.intervals import proportion
from pipeline.evaluation.samples import pass_at, powers_of_two, sampled_accuracy


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_hit(hits, data):
    k = data.draw(st.integers(1, len(hits)))
    drawn = [any(subset) for subset in combinations(hits, k)]
    assert pass_at(k, np.array([hits])).tolist() == pytest.approx([sum(drawn) / len(drawn)])


def test_pass_at_k_by_hand():
    hits_NS = np.array([[1, 1, 0, 0, 0, 0, 0, 0], [0] * 8, [1] * 8], dtype=bool)
    # 1 − C(6, 3) / C(8, 3) = 1 − 20/56
    assert pass_at(3, hits_NS).tolist() == pytest.approx([36 / 56, 0.0, 1.0])
    with pytest.raises(ValueError, match="pass@9 of 8"):
        pass_at(9, hits_NS)


def test_samples_of_a_document_belong_together():
    hits_NS = np.array([[1, 1, 1, 1], [0, 0, 0, 0]] * 10, dtype=bool)
    documents = [f"d{i}" for i in range(20)]
    estimate = sampled_accuracy(hits_NS, documents)["mean"]
    once = proportion(hits_NS[:, 0], documents)
    assert (estimate.value, estimate.sites) == (0.5, 80)
    # Four responses that always agree say what one says; the few-documents correction differs a little.
    assert (estimate.low, estimate.high) == pytest.approx((once.low, once.high), abs=0.02)


def test_mean_and_pass_at_k():
    hits_NS = np.array([[1, 0], [0, 0], [1, 1]], dtype=bool)
    found = sampled_accuracy(hits_NS, ["a", "b", "c"])
    assert {name: e.value for name, e in found.items()} == pytest.approx({"mean": 0.5, "pass@2": 2 / 3})
    assert powers_of_two(1) == [1]
