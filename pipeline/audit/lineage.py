"""Which records a selection stands on, and which shards were made of it: found by the content that each one names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.config.errors import UserError
from pipeline.config.manifest import Manifest
from pipeline.config.selection import SelectConfig
from pipeline.core.artifact import Record, content_hash, is_current, read_record
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.core.workspace import is_of_source
from pipeline.selection.positions import SCORE_TABLE_COLUMNS
from pipeline.selection.sites import SITES

_STAGES = ("read", "near", "assign", "proxy")
"""Stages whose output others are made of, beside the four of `rpt data`, in the order in which they run."""


SHOWN = 8
"""Selections that a message lists, of those that were made."""


@dataclass(frozen=True)
class Lineage:
    """The records of one selection."""

    name: str
    """The manifest's."""
    ingest: Record
    score: Record
    select: Record
    materialize: Record | None
    """None: the selection has not been made into shards."""
    before: Mapping[str, Record]
    """By stage: what those were made of (`read`, `assign`, `proxy`, …), as far as it is still there."""

    @property
    def rule(self) -> SelectConfig:
        return SelectConfig.model_validate(self.select.config)

    @property
    def records(self) -> dict[str, Record]:
        """By stage, from the source on."""
        own = {"ingest": self.ingest, "score": self.score, "select": self.select, "materialize": self.materialize}
        made = {stage: record for stage, record in own.items() if record is not None}
        return {stage: self.before[stage] for stage in _STAGES if stage in self.before} | made


def lineage_of(work: Path, manifest: Manifest) -> Lineage:
    """The records of the selection that `manifest` describes.

    Args:
        work: the manifest's folder.
        manifest: with its overrides. Where several sources gave the same configuration, the current one counts.

    Raises:
        UserError: that selection has not been made.
    """
    wanted, flags = manifest.select.identity(), _flags(manifest)
    found = [
        lineage
        for record in _records(work, "select")
        if (record.config, record.inputs.get("flags")) == (wanted, flags)
        and (lineage := _up_to(work, manifest, record)) is not None
    ]
    if not found:
        made = [f"{r.fingerprint} (where: {_short(r.config['where'])})" for r in _records(work, "select")]
        raise UserError(
            "this selection has not been made",
            where=_short(manifest.select.where),
            hint="run `rpt data` (or `rpt select`) with this manifest and these overrides first; "
            f"in {work} there are: {', '.join(made[-SHOWN:]) or 'none'}",
        )
    lineage = max(found, key=lambda lineage: _preference(work, lineage))
    check_columns(lineage.score, "scores", SCORE_TABLE_COLUMNS)
    check_columns(lineage.select, "sites", SITES.names)
    return lineage


def lineage_of_fingerprint(work: Path, manifest: Manifest, fingerprint: str) -> Lineage:
    """The records of the selection in the folder `fingerprint`.

    Raises:
        UserError: there is none.
    """
    records = _records(work, "select")
    for record in records:
        if record.fingerprint == fingerprint and (lineage := _up_to(work, None, record, manifest.name)) is not None:
            return lineage
    known = ", ".join(record.fingerprint for record in records) or "none"
    raise UserError("no such selection", where=work / "select" / fingerprint, hint=f"there are: {known}")


def check_columns(record: Record, table: str, columns: Collection[str]) -> None:
    """Refuse what an earlier version of the code made, in which a column is not there yet.

    Raises:
        UserError: it did.
    """
    for file in record.files(table)[:1]:
        missing = [name for name in columns if name not in pq.read_schema(file.path).names]
        if missing:
            what = f"`{table}` of an earlier version of rpt, without {', '.join(missing)}"
            raise UserError(what, where=record.directory, hint="run `rpt data` again")


def lineage_of_shards(work: Path, manifest: Manifest, shards: Record) -> Lineage:
    """The records that shards were made of.

    Raises:
        UserError: they are not there any more.
    """
    select = _by_content(work, "select", shards.inputs.get("sites"))
    lineage = _up_to(work, None, select, manifest.name) if select is not None else None
    if lineage is None:
        raise UserError("what the shards were made of is gone", where=shards.directory, hint="run `rpt data` again")
    return replace(lineage, materialize=shards)


def proxy_tokenizer(manifest: Manifest, lineage: Lineage) -> CorpusTokenizer | None:
    """Names the proxy's most likely tokens, where they were stored."""
    if not lineage.score.config["score"]["store_top"]:
        return None
    fitted = lineage.before.get("proxy")
    return CorpusTokenizer.load(
        fitted.files("model")[0].path if fitted else manifest.proxy.tokenizer or manifest.proxy.model or ""
    )


def _up_to(work: Path, manifest: Manifest | None, select: Record, name: str = "") -> Lineage | None:
    """The lineage of a selection, if its records are there and are the manifest's."""
    ingest = _by_content(work, "ingest", select.inputs.get("documents"))
    score = _by_content(work, "score", select.inputs.get("scores"))
    if ingest is None or score is None:
        return None
    made = [record for record in _records(work, "materialize") if record.inputs.get("sites") == select.content]
    if manifest is not None:
        if not is_of_source(work, manifest.corpus, ingest):
            return None
        if ingest.config != manifest.corpus.identity() or score.config.get("score") != manifest.score.identity():
            return None
        made = [record for record in made if record.config == manifest.materialize.identity()]
        name = manifest.name
    before: dict[str, Record] = {}
    sources = [ingest, score, select]
    while sources:
        for content in sources.pop().inputs.values():
            for stage in _STAGES:
                if stage not in before and (source := _by_content(work, stage, content)) is not None:
                    before[stage] = source
                    sources.append(source)
    return Lineage(name, ingest, score, select, max(made, key=lambda r: _current(work, r), default=None), before)


def _preference(work: Path, lineage: Lineage) -> tuple[bool, bool, int, bool]:
    """What was made last comes first, and what a later version of the code made."""
    ingest, score = (_current(work, record) for record in (lineage.ingest, lineage.score))
    return ingest, score, lineage.select.version, _current(work, lineage.select)


def _short(where: str) -> str:
    line = " ".join(where.split())
    return line if len(line) <= 100 else f"{line[:100]}…"


def _flags(manifest: Manifest) -> str | None:
    """Hash of the sites that the manifest leaves out by name."""
    if manifest.select.exclude is None:
        return None
    path = Path(manifest.select.exclude)
    if not path.is_file():
        raise UserError("no such file", where=path, hint="check select.exclude")
    return content_hash(path)


def _by_content(work: Path, stage: str, content: str | None) -> Record | None:
    found = [record for record in _records(work, stage) if record.content == content]
    return max(found, key=lambda record: _current(work, record), default=None)


def _records(work: Path, stage: str) -> list[Record]:
    folders = sorted(path.parent for path in (work / stage).glob("*/record.json"))
    return [record for folder in folders if (record := read_record(folder)) is not None]


def _current(work: Path, record: Record) -> bool:
    return is_current(work / record.stage / record.fingerprint)
