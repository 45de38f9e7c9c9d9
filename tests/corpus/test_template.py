from __future__ import annotations

import datetime
import unicodedata
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.corpus.quarantine import Unusable
from pipeline.corpus.template import Template

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
MARKS = st.text(st.sampled_from("aé̀́e\u0301가ᄀ\u1161\u11a8"), max_size=5)


def test_spans_are_bytes_of_the_text() -> None:
    text, spans = Template.parse("问 {q}\n{{A}} {a} {q}").render({"q": "né", "a": "数"})
    assert text == "问 né\n{A} 数 né"
    encoded = text.encode()
    assert [(name, encoded[start:end].decode()) for name, start, end in spans] == [
        ("q", "né"),
        ("a", "数"),
        ("q", "né"),
    ]
    assert spans[0] == ("q", 4, 7)  # 问 is three bytes, the space one; n and é are three


@given(TEXT, TEXT, TEXT)
def test_spans_slice_to_the_normalised_columns(a: str, literal: str, b: str) -> None:
    template = Template((("", "a"), (f"{literal}|", "b"), ("|", None)))
    text, spans = template.render({"a": a, "b": f"|{b}"})  # no mark can compose across a bar
    assert unicodedata.is_normalized("NFC", text)
    for (_, start, end), value in zip(spans, (a, f"|{b}"), strict=True):
        assert text.encode()[start:end].decode() == unicodedata.normalize("NFC", value)


@given(MARKS, MARKS, MARKS)
def test_what_composes_across_a_border_belongs_to_the_piece_it_begins_in(a: str, literal: str, b: str) -> None:
    text, spans = Template((("", "a"), (literal, "b"))).render({"a": a, "b": b})
    assert text == unicodedata.normalize("NFC", a + literal + b)
    (_, _, a_end), (_, b_start, b_end) = spans
    assert 0 <= a_end <= b_start <= b_end == len(text.encode())
    for border in (a_end, b_start):  # every border is a character border
        assert text.encode()[:border].decode() + text.encode()[border:].decode() == text


def test_a_mark_that_begins_a_column_composes_with_the_literal_before_it() -> None:
    text, spans = Template.parse("e{b}").render({"b": "\u0301x"})
    assert (text, spans) == ("éx", [("b", 2, 3)])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", "x"),
        (7, "7"),
        (8.0, "8.0"),
        (True, "true"),
        (False, "false"),
        (b"\xe6\x95\xb0", "数"),
        (Decimal("1.50"), "1.50"),
        (datetime.date(2024, 2, 29), "2024-02-29"),
    ],
)
def test_what_is_rendered(value: object, text: str) -> None:
    assert Template.parse("{a}").render({"a": value})[0] == text


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "missing_column"),
        ({"a": None}, "null_column"),
        ({"a": [1]}, "wrong_type"),
        ({"a": []}, "wrong_type"),
        ({"a": ["x", None]}, "wrong_type"),
        ({"a": {"b": "x"}}, "wrong_type"),
        ({"a": float("inf")}, "wrong_type"),
        ({"a": b"\xff"}, "not_utf8"),
    ],
)
def test_what_is_no_text(values: dict[str, object], reason: str) -> None:
    with pytest.raises(Unusable) as why:
        Template.parse("{a}").render(values)
    assert why.value.reason == reason
    assert "`a`" in why.value.detail


@pytest.mark.parametrize("template", ["{a", "a}", "{}", "{a!r}", "{a:>3}", "no column", ""])
def test_templates_that_are_refused(template: str) -> None:
    with pytest.raises(UserError, match=r"corpus\.text"):
        Template.parse(template)


def test_an_unknown_column_is_named_with_the_nearest_known_ones() -> None:
    with pytest.raises(UserError) as error:
        Template.parse("{problem} {answr}").check(["source", "problem", "answer"], "part-2.jsonl")
    assert str(error.value) == (
        "`corpus.text` names the column `answr`, which does not exist: part-2.jsonl (known: answer, source, problem)"
    )


def test_every_element_of_lists_inside_lists() -> None:
    record = {"p": [{"q": [{"a": "x"}, {"a": "y"}]}, {"q": []}, {"q": [{"a": "z"}]}], "n": 1}
    assert Template.parse('{p[].q[].a | join(", ")}').render(record) == ("x, y, z", [("p[].q[].a", 0, 7)])
    assert Template.parse("{p[].q.0.a}").render({"p": record["p"][:1]})[0] == "x"  # type: ignore[index]
    for column, reason in (("p[].b", "missing_column"), ("n[].a", "wrong_type"), ("p[].q", "wrong_type")):
        with pytest.raises(Unusable) as error:
            Template.parse(f"{{{column}}}").render(record)
        assert error.value.reason == reason
    Template.parse("{p[].q[].a}").check(["p"], "x.json")
