"""State of the web application: the opened records of one manifest, and the queries that pages make to them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.audit.board.rollout_places import RolloutPlaces
from pipeline.audit.board.rollout_view import all_at
from pipeline.audit.board.run import Run
from pipeline.audit.browse.column_index import ColumnIndex, verified_once
from pipeline.audit.browse.compare import Comparison, Count
from pipeline.audit.browse.damaged import Damaged, damaged
from pipeline.audit.browse.document import Document, Rows, Verdict, as_trained, prompt_builder
from pipeline.audit.browse.documents import Finder
from pipeline.audit.browse.flags import Flags
from pipeline.audit.browse.found import Found, Narrowed, find
from pipeline.audit.browse.rules import Rule, Where
from pipeline.audit.browse.selections import SELECTION_PREFIX, Selection, Selections, select_command
from pipeline.config.errors import UserError
from pipeline.config.manifest import Manifest
from pipeline.config.selection import BandsConfig
from pipeline.config.task import TaskConfig
from pipeline.core.artifact import Record
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.evaluation.patterns import pattern_hits
from pipeline.selection.change import Shortest
from pipeline.selection.positions import SCORE_TABLE_COLUMNS

if TYPE_CHECKING:
    from pipeline.grpo.rollout.prompt import PromptBuilder

COMPARISONS_KEPT = 32
LISTS_KEPT = 8

POSITIONS_LISTED = 100_000
"""Positions after which a list takes no further shard."""

TOKENS_FROM = 20_000
"""The same for the tokens beside a comparison, which must not delay it."""

TOKENS_COUNTED = 500_000
"""The same for the page of tokens."""

TOKENS_LISTED = 12
"""Gained and lost tokens beside a comparison."""
WAIT_SECONDS = 0.4
"""Seconds that a page waits for exact figures before it shows estimates."""
MAX_BACKGROUND_COUNTS = 3
"""Maximum number of comparisons that count in the background; a further one stops the oldest."""

CHANGED = 10
"""Documents per page in the list of changed documents."""

PREVIEW = 400
"""Bytes of a document's beginning that a list reads."""


@dataclass(frozen=True)
class Changed:
    """A page of documents in which two rules differ: rows of `AppState.row` with `gained` and `lost`."""

    rows: list[dict[str, Any]]
    page: int
    pages: int


@dataclass(frozen=True)
class Records:
    """The published records that the pages show."""

    documents: Record
    scores: Record
    index: Record
    selections: Selections


