"""Search of documents by text, split, source, metadata and share of kept positions."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.audit.browse.column_index import ColumnIndex
from pipeline.audit.browse.compare import TIME_LIMIT
from pipeline.audit.browse.facets import Facets, Level
from pipeline.audit.browse.index import folded
from pipeline.config.errors import UserError
from pipeline.selection.metadata import document_columns, kinds
from pipeline.selection.where import filter_rows, row_filter

_ROW = "row of the index"

PAGE = 25
"""Documents per page."""

ORDERS = {
    "corpus": "in corpus order",
    "uncertain": "most uncertain first",
    "certain": "least uncertain first",
    "kept": "most kept first",
    "longest": "longest first",
}


@dataclass(frozen=True)
class Filter:
    """Search criteria; empty strings and full ranges match everything."""

    text: str = ""
    """Substring of the text, ignoring case."""
    split: str = ""
    source: str = ""
    meta: str = ""
    """SQL over the metadata that the manifest names, `key=value` of any metadata, or a substring of it."""
    least: float = 0.0
    """Minimum share of kept positions, in percent."""
    most: float = 100.0
    """Maximum share of kept positions, in percent."""
    order: str = "corpus"
    facets: tuple[tuple[str, str], ...] = ()
    """(key, value) of metadata; a value also finds the documents that have one of its path below it."""


class Finder:
    """Search of the documents of an index. Shape: D documents.

    Args:
        store: The index.
        kept_D: Number of sites of the selection in each document.
        metadata: Types of the metadata that the manifest names.
    """

    def __init__(self, store: ColumnIndex, kept_D: NDArray[np.int64], metadata: Mapping[str, str]) -> None:
        self._store = store
        self._metadata, self._columns = kinds(metadata), document_columns(metadata)
        self.kept_D = kept_D
        positions_D = store.documents["positions"].to_numpy()
        self.share_D = 100 * kept_D / np.maximum(positions_D, 1)
        self.facets = Facets(store.documents["meta"])
        self.sources: list[str] = sorted(store.documents["source_file"].unique())
        self.find = lru_cache(maxsize=64)(self._find)

    def _find(self, criteria: Filter) -> NDArray[np.int64]:
        """Return the numbers of the documents that match, in the requested order."""
        documents = self._store.documents
        match_D = (self.share_D >= criteria.least) & (self.share_D <= criteria.most)
        if criteria.split:
            match_D &= (documents["split"] == criteria.split).to_numpy()
        if criteria.source:
            match_D &= (documents["source_file"] == criteria.source).to_numpy()
        if criteria.meta:
            match_D &= self._has_metadata(criteria.meta)
        for key, value in criteria.facets:
            has_D = np.zeros_like(match_D)
            has_D[self.facets.documents(key, value)] = True
            match_D &= has_D
        if criteria.text:
            match_D &= self._has_text(criteria.text)
        found = np.flatnonzero(match_D)
        return found[self._rank(criteria.order, found)] if criteria.order in ORDERS else found

    def levels(self, criteria: Filter, found: NDArray[np.int64], seconds: float) -> list[Level] | None:
        """Return what the facets offer among found documents; None if the metadata was not read within some seconds."""
        if not self.facets.ready(seconds):
            return None
        positions_D = self._store.documents["positions"].to_numpy()
        return self.facets.levels(dict(criteria.facets), found, self.kept_D, positions_D)

    def _has_metadata(self, condition: str) -> NDArray[np.bool_]:
        try:
            expression = row_filter(condition, self._columns, "metadata")
            named = expression.meta.root_names()
        except UserError:
            named = []
        if not named:
            return _matches_meta(self._store.documents["meta"], condition)
        frame = pl.DataFrame({name: self._store.metadata(name, self._metadata[name]) for name in named})
        match_D = np.zeros(frame.height, dtype=bool)
        match_D[filter_rows(frame.with_row_index(_ROW), expression, "the metadata's rule")[_ROW].to_numpy()] = True
        return match_D

    def _rank(self, order: str, found: NDArray[np.int64]) -> NDArray[np.int64]:
        documents = self._store.documents
        by = {
            "uncertain": lambda: -documents["entropy_mean"].to_numpy(),
            "certain": lambda: documents["entropy_mean"].to_numpy(),
            "kept": lambda: -self.share_D,
            "longest": lambda: -documents["tokens"].to_numpy(),
        }
        return np.argsort(by[order]()[found], kind="stable") if order in by else np.arange(len(found))

    def _has_text(self, text: str) -> NDArray[np.bool_]:
        """Return a mask of the documents that contain the text, ignoring case; it scans the whole corpus.

        Raises:
            UserError: It takes longer than `TIME_LIMIT`.
        """
        lowered, end = folded(text), time.monotonic() + TIME_LIMIT

        def search(shard: int) -> NDArray[np.bool_]:
            return self._store.texts(shard).str.contains(lowered, literal=True).to_numpy()

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            answers = [pool.submit(search, shard) for shard in range(len(self._store.first_document_S) - 1)]
            try:
                hits = [answer.result(timeout=max(0, end - time.monotonic())) for answer in answers]
            except TimeoutError as error:
                what = f"the search was aborted after {TIME_LIMIT:.0f} s"
                raise UserError(what, where=text, hint="filter by split, source or metadata instead") from error
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        return np.concatenate([np.zeros(0, dtype=bool), *hits])


def _matches_meta(meta: pl.Series, condition: str) -> NDArray[np.bool_]:
    """Return a mask of the JSON objects that match a condition.

    `key=value` compares one value, or matches a substring of any element of a list; anything else is a substring of the
    JSON text.
    """
    key, separator, value = (part.strip() for part in condition.partition("="))
    value = value[1:-1] if len(value) > 1 and value[0] == value[-1] == "'" else value
    if not separator:
        return meta.str.contains(condition, literal=True).to_numpy()
    parts = [json.dumps(key, ensure_ascii=False), json.dumps(value, ensure_ascii=False)[1:-1]]
    # A fast text search finds candidates; only those are parsed.
    likely = np.all([meta.str.contains(part, literal=True).to_numpy() for part in parts], axis=0)
    for row in np.flatnonzero(likely):
        found = json.loads(meta[int(row)]).get(key)
        values = [v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in _as_list(found)]
        likely[row] = any(value in v for v in values) if isinstance(found, list) else value in values
    return likely


def _as_list(found: Any) -> list[Any]:
    """Return a list unchanged, and any other value as a list with one element."""
    return found if isinstance(found, list) else [found]
