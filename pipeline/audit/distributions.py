"""Distributions of kept and selectable positions: score histograms, groups, neighbourhoods of thresholds, tokens.

All of them are counts over frames of `decisions`, added up frame by frame, so memory grows with the number of distinct
values and not with the number of positions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.audit.characters import whole_span
from pipeline.audit.decisions import SPLITS, AuditedShard
from pipeline.config.selection import BandsConfig, SelectConfig
from pipeline.selection.metadata import can_group

EDGES: Mapping[str, NDArray[np.floating]] = {
    "entropy": np.linspace(0, 2.8, 57),
    "nll": np.linspace(0, 15, 61),
    "rank": np.array([0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 4096], dtype=np.float64),
}
"""Left edges of the bars of each histogram; the last bar is open."""

NEAR = (0.01, 0.05)
"""Distances from a threshold, in nats, within which another proxy or batch shape may change a decision."""

COUNTS = ("positions", "selectable", "kept")
RARE = 20
"""Minimum count of a token among the hardest, because the mean of fewer is too uncertain."""
TOKENS_SHOWN = 40
VALUES_SHOWN = 200
OTHERS = "(all others)"

_THRESHOLD = re.compile(r"\b(entropy|entropy_partial|nll)\s*(?:>=?|<=?)\s*(\d*\.?\d+)", re.IGNORECASE)
_REVERSED = re.compile(r"(\d*\.?\d+)\s*(?:>=?|<=?)\s*(entropy|entropy_partial|nll)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Threshold:
    """Number that a rule compares a score with."""

    split: str
    column: str
    value: float
    source: str
    """`where`, or the name of a band."""


def thresholds(rule: SelectConfig) -> list[Threshold]:
    """Return the numbers that the rules compare scores with, and the thresholds of the bands.

    Example:
        >>> rule = SelectConfig(where="1.2 < entropy AND field = 'entropy > 9'", validation_where="true")
        >>> [(t.split, t.column, t.value) for t in thresholds(rule) if t.source == "where"]
        [('train', 'entropy', 1.2)]
    """
    found: list[Threshold] = []
    for split, where in zip(SPLITS, (rule.where, rule.validation_where), strict=True):
        text = re.sub(r"'[^']*'", "''", where)  # numbers in string literals are no thresholds
        named = [(name, number) for name, number in _THRESHOLD.findall(text)]
        named += [(name, number) for number, name in _REVERSED.findall(text)]
        found += [Threshold(split, name.lower(), float(number), "where") for name, number in dict.fromkeys(named)]
        found += [Threshold(split, "entropy", getattr(rule.bands, band), band) for band in BandsConfig.model_fields]
    return found


class Distributions:
    """Counts over all positions added so far."""

    def __init__(self, rule: SelectConfig) -> None:
        self.thresholds = thresholds(rule)
        self._groups: dict[str, pl.DataFrame] = {}
        self._histograms = {
            (metric, split): np.zeros((2, len(edges)), dtype=np.int64)
            for metric, edges in EDGES.items()
            for split in SPLITS
        }
        self._sums = dict.fromkeys(((m, s, k) for m in EDGES for s in SPLITS for k in COUNTS[1:]), 0.0)
        self._near = dict.fromkeys(((t, width) for t in self.thresholds for width in NEAR), (0, 0))
        self._tokens = pl.DataFrame(schema=_TOKENS)
        self._token_text: dict[int, bytes] = {}
        self._part_of: dict[int, str] = {}
        self._meta: dict[str, pl.DataFrame | None] = {}

    def add(self, shard: AuditedShard, frame: pl.DataFrame) -> None:
        """Count a frame of `decisions` of this shard."""
        frame = frame.with_columns(decile=(pl.col("position").cast(pl.Int64) * 10 // pl.col("tokens")).cast(pl.Int8))
        for column in ("decision", "field", "token_class", "decile", "band"):
            self._add_group(column, frame.group_by("split", pl.col(column).cast(pl.String).alias("value")))
        self._add_documents(shard, frame)
        self._add_tokens(shard, frame)
        selectable = frame.filter("selectable")
        for split in SPLITS:
            of_split = selectable.filter(pl.col("split") == split)
            kept = of_split["kept"].to_numpy()
            for metric, edges in EDGES.items():
                values = of_split[metric].cast(pl.Float64).to_numpy()
                bars = np.searchsorted(edges, values, side="right") - 1
                self._histograms[metric, split] += np.stack(
                    [np.bincount(part, minlength=len(edges)) for part in (bars, bars[kept])]
                )
                self._sums[metric, split, "selectable"] += float(values.sum())
                self._sums[metric, split, "kept"] += float(values[kept].sum())
            for threshold in self.thresholds:
                if threshold.split == split:
                    values = of_split[threshold.column].cast(pl.Float64).to_numpy()
                    for width in NEAR:
                        near = np.abs(values - threshold.value) <= width
                        before = self._near[threshold, width]
                        self._near[threshold, width] = (before[0] + int(near.sum()), before[1] + int(kept[near].sum()))

    # ------------------------------------------------------------------------------------------------ results

    def totals(self) -> dict[str, dict[str, int]]:
        """Return `positions`, `selectable`, `kept` by split."""
        summed = self._groups["decision"].group_by("split").agg(pl.col(COUNTS).sum())
        counts = {row.pop("split"): row for row in summed.to_dicts()}
        return {split: counts.get(split, dict.fromkeys(COUNTS, 0)) for split in SPLITS}

    def groups(self) -> dict[str, list[dict[str, Any]]]:
        """Return, by column, one row per value with `positions`, `selectable` and `kept` of each split."""
        named = dict(self._groups) | {f"meta.{name}": g for name, g in self._meta.items() if g is not None}
        return {name: _rows(group) for name, group in named.items()}

    def many_values(self) -> list[str]:
        """Return the metadata columns that have more than `MANY_VALUES` values and so are not grouped."""
        return sorted(name for name, group in self._meta.items() if group is None)

    def histograms(self) -> dict[str, Any]:
        """Return the counts of the bars that begin at `edges` and the means, by metric and split."""
        result: dict[str, Any] = {}
        for metric, edges in EDGES.items():
            splits: dict[str, Any] = {}
            for split in SPLITS:
                counts = dict(zip(COUNTS[1:], self._histograms[metric, split], strict=True))
                splits[split] = {name: count.tolist() for name, count in counts.items()} | {
                    f"mean_{name}": self._sums[metric, split, name] / int(count.sum()) if count.sum() else None
                    for name, count in counts.items()
                }
            result[metric] = {"edges": edges.round(10).tolist(), "splits": splits}
        return result

    def near(self) -> list[dict[str, Any]]:
        """Return how many selectable and kept positions are within each distance of `NEAR` from every threshold."""
        return [
            {"split": t.split, "column": t.column, "threshold": t.value, "source": t.source, "within": width}
            | {"selectable": counts[0], "kept": counts[1]}
            for (t, width), counts in self._near.items()
        ]

    def tokens(self) -> dict[str, list[dict[str, Any]]]:
        r"""Return the tokens of highest mean loss that are not rare, and the tokens selected most often.

        A `token` that is not whole characters has \xNN, and `part_of` has those that it is a part of where it occurs
        first; otherwise `part_of` is None.
        """
        frame = self._tokens.with_columns(
            mean_entropy=pl.col("entropy") / pl.col("selectable"), mean_nll=pl.col("nll") / pl.col("selectable")
        )
        hardest = frame.filter(pl.col("selectable") >= RARE).sort("mean_nll", "token_id", descending=[True, False])
        most = frame.filter(pl.col("kept") > 0).sort("kept", "token_id", descending=[True, False])
        return {"hardest": self._token_rows(hardest), "most_selected": self._token_rows(most)}

    def _token_rows(self, frame: pl.DataFrame) -> list[dict[str, Any]]:
        columns = ("token_id", "selectable", "kept", "mean_entropy", "mean_nll")
        return [
            {
                "token": self._token_text[row["token_id"]].decode("utf-8", errors="backslashreplace"),
                "part_of": self._part_of.get(row["token_id"]),
            }
            | row
            for row in frame.head(TOKENS_SHOWN).select(columns).to_dicts()
        ]

    # ----------------------------------------------------------------------------------------------- counting

    def _add_group(self, name: str, grouped: Any) -> None:
        self._groups[name] = _add_counts(self._groups.get(name), grouped.agg(*_COUNTED))

    def _add_documents(self, shard: AuditedShard, frame: pl.DataFrame) -> None:
        """Count groups by properties of documents: source file and metadata."""
        counted = frame.group_by("doc_id", "split", maintain_order=True).agg(*_COUNTED)
        documents = pl.DataFrame(pl.from_arrow(shard.documents.select(["doc_id", "source_file", "meta"])))
        counted = counted.join(documents, on="doc_id", how="left", maintain_order="left")
        self._add_group_of("source_file", counted)
        meta = [json.loads(text) for text in counted["meta"]]
        for name in dict.fromkeys(name for row in meta for name in row):
            if self._meta.get(name, counted) is None:
                continue
            values = pl.Series("value", [_value(row[name]) if name in row else None for row in meta], dtype=pl.String)
            grouped = counted.with_columns(values).group_by("split", "value").agg(pl.col(COUNTS).sum())
            added = _add_counts(self._meta.get(name), grouped)
            self._meta[name] = added if can_group(added["value"].drop_nulls().unique()) else None

    def _add_group_of(self, column: str, counted: pl.DataFrame) -> None:
        grouped = counted.group_by("split", pl.col(column).alias("value")).agg(pl.col(COUNTS).sum())
        self._groups[column] = _add_counts(self._groups.get(column), grouped)

    def _add_tokens(self, shard: AuditedShard, frame: pl.DataFrame) -> None:
        counted = (
            frame.filter("selectable")
            .group_by("token_id")
            .agg(
                pl.len().cast(pl.Int64).alias("selectable"),
                pl.col("kept").sum().cast(pl.Int64),
                pl.col("entropy", "nll").cast(pl.Float64).sum(),
                pl.first("doc_id", "byte_offset", "byte_end"),
            )
        )
        new = counted.filter(~pl.col("token_id").is_in(list(self._token_text)))
        texts = pl.DataFrame(pl.from_arrow(shard.documents.select(["doc_id", "text"])))
        new = new.join(texts, on="doc_id", how="left").sort("doc_id")
        for (text,), tokens in new.group_by(["text"], maintain_order=True):
            data = str(text).encode()
            for token_id, begin, end in tokens.select("token_id", "byte_offset", "byte_end").iter_rows():
                self._token_text[token_id] = data[begin:end]
                first, past = whole_span(data, begin, len(data) if end is None else end)
                if data[first:past] != data[begin:end]:
                    self._part_of[token_id] = data[first:past].decode()
        total = pl.concat([self._tokens, counted.drop("doc_id", "byte_offset", "byte_end")])
        self._tokens = total.group_by("token_id").agg(pl.all().sum())


_TOKENS = {"token_id": pl.Int32, "selectable": pl.Int64, "kept": pl.Int64, "entropy": pl.Float64, "nll": pl.Float64}
_COUNTED = (
    pl.len().cast(pl.Int64).alias("positions"),
    pl.col("selectable").sum().cast(pl.Int64),
    pl.col("kept").sum().cast(pl.Int64),
)


def _add_counts(total: pl.DataFrame | None, counted: pl.DataFrame) -> pl.DataFrame:
    counted = counted.select("split", "value", pl.col(COUNTS).cast(pl.Int64))
    both = counted if total is None else pl.concat([total, counted])
    return both.group_by("split", "value").agg(pl.col(COUNTS).sum())


def _rows(group: pl.DataFrame) -> list[dict[str, Any]]:
    """Return one row per value, most positions first; values beyond `VALUES_SHOWN` are summed up in one row."""
    order = group.group_by("value").agg(pl.col("positions").sum()).sort("positions", "value", descending=[True, False])
    shown = order["value"].head(VALUES_SHOWN)
    value = pl.when(pl.col("value").is_in(shown.to_list()) | pl.col("value").is_null()).then("value")
    named = group.with_columns(value=value.otherwise(pl.lit(OTHERS)))
    summed = named.group_by("value", "split").agg(pl.col(COUNTS).sum())
    counts = {(row["value"], row["split"]): row for row in summed.to_dicts()}
    none = dict.fromkeys(COUNTS, 0)
    values: Sequence[str | None] = [*shown, *([OTHERS] if len(shown) < order.height else [])]
    return [
        {"value": value} | {split: {n: counts.get((value, split), none)[n] for n in COUNTS} for split in SPLITS}
        for value in values
    ]


def _value(value: Any) -> str | None:
    """Return a metadata value as the name of a group."""
    return value if isinstance(value, str) or value is None else json.dumps(value, ensure_ascii=False)
