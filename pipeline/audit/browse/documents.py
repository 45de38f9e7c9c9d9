"""Finding documents: by words, split, source, metadata and by how much of them a selection kept."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.audit.browse.column_index import ColumnIndex
from pipeline.audit.browse.index import folded
from pipeline.config.errors import UserError
from pipeline.selection.metadata import document_columns, kinds
from pipeline.selection.where import filter_rows, row_filter

_ROW = "row of the index"

PAGE = 25
"""Documents a page."""

ORDERS = {
    "corpus": "in corpus order",
    "uncertain": "most uncertain first",
    "certain": "least uncertain first",
    "kept": "most kept first",
    "longest": "longest first",
}


@dataclass(frozen=True)
class Filter:
    """What is looked for; empty strings and full ranges ask for nothing."""

    text: str = ""
    """Part of the text; upper and lower case are the same."""
    split: str = ""
    source: str = ""
    meta: str = ""
    """SQL over the metadata that the manifest names, `key=value` of any metadata, or any part of it."""
    least: float = 0.0
    """Least share of the positions that is kept, in percent."""
    most: float = 100.0
    order: str = "corpus"


class Finder:
    """Finds documents of a store.

    Args:
        kept_D: sites of the selection in each document.
        metadata: kinds of the metadata that the manifest names.
    """

    def __init__(self, store: ColumnIndex, kept_D: NDArray[np.int64], metadata: Mapping[str, str]) -> None:
        self._store = store
        self._metadata, self._columns = kinds(metadata), document_columns(metadata)
        self.kept_D = kept_D
        positions_D = store.documents["positions"].to_numpy()
        self.share_D = 100 * kept_D / np.maximum(positions_D, 1)
        self.sources: list[str] = sorted(store.documents["source_file"].unique())
        self.find = lru_cache(maxsize=64)(self._find)

    def _find(self, wanted: Filter) -> NDArray[np.int64]:
        """Numbers of the documents that match, in the order asked for."""
        documents = self._store.documents
        match_D = (self.share_D >= wanted.least) & (self.share_D <= wanted.most)
        if wanted.split:
            match_D &= (documents["split"] == wanted.split).to_numpy()
        if wanted.source:
            match_D &= (documents["source_file"] == wanted.source).to_numpy()
        if wanted.meta:
            match_D &= self._has_metadata(wanted.meta)
        if wanted.text:
            match_D &= self._has_text(wanted.text)
        found = np.flatnonzero(match_D)
        return found[self._rank(wanted.order, found)] if wanted.order in ORDERS else found

    def _has_metadata(self, wanted: str) -> NDArray[np.bool_]:
        try:
            expression = row_filter(wanted, self._columns, "metadata")
            named = expression.meta.root_names()
        except UserError:
            named = []
        if not named:
            return _has_meta(self._store.documents["meta"], wanted)
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
        """Whether a document contains the text, whatever the case: every byte of the corpus is looked at."""
        wanted = folded(text)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            shards = range(len(self._store.first_document_S) - 1)
            hits = pool.map(
                lambda shard: self._store.texts(shard).str.contains(wanted, literal=True).to_numpy(), shards
            )
            return np.concatenate([np.zeros(0, dtype=bool), *hits])


def _has_meta(meta: pl.Series, wanted: str) -> NDArray[np.bool_]:
    """`key=value` compares one value of the JSON objects, or of a list's values any part; anything else is a part of
    the objects."""
    key, separator, value = (part.strip() for part in wanted.partition("="))
    value = value[1:-1] if len(value) > 1 and value[0] == value[-1] == "'" else value
    if not separator:
        return meta.str.contains(wanted, literal=True).to_numpy()
    parts = [json.dumps(key, ensure_ascii=False), json.dumps(value, ensure_ascii=False)[1:-1]]
    likely = np.all([meta.str.contains(part, literal=True).to_numpy() for part in parts], axis=0)
    for row in np.flatnonzero(likely):
        found = json.loads(meta[int(row)]).get(key)
        values = [v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in _listed(found)]
        likely[row] = any(value in v for v in values) if isinstance(found, list) else value in values
    return likely


def _listed(found: Any) -> list[Any]:
    """The values of a list; a single value as a list of it."""
    return found if isinstance(found, list) else [found]
