"""The lineage of a selection: the records it was made from and the shards made from it, linked by content hash."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.config.errors import UserError
from pipeline.config.manifest import Manifest
from pipeline.config.selection import SelectConfig
from pipeline.core.artifact import Record, content_hash, is_current, read_record
from pipeline.core.pointers import is_of_policy, is_of_proxy, is_of_source
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.selection.positions import SCORE_TABLE_COLUMNS
from pipeline.selection.sites import SITES

_STAGES = ("read", "near", "assign", "tokenizer", "tokens", "proxy")
"""Stages that precede or feed the four of `rpt data`, in the order in which they run."""


SHOWN = 8
"""Maximum number of existing selections that an error message lists."""


@dataclass(frozen=True)
class Lineage:
    """The records of one selection."""

    name: str
    """Name of the manifest."""
    ingest: Record
    score: Record
    select: Record
    materialize: Record | None
    """None if no shards were made from the selection."""
    before: Mapping[str, Record]
    """Records of the preceding stages (`read`, `assign`, `proxy`, …) that still exist, by stage."""

    @property
    def rule(self) -> SelectConfig:
        """Return the configuration of the selection."""
        return SelectConfig.model_validate(self.select.config)

    @property
    def records(self) -> dict[str, Record]:
        """Return the records by stage, from the source on."""
        own = {"ingest": self.ingest, "score": self.score, "select": self.select, "materialize": self.materialize}
        made = {stage: record for stage, record in own.items() if record is not None}
        return {stage: self.before[stage] for stage in _STAGES if stage in self.before} | made


def lineage_of(work: Path, manifest: Manifest) -> Lineage:
    """Return the lineage of the selection that `manifest` describes.

    Args:
        work: The manifest's folder.
        manifest: The manifest with its overrides. If several sources have the same configuration, the current one is
            used.

    Raises:
        UserError: The selection does not exist.
    """
    config, flags = manifest.select.identity(), _flags(manifest)
    found = [
        lineage
        for record in _records(work, "select")
        if (record.config, record.inputs.get("flags")) == (config, flags)
        and (lineage := _up_to(work, manifest, record)) is not None
    ]
    if not found:
        made = [f"{r.fingerprint} (where: {_short(r.config['where'])})" for r in _records(work, "select")]
        raise UserError(
            "this selection does not exist",
            where=_short(manifest.select.where),
            hint="run `rpt data` (or `rpt select`) with this manifest and these overrides first; "
            f"selections in {work}: {', '.join(made[-SHOWN:]) or 'none'}",
        )
    lineage = max(found, key=lambda lineage: _preference(work, lineage))
    check_columns(lineage.score, "scores", SCORE_TABLE_COLUMNS)
    check_columns(lineage.select, "sites", SITES.names)
    return lineage


def lineage_of_fingerprint(work: Path, manifest: Manifest, fingerprint: str) -> Lineage:
    """Return the lineage of the selection in the folder `fingerprint`.

    Raises:
        UserError: There is no such selection.
    """
    records = _records(work, "select")
    for record in records:
        if record.fingerprint == fingerprint and (lineage := _up_to(work, None, record, manifest.name)) is not None:
            return lineage
    known = ", ".join(record.fingerprint for record in records) or "none"
    raise UserError("no such selection", where=work / "select" / fingerprint, hint=f"known selections: {known}")


def check_columns(record: Record, table: str, columns: Collection[str]) -> None:
    """Refuse a table of an earlier version of the code that lacks a column.

    Raises:
        UserError: A column is missing.
    """
    for file in record.files(table)[:1]:
        missing = [name for name in columns if name not in pq.read_schema(file.path).names]
        if missing:
            what = f"`{table}` was written by an earlier version of rpt and lacks {', '.join(missing)}"
            raise UserError(what, where=record.directory, hint="run `rpt data` again")


def lineage_of_shards(work: Path, manifest: Manifest, shards: Record) -> Lineage:
    """Return the lineage of the selection that shards were made from.

    Raises:
        UserError: The inputs of the shards no longer exist.
    """
    selections = [record for record in _records(work, "select") if record.content == shards.inputs.get("sites")]
    found = [lineage for record in selections if (lineage := _up_to(work, None, record, manifest.name)) is not None]
    own = [lineage for lineage in found if _scored_as(shards, lineage.score)] or found
    if not own:
        raise UserError(
            "the inputs of these shards no longer exist", where=shards.directory, hint="run `rpt data` again"
        )
    return replace(max(own, key=lambda lineage: _current(work, lineage.select)), materialize=shards)


def proxy_tokenizer(manifest: Manifest, lineage: Lineage) -> CorpusTokenizer | None:
    """Return the proxy's tokenizer if its most likely tokens were stored, otherwise None."""
    if not lineage.score.config["score"]["store_top"]:
        return None
    fitted = lineage.before.get("proxy")
    return CorpusTokenizer.load(
        fitted.files("model")[0].path if fitted else manifest.proxy.tokenizer or manifest.proxy.model or ""
    )


