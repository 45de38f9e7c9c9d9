"""Metadata of documents as typed columns that rules may name (`select.metadata`)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
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
"""Key in the metadata of an Arrow field that holds which of `KINDS` the column has."""

BUILT_IN = frozenset(
    (
        *SCORE_COLUMNS,
        *("site_id", "band", "context", "target", "continuation", "token_lengths", "context_truncated"),
        *("pass_rate", "screened_length", "source_file"),
        *("inside_character", "text_start", "token_ends", "byte_end", "key", "twin", "stratum", "row", "budget"),
    )
)
"""Column names that metadata may not use: those of scores, sites, shards, screenings and intermediate tables."""

MANY_VALUES = 20
"""Maximum number of distinct values of a column whose values are groups of a table."""
LONG_VALUE = 80
"""Maximum characters of such a value."""


def kinds(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the kinds of `select.metadata` by name, with `corpus`, which every manifest has."""
    return {CORPUS: "text"} | dict(metadata)


def can_group(distinct: Collection[str]) -> bool:
    """Return True if the distinct values of a column are few and short enough to be the groups of a table."""
    return len(distinct) <= MANY_VALUES and all(len(value) <= LONG_VALUE for value in distinct)


def rule_columns(metadata: Mapping[str, str]) -> dict[str, Column]:
    """Return the columns that `where` may name: the scores of a position, and metadata of its document.

    Raises:
        UserError: metadata has the name of a built-in column.

    Example:
        >>> list(rule_columns({"difficulty": "number"}))[-2:]
        ['corpus', 'difficulty']
    """
    check_names(metadata)
    return {**SCORE_COLUMNS, **document_columns(metadata)}


def document_columns(metadata: Mapping[str, str]) -> dict[str, Column]:
    """Return the columns of metadata alone."""
    return {name: _column(kind) for name, kind in kinds(metadata).items()}


def check_names(metadata: Mapping[str, str]) -> None:
    """Refuse metadata whose name equals that of a built-in column or of other metadata, ignoring case.

    Raises:
        UserError: there is such a name; the message has it.
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
    """Return the Arrow fields of metadata in the tables of sites and shards; null if a document has no value."""
    return [pa.field(name, _ARROW[kind], metadata={_KIND: kind.encode()}) for name, kind in metadata.items()]


def column_of(field: pa.Field) -> Column:
    """Return the description for `where` of a column that `metadata_fields` made."""
    return _column((field.metadata or {}).get(_KIND, b"text").decode())


def _column(kind: str) -> Column:
    return Column(KINDS[kind], f"metadata of the document, {kind}", whole=kind != "json")


def metadata_frame(doc_ids: Iterable[str], meta: Iterable[str], columns: Mapping[str, str]) -> pl.DataFrame:
    """Return a frame with one row per document: its metadata as typed columns, null if absent.

    Args:
        doc_ids: ids of the documents, for error messages.
        meta: the documents' metadata as JSON objects.
        columns: the kind of each column, by name.

    Raises:
        UserError: a value is not of its kind.

    Example:
        >>> meta = ['{"level": "3.5"}', '{"level": 4, "x": 1}']
        >>> metadata_frame(["a", "b"], meta, {"level": "number"})["level"].to_list()
        [3.5, 4.0]
    """
    values: dict[str, list[Any]] = {name: [] for name in columns}
    for doc_id, text in zip(doc_ids, meta, strict=True):
        row = json.loads(text)
        for name, kind in columns.items():
            value = _typed(row.get(name), kind)
            if value is _MISFIT:
                raise UserError(
                    f"metadata `{name}` is not of kind `{kind}`",
                    where=f"document {doc_id}: {row[name]!r:.80}",
                    hint=f"select.metadata: {{{name}: {_wider(row[name])}}} accepts any value",
                )
            values[name].append(value)
    return pl.DataFrame(values, schema={name: KINDS[kind] for name, kind in columns.items()})


def with_metadata(scores: pa.Table, documents: pa.Table, columns: Mapping[str, str]) -> pa.Table:
    """Return the scores with columns of their documents' metadata.

    Args:
        scores: rows of the scores table.
        documents: columns `doc_id` and `meta` of their documents.
        columns: the kind of each column of metadata, by name.
    """
    if not columns:
        return scores
    ids = documents["doc_id"].to_pylist()
    frame = metadata_frame(ids, documents["meta"].to_pylist(), columns)
    row_of = {doc_id: row for row, doc_id in enumerate(ids)}
    rows = [row_of[doc_id] for doc_id in scores["doc_id"].to_pylist() if doc_id in row_of]
    if len(rows) < scores.num_rows:
        return scores  # `positions` raises: scores and documents are from different corpora
    for name in columns:
        scores = scores.append_column(name, frame[name].gather(rows).to_arrow())
    return scores


def referenced_metadata(expression: pl.Expr, metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the kinds of the metadata that an expression names."""
    names = set(expression.meta.root_names())
    return {name: kind for name, kind in kinds(metadata).items() if name in names}


def check_metadata(names: Iterable[str], tables: Iterable[pa.Table], key: str = "select.metadata") -> None:
    """Refuse metadata that no document has.

    Args:
        names: names of metadata.
        tables: column `meta` of the documents; read until every name was found.
        key: the configuration key that has the names, for the message.

    Raises:
        UserError: no document has one of them; the message lists the metadata that documents have.
    """
    missing, known = dict.fromkeys(names), dict[str, None]()
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
"""The largest integer up to which double precision represents every integer: 2^53 + 1 rounds to 2^53."""


def _typed(value: Any, kind: str) -> Any:
    """Return a JSON value as its kind, or `_MISFIT`. Numbers and booleans may be text, as in CSV files."""
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
    """Return the kind that accepts any value like the given one."""
    return "json" if isinstance(value, list | dict) else "text"


def _is_exact(value: Any, number: float) -> bool:
    """Return whether a number is finite and, if it is an integer, stored without rounding."""
    if isinstance(value, int) or (isinstance(value, str) and _WHOLE.fullmatch(value)):
        return abs(number) <= _EXACT
    return math.isfinite(number)