class AppState:
    """Queries of the pages. Every number comes from published tables; only flags are written."""

    def __init__(
        self, manifest: Manifest, records: Records, flags: Flags, *, task: TaskConfig, policy: str, proxy: str,
        runs: Sequence[Run], command: str,
    ) -> None:  # fmt: skip
        """Open the index and prepare access to the tables.

        Args:
            manifest: The manifest that is shown.
            records: The published records.
            flags: The file of flags.
            task: The recipe's task, which decides the prompt.
            policy: Folder or Hub id of the policy, whose tokenizer and chat template make the prompt.
            proxy: Folder or Hub id of the tokenizer that decodes the top tokens of the scores.
            command: `rpt select` with the manifest, to which pages add a rule.
            runs: Training runs; the rollouts at sites, and the prompt, are those of the first.
        """
        self.manifest, self.records, self.flags, self.task = manifest, records, flags, task
        self.store = ColumnIndex(records.index)
        self.current = records.selections.current
        self.command = command
        self.bands = BandsConfig.model_validate(self.current.record.config["bands"])
        of_selections = [selection.metadata for selection in self.selections.values()]
        self.metadata = {name: kind for named in of_selections for name, kind in named.items()}
        self.metadata |= manifest.select.metadata
        self.finder = Finder(self.store, _sites_by_document(self.store, self.current.record), self.metadata)
        self.runs = runs
        self._run = runs[0].folder if runs else None
        self._places = RolloutPlaces(runs[0].rollouts) if runs else None
        self._policy, self._proxy = policy, proxy
        self._documents = Rows(records.documents.files("documents"))
        top = ["top_ids", "top_logprobs"] if self.has_top else []
        self._scores = Rows(records.scores.files("scores"), [*SCORE_TABLE_COLUMNS, *top])
        self._comparisons: dict[tuple[str, str, str], Comparison] = {}
        self._counts: dict[tuple[str, str, str], Count] = {}
        self._lock = threading.Lock()
        self._find = lru_cache(maxsize=LISTS_KEPT)(self._find_now)

    # ------------------------------------------------------------------------------------------------ rules

    @property
    def selections(self) -> Mapping[str, Selection]:
        """Return the selections that exist now by name; the current one first, then newest first."""
        return self.records.selections.all()

    def missing(self, rule: str, split: str) -> str:
        """Return the command that makes the selection of a rule; empty if there is one or the rule is none."""
        if rule.startswith(SELECTION_PREFIX):
            return ""
        made = (s for s in self.selections.values() if s.follows_rule and s.where(split) == rule)
        return "" if next(made, None) else select_command(self.command, split, rule)

    def rule(self, name: str, split: str) -> Rule:
        """Return the rule named `select:<fingerprint>` or given as an SQL expression.

        Raises:
            UserError: It is neither.
        """
        return (
            self._selection(name).rule(split) if name.startswith(SELECTION_PREFIX) else Where.parse(name, self.metadata)
        )

    def _selection(self, name: str) -> Selection:
        selections = self.selections
        if name not in selections:
            raise UserError(
                "not a selection of these scores", where=name, hint=f"known selections: {', '.join(selections)}"
            )
        return selections[name]

    def compare(self, first: str, second: str, split: str) -> Comparison:
        """Compare two rules and return what is known within `WAIT_SECONDS`; call again until the result is exact.

        Raises:
            UserError: One of them is not a rule or cannot be computed on this corpus.
        """
        key = (first, second, split)
        if made := self._comparisons.get(key):
            return made
        while True:
            count = self._counts.get(key) or self._begin(key)
            finished = count.wait(WAIT_SECONDS)
            made = count.result()
            if made.exact or not finished:  # a finished but inexact count was stopped by newer ones: start again
                break
        if made.exact:
            with self._lock:
                self._counts.pop(key, None)
                while len(self._comparisons) >= COMPARISONS_KEPT:
                    del self._comparisons[next(iter(self._comparisons))]
                self._comparisons[key] = made
        return made

    def _begin(self, key: tuple[str, str, str]) -> Count:
        """Start counting in the background."""
        first, second, split = key
        count = Count(self.store, self.rule(first, split), self.rule(second, split), split, self.bands)
        with self._lock:
            if key in self._counts:
                return self._counts[key]
            while len(self._counts) >= MAX_BACKGROUND_COUNTS:
                self._counts.pop(next(iter(self._counts))).stop()
            self._counts[key] = count
        threading.Thread(target=count.run, daemon=True).start()
        return count

    def changed(self, comparison: Comparison, page: int) -> Changed:
        """Return a page of the documents that change, largest changes first."""
        change_D = comparison.gained_D + comparison.lost_D
        order = np.argsort(-change_D, kind="stable")[: comparison.documents_changed]
        pages = max(1, -(-len(order) // CHANGED))
        page = min(max(page, 1), pages)
        rows = [
            self.row(number) | {"gained": int(comparison.gained_D[number]), "lost": int(comparison.lost_D[number])}
            for number in order[(page - 1) * CHANGED : page * CHANGED].tolist()
        ]
        return Changed(rows, page, pages)

    def positions(self, first: str, second: str, narrowed: Narrowed) -> Found:
        """Return positions that the second rule keeps, gains over the first or loses.

        Raises:
            UserError: One of them is not a rule or cannot be computed on this corpus.
        """
        return self._find(first, second, narrowed, POSITIONS_LISTED)

    def tokens(self, rule: str, split: str) -> Found:
        """Return the positions that a rule keeps, to count their tokens.

        Raises:
            UserError: It is not a rule or cannot be computed on this corpus.
        """
        return self._find(rule, rule, Narrowed(split), TOKENS_COUNTED)

    def changed_tokens(self, first: str, second: str, split: str, outcome: str) -> tuple[list[dict[str, Any]], bool]:
        """Return the most frequent gained or lost tokens, and whether all positions were counted."""
        found = self._find(first, second, Narrowed(split, outcome), TOKENS_FROM)
        return found.by_token().head(TOKENS_LISTED).to_dicts(), found.complete

    def _find_now(self, first: str, second: str, narrowed: Narrowed, most: int) -> Found:
        rules = self.rule(first, narrowed.split), self.rule(second, narrowed.split)
        return find(self.store, rules, narrowed, self.bands, most)

    @cached_property
    def damage(self) -> Damaged:
        """Return the damage of the corpus and the sites of the current selection that have some; it is counted once."""
        return damaged(self.store, self.document, self.current.record, self.current.where("train"))

    # -------------------------------------------------------------------------------------------- documents

    def row(self, number: int) -> dict[str, Any]:
        """Return the list entry of a document: its row in the index, its beginning, and how much of it is kept."""
        row = self.store.documents.row(number, named=True)
        beginning = " ".join(self.store.text(number, PREVIEW).split())
        return row | {
            "beginning": beginning,
            "kept": int(self.finder.kept_D[number]),
            "share": self.finder.share_D[number],
        }

    def sampled(self) -> Mapping[str, set[int]]:
        """Return the positions at which the run stored rollouts, by document id."""
        return self._places.by_document() if self._places else {}

    def sites_of(self, doc_ids: Sequence[str]) -> list[tuple[str, int]]:
        """Return the sites of the current selection in some documents, as (document, position)."""
        paths = [verified_once(file) for file in self.current.record.files("sites")]
        ours = pl.scan_parquet(paths).filter(pl.col("doc_id").is_in(doc_ids)).select("doc_id", "position")
        return ours.collect(engine="streaming").rows()

    def document(self, number: int) -> Document:
        """Return a document by its number in the index."""
        row = self.store.documents.row(number, named=True)
        shard = row["shard"]
        in_shard = number - int(self.store.first_document_S[shard])
        document, scores = self._documents.row(shard, row["document_row"]), self._scores.row(shard, in_shard)
        return Document(document, scores, self.metadata)

    def verdict(self, document: Document, rule: str) -> Verdict:
        """Return which positions a rule keeps, and why it drops the others."""
        if not rule.startswith(SELECTION_PREFIX):
            return document.verdict(rule, None, "")
        selection = self._selection(rule)
        number = self.store.document_of[document.meta["doc_id"]]
        file = selection.record.file("sites", self.store.documents["shard"][number])
        assert file is not None
        sites = (
            pl.scan_parquet(verified_once(file)).filter(pl.col("doc_id") == document.meta["doc_id"]).select("position")
        )
        later = " or ".join(selection.later) or "not in the selection"
        kept = sites.collect()["position"].to_list()
        return document.verdict(selection.where(document.meta["split"]), kept, later, selection.record)

    def change(self, document: Document, position: int, rule: str) -> Shortest | None:
        """Return the shortest change of a rule or of a selection's `where` that keeps a position; None if none can."""
        split = document.meta["split"]
        where = self._selection(rule).where(split) if rule.startswith(SELECTION_PREFIX) else rule
        return document.shortest_change(where, position)

    def site(self, document: Document, position: int) -> dict[str, Any]:
        """Return a position as the trainer sees it, with the stored rollouts.

        The result has the values of `as_trained`, the rollouts, and how many of them contain a keyword of each group of
        reasoning patterns (`evaluation.patterns`).
        """
        site_id = f"{document.meta['doc_id']}-{position}"
        trained = as_trained(document, position, self.manifest.materialize, self.policy_tokenizer, lambda: self.prompts)
        rollouts = all_at(self.runs[0].rollouts, site_id) if self.runs else []
        hits = pattern_hits([rollout["response"] for rollout in rollouts])
        patterns = {group: int(hits_R.sum()) for group, hits_R in hits.items()}
        return trained | {"site_id": site_id, "rollouts": rollouts, "patterns": patterns}

    # ------------------------------------------------------------------------------------------- tokenizers

    @cached_property
    def policy_tokenizer(self) -> CorpusTokenizer:
        """Return the tokenizer of the policy."""
        config = self.manifest.materialize
        return CorpusTokenizer.load(config.policy_tokenizer, config.policy_tokenizer_revision)

    @cached_property
    def proxy_tokenizer(self) -> CorpusTokenizer:
        """Return the tokenizer of the proxy."""
        return CorpusTokenizer.load(self._proxy)

    @cached_property
    def prompts(self) -> PromptBuilder:
        """Return the trainer's `PromptBuilder`."""
        return prompt_builder(self._policy, self.task, self._run)

    @cached_property
    def has_top(self) -> bool:
        """Return True if the proxy's most likely tokens were stored."""
        files = self.records.scores.files("scores")
        return bool(files) and "top_ids" in pq.read_schema(files[0].path).names


def _sites_by_document(store: ColumnIndex, sites: Record) -> NDArray[np.int64]:
    """Return the number [D] of sites of a selection in each document."""
    paths = [verified_once(file) for file in sites.files("sites")]
    counted = pl.scan_parquet(paths).group_by("doc_id").len().collect(engine="streaming")
    joined = store.documents.select("doc_id").join(counted, on="doc_id", how="left", maintain_order="left")
    return joined["len"].fill_null(0).cast(pl.Int64).to_numpy()
