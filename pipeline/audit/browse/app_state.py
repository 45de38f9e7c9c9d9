"""Everything the live page can be asked about one manifest: its records, opened once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.audit.browse.column_index import ColumnIndex, verified_once
from pipeline.audit.browse.compare import Comparison, Count
from pipeline.audit.browse.document import Document, Rollouts, Rows, Verdict, as_trained, prompt_builder
from pipeline.audit.browse.documents import Finder
from pipeline.audit.browse.flags import Flags
from pipeline.audit.browse.rules import Kept, Rule, Where
from pipeline.config.errors import UserError
from pipeline.config.manifest import Manifest
from pipeline.config.selection import BandsConfig
from pipeline.config.task import TaskConfig
from pipeline.core.artifact import Record, read_record
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.evaluation.patterns import pattern_hits
from pipeline.selection.positions import SCORE_TABLE_COLUMNS

if TYPE_CHECKING:
    from pipeline.grpo.rollout.prompt import PromptBuilder

SPLITS = ("train", "validation")
BY_RECORD = "select:"
"""How a selection that was made is named where a rule is expected: `select:<fingerprint>`."""

COMPARISONS_KEPT = 32
PATIENCE = 0.4
"""Seconds that a page waits for exact figures before it shows estimates."""
COUNTS_UNDER_WAY = 3
"""Comparisons that are counted on after their pages were answered; a further one stops the oldest."""

CHANGED = 10
"""Documents a page of those that two rules differ in."""

PREVIEW = 400
"""Bytes of a document that a list reads."""


@dataclass(frozen=True)
class Selection:
    """A selection that was made."""

    record: Record
    kept: Record | None = None
    """Its sites as bits; None where its rule alone says what they are (`follows_rule`)."""

    @property
    def name(self) -> str:
        return f"{BY_RECORD}{self.record.fingerprint}"

    def where(self, split: str) -> str:
        """The rule of a split."""
        return str(self.record.config["where" if split == "train" else "validation_where"])

    @cached_property
    def later(self) -> list[str]:
        """What dropped positions that `where` would keep."""
        asked_before = {"dropped.not_scorable", "dropped.inside_character", "dropped.where"}
        dropped = {name for name, count in self.record.counters.items() if name.startswith("dropped.") and count}
        return sorted(name.removeprefix("dropped.") for name in dropped - asked_before)

    @cached_property
    def follows_rule(self) -> bool:
        """Whether its sites are exactly what its rules keep, so that the index answers without looking at them."""
        try:
            return not self.later and all(self._rule(split) for split in SPLITS)
        except UserError:
            return False

    def rule(self, split: str) -> Rule:
        if self.kept is not None:
            return Kept(self.kept)
        return self._rule(split)

    @property
    def metadata(self) -> dict[str, str]:
        """Kinds of the metadata that its rules name."""
        return dict(self.record.config.get("metadata", {}))

    def _rule(self, split: str) -> Where:
        return Where.parse(self.where(split), self.metadata)


def selections(work: Path, scores: Record) -> list[Record]:
    """The records of all selections made from these scores, newest first."""
    records = [read_record(path.parent) for path in (work / "select").glob("*/record.json")]
    ours = [record for record in records if record and record.inputs.get("scores") == scores.content]
    return sorted(ours, key=lambda record: (record.directory / "record.json").stat().st_mtime, reverse=True)


@dataclass(frozen=True)
class Changed:
    """A page of documents in which two rules differ: rows of `Library.row` with `gained` and `lost`."""

    rows: list[dict[str, Any]]
    page: int
    pages: int


@dataclass(frozen=True)
class Records:
    """What the stages have published."""

    documents: Record
    scores: Record
    index: Record
    selections: Sequence[Selection]
    """The manifest's first."""


