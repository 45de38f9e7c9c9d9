"""Gates are fitted where the answers differ, judge only documents they have not seen, and the hybrid is counted."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.selection import BandsConfig
from pipeline.evaluation.gate import FOLDS, LEAST, Observed, calibration, cross_fitted, fit_gate, fold_of, threshold_for
from pipeline.evaluation.hybrid import gated, summarize_hybrid
from pipeline.task.gate import Known


def observed_of(rows: list[tuple[str, float, bool, bool, int]]) -> Observed:
    """Observations from rows (document, own entropy, direct, reasoning, tokens)."""
    documents, entropies, direct, reasoning, tokens = zip(*rows, strict=True)
    known = [Known(entropy, -entropy, 1.0, 10, b" 4", "=") for entropy in entropies]
    return Observed.of(known, direct, reasoning, tokens, documents)


def random_rows(seed: int, sites: int = 120, documents: int = 25) -> list[tuple[str, float, bool, bool, int]]:
    """Sites where thinking pays the more, the less sure the policy is."""
    rng, rows = random.Random(seed), []
    for _ in range(sites):
        entropy = rng.uniform(0.0, 3.0)
        direct, reasoning = rng.random() > entropy / 3, rng.random() < entropy / 3
        rows.append((f"d{rng.randrange(documents)}", entropy, direct, reasoning, rng.randint(2, 40)))
    return rows


def test_a_gate_thinks_where_it_was_seen_to_pay() -> None:
    rows = [
        (f"d{i}", entropy, direct, not direct, 9) for i in range(20) for entropy, direct in ((0.1, True), (2.0, False))
    ]
    agreeing = [("a", 2.0, True, True, 9), ("b", 0.1, False, False, 9)] * 50  # say nothing about the difference
    gate = fit_gate(observed_of(rows + agreeing))
    assert gate == fit_gate(observed_of(rows))
    # the standardised entropy is −1 or 1: its mean is 1.05 and its deviation 0.95
    assert (gate.mean[0], gate.scale[0]) == (pytest.approx(1.05), pytest.approx(0.95))
    assert gate.coefficients[0] > 0 > gate.coefficients[1] and gate.coefficients[2] == 0.0
    assert [gate.thinks(Known(e, -e, 1.0, 10, b" 4", "=")) for e in (0.1, 1.0, 1.1, 2.0)] == [False, False, True, True]


def test_the_fit_is_the_optimum_of_the_penalised_likelihood() -> None:
    observed = observed_of(random_rows(1))
    gate = fit_gate(observed)
    gradient, total = np.zeros(len(gate.coefficients)), 0.0
    for values, direct, reasoning in zip(observed.values_NF, observed.direct_N, observed.reasoning_N, strict=True):
        if direct != reasoning:
            error = float(reasoning) - gate.probability(values.tolist())
            gradient += error * (values - gate.mean) / gate.scale
            total += error
    assert total == pytest.approx(0.0, abs=1e-2)
    assert gradient == pytest.approx(np.array(gate.coefficients), abs=1e-2)


@pytest.mark.parametrize(("pays", "costs"), [(0, 0), (9, 40), (40, 9), (0, 40), (40, 0)])
def test_too_few_cases_make_a_constant(pays: int, costs: int) -> None:
    rows = [("a", 1.0, False, True, 5)] * pays + [("b", 2.0, True, False, 5)] * costs + [("c", 0.5, True, True, 5)]
    gate = fit_gate(observed_of(rows))
    assert min(pays, costs) < LEAST
    assert gate.probability([7.0] * len(gate.mean)) == pytest.approx((pays + 1) / (pays + costs + 2))
    assert gate.thinks(Known(9.0, -9.0, 0.1, 5, b"", "")) is (pays > costs)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 24), st.integers(0, 2**120 - 1))
def test_no_document_is_judged_by_a_gate_that_saw_it(seed: int, number: int, flips: int) -> None:
    rows = random_rows(seed)
    document = f"d{number}"
    other = [
        (doc, entropy, direct ^ bool(doc == document and flips >> i & 1), reasoning ^ bool(doc == document), tokens)
        for i, (doc, entropy, direct, reasoning, tokens) in enumerate(rows)
    ]
    own_N = np.array([doc == document for doc, *_ in rows])
    before, after = cross_fitted(observed_of(rows)), cross_fitted(observed_of(other))
    assert before[own_N].tolist() == after[own_N].tolist()


def test_other_documents_are_learned_from() -> None:
    rows = random_rows(3)
    turned = [(doc, entropy, reasoning, direct, tokens) for doc, entropy, direct, reasoning, tokens in rows]
    before, after = cross_fitted(observed_of(rows)), cross_fitted(observed_of(turned))
    assert np.abs(before - after).max() > 0.5
    assert before + after == pytest.approx(np.ones(len(rows)), abs=1e-3), "the same fit with the roles exchanged"


def test_folds_depend_on_the_document_only() -> None:
    assert {fold_of(f"d{i}") for i in range(100)} == set(range(FOLDS))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.0, 1.0))
def test_the_hybrid_equals_a_plain_twin(seed: int, most: float) -> None:
    rows = random_rows(seed)
    entropies = [random.Random(seed + i).uniform(0.0, 3.0) for i in range(len(rows))]  # of the proxy: the bands
    chosen = [i for i in range(len(rows)) if i % 3]
    found = gated(observed_of(rows), most)
    report = summarize_hybrid(found, entropies, BandsConfig(easy=0.5, medium=1.0, hard=1.5), chosen)
    assert sum(chance > found.gate.threshold for chance in found.chance_N) <= most * len(rows)
    for name, above in (("easy", 0.5), ("medium", 1.0), ("hard", 1.5)):
        own = [i for i in chosen if entropies[i] > above]
        right = tokens = thinking = either = 0
        for i in own:
            _, _, direct, reasoning, length = rows[i]
            think = found.chance_N[i] > found.gate.threshold
            right += reasoning if think else direct
            tokens += length if think else 1
            thinking += bool(think)
            either += direct or reasoning
        band = report[name]
        assert band["hybrid"]["value"] == pytest.approx(right / len(own))
        assert band["hybrid"]["documents"] == len({rows[i][0] for i in own})
        assert band["thinks"]["value"] == pytest.approx(thinking / len(own))
        assert band["tokens"] == pytest.approx(tokens / len(own))
        assert band["oracle"]["value"] == pytest.approx(either / len(own))
        assert band["over_direct"]["value"] == pytest.approx(right / len(own) - sum(rows[i][2] for i in own) / len(own))
        for reading in ("direct", "reasoning", "hybrid"):
            assert band["oracle"]["value"] >= band[reading]["value"]


def test_the_hybrid_is_above_both_readings_where_entropy_tells() -> None:
    """Over seeds the gain over the better reading is 0.22 to 0.25, and 0.46 to 0.53 of the sites think."""
    found = gated(observed_of(random_rows(5, sites=1000, documents=100)))
    band = summarize_hybrid(found, [1.0] * 1000, BandsConfig(easy=0.5, medium=2.0, hard=3.0), range(1000))["easy"]
    assert band["hybrid"]["value"] > max(band["direct"]["value"], band["reasoning"]["value"]) + 0.05
    assert 0.3 < band["thinks"]["value"] < 0.7


def test_a_band_without_sites_has_no_figures() -> None:
    found = gated(observed_of(random_rows(1)))
    assert summarize_hybrid(found, [0.0] * 120, BandsConfig(), [])["easy"] is None


def test_calibration_by_hand() -> None:
    rows = [(f"d{i}", 1.0, i % 2 == 0, i % 2 == 1, 5) for i in range(10)] + [("x", 1.0, True, True, 5)]
    chance = np.array([0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95, 0.5])
    bins = calibration(observed_of(rows), chance)
    assert [(round(b["expected"], 6), b["observed"], b["sites"]) for b in bins] == [
        (0.1, 0.5, 2), (0.3, 0.5, 2), (0.5, 0.5, 2), (0.7, 0.5, 2), (0.9, 0.5, 2),
    ]  # fmt: skip


def test_the_threshold_keeps_the_share() -> None:
    assert threshold_for(np.array([]), 0.3) == 0.5
    assert threshold_for(np.array([0.9, 0.9, 0.9, 0.2]), 0.5) == 0.9, "ties do not think"
    assert not math.isnan(threshold_for(np.array([0.1]), 0.0))
