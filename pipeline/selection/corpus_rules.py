"""Rules that depend on the whole corpus: near-duplicate sites, a top share, strata, a mixture, a cap.

A first pass lists the training sites that pass the rules per document (`CANDIDATES`). `decisions` decides on all of
them at once, and a second pass applies its result to each shard. Shape names: C candidates, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config.errors import UserError
from pipeline.config.selection import SelectConfig
from pipeline.core.random_keys import random_key, random_keys

CORPUS_REASONS = ("near_duplicate", "top_fraction", "strata", "mixture", "corpus_cap")
"""Drop reasons of these rules, in the order in which they apply."""

CANDIDATES = pa.schema(
    [
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("entropy", pa.float32(), nullable=False),
        pa.field("twin", pa.uint64(), nullable=False),
        pa.field("stratum", pa.string(), nullable=False),
        pa.field("corpus", pa.string(), nullable=False),
    ]
)
"""One row per training site before these rules, in the order of shards, documents and positions.

`twin` is equal for sites with the same suffix and token, `stratum` is the part of the corpus, `corpus` the source of
the document; 0 and "" if no rule needs them."""


def needs_corpus_pass(config: SelectConfig) -> bool:
    """Return whether a selection has a rule that depends on the whole corpus."""
    return any((config.thin, config.top_fraction, config.strata, config.mixture, config.max_sites))


def decisions(config: SelectConfig, candidates: pl.DataFrame) -> NDArray[np.uint8]:
    """Decide which candidates the rules keep.

    Args:
        config: the rules.
        candidates: columns of `CANDIDATES`.

    Returns:
        [C] 0 to keep, else 1 + an index into `CORPUS_REASONS`; it does not depend on the order of the candidates.

    Raises:
        UserError: a source of the mixture has no site left.

    Example:
        >>> columns = {"key": [3, 1, 2], "entropy": [2.0, 1.0, 3.0], "twin": [0] * 3, "stratum": [""] * 3}
        >>> candidates = pl.DataFrame(columns, schema_overrides={"key": pl.UInt64})
        >>> decisions(SelectConfig(top_fraction=0.6, max_sites=1), candidates).tolist()  # 2 of 3, then the smallest key
        [5, 2, 0]
    """
    remaining = candidates.with_row_index("row")
    verdict_C = np.zeros(candidates.height, dtype=np.uint8)

    def keep(reason: str, kept: pl.DataFrame) -> pl.DataFrame:
        dropped = remaining.join(kept.select("row"), on="row", how="anti")["row"].to_numpy()
        verdict_C[dropped] = 1 + CORPUS_REASONS.index(reason)
        return kept

    if config.thin:
        remaining = keep("near_duplicate", _draw(remaining, "twin", config.thin.most))
    if config.top_fraction:
        most = int(np.ceil(config.top_fraction * remaining.height))
        remaining = keep("top_fraction", remaining.sort(["entropy", "key"], descending=[True, False]).head(most))
    if config.strata:
        remaining = keep("strata", _draw(remaining, "stratum", config.strata.sites))
    if config.mixture:
        available = dict(remaining["corpus"].value_counts().iter_rows())
        counts = mixture_counts(config.mixture.weights, available, config.max_sites)
        rank = pl.col("key").rank("ordinal").over("corpus")
        count = pl.col("corpus").replace_strict(counts, default=0, return_dtype=pl.Int64)
        remaining = keep("mixture", remaining.filter(rank <= count))
    if config.max_sites:
        remaining = keep("corpus_cap", remaining.sort("key").head(config.max_sites))
    return verdict_C


def mixture_counts(weights: Mapping[str, float], available: Mapping[str, int], most: int | None) -> dict[str, int]:
    """Return the number of sites per source of the largest mixture in these proportions, at most `most` in total.

    Sites that do not divide evenly go to the sources with the largest remainders, ties to the first name.

    Raises:
        UserError: a source of the mixture has no site.

    Example:
        >>> [mixture_counts({"a": 3, "b": 1}, {"a": 100, "b": 2}, most) for most in (None, 7)]
        [{'a': 6, 'b': 2}, {'a': 5, 'b': 2}]
    """
    if empty := [name for name in weights if not available.get(name)]:
        raise UserError(
            f"no training site of the source `{empty[0]}` is left for the mixture",
            where="select.mixture",
            hint=", ".join(f"{name} has {available.get(name, 0):,}" for name in weights),
        )
    exact = {name: Fraction(str(weight)) for name, weight in sorted(weights.items())}  # str: 0.1 is 1/10
    part = {name: weight / sum(exact.values()) for name, weight in exact.items()}
    size = min(int(available[name] / part[name]) for name in part)
    size = size if most is None else min(size, most)
    share = {name: int(size * part[name]) for name in part}
    for name in sorted(part, key=lambda name: share[name] - size * part[name])[: size - sum(share.values())]:
        share[name] += 1
    return share


def _draw(frame: pl.DataFrame, among: str, most: int) -> pl.DataFrame:
    """Keep at most `most` rows per value of the column `among`, at random.

    The keys differ from those of the cap on the corpus, which would otherwise favour the rows that are kept here.
    """
    drawn = pl.Series(random_keys(random_key(among), frame["key"].to_numpy()), dtype=pl.UInt64)
    return frame.filter(
        drawn.to_frame("draw")
        .with_columns(frame[among])
        .select(pl.col("draw").rank("ordinal").over(among) <= most)
        .to_series()
    )


def duplicate_keys(scores: pa.Table, suffix_tokens: int) -> NDArray[np.uint64]:
    """Return a hash of every position's token and the `suffix_tokens` tokens before it (fewer at a document's start).

    Args:
        scores: column `token_ids` [T of each document].
        suffix_tokens: number of tokens before the position that the hash covers.

    Returns:
        [T of all documents together]
    """
    lists = scores["token_ids"].combine_chunks()
    ids_T = lists.flatten().to_numpy().astype(np.int64)
    sizes = pl.Series(pl.from_arrow(lists)).list.len().to_numpy()
    position_T = np.arange(len(ids_T)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    twin_T = random_keys(0, ids_T)
    for back in range(1, suffix_tokens + 1):
        shifted_T = np.concatenate(
            [np.zeros(min(back, len(ids_T)), dtype=np.int64), ids_T[: max(0, len(ids_T) - back)]]
        )
        twin_T = np.where(position_T >= back, random_keys(twin_T, shifted_T), twin_T)
    return twin_T


STRATA = ("field", "token_class", "band", "source_file")
"""Columns that `strata.by` may name, besides metadata of documents."""


def stratum_of_sites(by: str, sites: pl.DataFrame, documents: pa.Table) -> pl.Series:
    """Return the stratum of each site: the value of one of its columns or of its document's metadata, "" if absent."""
    if by in sites.columns:
        return sites[by].cast(pl.String).fill_null("")
    columns = ["doc_id", "source_file", "meta"]
    table = pl.DataFrame(pl.from_arrow(documents.select(columns)))
    value = pl.col("source_file") if by == "source_file" else pl.col("meta").str.json_path_match(f"$.{by}")
    joined = sites.select("doc_id").join(
        table.select("doc_id", value=value), on="doc_id", how="left", maintain_order="left"
    )
    return joined["value"].fill_null("")
