"""The prefix-matching reward: hand-worked cases, and Eq. 3 of the paper as a plain twin."""

import subprocess
import sys
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.task.reward import REASONS, Outcome, prefix_reward, priced, score_response
from pipeline.task.thinking import Thinking

# " 的 4x": tokens " ", e7 9a | 84 (the character 的 split over two tokens), " 4", "x" → cumulative 1, 3, 4, 6, 7
SPLIT = (b" \xe7\x9a\x84 4x", [1, 3, 4, 6, 7])
LATEX = (rb"^{2}\}", [2, 3, 4, 6])


@pytest.mark.parametrize(
    ("prediction", "truth", "reason"),
    [
        (b" ", SPLIT, "match"),
        (b" \xe7\x9a", SPLIT, "match"),  # ends inside the character, but on a token: bytes decide
        (b" \xe7", SPLIT, "off_boundary"),
        (" 的".encode(), SPLIT, "match"),
        (" 的 ".encode(), SPLIT, "off_boundary"),
        (" 的 4".encode(), SPLIT, "match"),
        (" 的 4x".encode(), SPLIT, "match"),
        (" 的 4x.".encode(), SPLIT, "longer_than_continuation"),
        (" 的 4y.".encode(), SPLIT, "mismatch"),  # longer, but wrong where it could be judged
        (" 白".encode(), SPLIT, "mismatch"),
        ("的".encode(), SPLIT, "mismatch"),  # the leading space counts
        (b" \xef\xbf\xbd", SPLIT, "mismatch"),  # U+FFFD, what decoding would have made of the half character
        (b"", SPLIT, "empty"),
        (None, SPLIT, "missing"),
        (b"^{", LATEX, "match"),
        (b"^", LATEX, "off_boundary"),
        (b"^{2}", LATEX, "match"),
        (rb"^{2}\}", LATEX, "match"),
        (b"^{2}\\", LATEX, "off_boundary"),
        (b"4", (b"", []), "longer_than_continuation"),  # nothing stored to compare with
    ],
)
def test_hand_worked(prediction, truth, reason):
    assert prefix_reward(prediction, *truth) == Outcome(1.0 if reason == "match" else 0.0, reason, prediction)


def equation_3(prediction, token_bytes):
    continuation = b"".join(token_bytes)
    length = len(prediction)
    lengths = {len(b"".join(token_bytes[:n])) for n in range(1, len(token_bytes) + 1)}
    return 1.0 if prediction == continuation[:length] and length in lengths else 0.0


letters = st.binary(min_size=1, max_size=3).map(lambda b: bytes(97 + x % 2 for x in b))  # two letters: many prefixes


@given(tokens=st.lists(letters, min_size=1, max_size=6), cut=st.integers(0, 20), more=st.binary(max_size=2))
def test_equals_equation_3(tokens, cut, more):
    continuation, boundaries = b"".join(tokens), list(accumulate(map(len, tokens)))
    for prediction in (continuation[:cut], continuation[:cut] + more, more):
        outcome = prefix_reward(prediction, continuation, boundaries)
        assert outcome.reward == equation_3(prediction, tokens)
        assert (outcome.reward == 1.0) == (outcome.reason == "match")
        assert outcome.reason in REASONS


@pytest.mark.parametrize(
    ("response", "finished", "expected"),
    [
        (rb"so it is</think>\boxed{^{}", True, Outcome(1.0, "match", b"^{")),
        (rb"so it is</think>\boxed{^{2}}", True, Outcome(1.0, "match", b"^{2}")),
        (rb"so it is</think>\boxed{}", True, Outcome(0.0, "empty", b"")),
        (rb"so it is \boxed{^{}", True, Outcome(0.0, "missing")),
        (rb"so it is</think>\boxed{^{}", False, Outcome(0.0, "unfinished")),  # right, but cut at the limit
        (b"", False, Outcome(0.0, "unfinished")),
        (b"", True, Outcome(0.0, "missing")),
    ],
)
def test_score_response(response, finished, expected):
    assert score_response(response, finished, *LATEX) == expected


def test_the_task_needs_nothing_but_the_standard_library():
    code = """if True:
        import sys
        before = set(sys.modules)
        import pipeline.task.templates, pipeline.task.reward
        loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
        print(sorted(loaded - set(sys.stdlib_module_names) - {"pipeline"}))
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


@pytest.mark.parametrize(
    ("form", "at_once", "thought"),
    [
        (Thinking("tags"), rb"</think>\boxed{ 4}", rb"A digit.</think>\boxed{ 4}"),
        (Thinking("free"), rb"\boxed{ 4}", rb"A digit: \boxed{ 4}"),
    ],
    ids=["tags", "free"],
)
def test_an_answer_at_once_is_rewarded_as_one_after_a_thought(form, at_once, thought):
    for response in (at_once, thought):
        assert score_response(response, True, b" 4 apples", [2, 9], form) == Outcome(1.0, "match", b" 4")
        assert score_response(response, True, b" 5 apples", [2, 9], form) == Outcome(0.0, "mismatch", b" 4")
    assert form.at_once(at_once) and not form.at_once(thought)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 100_000)), min_size=2, max_size=8),
    st.floats(1e-6, 1.0),
)
def test_a_price_orders_right_answers_by_length_above_all_wrong_ones(answers, price):
    paid = [priced(Outcome(float(right), "match" if right else "mismatch", b"x"), n, price) for right, n in answers]
    for (own_right, own_n), own in zip(answers, paid, strict=True):
        assert own.reward == (pytest.approx(1 - price * own_n / (1 + price * own_n)) if own_right else 0.0)
        assert own.right == own_right
        for (right, n), other in zip(answers, paid, strict=True):
            if own_right and not right:
                assert own.reward > other.reward
            if own_right and right and own_n < n:
                assert own.reward > other.reward


def test_without_a_price_nothing_changes():
    for reason in REASONS:
        outcome = Outcome(float(reason == "match"), reason, b"x")
        assert priced(outcome, 12345, 0.0) == outcome
