"""A document as a heat map, and one of its positions as the trainer sees it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.audit.browse.column_index import verified_once
from pipeline.audit.characters import whole_pieces
from pipeline.audit.minimap import hardest, minimap
from pipeline.audit.why_not import later_columns, part_columns
from pipeline.config.manifest import MaterializeConfig
from pipeline.config.task import TaskConfig
from pipeline.core.artifact import InputFile, Record
from pipeline.core.model_files import resolve_model
from pipeline.core.parquet import read_rows
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.selection.change import Shortest, shortest_change
from pipeline.selection.metadata import kinds, rule_columns, with_metadata
from pipeline.selection.positions import SCORE_TABLE_COLUMNS, SELECTABLE, positions
from pipeline.selection.sites import SITES
from pipeline.selection.where import filter_rows, row_filter
from pipeline.shards.examples import examples
from pipeline.shards.schema import boundaries_of

if TYPE_CHECKING:
    from pipeline.grpo.rollout.prompt import PromptBuilder

TOKENS_SHOWN = 2000
"""Maximum number of tokens shown at once."""

GROUPS_KEPT = 2
"""Number of row groups that stay decoded."""


class Rows:
    """Access to single rows of a table's shards; the most recently used row groups stay decoded."""

    def __init__(self, files: Sequence[InputFile], columns: Sequence[str] | None = None) -> None:
        self._files, self._columns = files, list(columns) if columns else None
        self._first: dict[int, NDArray[np.int64]] = {}
        self._decoded: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def row(self, shard: int, row: int) -> pa.Table:
        """Return row `row` of shard `shard`, as a table."""
        with self._lock:
            first = self._first_rows(shard)
            group = int(np.searchsorted(first, row, side="right")) - 1
            key = (shard, group)
            if key not in self._decoded:
                begin, end = int(first[group]), int(first[group + 1])
                self._decoded[key] = read_rows(self._files[shard], begin, end, self._columns)
                while len(self._decoded) > GROUPS_KEPT:
                    self._decoded.popitem(last=False)
            self._decoded.move_to_end(key)
            return self._decoded[key].slice(row - int(first[group]), 1)

    def _first_rows(self, shard: int) -> NDArray[np.int64]:
        if shard not in self._first:
            metadata = pq.read_metadata(verified_once(self._files[shard]))
            sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            self._first[shard] = np.cumsum([0, *sizes])
        return self._first[shard]


@dataclass(frozen=True)
class Verdict:
    """Decision on every position of a document. Shape: T positions."""

    state_T: list[int]
    """0 if kept, otherwise the number of the reason, from 1."""
    reasons: list[str]
    where: str
    """Rule of the document's split."""
    later: list[dict[str, Any]]
    """Rules after `where` on every position, as `why_not.later_columns` returns them."""


def changes(before: Verdict, after: Verdict) -> dict[str, list[int]]:
    """Return the positions that a verdict gains over another, and those that it loses.

    Example:
        >>> changes(Verdict([0, 0, 1], ["where"], "", []), Verdict([0, 1, 0], ["where"], "", []))
        {'gained': [2], 'lost': [1]}
    """
    pairs = list(enumerate(zip(before.state_T, after.state_T, strict=True)))
    return {
        "gained": [t for t, (first, second) in pairs if first and not second],
        "lost": [t for t, (first, second) in pairs if second and not first],
    }


