"""Damage in the corpus of `rpt browse`: documents found by their texts, and counted one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from pipeline.audit.browse.column_index import ColumnIndex, verified_once
from pipeline.audit.browse.document import Document
from pipeline.audit.damage import DAMAGED, Damage
from pipeline.core.artifact import Record
from pipeline.selection.positions import SELECTABLE

DOCUMENTS_READ = 1_000
"""Documents after which no further one is read."""


@dataclass(frozen=True)
class Damaged:
    """Counts of control characters and U+FFFD."""

    rows: list[dict[str, Any]]
    """Rows of `Damage.rows`, from the documents that were read."""
    read: int
    documents: int
    """Documents that hold one."""


def damaged(store: ColumnIndex, document: Callable[[int], Document], select: Record, where: str) -> Damaged:
    """Return the damage of a corpus, from the first `DOCUMENTS_READ` documents that have any.

    Args:
        store: The index.
        document: Returns a document by its number in the index.
        select: Record of the selection whose sites are counted.
        where: Its rule of training documents.
    """
    damage, read, documents = Damage(), 0, 0
    for shard, file in enumerate(select.files("sites")):
        first = int(store.first_document_S[shard])
        numbers = first + np.flatnonzero(store.texts(shard).str.contains(DAMAGED).to_numpy())
        documents += len(numbers)
        numbers = numbers[: DOCUMENTS_READ - read]
        if not len(numbers):
            continue
        read += len(numbers)
        ids = store.documents["doc_id"].gather(numbers).to_list()
        sites = pl.scan_parquet(verified_once(file)).filter(pl.col("doc_id").is_in(ids)).select("doc_id", "position")
        kept_of = dict(sites.collect().group_by("doc_id").agg("position").iter_rows())
        for number, doc_id in zip(numbers.tolist(), ids, strict=True):
            opened = document(number)
            kept = pl.col("position").is_in(kept_of.get(doc_id, []))
            damage.add(doc_id, opened.text, opened.frame.with_columns(selectable=SELECTABLE, kept=kept))
    return Damaged(damage.rows(where), read, documents)
