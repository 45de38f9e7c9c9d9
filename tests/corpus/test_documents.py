from __future__ import annotations

import hashlib
import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.documents import (
    DOCUMENTS,
    MODEL_INPUT,
    NESTING,
    count_control_characters,
    doc_id,
    text_digest,
    to_document,
    to_json,
)
from pipeline.corpus.quarantine import Unusable
from pipeline.corpus.template import Template
from tests.corpus.corpora import manifest

TEXT = Template.parse("{text}")


def document(values: dict[str, Any], template: Template = TEXT, **corpus: Any) -> Any:
    return to_document(values, template, manifest(**corpus).corpus)


def test_text_is_normalised_before_it_is_identified() -> None:
    composed, decomposed = document({"text": "caf\u00e9"}), document({"text": "cafe\u0301"})
    assert composed.text == decomposed.text == "café"
    assert composed.doc_id == decomposed.doc_id == doc_id("café")
    assert composed.fields == [{"name": "text", "start": 0, "end": 5}]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n\t\u2003", "empty"),
        ("four", "too_short"),
        ("é" * 51, "too_long"),
        ("a\ud800b and on", "lone_surrogate"),
        ("a\0b and on", "nul_character"),
        ([7], "wrong_type"),
    ],
)
def test_what_cannot_be_a_document(text: object, reason: str) -> None:
    with pytest.raises(Unusable) as why:
        document({"text": text}, min_document_bytes=5, max_document_bytes=100)
    assert why.value.reason == reason


def test_bounds_are_in_bytes_and_inclusive() -> None:
    assert document({"text": "é" * 50}, min_document_bytes=100, max_document_bytes=100).text == "é" * 50


def test_control_characters_stay_and_are_counted() -> None:
    text = "\x01\x0c\x15\x7f\x85\t\r\n x"
    assert document({"text": text}).text == text
    texts = ["\tplain\r\n", "\x01", "a\x0cb", "\x7f", "\u0085", "é\u00a0\u2028"]
    assert count_control_characters(pa.chunked_array([texts[:3], texts[3:]])) == 4
    assert count_control_characters(pa.chunked_array([], pa.large_string())) == 0


FIELDS = st.lists(
    st.fixed_dictionaries({"name": st.text('né"', max_size=3), "start": st.integers(0, 9), "end": st.integers(0, 9)})
)


@given(st.lists(st.fixed_dictionaries({"text": st.text(st.characters(exclude_categories=["Cs"])), "fields": FIELDS})))
def test_the_digest_is_that_of_lines_of_json(rows: list[dict[str, Any]]) -> None:
    rows = [row | {"doc_id": doc_id(row["text"]), "split": "train"} for row in rows]
    lines = [json.dumps(row, sort_keys=True) + "\n" for row in rows]
    table = pa.Table.from_pylist(rows, schema=pa.schema([DOCUMENTS.field(name) for name in MODEL_INPUT]))
    cut = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert text_digest(table) == text_digest(cut) == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_meta_holds_the_columns_that_the_template_does_not_use() -> None:
    meta = document({"text": "x", "tags": ["é"], "n": None, "f": float("nan"), "s": "\ud800", "b": b"\xff"}).meta
    assert json.loads(meta) == {"tags": ["é"], "n": None, "f": None, "s": "\\ud800", "b": "/w=="}
    assert meta.encode()  # a lone surrogate is the text of its escape
    assert "é" in document({"text": "x", "tags": ["é"]}).meta


@given(
    st.recursive(
        st.none() | st.floats() | st.text(st.characters()), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_meta_is_always_json_in_utf8(value: object) -> None:
    text = to_json({"value": value}).encode()
    read = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    json.dumps(read, ensure_ascii=False).encode()  # what is read can be written, by whatever stage


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"in": value}
    return value


def test_metadata_are_nested_no_deeper_than_every_stage_can_read() -> None:
    assert json.loads(document({"text": "x", "deep": nested(NESTING - 1)}).meta)["deep"] == nested(NESTING - 1)
    for depth in (NESTING, 900, 100_000):
        with pytest.raises(Unusable, match="nested deeper than 100"):
            document({"text": "x", "deep": nested(depth)})


def test_held_out_is_what_the_column_says() -> None:
    rule = {"column": "split", "value": "test"}
    assert document({"text": "x", "split": "test"}, validation=rule).held_out
    assert not document({"text": "x", "split": "train"}, validation=rule).held_out
    assert document({"text": "x", "split": True}, validation={"column": "split", "value": "true"}).held_out
    with pytest.raises(Unusable) as why:  # neither side is safe
        document({"text": "x"}, validation=rule)
    assert why.value.reason == "missing_column"
