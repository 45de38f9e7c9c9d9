"""Find rollouts by step, site, reward, outcome, band and text. Shape names: R rollouts."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.audit.board.rollout_index import BAND_NAMES, OUTCOMES, RolloutFile, RolloutIndex, Rollouts

WAIT_SECONDS = 0.15
"""Seconds that a page waits for a search in texts before it shows what was found so far."""
MAX_TEXT = 200
"""Characters of the text that is searched."""
SEARCHES = 4
"""Searches in texts that are kept; a further one stops and forgets the oldest."""

ORDERS = {
    "newest": "newest step first",
    "oldest": "oldest step first",
    "best": "highest reward first",
    "worst": "lowest reward first",
    "longest": "longest first",
    "shortest": "shortest first",
}


@dataclass(frozen=True)
class Query:
    """Criteria; empty strings and None match everything."""

    text: str = ""
    """Substring of the response, ignoring case."""
    step: int | None = None
    site: str = ""
    outcome: str = ""
    band: str = ""
    least: float | None = None
    """Lowest reward."""
    most: float | None = None
    """Highest reward."""
    order: str = "newest"


@dataclass(frozen=True)
class Found:
    """What a query found."""

    rollouts: Rollouts
    rows: NDArray[np.int64]
    """Rollouts that match, in the order asked for."""
    searched: int
    files: int
    """Files whose texts were searched, and have to be: those that hold what matches but for the text."""


class TextSearch:
    """A search for a text in the responses of a run, newest files first, in a thread of its own."""

    def __init__(self, text: str) -> None:
        self._pattern = f"(?i){pl.escape_regex(text)}"
        self._rows: dict[RolloutFile, NDArray[np.int64]] = {}
        self._stopped = False
        self._thread: threading.Thread | None = None

    def go_on(self, files: Sequence[RolloutFile], seconds: float) -> None:
        """Search files that were not searched yet, and wait for that at most some seconds."""
        left = [file for file in reversed(files) if file not in self._rows]
        if left and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._run, args=(left,), daemon=True)
            self._thread.start()
        if self._thread:
            self._thread.join(seconds)

    def stop(self) -> None:
        """End the search after the file that is being read."""
        self._stopped = True

    def searched(self, files: Sequence[RolloutFile]) -> int:
        """Return how many of some files were searched."""
        return sum(file in self._rows for file in files)

    def matches(self, rollouts: Rollouts) -> NDArray[np.bool_]:
        """Return a mask [R] of the rollouts that have the text, as far as they were searched."""
        match_R = np.zeros(len(rollouts), dtype=bool)
        first_F = np.searchsorted(rollouts.file_R, np.arange(len(rollouts.files)))
        for first, file in zip(first_F.tolist(), rollouts.files, strict=True):
            if file in self._rows:
                match_R[first + self._rows[file]] = True
        return match_R

    def _run(self, files: Sequence[RolloutFile]) -> None:
        for file in files:
            if self._stopped:
                return
            try:
                responses = pl.read_parquet(file.path, columns=["response"])["response"]
                self._rows[file] = responses.str.contains(self._pattern).arg_true().to_numpy().astype(np.int64)
            except (OSError, pl.exceptions.PolarsError):
                self._rows[file] = np.empty(0, dtype=np.int64)


class RolloutFinder:
    """Answers queries over the rollouts of a run."""

    def __init__(self, index: RolloutIndex) -> None:
        self._index = index
        self._searches: dict[str, TextSearch] = {}
        self._orders: tuple[Rollouts | None, dict[str, NDArray[np.int64]]] = (None, {})
        self._lock = threading.Lock()

    def find(self, query: Query) -> Found:
        """Return the rollouts that match, among those whose texts were searched within `WAIT_SECONDS`."""
        rollouts = self._index.rollouts()
        match_R, searched, files = self._matches(rollouts, query), 0, 0
        if query.text:
            search, needed = self._search(query.text[:MAX_TEXT]), _files_of(rollouts, match_R)
            search.go_on(needed, WAIT_SECONDS)
            searched, files = search.searched(needed), len(needed)
            match_R &= search.matches(rollouts)
        order_R = self._order(rollouts, query.order)
        return Found(rollouts, order_R[match_R[order_R]], searched, files)

    def _matches(self, rollouts: Rollouts, query: Query) -> NDArray[np.bool_]:
        """Return a mask [R] of what matches but for the text."""
        match_R = np.ones(len(rollouts), dtype=bool)
        if query.step is not None:
            match_R &= rollouts.step_R == query.step
        if query.site:
            number = self._index.number_of(query.site)
            match_R &= rollouts.site_R == (-1 if number is None else number)
        if query.outcome in OUTCOMES:
            match_R &= rollouts.outcome_R == OUTCOMES.index(query.outcome)
        if query.band in BAND_NAMES:
            match_R &= rollouts.band_R == BAND_NAMES.index(query.band)
        if query.least is not None:
            match_R &= rollouts.reward_R >= query.least
        if query.most is not None:
            match_R &= rollouts.reward_R <= query.most
        return match_R

    def _search(self, text: str) -> TextSearch:
        with self._lock:
            if text not in self._searches:
                while len(self._searches) >= SEARCHES:
                    self._searches.pop(next(iter(self._searches))).stop()
                self._searches[text] = TextSearch(text)
            return self._searches[text]

    def _order(self, rollouts: Rollouts, name: str) -> NDArray[np.int64]:
        """Return all rollouts [R] in an order; equal ones newest first, except under `oldest`."""
        with self._lock:
            if self._orders[0] is not rollouts:
                self._orders = (rollouts, {})
            orders = self._orders[1]
            if name not in orders:
                orders[name] = _ordered(rollouts, name)
            return orders[name]


def _ordered(rollouts: Rollouts, name: str) -> NDArray[np.int64]:
    if name == "oldest":
        return np.arange(len(rollouts))
    newest_R = np.concatenate([np.empty(0, dtype=np.int64), *_newest_first(rollouts)])
    key_R = {
        "best": -rollouts.reward_R,
        "worst": rollouts.reward_R,
        "longest": -rollouts.length_R,
        "shortest": rollouts.length_R,
    }.get(name)
    return newest_R if key_R is None else newest_R[np.argsort(key_R[newest_R], kind="stable")]


def _newest_first(rollouts: Rollouts) -> list[NDArray[np.int64]]:
    """Return the rollouts of each file, the newest file first; within a file their order stays."""
    return np.split(np.arange(len(rollouts)), np.flatnonzero(np.diff(rollouts.file_R)) + 1)[::-1]


def _files_of(rollouts: Rollouts, match_R: NDArray[np.bool_]) -> list[RolloutFile]:
    """Return the files that hold rollouts of a mask, oldest first."""
    return [rollouts.files[number] for number in np.unique(rollouts.file_R[match_R]).tolist()]
