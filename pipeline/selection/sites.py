"""Which scored positions become sites, and why the others do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config.errors import UserError
from pipeline.config.selection import BandsConfig, SelectConfig
from pipeline.core.artifact import Counters, InputFile
from pipeline.core.parquet import read_table
from pipeline.core.random_keys import random_key, random_keys
from pipeline.corpus.documents import CORPUS
from pipeline.selection.corpus_rules import CORPUS_REASONS, STRATA, duplicate_keys, stratum_of_sites
from pipeline.selection.metadata import (
    BUILT_IN,
    check_metadata,
    metadata_fields,
    referenced_metadata,
    rule_columns,
    with_metadata,
)
from pipeline.selection.positions import SCORE_TABLE_COLUMNS, positions
from pipeline.selection.where import filter_rows, row_filter

SITES = pa.schema(
    [
        pa.field("site_id", pa.string(), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),
        pa.field("byte_offset", pa.int32(), nullable=False),
        pa.field("field", pa.string(), nullable=False),
        pa.field("entropy", pa.float32(), nullable=False),
        pa.field("nll", pa.float32(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("token_class", pa.string(), nullable=False),
        pa.field("band", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
    ]
)
"""A row is a selected position; rows are in document order, then by position."""


def sites_schema(metadata: Mapping[str, str], several: bool) -> pa.Schema:
    """`SITES`, the name of the source where a manifest names several, and the metadata that `select.metadata` names."""
    source = [pa.field(CORPUS, pa.string(), nullable=False)] if several else []
    declared = {name: kind for name, kind in metadata.items() if not (several and name == CORPUS)}
    return pa.schema([*SITES, *source, *metadata_fields(declared)])


REASONS = (
    "not_scorable",
    "inside_character",
    "where",
    "flagged",
    "document_cap",
    "not_drawn",
    *CORPUS_REASONS,
)
"""Why a position is no site, in the order in which they are asked: the first that applies is the one counted."""

BANDS = ("easy", "medium", "hard")
NEAR = 0.01
"""Nats: a position this close to a band's threshold is counted as `near.<band>`: rounding could move it."""


def check_columns_exist(config: SelectConfig, documents: Sequence[InputFile]) -> None:
    """Refuse what a selection names and no document has: what all sites lack would make one stratum of them.

    Args:
        documents: tables of the documents.

    Raises:
        UserError: it says what the documents do have.
    """
    check_metadata(config.metadata, (read_table(file, ["meta"]) for file in documents))
    by = config.strata.by if config.strata else None
    if by in BUILT_IN and by not in STRATA:
        mend = f"name one of {', '.join(STRATA)}, or metadata of documents"
        raise UserError(f"no strata are made by `{by}`", where="select.strata.by", hint=mend)
    if by is not None and by not in STRATA:
        check_metadata([by], (read_table(file, ["meta"]) for file in documents), "select.strata.by")


def rule_expression(config: SelectConfig) -> pl.Expr:
    """The boolean expression of one position that `where` and `validation_where` make together.

    Raises:
        UserError: one of them is no such expression (`row_filter`).
    """
    columns = rule_columns(config.metadata)
    train = row_filter(config.where, columns, "select.where")
    validation = row_filter(config.validation_where, columns, "select.validation_where")
    return pl.when(pl.col("split") == "train").then(train).otherwise(validation)


def select_sites(
    config: SelectConfig,
    documents: pa.Table,
    scores: pa.Table,
    *,
    flagged: Collection[str] = (),
    verdicts: NDArray[np.uint8] | None = None,
    several: bool = False,
) -> tuple[pl.DataFrame, Counters]:
    """Select the sites of a shard.

    A document's sites depend on that document alone (and on `verdicts`), so that it does not matter how a corpus is
    cut into shards.

    Args:
        config: what to keep.
        documents: the shard's documents (`document_columns`); with `meta`, if a rule names metadata.
        scores: their scores (`score_columns`).
        flagged: ids of sites that are not wanted.
        verdicts: what the rules over the whole corpus say of the shard's training sites, in their order: 0 to keep,
            else 1 + an index into `CORPUS_REASONS`. None: there are no such rules, or this finds what they look at.
        several: the documents are of several sources, which their metadata names.

    Returns:
        A frame with the columns of `sites_schema` (`corpus` null if there is one source), `key`, a site's random number
        in [0, 2⁶⁴), and `twin` and `stratum` where the configuration thins or has strata; and the counts: `documents`,
        `tokens` = the sum of `dropped.<reason>` and `kept.<split>`, `band.<name>`, nested, over all that is kept, and
        `near.<name>`, over all that is scored.
    """
    expression = rule_expression(config)
    counters: Counter[str] = Counter({"documents": scores.num_rows, "tokens": 0})
    counters.update({f"dropped.{reason}": 0 for reason in REASONS} | {f"near.{band}": 0 for band in BANDS})
    twin_keys = duplicate_keys(scores, config.thin.suffix_tokens) if config.thin else None
    kept, begin = [_nothing(config)], 0
    named = (
        referenced_metadata(expression, config.metadata) | dict(config.metadata) | ({CORPUS: "text"} if several else {})
    )
    for frame in positions(documents, with_metadata(scores.select(SCORE_TABLE_COLUMNS), documents, named)):
        if twin_keys is not None:
            frame = frame.with_columns(twin=pl.Series(twin_keys[begin : begin + frame.height]))
            begin += frame.height
        kept.append(_select(config, expression, frame, flagged, counters))
    sites = pl.concat(kept, how="diagonal")
    if config.strata:
        sites = sites.with_columns(stratum=stratum_of_sites(config.strata.by, sites, documents))
    if verdicts is not None:
        sites = _apply_decisions(sites, verdicts, counters)
    for split in ("train", "validation"):
        counters[f"kept.{split}"] = int((sites["split"] == split).sum())
    for band in BANDS:
        counters[f"band.{band}"] = int((sites["entropy"] > getattr(config.bands, band)).sum())
    return sites, dict(counters)


