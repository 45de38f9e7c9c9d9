"""Rules that look at the whole corpus: near-duplicate sites, a top share, strata, a mixture, a cap.

A first pass lists what these rules need of every training site that the rules of one document leave (`CANDIDATES`),
this judges them all at once, and the selection drops what it is told to. Shape names: C candidates, T tokens.
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
"""Reasons of these rules, in the order in which they apply."""

CANDIDATES = pa.schema(
    [
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("entropy", pa.float32(), nullable=False),
        pa.field("twin", pa.uint64(), nullable=False),
        pa.field("stratum", pa.string(), nullable=False),
        pa.field("corpus", pa.string(), nullable=False),
    ]
)
"""A row is a training site before these rules; in the order of shards, documents and positions. `twin` is the same for
sites with the same suffix and token, `stratum` the part of the corpus, `corpus` the source of the document; 0 and ""
where no rule asks for them."""


def needs_corpus_pass(config: SelectConfig) -> bool:
    """Whether there is any such rule."""
    return any((config.thin, config.top_fraction, config.strata, config.mixture, config.max_sites))


def decisions(config: SelectConfig, candidates: pl.DataFrame) -> NDArray[np.uint8]:
    """What the rules say of every candidate.

    Args:
        config: the rules.
        candidates: columns of `CANDIDATES`.

    Returns:
        [C] 0 to keep, else 1 + an index into `CORPUS_REASONS`. A candidate's does not depend on their order.

    Raises:
        UserError: the mixture wants sites of a source that has none left.

    Example:
        >>> columns = {"key": [3, 1, 2], "entropy": [2.0, 1.0, 3.0], "twin": [0] * 3, "stratum": [""] * 3}
        >>> candidates = pl.DataFrame(columns, schema_overrides={"key": pl.UInt64})
        >>> decisions(SelectConfig(top_fraction=0.6, max_sites=1), candidates).tolist()  # 2 of 3, then the smallest key
        [5, 2, 0]
    """
    left = candidates.with_row_index("row")
    verdict_C = np.zeros(candidates.height, dtype=np.uint8)

    def keep(reason: str, kept: pl.DataFrame) -> pl.DataFrame:
        dropped = left.join(kept.select("row"), on="row", how="anti")["row"].to_numpy()
        verdict_C[dropped] = 1 + CORPUS_REASONS.index(reason)
        return kept

    if config.thin:
        left = keep("near_duplicate", _draw(left, "twin", config.thin.most))
    if config.top_fraction:
        most = int(np.ceil(config.top_fraction * left.height))
        left = keep("top_fraction", left.sort(["entropy", "key"], descending=[True, False]).head(most))
    if config.strata:
        left = keep("strata", _draw(left, "stratum", config.strata.sites))
    if config.mixture:
        available = dict(left["corpus"].value_counts().iter_rows())
        share_of = mixture_counts(config.mixture.weights, available, config.max_sites)
        place = pl.col("key").rank("ordinal").over("corpus")
        share = pl.col("corpus").replace_strict(share_of, default=0, return_dtype=pl.Int64)
        left = keep("mixture", left.filter(place <= share))
    if config.max_sites:
        left = keep("corpus_cap", left.sort("key").head(config.max_sites))
    return verdict_C


def mixture_counts(weights: Mapping[str, float], available: Mapping[str, int], most: int | None) -> dict[str, int]:
    """How many sites of each source make the largest mixture in these proportions, of at most `most` sites.

    What does not divide evenly goes to the largest remainders, among equals to the first name.

    Raises:
        UserError: a source has no site.

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
    exact = {name: Fraction(str(weight)) for name, weight in sorted(weights.items())}  # 0.1 is a tenth
    part = {name: weight / sum(exact.values()) for name, weight in exact.items()}
    size = min(int(available[name] / part[name]) for name in part)
    size = size if most is None else min(size, most)
    share = {name: int(size * part[name]) for name in part}
    for name in sorted(part, key=lambda name: share[name] - size * part[name])[: size - sum(share.values())]:
        share[name] += 1
    return share


def _draw(frame: pl.DataFrame, among: str, most: int) -> pl.DataFrame:
    """At most `most` of the rows that share a value, by keys of their own: the cap's would favour what is left here."""
    drawn = pl.Series(random_keys(random_key(among), frame["key"].to_numpy()), dtype=pl.UInt64)
    return frame.filter(
        drawn.to_frame("draw")
        .with_columns(frame[among])
        .select(pl.col("draw").rank("ordinal").over(among) <= most)
        .to_series()
    )


def duplicate_keys(scores: pa.Table, suffix_tokens: int) -> NDArray[np.uint64]:
    """A hash of every position's token and the tokens before it in its document, at most `suffix_tokens` of them.

    Args:
        scores: column `token_ids` [T of each document].

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
"""What `strata.by` may name besides metadata of documents."""


def stratum_of_sites(by: str, sites: pl.DataFrame, documents: pa.Table) -> pl.Series:
    """The part of the corpus of each site: a column of its own, or of its document's metadata ("" if absent)."""
    if by in sites.columns:
        return sites[by].cast(pl.String).fill_null("")
    columns = ["doc_id", "source_file", "meta"]
    table = pl.DataFrame(pl.from_arrow(documents.select(columns)))
    value = pl.col("source_file") if by == "source_file" else pl.col("meta").str.json_path_match(f"$.{by}")
    named = sites.select("doc_id").join(
        table.select("doc_id", value=value), on="doc_id", how="left", maintain_order="left"
    )
    return named["value"].fill_null("")