def _up_to(work: Path, manifest: Manifest | None, select: Record, name: str = "") -> Lineage | None:
    """Return the lineage of a selection if its records exist and match the manifest, otherwise None."""
    ingest = _by_content(work, "ingest", select.inputs.get("documents"))
    score = _by_content(work, "score", select.inputs.get("scores"))
    if ingest is None or score is None:
        return None
    made = [record for record in _records(work, "materialize") if record.inputs.get("sites") == select.content]
    made = [record for record in made if _scored_as(record, score)]
    if manifest is not None:
        if not (is_of_source(work, manifest.corpus, ingest) and is_of_proxy(work, manifest, score)):
            return None
        if ingest.config != manifest.corpus.identity() or score.config.get("score") != manifest.score.identity():
            return None
        made = [record for record in made if record.config == manifest.materialize.identity()]
        made = [record for record in made if is_of_policy(work, manifest, record)]
        name = manifest.name
    before: dict[str, Record] = {}
    # Follow inputs by content hash, so renamed or superseded outputs are never mistaken for the true ones.
    sources = [ingest, score, select]
    while sources:
        for content in sources.pop().inputs.values():
            for stage in _STAGES:
                if stage not in before and (source := _by_content(work, stage, content)) is not None:
                    before[stage] = source
                    sources.append(source)
    return Lineage(name, ingest, score, select, max(made, key=lambda r: _current(work, r), default=None), before)


def _scored_as(shards: Record, score: Record) -> bool:
    """Return False if shards record other scores: two proxies may select the same sites."""
    return shards.inputs.get("scores", score.fingerprint) == score.fingerprint


def _preference(work: Path, lineage: Lineage) -> tuple[bool, bool, int, bool]:
    """Return a sort key that prefers current records and later versions of the code."""
    ingest, score = (_current(work, record) for record in (lineage.ingest, lineage.score))
    return ingest, score, lineage.select.version, _current(work, lineage.select)


def _short(where: str) -> str:
    line = " ".join(where.split())
    return line if len(line) <= 100 else f"{line[:100]}…"


def _flags(manifest: Manifest) -> str | None:
    """Return the hash of the file of sites that the manifest excludes."""
    if manifest.select.exclude is None:
        return None
    path = Path(manifest.select.exclude)
    if not path.is_file():
        raise UserError("no such file", where=path, hint="check select.exclude")
    return content_hash(path)


def _by_content(work: Path, stage: str, content: str | None) -> Record | None:
    found = [record for record in _records(work, stage) if content in (record.content, record.text_content)]
    return max(found, key=lambda record: _current(work, record), default=None)


def _records(work: Path, stage: str) -> list[Record]:
    folders = sorted(path.parent for path in (work / stage).glob("*/record.json"))
    return [record for folder in folders if (record := read_record(folder)) is not None]


def _current(work: Path, record: Record) -> bool:
    return is_current(work / record.stage / record.fingerprint)