class Document:
    """Document with its scores. Shape: T positions."""

    def __init__(self, document: pa.Table, scores: pa.Table, metadata: Mapping[str, str] | None = None) -> None:
        """Join a document with its scores and metadata.

        Args:
            document: One row of `documents`.
            scores: The row of `scores` of the same document.
            metadata: `select.metadata` of the manifest.

        Raises:
            UserError: A metadata value does not have its declared type.
        """
        self.record, self._metadata = document, metadata or {}
        self.meta: dict[str, Any] = document.to_pylist()[0]
        self._scores = scores
        columns = with_metadata(scores.select(SCORE_TABLE_COLUMNS), document, kinds(self._metadata))
        frames = list(positions(document, columns))
        self.frame = pl.concat(frames) if frames else pl.DataFrame()
        self.text: bytes = self.meta["text"].encode()

    def __len__(self) -> int:
        return self.frame.height

    @cached_property
    def tokens(self) -> list[bytes]:
        """Return the bytes of every token [T]."""
        ends = self._scores["token_ends"].chunk(0).flatten().to_pylist()
        return [self.text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]

    def verdict(self, where: str, kept: Sequence[int] | None, later: str, select: Record | None = None) -> Verdict:
        """Return the decision on every position.

        Args:
            where: Rule of the document's split.
            kept: Positions that a selection kept; None for all that `where` keeps.
            later: Reason for positions that `where` keeps and the selection does not.
            select: Record of the selection.
        """
        frame = self.frame.with_row_index("row")
        state_T = np.ones(len(self), dtype=np.int64)
        scorable = frame.filter(pl.col("entropy").is_finite())
        state_T[scorable["row"]] = 2
        whole = scorable.filter(~pl.col("inside_character"))
        state_T[whole["row"]] = 3
        passing = filter_rows(whole, row_filter(where, rule_columns(self._metadata), "where"), "`where`")
        state_T[passing["row"]] = 0 if kept is None else 4
        passes_T = np.isin(np.arange(len(self)), passing["row"].to_numpy())
        if kept is not None:
            state_T[np.asarray(kept, dtype=np.int64)] = 0
        decided = self.frame.with_columns(passes=pl.Series(passes_T), kept=pl.Series(state_T == 0))
        after = later_columns(select, decided, slice(None)) if select else []
        return Verdict(state_T.tolist(), ["not_scorable", "inside_character", "where", later], where, after)

    def heat_map(self, verdict: Verdict, first: int, top: CorpusTokenizer | None) -> dict[str, Any]:
        """Return the input of the heat-map component (pipeline/audit/assets/heatmap.js) for `TOKENS_SHOWN` tokens.

        Args:
            verdict: Decisions on the whole document.
            first: First position to show.
            top: Tokenizer that decodes the proxy's most likely tokens, if they were stored.
        """
        shown = slice(first, min(first + TOKENS_SHOWN, len(self)))
        frame, tokens, doc_id = self.frame[shown], self.tokens[shown], self.meta["doc_id"]
        pieces = whole_pieces(tokens, b"".join(self.tokens[shown.stop : shown.stop + 3]))
        scores = {name: _rounded(frame[name]) for name in ("entropy", "entropy_partial", "nll", "rank")}
        return {
            "doc_id": doc_id,
            **{name: self.meta[name] for name in ("split", "source_file", "source_row", "meta")},
            "first": first,
            "total": len(self),
            "tokens": pieces,
            "raw": {t: token.hex() for t, token in enumerate(tokens) if pieces[t].encode() != token},
            **scores,
            "field": frame["field"].to_list(),
            "token_class": frame["token_class"].to_list(),
            "state": verdict.state_T[shown],
            "reasons": verdict.reasons,
            "parts": [
                *part_columns(verdict.where, rule_columns(self._metadata), frame),
                *(part | {"holds": part["holds"][shown]} for part in verdict.later),
            ],
            "site_ids": [f"{doc_id}-{position}" for position in frame["position"]],
            "top": self.top(shown, top) if top and "top_ids" in self._scores.column_names else None,
            "map": minimap(self.frame, np.asarray(verdict.state_T) == 0),
            "hardest": hardest(self.frame),
        }

    def top(self, shown: slice, tokenizer: CorpusTokenizer) -> list[list[list[Any]] | None]:
        """Return (text, log-probability) pairs of the proxy's most likely tokens for every position shown."""
        ids, logprobs = (self._scores[name].chunk(0).flatten().to_pylist() for name in ("top_ids", "top_logprobs"))
        K = len(ids) // max(len(self), 1)
        return [
            [[_text(tokenizer.token_bytes[ids[n]]), round(logprobs[n], 4)] for n in range(t * K, t * K + K)]
            if K and ids[t * K] is not None
            else None
            for t in range(shown.start, shown.stop)
        ]

    def shortest_change(self, where: str, position: int) -> Shortest | None:
        """Return the shortest change of a rule that keeps a position; None where no rule can keep it.

        Raises:
            UserError: It is not a rule, or cannot be computed on the position.
        """
        row = self.frame[position]
        if row.filter(SELECTABLE).is_empty():
            return None
        return shortest_change(where, rule_columns(self._metadata), row)

    def example(self, position: int, config: MaterializeConfig, tokenizer: CorpusTokenizer) -> dict[str, Any] | str:
        """Return the training example that `materialize` makes of a position, or the reason why it makes none."""
        unknown = {"entropy": 0.0, "entropy_partial": 0.0, "nll": 0.0, "rank": 0}
        row = self.frame[position].with_columns(
            *(pl.col(name).fill_null(value) for name, value in unknown.items()),
            site_id=pl.format("{}-{}", "doc_id", "position"),
            token_class=pl.col("token_class").cast(pl.String),
            band=pl.lit("none"),
        )
        made = examples(config, tokenizer, self.record, row.select(SITES.names).to_arrow().cast(SITES))
        for table in made.tables(self.meta["split"], 1):
            return table.to_pylist()[0]
        return next(
            name.removeprefix("dropped.") for name, count in made.counters.items() if count and "dropped" in name
        )


