"""Selects the scored positions that become sites, and counts why the others do not."""

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
from pipeline.selection.classes import TOKEN_CLASSES
from pipeline.selection.corpus_rules import CORPUS_REASONS, STRATA, duplicate_keys, stratum_of_sites
from pipeline.selection.metadata import (
    BUILT_IN,
    check_metadata,
    metadata_fields,
    referenced_metadata,
    rule_columns,
    with_metadata,
)
from pipeline.selection.names import inner_capitals
from pipeline.selection.positions import SCORE_TABLE_COLUMNS, positions
from pipeline.selection.text import TextBytes
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
"""One row per selected position, in document order, then by position."""


def sites_schema(metadata: Mapping[str, str], several: bool) -> pa.Schema:
    """Return `SITES` with the metadata of `select.metadata`, and the source's name if there are several sources."""
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
"""Reasons why a position is not a site, in the order of the checks; the first that applies is counted."""

BANDS = ("easy", "medium", "hard")
NO_BAND = "none"
TRAIN = "train."
"""Prefix of counts of training positions, which the certificate reads: `selectable.band.<name>` and
`selectable.class.<name>` of those that a rule can keep, `passed` of those that pass `where`, `sites.band.<name>`,
`sites.class.<name>` and `sites.names` of the sites. A position counts in its hardest band. Names: `inner_capitals`."""
NEAR = 0.01
"""Distance in nats to a band's threshold up to which a position counts as `near.<band>`: rounding could move it."""


def check_columns_exist(config: SelectConfig, documents: Sequence[InputFile]) -> None:
    """Refuse a selection that names metadata which no document has; it would put all sites into one stratum.

    Args:
        config: the selection.
        documents: files of the documents table.

    Raises:
        UserError: no document has it; the message lists the metadata that documents have.
    """
    check_metadata(config.metadata, (read_table(file, ["meta"]) for file in documents))
    by = config.strata.by if config.strata else None
    if by in BUILT_IN and by not in STRATA:
        hint = f"name one of {', '.join(STRATA)}, or metadata of documents"
        raise UserError(f"`{by}` cannot define strata", where="select.strata.by", hint=hint)
    if by is not None and by not in STRATA:
        check_metadata([by], (read_table(file, ["meta"]) for file in documents), "select.strata.by")


def rule_expression(config: SelectConfig) -> pl.Expr:
    """Return the boolean expression of one position that combines `where` and `validation_where`.

    Raises:
        UserError: one of them is not a valid expression (`row_filter`).
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

    A document's sites depend only on the document (and on `verdicts`), so they do not depend on how a corpus is cut
    into shards.

    Args:
        config: the rules.
        documents: the shard's documents (`DOCUMENT_COLUMNS`), with `meta` if a rule names metadata.
        scores: their scores (`SCORE_TABLE_COLUMNS`).
        flagged: ids of sites to drop.
        verdicts: the decisions of the rules over the whole corpus on the shard's training sites, in their order: 0 to
            keep, else 1 + an index into `CORPUS_REASONS`. None: there are no such rules, or this call lists the
            candidates for them.
        several: whether the documents are from several sources, which their metadata names.

    Returns:
        A frame with the columns of `sites_schema` (`corpus` is null if there is one source), `key`, a random number in
        [0, 2⁶⁴) per site, and `twin` and `stratum` if the rules need them; and the counts: `documents`; `tokens` = the
        sum of `dropped.<reason>` and `kept.<split>`; `band.<name>`, nested, over all kept sites; `near.<name>`, over
        all scored positions; and those of `TRAIN`.
    """
    expression = rule_expression(config)
    counters: Counter[str] = Counter({"documents": scores.num_rows, "tokens": 0})
    counters.update({f"dropped.{reason}": 0 for reason in REASONS} | {f"near.{band}": 0 for band in BANDS})
    twin_keys = duplicate_keys(scores, config.thin.suffix_tokens) if config.thin else None
    kept, begin = [_empty_sites(config)], 0
    columns = referenced_metadata(expression, config.metadata) | dict(config.metadata)
    columns |= {CORPUS: "text"} if several else {}
    for frame in positions(documents, with_metadata(scores.select(SCORE_TABLE_COLUMNS), documents, columns)):
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
    _count_training(counters, "sites", sites)
    counters[f"{TRAIN}sites.names"] = _names(documents, sites)
    return sites, dict(counters)


def _select(
    config: SelectConfig, expression: pl.Expr, frame: pl.DataFrame, flagged: Collection[str], counters: Counter[str]
) -> pl.DataFrame:
    """Return the sites of some whole documents, and add the dropped positions to `counters`."""

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
    _count_training(counters, "selectable", eligible.with_columns(band=band_of(config.bands)))
    frame = drop("where", filter_rows(frame, expression, "`select.where` or `select.validation_where`"), frame)
    counters[f"{TRAIN}passed"] += int((frame["split"] == "train").sum())
    if flagged:
        frame = drop("flagged", frame.filter(~site_id().is_in(list(flagged))), frame)
    frame = drop("document_cap", _cap_documents(frame, config.max_per_document), frame)
    frame = _with_key(frame, config.seed)
    if config.strategy == "random":
        eligible = eligible.filter(~site_id().is_in(list(flagged)))
        frame = _draw_at_random(frame, _with_key(eligible, config.seed), expression, counters)
    sites = frame.with_columns(
        site_id=site_id(),
        token_class=pl.col("token_class").cast(pl.String),
        band=band_of(config.bands),
    )
    return sites.select(*SITES.names, "key", *({"twin", CORPUS, *config.metadata} & set(frame.columns)))


