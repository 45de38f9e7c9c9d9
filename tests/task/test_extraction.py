r"""Extraction of the prediction: a table of responses, hostile input, the number of steps."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.task.extraction import extract_prediction

THOUGHT = b"<think>\nthe thought</think>"

ANSWERS = [
    # the box ends the response
    (rb"\boxed{4}", b"4"),
    (rb"\boxed{ 4}", b" 4"),
    (rb"\boxed{4 }", b"4 "),
    (rb"\boxed{}", b""),
    (rb"\boxed{ }", b" "),
    (b"\\boxed{:\n}", b":\n"),
    (b"\\boxed{\n\n}", b"\n\n"),
    (rb"\boxed{}}", b"}"),
    (rb"\boxed{{}", b"{"),
    (rb"\boxed{^{}", b"^{"),
    (rb"\boxed{}{}", b"}{"),
    (rb"\boxed{\}}", rb"\}"),
    (rb"\boxed{\}", b"\\"),
    (rb"\boxed{\frac{1}{2}}", rb"\frac{1}{2}"),
    (rb"\boxed{ \}", b" \\"),
    (rb"\boxed{$}", b"$"),
    (rb"\boxed{\boxed}", rb"\boxed"),
    (rb"\boxed{</think>}", b"</think>"),
    (rb"\boxed{}}}}}", b"}}}}"),
    # trailing whitespace is no text
    (b"\\boxed{ 4}\n", b" 4"),
    (b"\\boxed{}} \r\n\t ", b"}"),
    # text before the box, several boxes
    (rb"The next token is \boxed{ the}", b" the"),
    (rb"\boxed{a} no, rather \boxed{b}", b"b"),
    (rb"\boxed{a}\boxed{}}", b"}"),
    (rb"\boxed{\boxed{a}}", b"a}"),  # the inner box is the last one, and the response's last brace closes it
    # text follows: brace matching decides
    (rb"\boxed{4}.", b"4"),
    (rb"$\boxed{ 4}$", b" 4"),
    (rb"\[ \boxed{\frac{1}{2}} \]", rb"\frac{1}{2}"),
    (rb"**\boxed{x^{2}}** is my answer", b"x^{2}"),
    (rb"\boxed{}} is a brace.", b""),
    (rb"\boxed{\}$", b"\\"),  # braces are braces, with or without a backslash
    (rb"\boxed{4} or {5}, I think", b"4"),
    (rb"\boxed{4} or {5}", b"4} or {5"),  # ends in a brace, so that brace closes the box
    (b"\\boxed{4}\x00", b"4"),  # NUL is no whitespace
    (b"\\boxed{4}\xc2\xa0", b"4"),  # nor is a no-break space
    # several ends of thinking: the first counts
    (rb"\boxed{a}</think>", b"a"),
    (rb"\boxed{a}</think>\boxed{b}", b"b"),
    # bytes that are no text
    (b"\\boxed{\xe4\xb8}", b"\xe4\xb8"),
    (b"\\boxed{\x00}", b"\x00"),
    (b"\xff\xfe\\boxed{ \xf0\x9f\x98\x80}", b" \xf0\x9f\x98\x80"),
]


@pytest.mark.parametrize(("answer", "prediction"), ANSWERS)
def test_what_stands_in_the_last_box_is_taken_literally(answer, prediction):
    assert extract_prediction(THOUGHT + answer) == prediction


@pytest.mark.parametrize(
    "response",
    [
        b"",
        b"</think>",
        rb"\boxed{4}",  # thinking never ends
        rb"<think>\boxed{4}",
        rb"<think>\boxed{4}</think>",  # a box in the thought is none
        rb"<think>\boxed{4}</think>the answer is 4",
        rb"</think>\boxed 4",
        rb"</think>\boxed{",
        rb"</think>\boxed{4",
        rb"</think>\boxed{^{} is my answer",  # never closes by brace matching
        rb"</think >\boxed{4}",
        rb"</think>boxed{4}",
    ],
)
def test_no_prediction(response):
    assert extract_prediction(response) is None


FRAGMENTS = [b"</think>", rb"\boxed{", rb"\boxed", b"{", b"}", b" ", b"\n", b"\\", b"a", b"\xff"]
strings = st.lists(st.sampled_from(FRAGMENTS), max_size=30).map(b"".join)


@given(thought=strings, prediction=strings.filter(lambda b: rb"\boxed{" not in b))
def test_any_prediction_comes_back_when_its_box_ends_the_response(thought, prediction):
    assert extract_prediction(thought + b"</think>" + rb"\boxed{" + prediction + b"}") == prediction


@given(strings)
def test_any_response_gives_none_or_a_part_of_its_answer(response):
    prediction = extract_prediction(response)
    assert prediction is None or prediction in response.partition(b"</think>")[2]


def steps(response):
    """Lines that ran, calls, and for a method of bytes the bytes it may have looked at."""
    taken = 0

    def called(frame, event, builtin):
        nonlocal taken
        if event == "c_call":
            owner = getattr(builtin, "__self__", None)
            taken += len(owner) if isinstance(owner, bytes) else 1

    def line(frame, event, argument):
        nonlocal taken
        taken += event == "line"
        return line

    before = sys.gettrace()
    sys.setprofile(called)
    sys.settrace(line)
    try:
        extract_prediction(response)
    finally:
        sys.settrace(before)
        sys.setprofile(None)
    return taken


@pytest.mark.parametrize(
    "response",
    [
        lambda n: b"</think>" * n,
        lambda n: b"</think>" + rb"\boxed{" * n,
        lambda n: b"</think>" + rb"\boxed{" * n + b"}" * n + b".",
        lambda n: b"</think>" + rb"\boxed{" + b"{" * n + b"}" * n + b"}.",
        lambda n: b"</think>" + rb"\boxed{" + b"}" + b" " * n + b".",
        lambda n: b"\\boxed" * n + b"</think>" + b"\\boxed" * n,
    ],
    ids=["thoughts", "open boxes", "nested boxes", "deep braces", "spaces", "near boxes"],
)
def test_twice_the_response_takes_twice_the_steps(response):
    once, twice = steps(response(2000)), steps(response(4000))
    assert once > 2000 and twice < 2 * once + 10
