"""Locate a position by its `site_id` in the tables that a selection was made from."""

from __future__ import annotations

import re
from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audit.decisions import AuditedShard
from pipeline.audit.lineage import Lineage
from pipeline.config.errors import UserError
from pipeline.core.artifact import InputFile, Record
from pipeline.core.parquet import read_rows, read_table

_SITE_ID = re.compile(r"(?P<doc_id>[0-9a-f]{32})-(?P<position>[0-9]{1,9})")


@dataclass(frozen=True)
class Row:
    """Row of a published file whose sha256 was checked."""

    table: str
    file: InputFile
    row: int
    values: pa.Table
    """The row, as a table."""


@dataclass(frozen=True)
class Location:
    """A position, and the rows of the tables that contain it or its document."""

    doc_id: str
    position: int
    shard: int
    document: Row
    scores: Row
    site: Row | None
    """None if the position is not a site."""
    example: Row | None
    """None if no training example was made from it."""
    sites: pa.Table
    """All sites of the document."""

    @property
    def site_id(self) -> str:
        """Return `<doc_id>-<position>`."""
        return f"{self.doc_id}-{self.position}"

    @property
    def audited_shard(self) -> AuditedShard:
        """Return the document as a shard of its own, which `decisions` takes."""
        sites = pl.DataFrame(pl.from_arrow(self.sites))
        return AuditedShard(self.shard, self.document.values, self.scores.values, sites)


def locate(lineage: Lineage, site_id: str) -> Location:
    """Locate a position, whether or not it is a site.

    Args:
        lineage: The selection.
        site_id: `<doc_id>-<position>`.

    Raises:
        UserError: There is no such document, or it has no such position.
        IntegrityError: A file differs from its recorded hash.
    """
    match = _SITE_ID.fullmatch(site_id)
    if match is None:
        hint = "give a site id (<doc_id>-<position>), a document id, or a row of a shard (FILE.parquet:ROW)"
        raise UserError("not a site", where=site_id, hint=hint)
    doc_id, position = match["doc_id"], int(match["position"])
    shard = _shard_of(lineage.ingest, doc_id)
    document = _row(lineage.ingest, "documents", shard, doc_id)
    scores = _row(lineage.score, "scores", shard, doc_id)
    assert document is not None
    if scores is None:
        raise UserError("the document has no scores", where=doc_id, hint="it was quarantined by `score`")
    tokens = len(scores.values["token_ids"][0])
    if position >= tokens:
        raise UserError("the document has no such position", where=site_id, hint=f"it has {tokens:,} tokens")
    listed = lineage.select.file("sites", shard)
    assert listed is not None
    sites = read_table(listed)
    sites = sites.filter(pc.equal(sites["doc_id"], doc_id))
    site = _row(lineage.select, "sites", shard, site_id, "site_id")
    made, split = lineage.materialize, str(document.values["split"][0])
    example = _row(made, split, shard, site_id, "site_id") if made else None
    return Location(doc_id, position, shard, document, scores, site, example, sites)


def first_site(lineage: Lineage, doc_id: str) -> str:
    """Return the `site_id` of a document's first site; of its first position if it has no site.

    Raises:
        UserError: There is no such document.
    """
    listed = lineage.select.file("sites", _shard_of(lineage.ingest, doc_id))
    assert listed is not None
    sites = pl.DataFrame(pl.from_arrow(read_table(listed, ["doc_id", "position"]))).filter(pl.col("doc_id") == doc_id)
    return f"{doc_id}-{min(sites['position'].to_list(), default=0)}"


def _shard_of(documents: Record, doc_id: str) -> int:
    """Return the shard of a document; shards of all stages contain the same documents."""
    for shard in documents.shards:
        file = documents.file("documents", shard)
        if file is not None:
            ids = pl.scan_parquet(file.verified()).filter(pl.col("doc_id") == doc_id).select(pl.len())
            if ids.collect().item():
                return shard
    raise UserError("no document has this id", where=doc_id, hint="check that it belongs to this manifest")


def _row(record: Record, table: str, shard: int, value: str, column: str = "doc_id") -> Row | None:
    """Return the row of a table's shard that has `value` in `column`; None if there is none."""
    file = record.file(table, shard)
    if file is None:
        return None
    number = pc.index(read_table(file, [column])[column], value).as_py()
    return Row(table, file, number, read_rows(file, number, number + 1)) if number >= 0 else None
