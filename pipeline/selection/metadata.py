"""Metadata of documents as columns that rules may name, typed as the manifest says (`select.metadata`)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl
import pyarrow as pa

from pipeline.config.errors import UserError
from pipeline.corpus.documents import CORPUS
from pipeline.selection.where import SCORE_COLUMNS, Column

KINDS: Mapping[str, pl.DataType] = {
    "text": pl.String(),
    "number": pl.Float64(),
    "boolean": pl.Boolean(),
    "json": pl.String(),
}
_ARROW: Mapping[str, pa.DataType] = {
    "text": pa.string(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "json": pa.string(),
}
_KIND = b"rpt.kind"
"""Of a field's metadata in the tables of sites and shards: which of `KINDS` it is."""

BUILT_IN = frozenset(
    (
        *SCORE_COLUMNS,
        *("site_id", "band", "context", "target", "continuation", "token_lengths", "context_truncated"),
        *("pass_rate", "screened_length", "source_file"),
        *("inside_character", "text_start", "token_ends", "byte_end", "key", "twin", "stratum", "row", "budget"),
    )
)
"""Names of columns that metadata may not have: of scores, sites, shards, screenings and what lies between them."""


def kinds(metadata: Mapping[str, str]) -> dict[str, str]:
    """`select.metadata`, and `corpus`, which needs no naming."""
    return {CORPUS: "text"} | dict(metadata)


def rule_columns(metadata: Mapping[str, str]) -> dict[str, Column]:
    """What `where` may name: the scores of a position, and metadata of its document.

    Raises:
        UserError: metadata of the name of a built-in column.

    Example:
        >>> list(rule_columns({"difficulty": "number"}))[-2:]
        ['corpus', 'difficulty']
    """
    check_names(metadata)
    return {**SCORE_COLUMNS, **document_columns(metadata)}


def document_columns(metadata: Mapping[str, str]) -> dict[str, Column]:
    """The columns of metadata alone."""
    return {name: _column(kind) for name, kind in kinds(metadata).items()}


def check_names(metadata: Mapping[str, str]) -> None:
    """Refuse metadata of the name of a built-in column, capitals aside, or two that differ in capitals alone.

    Raises:
        UserError: it says which.
    """
    seen: dict[str, str] = {}
    for name, kind in metadata.items():
        lower = name.lower()
        own = lower in BUILT_IN or (lower == CORPUS and (name, kind) != (CORPUS, "text"))
        clash = lower if own else seen.get(lower)
        if clash is not None:
            raise UserError(
                f"`select.metadata` names `{name}`, but `{clash}` is a built-in column",
                where="select.metadata",
                hint=f"rename the column `{name}` in the corpus, or leave it out of `select.metadata`",
            )
        seen[lower] = name


def metadata_fields(metadata: Mapping[str, str]) -> list[pa.Field]:
    """The columns of metadata in the tables of sites and shards; null where a document has none."""
    return [pa.field(name, _ARROW[kind], metadata={_KIND: kind.encode()}) for name, kind in metadata.items()]


def column_of(field: pa.Field) -> Column:
    """What `where` may do with a column that `metadata_fields` made."""
    return _column((field.metadata or {}).get(_KIND, b"text").decode())


def _column(kind: str) -> Column:
    return Column(KINDS[kind], f"metadata of the document, {kind}", whole=kind != "json")