def _count_training(counters: Counter[str], kind: str, frame: pl.DataFrame) -> None:
    """Add the training positions of a frame by hardest band and by token class."""
    train = frame.filter(pl.col("split") == "train")
    for column, values in (("band", (NO_BAND, *BANDS)), ("token_class", TOKEN_CLASSES)):
        counted = dict(train[column].cast(pl.String).value_counts().iter_rows())
        for value in values:
            counters[f"{TRAIN}{kind}.{column.removeprefix('token_')}.{value}"] += counted.get(value, 0)


def _names(documents: pa.Table, sites: pl.DataFrame) -> int:
    """Return the number of training sites that are names."""
    train = sites.filter((pl.col("split") == "train") & (pl.col("token_class") == "word_start"))
    text = TextBytes.of(documents["text"])
    ids = pl.Series(pl.from_arrow(documents["doc_id"]))
    begin_P = train["doc_id"].replace_strict(ids, pl.Series(text.starts_D, dtype=pl.Int64), return_dtype=pl.Int64)
    starts_P = (begin_P + train["byte_offset"]).to_numpy()
    return int(inner_capitals(text, starts_P, begin_P.to_numpy()).sum())


def _draw_at_random(
    ruled: pl.DataFrame, eligible: pl.DataFrame, expression: pl.Expr, counters: Counter[str]
) -> pl.DataFrame:
    """Replace the training sites in `ruled` by as many random eligible positions of the same document and field."""
    group = ["doc_id", "field"]
    budget = ruled.filter(pl.col("split") == "train").group_by(group).len("budget")
    order = pl.col("key").rank("ordinal").over(group)
    drawn = eligible.join(budget, on=group, maintain_order="left").filter(order <= pl.col("budget")).drop("budget")
    passing = filter_rows(drawn, expression, "`select.where`").height
    stayed = drawn.join(ruled, on=["doc_id", "position"], how="semi").height
    trained = int((ruled["split"] == "train").sum())
    # The counters hold what the rules dropped. Correct them so that they still add up for the drawn positions.
    counters["dropped.not_drawn"] += trained - stayed  # kept by the rules, but not drawn
    counters["dropped.where"] -= drawn.height - passing  # drawn, although `where` had dropped them
    counters["dropped.document_cap"] -= passing - stayed  # drawn, although the cap had dropped them
    return pl.concat([drawn, ruled.filter(pl.col("split") != "train")]).sort(
        pl.col("doc_id").replace_strict(*_document_order(eligible)), "position", maintain_order=True
    )


def _document_order(frame: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
    """Return the ids of the documents, and their indices in the shard."""
    ids = frame["doc_id"].unique(maintain_order=True)
    return ids, pl.Series(range(len(ids)), dtype=pl.UInt32)


def _apply_decisions(sites: pl.DataFrame, verdicts: NDArray[np.uint8], counters: Counter[str]) -> pl.DataFrame:
    """Return the sites that the rules over the whole corpus keep, and count the others."""
    train = (sites["split"] == "train").to_numpy()
    verdict = np.zeros(sites.height, dtype=np.uint8)
    verdict[train] = verdicts
    for code, reason in enumerate(CORPUS_REASONS, start=1):
        counters[f"dropped.{reason}"] += int((verdict == code).sum())
    return sites.filter(pl.Series(verdict == 0))


def site_id() -> pl.Expr:
    """Return the expression of a position's id, `<doc_id>-<position>`."""
    return pl.format("{}-{}", "doc_id", "position")


def _cap_documents(frame: pl.DataFrame, most: int | None) -> pl.DataFrame:
    """Keep the `most` positions of highest entropy per document, ties by position."""
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
    """Return the expression of the hardest band whose threshold the entropy exceeds, or `none`."""
    entropy = pl.col("entropy")
    return (
        pl.when(entropy > bands.hard)
        .then(pl.lit("hard"))
        .when(entropy > bands.medium)
        .then(pl.lit("medium"))
        .when(entropy > bands.easy)
        .then(pl.lit("easy"))
        .otherwise(pl.lit(NO_BAND))
    )


def _empty_sites(config: SelectConfig) -> pl.DataFrame:
    """Return an empty frame with the types of all columns."""
    schema = sites_schema(config.metadata, several=True)
    return pl.DataFrame(pl.from_arrow(schema.empty_table())).with_columns(key=pl.lit(None, dtype=pl.UInt64))
