"""The search box: the documents that match a filter, or the page that an id or a row names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from starlette.datastructures import QueryParams

from pipeline.audit.browse.app_state import AppState
from pipeline.audit.browse.documents import Filter
from pipeline.audit.browse.query import number_of
from pipeline.audit.trace import shard_row
from pipeline.config.errors import UserError

FACET = "in."
"""Beginning of the query parameters that narrow a search by a facet: `in.<key>=<value>`."""

_SITE = re.compile(r"(?P<doc_id>[0-9a-f]{32})(-(?P<position>[0-9]{1,9}))?")
_ROW = re.compile(r"(?P<file>.+):(?P<row>[0-9]{1,15})")


class Place(NamedTuple):
    """A document, or one of its positions."""

    doc_id: str
    position: int | None = None


def place_of(state: AppState, text: str) -> Place | None:
    """Return what a search names, or None if it is a text to search for.

    Args:
        state: The opened records.
        text: A site id, a document id, file and row of the source (`corpus.jsonl:17`, from 0; the end of a path is
            enough), or file and row of a shard (`train-….parquet:17`).

    Raises:
        UserError: The file is not one of the manifest's shards, or has no such row.
        IntegrityError: The shard differs from its recorded hash.
    """
    documents = state.store.documents
    if (site := _SITE.fullmatch(text)) and site["doc_id"] in state.store.document_of:
        tokens = documents["tokens"][state.store.document_of[site["doc_id"]]]
        at = int(site["position"]) if site["position"] else None
        return Place(site["doc_id"], at) if at is None or at < tokens else None
    if not (match := _ROW.fullmatch(text)):
        return None
    file, row = match["file"], int(match["row"])
    if re.fullmatch(r"(train|validation)-[0-9]+\.[0-9a-f]+\.parquet", Path(file).name):
        _, site_id = shard_row(state.records.selections.work, state.manifest, _shard(state, Path(file)), row)
        doc_id, _, position = site_id.rpartition("-")
        return Place(doc_id, int(position))
    source = pl.col("source_file")
    found = documents.filter(pl.col("source_row") == row, (source == file) | source.str.ends_with(f"/{file}"))
    return Place(found["doc_id"][0]) if found.height else None


def _shard(state: AppState, file: Path) -> Path:
    """Return the published shard of a name, in the folder that is named, if any; no other file is ever opened."""
    folder = state.records.selections.work / "materialize"
    found = sorted(folder.glob(f"*/{file.name}"), key=lambda path: path.parent.name != file.parent.name)
    if not found:
        raise UserError("not one of the manifest's shards", where=file, hint=f"they are in {folder}")
    return found[0]


class Search(NamedTuple):
    """The documents that a filter finds."""

    criteria: Filter
    sampled_only: bool
    """True if only documents with stored rollouts are wanted."""
    found: NDArray[np.int64]
    """Their numbers, in the order wanted."""


def search(state: AppState, parameters: QueryParams) -> Search:
    """Return the documents that query parameters describe."""
    most = number_of(parameters, "most", 100)
    criteria = Filter(
        text=parameters.get("text", ""),
        split=parameters.get("split", ""),
        source=parameters.get("source", ""),
        meta=parameters.get("meta", "").strip(),
        least=number_of(parameters, "least", 100) or 0,
        most=100.0 if most is None else most,
        order=parameters.get("order", "corpus"),
        facets=tuple(
            (name.removeprefix(FACET), value) for name, value in parameters.items() if name.startswith(FACET) and value
        ),
    )
    found = state.finder.find(criteria)
    if sampled_only := parameters.get("rollouts") == "stored":
        sampled = [state.store.document_of.get(doc_id, -1) for doc_id in state.sampled()]
        found = found[np.isin(found, sampled)]
    return Search(criteria, sampled_only, found)
