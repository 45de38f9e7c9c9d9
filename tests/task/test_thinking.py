"""Forms of responses: what is written is read again, in every mode, with any marks and any given beginning."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.task import TaskConfig
from pipeline.task.extraction import extract_prediction
from pipeline.task.reward import score_response
from pipeline.task.thinking import BOX, Thinking, choose_mode, written_response

PREFILLS = ["", "Hm.", "\\boxed{", "The next token is \\boxed{", "</think>\\boxed{", "[/T]", "\\boxed{ 1} or "]
FORMS = [
    Thinking(mode, *marks, prefill)
    for mode in ("tags", "free", "none")
    for marks in (("<think>", "</think>"), ("[T]", "[/T]"))
    for prefill in PREFILLS
]
HOSTILE = [b"</think>", b"[/T]", b"<think>", BOX, b"\\boxed", b"{", b"}", b"}{", b" ", b"\n", b" 4", b"\xe6\x95", b"$"]


@given(
    st.sampled_from(FORMS),
    st.lists(st.sampled_from(["A digit.", "\n", "}", "{", "\\boxed{ 3}", "\\boxed{", "数"]), max_size=5),
    st.lists(st.sampled_from([part for part in HOSTILE if part != BOX]) | st.binary(max_size=3), max_size=5),
)
def test_what_is_written_is_read_again(form: Thinking, thought: list[str], target: list[bytes]) -> None:
    said, expected = "".join(thought), b"".join(target)
    if BOX in expected:
        return
    response = written_response(form, said, expected)
    assert extract_prediction(response, form) == expected
    if expected:
        assert score_response(response, True, expected, [len(expected)], form).right


def test_a_thought_is_written_only_where_one_can_stand() -> None:
    written = {
        Thinking("tags"): b"A digit.</think>\\boxed{ 4}",
        Thinking("free"): b"A digit.\\boxed{ 4}",
        Thinking("none"): b"\\boxed{ 4}",
        Thinking("tags", "[T]", "[/T]"): b"A digit.[/T]\\boxed{ 4}",
        Thinking("tags", prefill="Hm. "): b"A digit.</think>\\boxed{ 4}",
        Thinking("tags", prefill="</think>\\boxed{"): b" 4}",
        Thinking("tags", prefill="\\boxed{"): b"A digit.</think>\\boxed{ 4}",
        Thinking("free", prefill="\\boxed{"): b" 4}",
        Thinking("none", prefill="It is \\boxed{"): b" 4}",
    }
    assert {form: written_response(form, "A digit.", b" 4") for form in written} == written


@pytest.mark.parametrize(
    ("response", "tags", "free"),
    [
        (b"A digit.</think>\\boxed{ 4}", b" 4", b" 4"),
        (b"A digit: \\boxed{ 4}", None, b" 4"),
        (b"\\boxed{ 3}</think>\\boxed{ 4}", b" 4", b" 4"),
        (b"\\boxed{ 3}</think> is it.", None, b" 3"),
        (b"\\boxed{ 3} no, \\boxed{ 4}", None, b" 4"),
        (b"\\boxed{ 3} no, \\boxed{ 4", None, None),
        (b"</think>", None, None),
        (b"", None, None),
    ],
)
def test_where_a_prediction_is_looked_for(response: bytes, tags: bytes | None, free: bytes | None) -> None:
    assert extract_prediction(response, Thinking("tags")) == tags
    assert extract_prediction(response, Thinking("free")) == free
    assert extract_prediction(response, Thinking("none")) == free


def test_the_given_beginning_is_part_of_the_response() -> None:
    assert extract_prediction(b" 4}", Thinking("none", prefill="\\boxed{")) == b" 4"
    assert extract_prediction(b"{ 4}", Thinking("free", prefill="\\boxed")) == b" 4"
    assert extract_prediction(b"think>\\boxed{ 4}", Thinking("tags", prefill="</")) == b" 4"
    assert extract_prediction(b" 4}", Thinking("tags", prefill="\\boxed{")) is None, "it stands in the thought"


@pytest.mark.parametrize(
    ("mode", "text", "knows_marks", "expected"),
    [
        ("tags", "A:", True, "A:<think>\n"),
        ("tags", "A:", False, "A:<think>\n"),
        ("tags", "A:<think>", True, "A:<think>"),
        ("tags", "A:<think>\n", True, "A:<think>\n"),
        ("tags", "A:<think>\n\n</think>\n\n", True, "A:<think>\n\n</think>\n\n<think>\n"),
        ("free", "A:", True, "A:"),
        ("free", "A:<think>\n", True, "A:<think>\n"),
        ("none", "A:", False, "A:"),
        ("none", "A:", True, "A:<think>\n\n</think>\n\n"),
        ("none", "A:<think>", False, "A:<think>\n\n</think>\n\n"),
        ("none", "A:<think>\n", True, "A:<think>\n\n</think>\n\n"),
        ("none", "A:<think>\n\n</think>\n\n", True, "A:<think>\n\n</think>\n\n"),
        ("none", "<think>a</think>", False, "<think>a</think>"),
    ],
)
def test_the_end_of_a_prompt(mode: str, text: str, knows_marks: bool, expected: str) -> None:
    form = Thinking(mode, prefill="\\boxed{")  # type: ignore[arg-type]
    assert form.prompt_end(text, knows_marks) == expected + "\\boxed{"


def test_auto_goes_by_tokens_then_by_the_chat_template() -> None:
    chosen = {
        (tokens, template): choose_mode("<t>", "</t>", are_tokens=tokens, in_template=template)
        for tokens in (True, False)
        for template in (True, False)
    }
    assert {key: mode for key, (mode, _) in chosen.items()} == {
        (True, True): "tags",
        (True, False): "tags",
        (False, True): "tags",
        (False, False): "free",
    }
    reasons = {reason for _, reason in chosen.values()}
    assert len(reasons) == 3 and all("</t>" in reason for reason in reasons)


def test_the_marks_of_a_recipe_are_those_of_the_module() -> None:
    task = TaskConfig(thinking="tags")
    assert Thinking("tags", *task.think_marks, task.prefill) == Thinking()


@pytest.mark.parametrize("marks", [("", "b"), ("a", "a"), ("a", "ab"), (" ", "b"), ("a",), ("a", "b", "c")])
def test_marks_that_cannot_be_told_apart_are_refused(marks: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="think_marks"):
        TaskConfig.model_validate({"think_marks": list(marks)})


def test_without_thoughts_their_gain_is_no_reward() -> None:
    with pytest.raises(ValueError, match="there are none"):
        TaskConfig(thinking="none", reward="information_gain")


@pytest.mark.parametrize("settings", [{"reward": "dense"}, {"reward": "information_gain"}, {"reward": "format_only"}])
def test_a_price_is_refused_where_wrong_answers_are_paid(settings: dict[str, str]) -> None:
    TaskConfig.model_validate(settings)
    with pytest.raises(ValueError, match=r"token_price.*wrong answer could earn more.*prefix, first_token"):
        TaskConfig.model_validate({"token_price": 0.1} | settings)


def test_a_price_and_a_penalty_for_length_are_not_combined() -> None:
    with pytest.raises(ValueError, match=r"token_price.*overlong_penalty_tokens"):
        TaskConfig(token_price=0.1, overlong_penalty_tokens=4)


def test_runs_without_a_price_are_those_of_before() -> None:
    assert "token_price" not in TaskConfig().identity() and TaskConfig(token_price=0.1).identity()["token_price"] == 0.1
