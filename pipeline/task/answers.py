"""Rewards of a final answer: what a question's rule says of the prediction in the box.

Two rules: `score_answer` compares texts and plain numbers; `score_math` reads LaTeX as well, with `math-verify`
(https://github.com/huggingface/Math-Verify; extra `eval`), imported when it is first used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from pipeline.task.extraction import extract_prediction
from pipeline.task.reward import Outcome, score_response

Judge = Callable[[bytes, bool, bytes, Sequence[int]], Outcome]
"""(response, finished, what is true, boundaries) → outcome, as `score_response`, which judges a continuation."""

_NUMBER = re.compile(r"([-+]?)\$?((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:/(\d+))?")


def number(text: str) -> Fraction | None:
    """The plain number that a text is, exactly: an integer, decimal or fraction, thousands apart or not, or dollars.

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
    """The same text, white space around it aside, or the same number.

    Example:
        >>> same_answer(" 42.0", "42"), same_answer("Monday", " Monday"), same_answer("monday", "Monday")
        (True, True, False)
    """
    first, second = number(prediction), number(answer)
    return prediction.strip() == answer.strip() or (first is not None and first == second)


def same_mathematics(prediction: str, answer: str) -> bool:
    """The same by `math-verify`, which both are given to in a box: numbers, expressions, sets, intervals, choices.

    What takes it longer than five seconds is not the same; it measures them by SIGALRM, so on the main thread only.

    Raises:
        ImportError: it is not installed.
    """
    from math_verify import parse, verify

    if same_answer(prediction, answer):
        return True
    if not stays_in_box(prediction):
        return False  # a box around it would close early, and what stands before that would be judged alone
    gold, guess = (parse(rf"\boxed{{{text}}}") for text in (answer, prediction))
    return bool(verify(gold, guess))


def stays_in_box(text: str) -> bool:
    r"""Whether a box around a text ends where the text does, whether or not escaped braces count as braces.

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


def score_answer(response: bytes, finished: bool, answer: bytes, boundaries: Sequence[int] = ()) -> Outcome:
    """1 iff a response's prediction is the answer by `same_answer`.

    Args:
        response: bytes of the response's tokens, without the end-of-sequence token.
        finished: the response ended by itself. One cut at the length limit is `unfinished`, whatever stands in it.
        answer: the true one, UTF-8.
        boundaries: of no meaning here.
    """
    return _scored(same_answer, response, finished, answer)


def score_math(response: bytes, finished: bool, answer: bytes, boundaries: Sequence[int] = ()) -> Outcome:
    """1 iff a response's prediction is the answer by `same_mathematics`. Arguments as for `score_answer`."""
    return _scored(same_mathematics, response, finished, answer)


def judge_of(reward: str) -> Judge:
    """What says whether a response is right, by the name of `task.reward`: that of sites is prefix matching, always.

    Example:
        >>> judge_of("answer") is score_answer, judge_of("dense") is score_response
        (True, True)
    """
    return {"answer": score_answer, "math": score_math}.get(reward, score_response)


def _scored(same: Callable[[str, str], bool], response: bytes, finished: bool, answer: bytes) -> Outcome:
    if not finished:
        return Outcome(0.0, "unfinished")
    prediction = extract_prediction(response)
    if not prediction:
        return Outcome(0.0, "missing" if prediction is None else "empty", prediction)
    right = same(prediction.decode("utf-8", errors="replace"), answer.decode("utf-8", errors="replace"))
    return Outcome(float(right), "match" if right else "mismatch", prediction)