def _select(
    config: SelectConfig, expression: pl.Expr, frame: pl.DataFrame, flagged: Collection[str], counters: Counter[str]
) -> pl.DataFrame:
    """The sites of some whole documents; what is dropped is added to `counters`."""

    def drop(reason: str, kept: pl.DataFrame, before: pl.DataFrame) -> pl.DataFrame:
        counters[f"dropped.{reason}"] += before.height - kept.height
        return kept

    counters["tokens"] += frame.height
    frame = drop("not_scorable", frame.filter(pl.col("entropy").is_finite()), frame)
    frame = drop("inside_character", frame.filter(~pl.col("inside_character")), frame)
    for band in BANDS:
        distance = (frame["entropy"] - getattr(config.bands, band)).abs()
        counters[f"near.{band}"] += int((distance <= NEAR).sum())
    eligible = frame
    frame = drop("where", filter_rows(frame, expression, "`select.where` or `select.validation_where`"), frame)
    if flagged:
        frame = drop("flagged", frame.filter(~site_id().is_in(list(flagged))), frame)
    frame = drop("document_cap", _cap_documents(frame, config.max_per_document), frame)
    frame = _with_key(frame, config.seed)
    if config.strategy == "random":
        eligible = eligible.filter(~site_id().is_in(list(flagged)))
        frame = _draw_at_random(frame, _with_key(eligible, config.seed), expression, counters)
    named = frame.with_columns(
        site_id=site_id(),
        token_class=pl.col("token_class").cast(pl.String),
        band=band_of(config.bands),
    )
    return named.select(*SITES.names, "key", *({"twin", CORPUS, *config.metadata} & set(frame.columns)))


def _draw_at_random(
    ruled: pl.DataFrame, eligible: pl.DataFrame, expression: pl.Expr, counters: Counter[str]
) -> pl.DataFrame:
    """Instead of the training sites in `ruled`, as many eligible positions in every field of every document."""
    place = ["doc_id", "field"]
    budget = ruled.filter(pl.col("split") == "train").group_by(place).len("budget")
    order = pl.col("key").rank("ordinal").over(place)
    drawn = eligible.join(budget, on=place, maintain_order="left").filter(order <= pl.col("budget")).drop("budget")
    passing = filter_rows(drawn, expression, "`select.where`").height
    stayed = drawn.join(ruled, on=["doc_id", "position"], how="semi").height
    trained = int((ruled["split"] == "train").sum())
    counters["dropped.not_drawn"] += trained - stayed  # of what the rules keep
    counters["dropped.where"] -= drawn.height - passing  # drawn although `where` would not have kept them
    counters["dropped.document_cap"] -= passing - stayed  # or the cap
    return pl.concat([drawn, ruled.filter(pl.col("split") != "train")]).sort(
        pl.col("doc_id").replace_strict(*_ranks(eligible)), "position", maintain_order=True
    )


def _ranks(frame: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
    """Documents, and their places in the shard."""
    ids = frame["doc_id"].unique(maintain_order=True)
    return ids, pl.Series(range(len(ids)), dtype=pl.UInt32)


def _apply_decisions(sites: pl.DataFrame, verdicts: NDArray[np.uint8], counters: Counter[str]) -> pl.DataFrame:
    """The sites that the rules over the whole corpus keep."""
    train = (sites["split"] == "train").to_numpy()
    verdict = np.zeros(sites.height, dtype=np.uint8)
    verdict[train] = verdicts
    for code, reason in enumerate(CORPUS_REASONS, start=1):
        counters[f"dropped.{reason}"] += int((verdict == code).sum())
    return sites.filter(pl.Series(verdict == 0))


def site_id() -> pl.Expr:
    """A position's name."""
    return pl.format("{}-{}", "doc_id", "position")


def _cap_documents(frame: pl.DataFrame, most: int | None) -> pl.DataFrame:
    """Keep each document's `most` positions of highest entropy; among equals the first ones."""
    if most is None:
        return frame
    order = pl.col("entropy").rank("ordinal", descending=True).over("doc_id")
    return frame.filter(order <= most)


def _with_key(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    ids = frame["doc_id"].unique(maintain_order=True)
    base = pl.Series([random_key("site", seed, doc_id) for doc_id in ids], dtype=pl.UInt64)
    base_of_site = frame["doc_id"].replace_strict(ids, base, return_dtype=pl.UInt64).to_numpy()
    return frame.with_columns(key=pl.Series(random_keys(base_of_site, frame["position"].to_numpy()), dtype=pl.UInt64))


def band_of(bands: BandsConfig) -> pl.Expr:
    """The hardest band whose threshold the entropy exceeds, or `none`."""
    entropy = pl.col("entropy")
    return (
        pl.when(entropy > bands.hard)
        .then(pl.lit("hard"))
        .when(entropy > bands.medium)
        .then(pl.lit("medium"))
        .when(entropy > bands.easy)
        .then(pl.lit("easy"))
        .otherwise(pl.lit("none"))
    )


def _nothing(config: SelectConfig) -> pl.DataFrame:
    """No site at all, with the types of all columns."""
    schema = sites_schema(config.metadata, several=True)
    return pl.DataFrame(pl.from_arrow(schema.empty_table())).with_columns(key=pl.lit(None, dtype=pl.UInt64))
