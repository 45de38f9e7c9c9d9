"""Rules as queries to the index: which part of a `where` is decided by cell and entropy, and which must be read.

The entropy axis is cut at every number that the rules compare it with. Between two cuts, and at each cut, the part of a
rule that names only cell columns and compares entropy with numbers is constant within a cell: NO or YES for all
positions of a segment. If it is YES and the rule has other conditions (`nll < 3`), the state is ASK. Shape names: C
cells, B cuts, G = 2B + 1 segments (open intervals and the cuts between them, alternating).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.audit.browse.column_index import ColumnIndex, Slices, verified_once
from pipeline.audit.browse.index import CELL, COLUMNS
from pipeline.config.errors import UserError, first_line
from pipeline.core.artifact import Record
from pipeline.selection.metadata import kinds, rule_columns
from pipeline.selection.where import SCORE_COLUMNS, parse_filter

NO, YES, ASK = 0, 1, 2

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]

MAX_CUTS = 32
"""Maximum number of cuts of a rule, each of which is looked up in every cell; further comparisons are read."""

BATCH_TEXT_BYTES = 1 << 26
"""Bytes of metadata text evaluated at once; it changes memory use, not results."""


class Rule(Protocol):
    """A rule that decides which positions are kept."""

    @property
    def cuts(self) -> tuple[float, ...]:
        """Return the entropies that the rule compares with."""
        ...

    @property
    def asks_cell(self) -> bool:
        """Return True if `ask` uses the cell, so that each call must be about one cell."""
        ...

    def decide(self, cells: pl.DataFrame, entropy_G: Float32) -> NDArray[np.int8]:
        """Return the state [C, G] of every cell and segment: NO, YES or ASK."""
        ...

    def ask(self, store: ColumnIndex, slices: Slices, cell: Mapping[str, str]) -> Bool:
        """Return a mask of the kept positions in runs of state ASK; `cell` is their cell if `asks_cell`."""
        ...


@dataclass(frozen=True)
class Where:
    """Rule given as an SQL expression, as in a manifest."""

    text: str
    cuts: tuple[float, ...]
    simple: pl.Expr
    """Conjuncts that cell and entropy decide."""
    rest: pl.Expr | None
    """The other conjuncts, which must be read; None if there are none."""
    metadata: Mapping[str, str]
    """Document metadata that the rule may name, with types."""

    @classmethod
    def parse(cls, where: str, metadata: Mapping[str, str] | None = None) -> Where:
        """Parse an SQL expression and split it into decidable and other conjuncts.

        Args:
            where: The expression.
            metadata: `select.metadata` of the manifest.

        Raises:
            UserError: The expression is invalid.

        Example:
            >>> where = Where.parse("entropy > 1.25 AND field = 'solution' AND nll < 3")
            >>> where.cuts, where.rest.meta.root_names()
            ((1.25,), ['nll'])
        """
        from sqlglot import exp

        from pipeline.selection.expressions import column_names, comparison_values, to_polars
        from pipeline.selection.sql import operands

        tree, _ = parse_filter(where, rule_columns(metadata or {}), "where")
        simple, rest = [pl.lit(True)], []
        cuts: set[float] = set()
        for part in operands(tree, exp.And):
            numbers = comparison_values(part, "entropy") if column_names(part) <= {"entropy", *CELL} else None
            if numbers is None or len(cuts | numbers) > MAX_CUTS:
                rest.append(to_polars(part))
            else:
                simple.append(to_polars(part))
                cuts |= numbers
        both = (pl.all_horizontal(simple), pl.all_horizontal(rest) if rest else None)
        return cls(where, tuple(sorted(cuts)), *both, kinds(metadata or {}))

    @cached_property
    def asks_cell(self) -> bool:
        """Return True if the conjuncts to be read name a cell column."""
        return self.rest is not None and not set(self.rest.meta.root_names()).isdisjoint(CELL)

    def decide(self, cells: pl.DataFrame, entropy_G: Float32) -> NDArray[np.int8]:
        """Return the state [C, G] of every cell and segment."""
        typed = cells.select(pl.col(name).cast(SCORE_COLUMNS[name].dtype) for name in CELL)
        grid = typed.join(pl.DataFrame({"entropy": entropy_G}), how="cross", maintain_order="left_right")
        kept = grid.with_columns(kept=self.simple.fill_null(False))["kept"].to_numpy()
        decided = np.where(kept, YES if self.rest is None else ASK, NO)
        return decided.reshape(cells.height, len(entropy_G)).astype(np.int8)

    def ask(self, store: ColumnIndex, slices: Slices, cell: Mapping[str, str]) -> Bool:
        """Evaluate the other conjuncts on the positions of some runs.

        Raises:
            UserError: The rule cannot be computed on this corpus.
        """
        if self.rest is None:
            return np.ones(slices.rows, dtype=bool)
        named = set(self.rest.meta.root_names())
        needed = named | ({"nll", "reference_nll"} if "excess_loss" in named else set())
        columns: dict[str, Any] = {name: store.read(name, slices) for name in COLUMNS if name in needed}
        of_documents = {name: store.documents[name] for name in needed & {"doc_id", "tokens"}}
        of_documents |= {name: store.metadata(name, kind) for name, kind in self.metadata.items() if name in needed}
        if of_documents:
            document = store.read("document", slices)
            columns |= {name: values.gather(document) for name, values in of_documents.items()}
        frame = pl.DataFrame(columns)
        frame = frame.with_columns(
            pl.lit(cell[name], SCORE_COLUMNS[name].dtype).alias(name) for name in CELL if name in needed
        )
        if "reference_nll" in needed:
            frame = frame.with_columns(pl.col("reference_nll").fill_nan(None))
        if "excess_loss" in needed:
            frame = frame.with_columns(excess_loss=pl.col("nll") - pl.col("reference_nll"))
        # Gathered texts repeat for every position of a document, so long ones are evaluated in smaller parts.
        sizes = [values.str.len_bytes().max() for values in of_documents.values() if values.dtype == pl.String]
        longest = max((int(size) for size in sizes if isinstance(size, int)), default=0)
        parts = frame.iter_slices(max(1, BATCH_TEXT_BYTES // max(longest, 1)))
        return np.concatenate([np.zeros(0, dtype=bool), *map(self._evaluate, parts)])

    def _evaluate(self, frame: pl.DataFrame) -> Bool:
        assert self.rest is not None
        try:
            return frame.with_columns(kept=self.rest.fill_null(False))["kept"].to_numpy()
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            raise UserError("`where` cannot be computed on this corpus", hint=first_line(error)) from error


@dataclass(frozen=True)
class Kept:
    """Rule given by the sites that `select` published, after all caps."""

    record: Record
    """Record of the bitmap (`selection_bitmap.py`)."""
    cuts: tuple[float, ...] = ()
    asks_cell: bool = False

    def decide(self, cells: pl.DataFrame, entropy_G: Float32) -> NDArray[np.int8]:
        """Return ASK [C, G], because the bitmap must always be read."""
        return np.full((cells.height, len(entropy_G)), ASK, dtype=np.int8)

    def ask(self, store: ColumnIndex, slices: Slices, cell: Mapping[str, str]) -> Bool:
        """Return the bits of the positions of some runs."""
        paths = [verified_once(file) for file in self.record.files("kept")]
        parts = [np.zeros(0, dtype=bool)]
        for shard, begin, end in zip(slices.shard_N, slices.begin_N, slices.end_N, strict=True):
            byte = np.fromfile(paths[shard], np.uint8, count=(end + 7) // 8 - begin // 8, offset=begin // 8)
            parts.append(np.unpackbits(byte, bitorder="little")[begin % 8 :][: end - begin].astype(bool))
        return np.concatenate(parts)


def segments(cuts: Sequence[float]) -> tuple[Float32, Float32]:
    """Return the cuts [B] as float32, like the column, and a value [G] within each segment.

    Example:
        >>> cuts, within = segments([1.0, 0.5])
        >>> cuts.tolist(), within.tolist()[1::2], bool(within[0] < 0.5 < within[2] < 1.0 < within[4])
        ([0.5, 1.0], [0.5, 1.0], True)
    """
    cut_B = np.unique(np.array(cuts, dtype=np.float32))
    edge_B = np.concatenate([[-np.inf], cut_B]).astype(np.float32)
    entropy_G = np.empty(2 * len(cut_B) + 1, dtype=np.float32)
    entropy_G[0::2] = np.nextafter(edge_B, np.float32(np.inf))
    entropy_G[1::2] = cut_B
    return cut_B, entropy_G


def stretches(
    store: ColumnIndex, rules: tuple[Rule, Rule], cells: pl.DataFrame, cut_B: Float32,
    entropy_G: Float32,
) -> Iterator[tuple[int, int, tuple[int, int], Slices]]:  # fmt: skip
    """Yield (cell, segment, states of both rules, positions): what is not empty and at least one rule may keep.

    Args:
        store: The index.
        rules: The two rules.
        cells: Rows of `store.cells`.
        cut_B: The cuts of `segments`.
        entropy_G: The values within its segments.
    """
    edge_RG = _edges(store, cut_B)
    states_CG = np.stack([rule.decide(cells, entropy_G) for rule in rules], axis=-1)
    for cell, states_G in zip(cells["cell"], states_CG, strict=True):
        rows = np.flatnonzero(store.cell_R == cell)
        for g, (a, b) in enumerate(states_G.tolist()):
            if a == b == NO:
                continue
            runs = store.runs(rows, edge_RG[rows, g], edge_RG[rows, g + 1])
            if runs.rows:
                yield cell, g, (a, b), runs


def _edges(store: ColumnIndex, cut_B: Float32) -> NDArray[np.int64]:
    """Return edges [R, G + 1] such that segment g of an index row is its positions edge[g]:edge[g + 1]."""
    cuts = [edge for cut in cut_B for edge in (store.cut(cut, "left"), store.cut(cut, "right"))]
    return np.stack([np.zeros_like(store.begin_R), *cuts, store.end_R - store.begin_R], axis=1)
