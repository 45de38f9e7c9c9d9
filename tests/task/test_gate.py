"""A gate's arithmetic by hand, and hostile files that must be refused with a reason."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.task.gate import FEATURES, MAX_BYTES, Gate, Known, features, gate_of

COUNT = len(FEATURES)
GATE = Gate((1.0, *(0.0,) * (COUNT - 1)), (2.0, *(1.0,) * (COUNT - 1)), (3.0, *(0.0,) * (COUNT - 1)), -0.5)


def unsure(entropy: float) -> Known:
    return Known(entropy, -1.0, 0.5, 20, b" 4", "=")


def test_features_by_hand() -> None:
    found = dict(zip(FEATURES, features(Known(1.25, -0.75, 0.5, 20, "\n数".encode(), " ")), strict=True))
    assert found.pop("log_context_tokens") == math.log(20)
    assert {name: value for name, value in found.items() if value} == {
        "entropy": 1.25, "logprob": -0.75, "margin": 0.5, "guess_letter": 1.0, "end_space": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("guess", "end", "names"),
    [
        (b"", "", {"guess_other", "end_other"}),  # a row of the output that is no token, no context
        (b"  ", "\n", {"guess_space", "end_space"}),
        (b"\xe6", "\ufffd", {"guess_symbol", "end_symbol"}),  # a part of a character is read as U+FFFD
        (b"\xd9\xa3", "}", {"guess_digit", "end_symbol"}),  # ARABIC-INDIC DIGIT THREE
        (b"\x00", "\u0301", {"guess_other", "end_letter"}),  # a combining accent belongs to a letter
    ],
)
def test_every_guess_and_end_has_one_kind(guess: bytes, end: str, names: set[str]) -> None:
    found = dict(zip(FEATURES, features(Known(0.0, 0.0, 0.0, 1, guess, end)), strict=True))
    assert {name for name, value in found.items() if value} == names


def test_probability_by_hand() -> None:
    # score = −0.5 + 3 · (entropy − 1) / 2
    assert GATE.probability(features(unsure(1.0))) == pytest.approx(1 / (1 + math.exp(0.5)))
    assert GATE.probability(features(unsure(2.0))) == pytest.approx(1 / (1 + math.exp(-1.0)))
    assert [GATE.thinks(unsure(entropy)) for entropy in (1.0, 4 / 3 - 1e-6, 4 / 3 + 1e-6, 2.0)] == [
        False, False, True, True,
    ]  # fmt: skip
    assert not GATE._replace(threshold=0.9).thinks(unsure(2.0))


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_probability_is_one_whatever_the_numbers(value: float, weight: float, scale: float) -> None:
    gate = Gate((0.0,) * COUNT, (scale, *(1.0,) * (COUNT - 1)), (weight, *(0.0,) * (COUNT - 1)), 0.0)
    assert 0.0 <= gate.probability((value, *(0.0,) * (COUNT - 1))) <= 1.0


def test_a_gate_is_read_as_it_was_written() -> None:
    assert gate_of(GATE.text()) == GATE
    assert json.loads(GATE.text())["features"] == list(FEATURES)


def changed(**values: Any) -> str:
    return json.dumps({**json.loads(GATE.text()), **values})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "at most"),
        ("[" * 60_000, "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "missing or unknown keys: 'coefficients'"),
        (changed(run="rm -rf"), "missing or unknown keys: 'run'"),
        (changed(version=2), "version 2, this one reads 1"),
        (changed(version=True), "version True"),
        (changed(features=["entropy"]), "`features` are not those"),
        (changed(features=list(reversed(FEATURES))), "`features` are not those"),
        (changed(mean=[0.0]), "`mean` must be a list"),
        (changed(mean="0" * COUNT), "`mean` must be a list"),
        (changed(mean=[float("nan")] * COUNT), "`mean` must be numbers"),
        (changed(coefficients=[10**400] * COUNT), "`coefficients` must be numbers"),
        (changed(coefficients=[True] * COUNT), "`coefficients` must be numbers"),
        (changed(scale=[0.0] * COUNT), "`scale` must be above 0"),
        (changed(intercept=None), "`intercept` must be numbers"),
        (changed(intercept=float("inf")), "`intercept` must be numbers"),
        (changed(threshold=1.5), "`threshold` must be from 0 to 1"),
        (" " * MAX_BYTES + "{}", "at most"),
    ],
)
def test_hostile_files_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        gate_of(text)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner), max_leaves=5))
def test_any_value_in_place_of_a_number_is_refused_or_works(value: Any) -> None:
    for key in ("mean", "scale", "coefficients", "intercept", "threshold", "version", "features"):
        try:
            gate = gate_of(changed(**{key: value}))
        except ValueError:
            continue
        assert 0.0 <= gate.probability(features(unsure(1.0))) <= 1.0
