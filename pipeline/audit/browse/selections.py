"""The selections that were made from some scores, also those that are made while the pages are open."""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

import yaml

from pipeline.audit.browse.query import SPLITS
from pipeline.audit.browse.rules import Kept, Rule, Where
from pipeline.config.errors import UserError
from pipeline.core.artifact import Record, read_record

SELECTION_PREFIX = "select:"
"""Prefix of the name of an existing selection where a rule is expected: `select:<fingerprint>`."""

RULE_KEYS = {"train": "where", "validation": "validation_where"}
"""Keys of `select` that have the rules of the splits."""

_NO_DIFFERENCE = frozenset({*RULE_KEYS.values(), "metadata", "certificate"})
"""Keys that do not have to be named to tell selections apart."""


@dataclass(frozen=True)
class Selection:
    """An existing selection."""

    record: Record
    bitmap: Callable[[Record], Record]
    """Makes the record of its bitmap (`selection_bitmap.kept`), or reads it if it exists."""

    @property
    def name(self) -> str:
        """Return `select:<fingerprint>`."""
        return f"{SELECTION_PREFIX}{self.record.fingerprint}"

    @property
    def made(self) -> datetime:
        """Return when it was made, in local time."""
        return datetime.fromtimestamp((self.record.directory / "record.json").stat().st_mtime).astimezone()

    def where(self, split: str) -> str:
        """Return the rule of a split as SQL."""
        return str(self.record.config[RULE_KEYS[split]])

    def beside(self, other: Selection) -> str:
        """Return the settings other than rules that differ from another selection's, in words."""
        ours, theirs = self.record.config, other.record.config
        changed = [name for name in ours if name not in _NO_DIFFERENCE and ours[name] != theirs.get(name)]
        return ", ".join(f"{name}: {json.dumps(ours[name], ensure_ascii=False)}" for name in changed)

    @cached_property
    def later(self) -> list[str]:
        """Return the reasons for dropping positions that `where` would keep."""
        up_to_where = {"dropped.not_scorable", "dropped.inside_character", "dropped.where"}
        dropped = {name for name, count in self.record.counters.items() if name.startswith("dropped.") and count}
        return sorted(name.removeprefix("dropped.") for name in dropped - up_to_where)

    @cached_property
    def follows_rule(self) -> bool:
        """Return True if its sites are exactly what its rules keep, so that no bitmap is needed."""
        try:
            return not self.later and all(self._rule(split) for split in SPLITS)
        except UserError:
            return False

    @cached_property
    def _kept(self) -> Kept:
        return Kept(self.bitmap(self.record))

    def rule(self, split: str) -> Rule:
        """Return the rule to compare with: the SQL expression if it decides alone, otherwise the bitmap."""
        return self._rule(split) if self.follows_rule else self._kept

    @property
    def metadata(self) -> dict[str, str]:
        """Return the types of the metadata that its rules name."""
        return dict(self.record.config.get("metadata", {}))

    def _rule(self, split: str) -> Where:
        return Where.parse(self.where(split), self.metadata)


class Selections:
    """All selections of some scores in a manifest's folder.

    Args:
        work: The manifest's folder.
        scores: The scores.
        current: The selection that the manifest describes.
        bitmap: Makes the bitmap of a selection whose rules alone do not decide its sites.
    """

    def __init__(self, work: Path, scores: Record, current: Record, bitmap: Callable[[Record], Record]) -> None:
        self.work, self._scores, self._bitmap = work, scores, bitmap
        self._lock = threading.Lock()
        self._foreign: set[Path] = set()
        self.current = Selection(current, bitmap)
        self._known = {self.current.name: self.current}

    def all(self) -> Mapping[str, Selection]:
        """Return the selections that exist now by name: the current one first, then newest first."""
        with self._lock:
            for path in sorted((self.work / "select").glob("*/record.json")):
                if path.parent in self._foreign or f"{SELECTION_PREFIX}{path.parent.name}" in self._known:
                    continue
                record = read_record(path.parent)
                if record is not None and record.inputs.get("scores") == self._scores.content:
                    made = Selection(record, self._bitmap)
                    self._known[made.name] = made
                else:
                    self._foreign.add(path.parent)
            others = [s for s in self._known.values() if s is not self.current and s.record.directory.exists()]
            others.sort(key=lambda selection: selection.made, reverse=True)
            return {selection.name: selection for selection in [self.current, *others]}


def select_command(command: str, split: str, where: str) -> str:
    """Return the command that makes a selection by a rule, ready to paste into a shell.

    Args:
        command: `rpt select` with the manifest.
        split: The split of the rule.
        where: The rule.

    Example:
        >>> print(select_command("rpt select demo", "train", "entropy > 1.5 AND field = 'solution'"))
        rpt select demo --set select.where="entropy > 1.5 AND field = 'solution'"
        >>> print(select_command("rpt select demo", "validation", 'true'))
        rpt select demo --set 'select.validation_where="true"'
    """
    try:
        as_is = yaml.safe_load(where) == where
    except yaml.YAMLError:
        as_is = False
    value = where if as_is else json.dumps(where, ensure_ascii=False)  # the value is read as YAML
    key = f"select.{RULE_KEYS[split]}"
    plain = not set(value) & set('"$`\\!\n')  # what a shell reads between double quotes
    return f'{command} --set {key}="{value}"' if plain else f"{command} --set {shlex.quote(f'{key}={value}')}"