def as_trained(
    document: Document,
    position: int,
    config: MaterializeConfig,
    tokenizer: CorpusTokenizer,
    prompts: Callable[[], PromptBuilder],
) -> dict[str, Any]:
    r"""Return a position as the trainer sees it, made by the same code as shards and prompts.

    Args:
        document: The document.
        position: Position in the document.
        config: Settings that turn sites into examples.
        tokenizer: Tokenizer of the policy.
        prompts: Returns the trainer's `PromptBuilder`; it is called only if there is an example.

    Returns:
        `dropped`: the reason why the position makes no example, or None; then `prompt` (its parts `before`, `context`
        and `after`, and its length in `tokens`), `target`, `continuation` (its tokens) and `truncated`. A token has the
        characters that begin in it (`whole_pieces`); bytes that are not whole characters appear as \xNN.
    """
    example = document.example(position, config, tokenizer)
    if isinstance(example, str):
        return {"dropped": example}
    builder, context = prompts(), example["context"]
    ends = boundaries_of(example["token_lengths"])
    tokens = [example["continuation"][begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    continuation = whole_pieces(tokens)
    return {
        "dropped": None,
        "prompt": {
            "before": _text(tokenizer.decode_bytes(builder.prefix_ids)),
            "context": _text(context),
            "after": _text(tokenizer.decode_bytes(builder.suffix_ids, continues=True)),
            "tokens": len(builder.ids(context)),
        },
        "target": continuation[0],
        "continuation": continuation,
        "truncated": example["context_truncated"],
    }


def prompt_builder(policy: str, task: TaskConfig, run: Path | None) -> PromptBuilder:
    """Return the trainer's prompt builder for a policy.

    The first call takes seconds because it imports `transformers`.

    Args:
        policy: Folder or Hub id.
        task: The recipe's task.
        run: Folder of a training run, whose prompt is used if it keeps one of this task.
    """
    from transformers import AutoTokenizer

    from pipeline.grpo.rollout.prompt import PromptBuilder, prompts_of

    folder = resolve_model(policy)
    text = prompts_of({"policy": folder}, task, run)["policy"]
    return PromptBuilder(AutoTokenizer.from_pretrained(folder), CorpusTokenizer.load(folder), text)


def _text(token: bytes) -> str:
    r"""Return the text of a token, with \xNN for bytes that are not whole characters."""
    return token.decode("utf-8", errors="backslashreplace")


def _rounded(column: pl.Series) -> list[float | int | None]:
    """Return numbers rounded to the four decimals that a page needs."""
    return column.cast(pl.Float64).round(4).to_list() if column.dtype.is_float() else column.to_list()
