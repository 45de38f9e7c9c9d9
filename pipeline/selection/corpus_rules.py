"""Rules that depend on the whole corpus: near-duplicate sites, a top share, strata, a mixture, a cap.

A first pass lists the training sites that pass the rules per document (`CANDIDATES`). `decisions` decides on all of
them, and a second pass applies its result to each shard. Every rule keeps the first rows of an order, of all or of each
group, so that it is a sort, which needs no more memory than a few million rows take (`external_sort.py`). Shape names:
C candidates, M some of them, G groups, T tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config.errors import UserError
from pipeline.config.selection import SelectConfig
from pipeline.core.artifact import InputFile
from pipeline.core.parquet import read_table
from pipeline.core.random_keys import random_key, random_keys
from pipeline.selection.external_sort import AT_ONCE, Rows, in_order

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


def decisions(
    config: SelectConfig,
    candidates: Sequence[InputFile],
    verdict_C: NDArray[np.uint8],
    scratch: Path,
    at_once: int = AT_ONCE,
) -> None:
    """Decide which candidates the rules keep. Memory holds one table of candidates, and a few million rows to sort.

    Args:
        config: the rules.
        candidates: tables of `CANDIDATES`, of all shards in order.
        verdict_C: zeros, which become the decisions: 0 to keep, else 1 + an index into `CORPUS_REASONS`. They do not
            depend on the order of the candidates, nor on how these are cut into tables.
        scratch: a folder that has room for 24 bytes a candidate.
        at_once: rows that are sorted in memory at once.

    Raises:
        UserError: a source of the mixture has no site left.
    """

    def apply(reason: str, columns: list[str], order: Order, beyond: Beyond) -> None:
        count = count_left(verdict_C)
        rows = (Rows(*order(frame), row_M) for frame, row_M in _left(candidates, ["key", *columns], verdict_C))
        for row_M in beyond(in_order(rows, count, scratch, at_once)):
            verdict_C[row_M] = 1 + CORPUS_REASONS.index(reason)

    if config.thin:
        apply("near_duplicate", ["twin"], _drawn_by_twin, partial(_beyond_of_groups, most=config.thin.most))
    if config.top_fraction:
        most = int(np.ceil(config.top_fraction * count_left(verdict_C)))
        apply("top_fraction", ["entropy"], _by_entropy, partial(_beyond, most=most))
    if config.strata:
        apply("strata", ["stratum"], _drawn_by_stratum, partial(_beyond_of_groups, most=config.strata.sites))
    if config.mixture:
        available: Counter[str] = Counter()
        for frame, _ in _left(candidates, ["corpus"], verdict_C):
            available.update(dict(frame["corpus"].value_counts().iter_rows()))
        counts = mixture_counts(config.mixture.weights, available, config.max_sites)
        most_G = np.array([*counts.values(), 0])  # 0 of what belongs to no source of the mixture
        order = partial(_by_source, sources=list(counts))
        apply("mixture", ["corpus"], order, partial(_beyond_of_groups, most=most_G))
    if config.max_sites:
        apply("corpus_cap", [], _by_key, partial(_beyond, most=config.max_sites))


def count_left(verdict_C: NDArray[np.uint8]) -> int:
    """Return the number of candidates that no rule has dropped."""
    return len(verdict_C) - int(np.count_nonzero(verdict_C))


Keys = NDArray[np.uint64]
Order = Callable[[pl.DataFrame], tuple[Keys, Keys]]
"""Candidates to what they are sorted by."""
Beyond = Callable[[Iterable[Rows]], Iterator[NDArray[np.int64]]]
"""Candidates in order to the rows of those that leave."""


def _left(
    candidates: Sequence[InputFile], columns: list[str], verdict_C: NDArray[np.uint8]
) -> Iterator[tuple[pl.DataFrame, NDArray[np.int64]]]:
    """Yield the candidates of each table that no rule has dropped yet, and their rows among all candidates."""
    begin = 0
    for file in candidates:
        frame = pl.DataFrame(pl.from_arrow(read_table(file, columns)))
        left_M = verdict_C[begin : begin + frame.height] == 0
        yield frame.filter(pl.Series(left_M, dtype=pl.Boolean)), begin + np.flatnonzero(left_M)
        begin += frame.height


def _by_key(frame: pl.DataFrame) -> tuple[Keys, Keys]:
    return np.zeros(frame.height, np.uint64), frame["key"].to_numpy()


def _by_entropy(frame: pl.DataFrame) -> tuple[Keys, Keys]:
    """Sort by entropy, the highest first, then by key."""
    bits = (frame["entropy"].to_numpy() + np.float32(0)).view(np.uint32)  # + 0: of -0 and 0 none is the greater
    negative = bits >> np.uint32(31) == 1
    return np.where(negative, bits, ~bits & np.uint32(0x7FFFFFFF)).astype(np.uint64), frame["key"].to_numpy()


def _by_source(frame: pl.DataFrame, sources: Sequence[str]) -> tuple[Keys, Keys]:
    """Sort by the source's number, which is that of no source for those outside the mixture; then by key."""
    numbers = {name: number for number, name in enumerate(sources)}
    group = frame["corpus"].replace_strict(numbers, default=len(sources), return_dtype=pl.UInt64)
    return group.to_numpy(), frame["key"].to_numpy()


def _drawn_by_twin(frame: pl.DataFrame) -> tuple[Keys, Keys]:
    return frame["twin"].to_numpy(), _draw("twin", frame)


def _drawn_by_stratum(frame: pl.DataFrame) -> tuple[Keys, Keys]:
    """Sort by 64 bits of a hash of the stratum: of a million strata, two are equal with a probability of 3e-8."""
    names = frame["stratum"].unique()
    keys = pl.Series([random_key("stratum", name) for name in names], dtype=pl.UInt64)
    group = frame["stratum"].replace_strict(names, keys, return_dtype=pl.UInt64)
    return group.to_numpy(), _draw("stratum", frame)


def _draw(among: str, frame: pl.DataFrame) -> Keys:
    """Return other keys than those of the cap on the corpus, which would else favour the rows that are kept here."""
    return random_keys(random_key(among), frame["key"].to_numpy())


def _beyond(parts: Iterable[Rows], most: int) -> Iterator[NDArray[np.int64]]:
    """Yield all rows but the first `most`."""
    before = 0
    for part in parts:
        yield part.row[max(0, most - before) :]
        before += len(part.row)


def _beyond_of_groups(parts: Iterable[Rows], most: int | NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield all rows but the first `most` of each group, which have one `major`; or `most[major]` of them."""
    group, before = None, 0  # the last group so far, and how many of its rows have been seen
    for part in parts:
        begins = np.flatnonzero(part.major[1:] != part.major[:-1]) + 1
        sizes = np.diff([0, *begins, len(part.row)])
        rank_M = np.arange(len(part.row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        goes_on = int(part.major[0]) == group
        if goes_on:
            rank_M[: sizes[0]] += before
        yield part.row[rank_M >= (most if isinstance(most, int) else most[part.major])]
        group, before = int(part.major[-1]), int(rank_M[-1]) + 1


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
