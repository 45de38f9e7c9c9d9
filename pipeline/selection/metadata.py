"""Metadata of documents as columns that rules may name, typed as the manifest says (`select.metadata`)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl
import pyarrow as pa

from pipeline.core.errors import UserError
from pipeline.corpus.documents import CORPUS
from pipeline.selection.where import SCORE_COLUMNS, Column

KINDS: Mapping[str, pl.DataType] = {"text": pl.String(), "number": pl.Float64(), "boolean": pl.Boolean()}


def kinds(metadata: Mapping[str, str]) -> dict[str, str]:
    """`select.metadata`, and `corpus`, which needs no naming."""
    return {CORPUS: "text"} | dict(metadata)


def rule_columns(metadata: Mapping[str, str]) -> dict[str, Column]:
    """What `where` may name: the scores of a position, and metadata of its document.

    Raises:
        UserError: metadata of the name of a score.

    Example:
        >>> list(rule_columns({"difficulty": "number"}))[-2:]
        ['corpus', 'difficulty']
    """
    taken = sorted(SCORE_COLUMNS.keys() & metadata.keys())
    if taken:
        raise UserError(
            f"`select.metadata` names `{taken[0]}`, which is a column of positions",
            where="select.metadata",
            mend="only `strata` and the audit can tell such metadata apart",
        )
    of_documents = {
        name: Column(KINDS[kind], f"metadata of the document, {kind}") for name, kind in kinds(metadata).items()
    }
    return {**SCORE_COLUMNS, **of_documents}


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
                    mend=f"select.metadata: {{{name}: text}} takes anything",
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


def named_in(expression: pl.Expr, metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata that an expression names, with their kinds."""
    named = set(expression.meta.root_names())
    return {name: kind for name, kind in kinds(metadata).items() if name in named}


def check_metadata(wanted: Iterable[str], tables: Iterable[pa.Table]) -> None:
    """Refuse metadata that no document has. `tables`: column `meta`, read until everything was found.

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
            where="select.metadata and select.strata",
            mend=f"known: {', '.join(known) or 'none, since the template uses every column'}",
        )


_MISFIT = object()
_WHOLE = re.compile(r"\s*[+-]?\d+(\.0*)?\s*")
_EXACT = 2**53 - 1
"""The largest integer up to which each is a number of its own in double precision: 2^53 + 1 is 2^53 there."""


def _typed(value: Any, kind: str) -> Any:
    """A JSON value as its kind, or `_MISFIT`. Of text files, numbers and booleans are what their text says."""
    if value is None:
        return None
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


def _is_exact(value: Any, number: float) -> bool:
    """Whether no other whole number is stored as this one; numbers with fractions are rounded, as everywhere."""
    if isinstance(value, int) or (isinstance(value, str) and _WHOLE.fullmatch(value)):
        return abs(number) <= _EXACT
    return math.isfinite(number)
