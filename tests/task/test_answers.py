"""Rules for answers: by hand, and what is true of any number."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.task.answers import number, same_answer, score_answer, score_math


@given(st.integers(-(10**9), 10**9), st.integers(0, 4))
def test_a_number_is_the_same_however_it_is_written(value: int, zeros: int) -> None:
    ways = [str(value), f"{value:,}", f"{value}." + "0" * (zeros + 1), f" {value}\n", f"{2 * value}/2"]
    assert {number(way) for way in ways} == {Fraction(value)}
    assert same_answer(ways[zeros], str(value)) and not same_answer(str(value + 1), str(value))


@pytest.mark.parametrize("text", ["", "-", "1,23", "1e5", "3 4", "abc", "1/0", "½", "."])
def test_what_is_no_plain_number_is_compared_as_text(text: str) -> None:
    assert number(text) is None
    assert same_answer(text, text) and not same_answer(text, "7")


def box(text: str) -> bytes:
    return f"thinking</think>\\boxed{{{text}}}".encode()


def test_outcomes_by_hand() -> None:
    given_ = [box("42.0"), box("41"), box(""), b"</think> 42", b"\\boxed{42}"]
    outcomes = [score_answer(response, True, b"42") for response in given_]
    assert [o.reason for o in outcomes] == ["match", "mismatch", "empty", "missing", "missing"]
    assert [o.reward for o in outcomes] == [1, 0, 0, 0, 0]
    assert score_answer(box("42"), False, b"42").reason == "unfinished"


def test_latex_is_read_by_math_verify() -> None:
    pytest.importorskip("math_verify")
    pairs = [("\\frac{1}{2}", "0.5", True), ("x+1", "1+x", True), ("(1,2)", "(2,1)", False), ("\\sqrt{4}", "2", True)]
    for prediction, answer, same in pairs:
        assert score_math(box(prediction), True, answer.encode()).right is same, prediction
    assert not score_answer(box("\\sqrt{4}"), True, b"2").right, "the plain rule reads no LaTeX"


@pytest.mark.parametrize("escape", ["", "\\"])
def test_a_second_answer_behind_the_first_is_part_of_the_prediction(escape: str) -> None:
    """By the rule of extraction a box that opens last and ends the response closes at its last brace."""
    pytest.importorskip("math_verify")
    response = f"</think>\\boxed{{3{escape}}} no: final answer is {escape}{{5}}".encode()
    for answer in (b"3", b"5"):
        outcome = score_math(response, True, answer)
        assert outcome.prediction == f"3{escape}}} no: final answer is {escape}{{5".encode()
        assert not outcome.right, outcome
    assert score_math(b"</think>\\boxed{3} no: final answer is \\boxed{5}", True, b"5").right, "the last box counts"
    assert score_math(b"</think>\\boxed{3}. So the answer is 3.", True, b"3").right
    assert score_math(b"</think>\\boxed{\\{1, 2\\}}", True, b"\\{2, 1\\}").right, "a set's braces are balanced"
