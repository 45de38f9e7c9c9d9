"""Rewards of a final answer to a question, given in a box.

Two rules: `score_answer` compares texts and plain numbers; `score_math` also reads LaTeX, with `math-verify`
(https://github.com/huggingface/Math-Verify; extra `eval`), which is imported on first use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from pipeline.task.extraction import TAGS, extract_prediction
from pipeline.task.reward import Outcome, score_response
from pipeline.task.thinking import Thinking

Judge = Callable[[bytes, bool, bytes, Sequence[int], Thinking], Outcome]
"""A function (response, finished, truth, boundaries, thinking) → outcome, such as `score_response`."""

_NUMBER = re.compile(r"([-+]?)\$?((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:/(\d+))?")


def number(text: str) -> Fraction | None:
    """Return the exact value of a plain number, or None if the text is not one.

    Plain numbers are integers, decimals and fractions, with or without thousands separators and a dollar sign.

    Example:
        >>> [str(number(text)) for text in ("1,234.50", "-3/6", "$7", "07", "1,2", "2 apples", "1/0")]
        ['2469/2', '-1/2', '7', '7', 'None', 'None', 'None']
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        return None
    sign, digits, divisor = match.groups()
    if divisor is not None and int(divisor) == 0:
        return None
    value = Fraction(digits.replace(",", "")) / int(divisor or 1)
    return -value if sign == "-" else value


def same_answer(prediction: str, answer: str) -> bool:
    """Return whether two answers are the same number, or the same text without surrounding white space.

    Example:
        >>> same_answer(" 42.0", "42"), same_answer("Monday", " Monday"), same_answer("monday", "Monday")
        (True, True, False)
    """
    first, second = number(prediction), number(answer)
    return prediction.strip() == answer.strip() or (first is not None and first == second)


def same_mathematics(prediction: str, answer: str) -> bool:
    """Return whether two answers are equal by `math-verify`: numbers, expressions, sets, intervals, choices.

    Answers that take it longer than five seconds count as different. It measures the time by SIGALRM, so it works on
    the main thread only.

    Raises:
        ImportError: `math-verify` is not installed.
    """
    from math_verify import parse, verify

    if same_answer(prediction, answer):
        return True
    if not stays_in_box(prediction):
        return False  # a box around it would close early, and only the text before that would be compared
    gold, guess = (parse(rf"\boxed{{{text}}}") for text in (answer, prediction))
    return bool(verify(gold, guess))


def stays_in_box(text: str) -> bool:
    r"""Return whether a box around a text closes exactly at its end, with and without counting escaped braces.

    Example:
        >>> [stays_in_box(text) for text in (r"\frac{1}{2}", r"\{1, 2\}", "3} no: it is {5", r"3\} no: it is \{5")]
        [True, True, False, False]
    """
    return _balanced(text) and _balanced(re.sub(r"\\[{}]", "", text))


def _balanced(text: str) -> bool:
    depth = 0
    for brace in re.findall("[{}]", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def score_answer(
    response: bytes, finished: bool, answer: bytes, boundaries: Sequence[int] = (), thinking: Thinking = TAGS
) -> Outcome:
    """Reward 1 iff a response's prediction equals the answer by `same_answer`.

    Args:
        response: bytes of the response's tokens, without the end-of-sequence token.
        finished: whether the response ended by itself. A response cut at the length limit is `unfinished`.
        answer: the true answer, UTF-8.
        boundaries: ignored; the parameter is there for the signature of `Judge`.
        thinking: how the policy thinks.
    """
    return _scored(same_answer, response, finished, answer, thinking)


def score_math(
    response: bytes, finished: bool, answer: bytes, boundaries: Sequence[int] = (), thinking: Thinking = TAGS
) -> Outcome:
    """Reward 1 iff a response's prediction equals the answer by `same_mathematics`. Arguments as for `score_answer`."""
    return _scored(same_mathematics, response, finished, answer, thinking)


def judge_of(reward: str) -> Judge:
    """Return the function that decides whether a response is right for a `task.reward`.

    For rewards of sites that is always prefix matching.

    Example:
        >>> judge_of("answer") is score_answer, judge_of("dense") is score_response
        (True, True)
    """
    return {"answer": score_answer, "math": score_math}.get(reward, score_response)


def _scored(
    same: Callable[[str, str], bool], response: bytes, finished: bool, answer: bytes, thinking: Thinking
) -> Outcome:
    if not finished:
        return Outcome(0.0, "unfinished")
    prediction = extract_prediction(response, thinking)
    if not prediction:
        return Outcome(0.0, "missing" if prediction is None else "empty", prediction)
    right = same(prediction.decode("utf-8", errors="replace"), answer.decode("utf-8", errors="replace"))
    return Outcome(float(right), "match" if right else "mismatch", prediction)