def metadata_frame(doc_ids: Iterable[str], meta: Iterable[str], wanted: Mapping[str, str]) -> pl.DataFrame:
    """A row a document: its metadata as typed columns, null where it has none.

    Args:
        doc_ids: for messages.
        meta: the documents' JSON objects.
        wanted: kind by name.

    Raises:
        UserError: a value that is not of its kind.

    Example:
        >>> meta = ['{"level": "3.5"}', '{"level": 4, "x": 1}']
        >>> metadata_frame(["a", "b"], meta, {"level": "number"})["level"].to_list()
        [3.5, 4.0]
    """
    values: dict[str, list[Any]] = {name: [] for name in wanted}
    for doc_id, text in zip(doc_ids, meta, strict=True):
        row = json.loads(text)
        for name, kind in wanted.items():
            value = _typed(row.get(name), kind)
            if value is _MISFIT:
                raise UserError(
                    f"metadata `{name}` is no {kind}",
                    where=f"document {doc_id}: {row[name]!r:.80}",
                    hint=f"select.metadata: {{{name}: {_wider(row[name])}}} takes anything",
                )
            values[name].append(value)
    return pl.DataFrame(values, schema={name: KINDS[kind] for name, kind in wanted.items()})


def with_metadata(scores: pa.Table, documents: pa.Table, wanted: Mapping[str, str]) -> pa.Table:
    """The scores with columns of their documents' metadata. `documents`: `doc_id` and `meta` of all of them."""
    if not wanted:
        return scores
    ids = documents["doc_id"].to_pylist()
    frame = metadata_frame(ids, documents["meta"].to_pylist(), wanted)
    row_of = {doc_id: row for row, doc_id in enumerate(ids)}
    rows = [row_of[doc_id] for doc_id in scores["doc_id"].to_pylist() if doc_id in row_of]
    if len(rows) < scores.num_rows:
        return scores  # `positions` says that they are not of one corpus
    for name in wanted:
        scores = scores.append_column(name, frame[name].gather(rows).to_arrow())
    return scores


def referenced_metadata(expression: pl.Expr, metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata that an expression names, with their kinds."""
    named = set(expression.meta.root_names())
    return {name: kind for name, kind in kinds(metadata).items() if name in named}


def check_metadata(wanted: Iterable[str], tables: Iterable[pa.Table], key: str = "select.metadata") -> None:
    """Refuse metadata that no document has. `tables`: column `meta`, read until everything was found.

    `key` is what the user calls it.

    Raises:
        UserError: it names what the documents do have.
    """
    missing, known = dict.fromkeys(wanted), dict[str, None]()
    for table in tables if missing else ():
        for text in table["meta"].to_pylist():
            known |= dict.fromkeys(json.loads(text))
        missing = {name: None for name in missing if name not in known}
        if not missing:
            return
    if missing:
        raise UserError(
            f"no document has the metadata `{next(iter(missing))}`",
            where=key,
            hint=f"known: {', '.join(known) or 'none, since the template uses every column'}",
        )


_MISFIT = object()
_WHOLE = re.compile(r"\s*[+-]?\d+(\.0*)?\s*")
_EXACT = 2**53 - 1
"""The largest integer up to which each is a number of its own in double precision: 2^53 + 1 is 2^53 there."""


def _typed(value: Any, kind: str) -> Any:
    """A JSON value as its kind, or `_MISFIT`. Of text files, numbers and booleans are what their text says."""
    if value is None:
        return None
    if kind == "json":
        return json.dumps(value, ensure_ascii=False)
    if kind == "text" and isinstance(value, list | dict):
        return _MISFIT
    if kind == "text":
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if kind == "boolean":
        spelled = {"true": True, "false": False}
        return value if isinstance(value, bool) else spelled.get(str(value).strip().lower(), _MISFIT)
    try:
        number = _MISFIT if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return _MISFIT
    return number if number is not _MISFIT and _is_exact(value, number) else _MISFIT  # type: ignore[arg-type]


def _wider(value: Any) -> str:
    """The kind that takes anything like a value."""
    return "json" if isinstance(value, list | dict) else "text"


def _is_exact(value: Any, number: float) -> bool:
    """Whether no other whole number is stored as this one; numbers with fractions are rounded, as everywhere."""
    if isinstance(value, int) or (isinstance(value, str) and _WHOLE.fullmatch(value)):
        return abs(number) <= _EXACT
    return math.isfinite(number)
