"""Comparison of two selections: sites gained and lost by band, class, field and source, with examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from pipeline.audit.characters import whole_pieces
from pipeline.audit.decisions import SPLITS, AuditedShard, decisions, shards
from pipeline.audit.lineage import Lineage
from pipeline.core.random_keys import random_key, random_keys

FORMAT = 1
"""Version of the format of `compare.json`, raised when a key changes its meaning."""
OUTCOMES = ("both", "gained", "lost")
GROUPS = ("band", "token_class", "field", "source_file")
EXAMPLES = 30
"""Examples shown per outcome."""
BYTES_BEFORE, BYTES_AFTER = 160, 60

_KEY = ["doc_id", "byte_offset"]
_COLUMNS = [*_KEY, "byte_end", "position", "split", "band", "token_class", "field", "entropy", "nll", "rank"]


def compare(before: Lineage, after: Lineage) -> dict[str, Any]:
    """Compare the sites of two selections.

    Needs memory for the sites of a shard, or for all sites if the two selections are of different documents.

    Returns:
        The content of `compare.json`. Two sites are the same if they begin at the same byte of the same document.
    """
    counted: dict[str, pl.DataFrame] = {}
    examples: dict[str, pl.DataFrame] = {}
    changed = 0
    for old, new in _pairs(before, after):
        joined = _outcomes(old, new)
        for name in GROUPS:
            counts = joined.group_by("split", "outcome", pl.col(name).alias("value")).len()
            counted[name] = _add_counts(counts, counted.get(name))
        differing = joined.filter(pl.col("outcome") != "both")
        changed += differing["doc_id"].n_unique()
        for outcome in OUTCOMES[1:]:
            drawn = _sample(differing.filter(pl.col("outcome") == outcome), examples.get(outcome))
            examples[outcome] = drawn
    return {
        "format": FORMAT,
        "before": _side(before),
        "after": _side(after),
        "totals": {split: _totals(counted["band"], split) for split in SPLITS},
        "groups": {name: _rows(frame) for name, frame in counted.items()},
        "documents_changed": changed,
        "examples": {outcome: [_example(row) for row in frame.to_dicts()] for outcome, frame in examples.items()},
    }


def _pairs(before: Lineage, after: Lineage) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Yield sites of the same documents in both: shard by shard if the shards agree, otherwise all at once."""
    if before.ingest.content == after.ingest.content:
        for old, new in zip(shards(before), shards(after), strict=True):
            yield _sites(before, old), _sites(after, new)
    else:
        old_sites = [_sites(before, shard) for shard in shards(before)]
        yield pl.concat(old_sites), pl.concat(_sites(after, shard) for shard in shards(after))


def _sites(lineage: Lineage, shard: AuditedShard) -> pl.DataFrame:
    """Return the sites of a shard with the text around each."""
    frames = [frame.filter("kept").select(_COLUMNS) for frame in decisions(lineage, shard)]
    documents = pl.DataFrame(pl.from_arrow(shard.documents.select(["doc_id", "text", "source_file"])))
    sites = pl.concat(frames).join(documents, on="doc_id", how="left", maintain_order="left")
    begin, text = pl.col("byte_offset"), pl.col("text").cast(pl.Binary)
    end = pl.col("byte_end").fill_null(text.bin.size()).cast(pl.Int64)
    first = pl.max_horizontal(begin - BYTES_BEFORE, 0)
    return sites.with_columns(
        before=text.bin.slice(first, begin - first),
        target=text.bin.slice(begin, end - begin),
        after=text.bin.slice(end, BYTES_AFTER),
    ).drop("text")


def _outcomes(old: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
    """Return one row per site of either, with its `outcome`; columns of both are those of the first."""
    outer = old.with_columns(old=True).join(new.with_columns(new=True), on=_KEY, how="full", coalesce=True)
    outcome = (
        pl.when(pl.col("old").is_null()).then(pl.lit("gained")).when(pl.col("new").is_null()).then(pl.lit("lost"))
    ).otherwise(pl.lit("both"))
    rest = [name for name in old.columns if name not in _KEY]
    return outer.select(*_KEY, *(pl.coalesce(name, f"{name}_right").alias(name) for name in rest), outcome=outcome)


def _sample(sites: pl.DataFrame, drawn: pl.DataFrame | None) -> pl.DataFrame:
    """Return the `EXAMPLES` sites with the smallest random keys."""
    ids = sites["doc_id"].unique(maintain_order=True)
    base = pl.Series([random_key("compare", doc_id) for doc_id in ids], dtype=pl.UInt64)
    bases = sites["doc_id"].replace_strict(ids, base, return_dtype=pl.UInt64).to_numpy()
    keyed = sites.with_columns(key=pl.Series(random_keys(bases, sites["byte_offset"].to_numpy()), dtype=pl.UInt64))
    both = keyed if drawn is None else pl.concat([drawn, keyed])
    return both.sort("key").head(EXAMPLES)


def _example(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a site with its bytes as text; a character that is cut at an end is left out."""
    around = {name: row[name].decode("utf-8", errors="ignore") for name in ("before", "after")}
    (target,) = whole_pieces([row["target"]], row["after"])
    return {n: v for n, v in row.items() if n not in ("key", "byte_end")} | around | {"target": target}


def _add_counts(counts: pl.DataFrame, total: pl.DataFrame | None) -> pl.DataFrame:
    both = counts if total is None else pl.concat([total, counts])
    return both.group_by("split", "outcome", "value").agg(pl.col("len").sum())


def _rows(counts: pl.DataFrame) -> list[dict[str, Any]]:
    """Return one row per value with `both`, `gained`, `lost` per split, most sites first."""
    order = counts.group_by("value").agg(pl.col("len").sum()).sort("len", "value", descending=[True, False])
    by = {(value, split, outcome): n for split, outcome, value, n in counts.iter_rows()}
    return [
        {"value": value} | {split: {o: by.get((value, split, o), 0) for o in OUTCOMES} for split in SPLITS}
        for value in order["value"]
    ]


def _totals(counts: pl.DataFrame, split: str) -> dict[str, int]:
    of_split = counts.filter(pl.col("split") == split)
    return {outcome: int(of_split.filter(pl.col("outcome") == outcome)["len"].sum()) for outcome in OUTCOMES}


def _side(lineage: Lineage) -> Mapping[str, Any]:
    return {
        "manifest": lineage.name,
        "selection": lineage.select.fingerprint,
        "scores": lineage.score.fingerprint,
        "rule": dict(lineage.select.config),
    }
