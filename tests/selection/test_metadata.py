"""Metadata of documents in rules: typed, by hand; and what every mistake is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.config.manifest import Manifest
from pipeline.config.selection import SelectConfig
from pipeline.core.parquet import read_table
from pipeline.selection.corpus_rules import CANDIDATES
from pipeline.selection.metadata import BUILT_IN, metadata_frame, rule_columns
from pipeline.selection.sites import SITES, select_sites
from pipeline.shards.reader import PASS_RATE_COLUMNS, SITE_COLUMNS
from pipeline.shards.schema import SHARDS
from stages.select import select
from tests.selection.tables import documents_of, scores_of
from tests.stages.published import InProcess, cut, publish_tables

KINDS: dict[str, str] = {"difficulty": "number", "source": "text", "checked": "boolean"}


def corpus(*meta: dict[str, Any]) -> tuple[pa.Table, pa.Table]:
    """A document of two tokens for each of some metadata."""
    documents = documents_of([f"{i:02}" for i in range(len(meta))])
    column = pa.array([json.dumps(row) for row in meta], pa.string())
    documents = documents.set_column(documents.column_names.index("meta"), documents.schema.field("meta"), column)
    return documents, scores_of(documents, [[1, 2]] * len(meta), [[1.0, 2.0]] * len(meta))


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("difficulty > 5 AND source = 'omni'", [0]),
        ("difficulty > 5", [0, 1]),
        ("difficulty IS NULL", [3]),
        ("source LIKE '%8k' OR checked", [1, 2]),
        ("NOT checked AND entropy > 1.5", [0]),
    ],
)
def test_a_rule_may_name_metadata(where: str, kept: list[int]) -> None:
    documents, scores = corpus(
        {"difficulty": 5.5, "source": "omni", "checked": False},
        {"difficulty": "7", "source": "gsm8k"},  # a CSV's number
        {"difficulty": 5, "source": "omni", "checked": True},
        {"difficulty": None, "source": 7},
    )
    config = SelectConfig(where=where, metadata=KINDS)
    sites, counters = select_sites(config, documents, scores)
    ids = documents["doc_id"].to_pylist()
    assert sorted({ids.index(doc_id) for doc_id in sites["doc_id"]}) == kept
    assert counters["kept.train"] + counters["dropped.where"] == 8


@pytest.mark.parametrize(
    ("kind", "value"),
    [("number", "seven"), ("number", True), ("number", [1]), ("number", "nan"), ("boolean", 1), ("text", ["a"])],
)
def test_a_value_that_is_not_of_its_kind_is_named(kind: str, value: object) -> None:
    with pytest.raises(
        UserError, match=f"metadata `x` is not of kind `{kind}`: document d: {value!r}".replace("[", r"\[")
    ):
        metadata_frame(["d"], [json.dumps({"x": value})], {"x": kind})


@pytest.mark.parametrize("name", ["rank", "band", "Entropy", "context", "pass_rate", "source_file", "Corpus", "key"])
def test_a_built_in_column_is_not_metadata(name: str) -> None:
    with pytest.raises(UserError, match=f"`{name}`, but `{name.lower()}` is a built-in column.*rename the column"):
        rule_columns({name: "text"})


def test_names_of_metadata_differ_in_more_than_capitals() -> None:
    with pytest.raises(UserError, match="`Level`, but `level` is"):
        rule_columns({"level": "text", "Level": "text"})
    with pytest.raises(UserError, match="`corpus` is a built-in"):
        rule_columns({"corpus": "number"})
    assert rule_columns({"corpus": "text"}).keys() == rule_columns({}).keys()


def test_every_column_that_is_built_in_is_known_as_such() -> None:
    tables = (SITES, SHARDS, CANDIDATES, scores_of(documents_of(["a"]), [[1]], [[1.0]]).schema)
    columns = {name for table in tables for name in table.names} | set(SITE_COLUMNS) | set(PASS_RATE_COLUMNS)
    of_scores = {"token_ids"}  # are gone where metadata come
    assert columns - of_scores - {"corpus"} <= BUILT_IN


def test_lists_are_looked_into_and_never_compared() -> None:
    documents, scores = corpus({"domain": ["Mathematics -> Geometry"]}, {"domain": ["Algebra", "Zahlen"]}, {})
    config = SelectConfig(where="domain LIKE '%Geometry%'", metadata={"domain": "json"})
    sites, _ = select_sites(config, documents, scores)
    assert set(sites["doc_id"]) == {documents["doc_id"][0].as_py()}
    assert set(sites["domain"]) == {'["Mathematics -> Geometry"]'}
    for where in (
        "domain = 'Geometry'",
        "'Geometry' = domain",
        "domain IN ('a')",
        "entropy > 1 AND NOT (domain) <> 'a'",
    ):
        with pytest.raises(UserError, match=r"compares `domain`, which is JSON.*domain LIKE '%part%'"):
            select_sites(SelectConfig(where=where, metadata={"domain": "json"}), documents, scores)


@pytest.mark.parametrize("by", ["difficulty", "band"])
def test_strata_by_a_metadata_column_are_of_that_column(tmp_path: Path, by: str) -> None:
    """`difficulty` is metadata, `band` the band; four documents of two positions each, above every threshold."""
    documents, scores = corpus({"difficulty": 1}, {"difficulty": 2}, {"difficulty": 2}, {})
    sites = selected(
        tmp_path, documents, scores, {"strata": {"by": by, "sites": 1}, "metadata": {"difficulty": "number"}}
    )
    assert len(sites) == {"difficulty": 3, "band": 1}[by]
    assert {row["band"] for row in sites} == {"hard"}
    if by == "difficulty":
        assert sorted(str(row["difficulty"]) for row in sites) == ["1.0", "2.0", "None"]


@pytest.mark.parametrize(
    ("by", "message"), [("nope", "no document has the metadata `nope`"), ("key", "`key` cannot define strata")]
)
def test_strata_by_what_does_not_exist_are_refused(tmp_path: Path, by: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"{message}.*select\.strata\.by"):
        selected(tmp_path, *corpus({"difficulty": 1}), {"strata": {"by": by, "sites": 1}})


def selected(work: Path, documents: pa.Table, scores: pa.Table, rules: dict[str, Any]) -> list[dict[str, Any]]:
    """The sites that `rpt select` publishes."""
    manifest = Manifest.model_validate(
        {
            "name": "toy",
            "corpus": {"source": "texts"},
            "proxy": {"model": "none"},
            "select": rules,
            "materialize": {"policy_tokenizer": "none"},
        }
    )
    ingested = publish_tables(work, "ingest", [{"documents": table} for table in cut(documents, 2)])
    scored = publish_tables(work, "score", [{"scores": table} for table in cut(scores, 2)])
    record = select(manifest, ingested, scored, work=work, executor=InProcess())
    return [row for file in record.files("sites") for row in read_table(file).to_pylist()]


def test_metadata_that_no_document_has_is_refused_with_what_there_is(tmp_path: Path) -> None:
    documents, scores = corpus({"difficulty": 1}, {"source": "omni"}, {"domain": "x"})
    manifest = Manifest.model_validate(
        {
            "name": "toy",
            "corpus": {"source": "texts"},
            "proxy": {"model": "none"},
            "select": {"where": "dificulty > 5", "metadata": {"dificulty": "number"}},
            "materialize": {"policy_tokenizer": "none"},
        }
    )
    ingested = publish_tables(tmp_path, "ingest", [{"documents": table} for table in cut(documents, 1)])
    scored = publish_tables(tmp_path, "score", [{"scores": table} for table in cut(scores, 1)])
    with pytest.raises(UserError, match=r"`dificulty`.*known: difficulty, source, domain"):
        select(manifest, ingested, scored, work=tmp_path, executor=InProcess())


def number(value: Any) -> Any:
    return metadata_frame(["d"], [json.dumps({"id": value})], {"id": "number"})["id"][0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3.0),
        ("3.5", 3.5),
        (" 7 ", 7.0),
        (2**53 - 1, 2.0**53 - 1),
        (str(-(2**53) + 1), -(2.0**53) + 1),
        (0.1, 0.1),
        (1e300, 1e300),
        ("0.1000000000000000055511151231257827", 0.1),  # a fraction is rounded, as everywhere
        (None, None),
    ],
)
def test_what_a_double_holds_is_a_number(value: Any, expected: float | None) -> None:
    assert number(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        2**53,  # 2^53 + 1 is stored as this one: `id = 9007199254740993` would select it
        9007199254740993,
        -(2**53) - 1,
        "9007199254740993",
        "9007199254740993.0",
        "+9007199254740993 ",
        2**64,
        10**400,
        "1" * 400,
        True,
        "nan",
        "inf",
        "1e999",
        "three",
        [3],
    ],
)
def test_an_integer_that_a_double_does_not_hold_is_not_a_number(value: Any) -> None:
    with pytest.raises(
        UserError, match=r"metadata `id` is not of kind `number`: document d.*\{id: (text|json)\} accepts any value"
    ):
        number(value)


@given(st.lists(st.integers(-(2**70), 2**70), min_size=2, max_size=2, unique=True))
def test_two_integers_are_never_one_number(values: list[int]) -> None:
    found = []
    for value in values:
        try:
            found.append(number(value))
        except UserError:
            found.append(object())
    assert found[0] != found[1]


def test_lone_surrogates_of_an_earlier_corpus_are_text() -> None:
    assert metadata_frame(["d"], ['{"tag": "bad \\\\ud83d"}'], {"tag": "text"})["tag"][0] == r"bad \ud83d"
