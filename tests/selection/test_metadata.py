"""Metadata of documents in rules: typed, by hand; and what every mistake is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.core.config import Manifest, SelectConfig
from pipeline.core.errors import UserError
from pipeline.selection.metadata import metadata_frame, rule_columns
from pipeline.selection.sites import select_sites
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
        {"difficulty": None, "source": ["a", "list"]},
    )
    config = SelectConfig(where=where, metadata=KINDS)
    sites, counters = select_sites(config, documents, scores)
    ids = documents["doc_id"].to_pylist()
    assert sorted({ids.index(doc_id) for doc_id in sites["doc_id"]}) == kept
    assert counters["kept.train"] + counters["dropped.where"] == 8


@pytest.mark.parametrize(
    ("kind", "value"), [("number", "seven"), ("number", True), ("number", [1]), ("number", "nan"), ("boolean", 1)]
)
def test_a_value_that_is_not_of_its_kind_is_named(kind: str, value: object) -> None:
    with pytest.raises(UserError, match=f"metadata `x` is no {kind}: document d: {value!r}".replace("[", r"\[")):
        metadata_frame(["d"], [json.dumps({"x": value})], {"x": kind})


def test_a_column_of_positions_is_not_metadata() -> None:
    with pytest.raises(UserError, match="`rank`, which is a column of positions"):
        rule_columns({"rank": "number"})


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