class AppState:
    """The answers. Every number comes from the published tables; nothing is written but flags."""

    def __init__(
        self, manifest: Manifest, records: Records, flags: Flags, *, task: TaskConfig, policy: str, proxy: str,
        run: Path | None,
    ) -> None:  # fmt: skip
        """
        Args:
            manifest: names the corpus and how sites become examples.
            records: what the stages have published.
            flags: where flags are kept.
            task: the prompt template of the recipe.
            policy: folder or hub id of the policy, whose tokenizer and chat template make the prompt.
            proxy: folder or hub id of the tokenizer that the scores' top tokens are named by.
            run: folder of a run, for its rollouts and the prompt that it keeps.
        """
        self.manifest, self.records, self.flags, self.task = manifest, records, flags, task
        self.store = ColumnIndex(records.index)
        self.selections = {selection.name: selection for selection in records.selections}
        self.current = records.selections[0]
        self.bands = BandsConfig.model_validate(self.current.record.config["bands"])
        of_selections = [selection.metadata for selection in records.selections]
        self.metadata = {name: kind for named in of_selections for name, kind in named.items()}
        self.metadata |= manifest.select.metadata
        self.finder = Finder(self.store, _sites_by_document(self.store, self.current.record), self.metadata)
        self.rollouts, self._run = Rollouts(run), run
        self._policy, self._proxy = policy, proxy
        self._documents = Rows(records.documents.files("documents"))
        top = ["top_ids", "top_logprobs"] if self.has_top else []
        self._scores = Rows(records.scores.files("scores"), [*SCORE_TABLE_COLUMNS, *top])
        self._comparisons: dict[tuple[str, str, str], Comparison] = {}
        self._counts: dict[tuple[str, str, str], Count] = {}
        self._lock = threading.Lock()

    # ------------------------------------------------------------------------------------------------ rules

    def rule(self, name: str, split: str) -> Rule:
        """`select:<fingerprint>`, or a SQL expression.

        Raises:
            UserError: neither.
        """
        return self._selection(name).rule(split) if name.startswith(BY_RECORD) else Where.parse(name, self.metadata)

    def _selection(self, name: str) -> Selection:
        if name not in self.selections:
            raise UserError("no selection of these scores", where=name, hint=f"there are {', '.join(self.selections)}")
        return self.selections[name]

    def compare(self, first: str, second: str, split: str) -> Comparison:
        """Compare two rules by name: what is known within `PATIENCE`. Ask again for what is not exact yet.

        Raises:
            UserError: one of them is no rule, or cannot be computed on this corpus.
        """
        key = (first, second, split)
        if made := self._comparisons.get(key):
            return made
        while True:
            count = self._counts.get(key) or self._begin(key)
            finished = count.wait(PATIENCE)
            made = count.result()
            if made.exact or not finished:  # not stopped for the sake of others
                break
        if made.exact:
            with self._lock:
                self._counts.pop(key, None)
                while len(self._comparisons) >= COMPARISONS_KEPT:
                    del self._comparisons[next(iter(self._comparisons))]
                self._comparisons[key] = made
        return made

    def _begin(self, key: tuple[str, str, str]) -> Count:
        """Count in the background."""
        first, second, split = key
        count = Count(self.store, self.rule(first, split), self.rule(second, split), split, self.bands)
        with self._lock:
            if key in self._counts:
                return self._counts[key]
            while len(self._counts) >= COUNTS_UNDER_WAY:
                self._counts.pop(next(iter(self._counts))).stop()
            self._counts[key] = count
        threading.Thread(target=count.run, daemon=True).start()
        return count

    def changed(self, comparison: Comparison, page: int) -> Changed:
        """A page of the documents that two rules differ in, those that differ most first."""
        change_D = comparison.gained_D + comparison.lost_D
        order = np.argsort(-change_D, kind="stable")[: comparison.documents_changed]
        pages = max(1, -(-len(order) // CHANGED))
        page = min(max(page, 1), pages)
        rows = [
            self.row(number) | {"gained": int(comparison.gained_D[number]), "lost": int(comparison.lost_D[number])}
            for number in order[(page - 1) * CHANGED : page * CHANGED].tolist()
        ]
        return Changed(rows, page, pages)

    # -------------------------------------------------------------------------------------------- documents

    def row(self, number: int) -> dict[str, Any]:
        """What a list says of a document: its row in the index, its beginning, and how much of it is kept."""
        row = self.store.documents.row(number, named=True)
        beginning = " ".join(self.store.text(number, PREVIEW).split())
        return row | {
            "beginning": beginning,
            "kept": int(self.finder.kept_D[number]),
            "share": self.finder.share_D[number],
        }

    def document(self, number: int) -> Document:
        """A document by its number in the index."""
        row = self.store.documents.row(number, named=True)
        shard = self.records.index.completions[row["shard"]].shard
        in_shard = number - int(self.store.first_document_S[row["shard"]])
        document, scores = self._documents.row(shard, row["document_row"]), self._scores.row(shard, in_shard)
        return Document(document, scores, self.metadata)

    def verdict(self, document: Document, rule: str) -> Verdict:
        """Which positions a rule keeps, and why it does not keep the others."""
        if not rule.startswith(BY_RECORD):
            return document.verdict(rule, None, "")
        selection = self._selection(rule)
        number = self.store.document_of[document.meta["doc_id"]]
        file = selection.record.files("sites")[self.store.documents["shard"][number]]
        sites = (
            pl.scan_parquet(verified_once(file)).filter(pl.col("doc_id") == document.meta["doc_id"]).select("position")
        )
        later = " or ".join(selection.later) or "not in the selection"
        return document.verdict(selection.where(document.meta["split"]), sites.collect()["position"].to_list(), later)

    def site(self, document: Document, position: int) -> dict[str, Any]:
        """A position as the trainer meets it: prompt, continuation, and the responses that a run has stored, with the
        number of those that hold a keyword of each group of reasoning patterns (`evaluation.patterns`)."""
        site_id = f"{document.meta['doc_id']}-{position}"
        met = as_trained(document, position, self.manifest.materialize, self.policy_tokenizer, lambda: self.prompts)
        rollouts = self.rollouts.of(site_id)
        hits = pattern_hits([rollout["response"] for rollout in rollouts])
        patterns = {group: int(hits_R.sum()) for group, hits_R in hits.items()}
        return met | {"site_id": site_id, "rollouts": rollouts, "patterns": patterns}

    # ------------------------------------------------------------------------------------------- tokenizers

    @cached_property
    def policy_tokenizer(self) -> CorpusTokenizer:
        config = self.manifest.materialize
        return CorpusTokenizer.load(config.policy_tokenizer, config.policy_tokenizer_revision)

    @cached_property
    def proxy_tokenizer(self) -> CorpusTokenizer:
        return CorpusTokenizer.load(self._proxy)

    @cached_property
    def prompts(self) -> PromptBuilder:
        """The trainer's `PromptBuilder`."""
        return prompt_builder(self._policy, self.task.template, self._run)

    @cached_property
    def has_top(self) -> bool:
        """Whether the proxy's most likely tokens were stored."""
        files = self.records.scores.files("scores")
        return bool(files) and "top_ids" in pq.read_schema(files[0].path).names


def _sites_by_document(store: ColumnIndex, sites: Record) -> NDArray[np.int64]:
    """[D]: how many sites a selection has in each document."""
    paths = [verified_once(file) for file in sites.files("sites")]
    counted = pl.scan_parquet(paths).group_by("doc_id").len().collect(engine="streaming")
    joined = store.documents.select("doc_id").join(counted, on="doc_id", how="left", maintain_order="left")
    return joined["len"].fill_null(0).cast(pl.Int64).to_numpy()
