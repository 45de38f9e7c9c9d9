"""Checks that stop ingest: wrong file, missing column, too many unusable records, nothing left."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow.compute as pc

from pipeline.config.corpus import CorpusConfig
from pipeline.config.errors import UserError
from pipeline.core.artifact import Record
from pipeline.core.parquet import read_table
from pipeline.corpus.documents import CORPUS
from pipeline.corpus.plan import published_file
from pipeline.corpus.quarantine import TO_UTF8
from pipeline.corpus.scan import Scan
from pipeline.corpus.template import Template, check_column


def check_source(surveys: Sequence[Scan], config: CorpusConfig) -> None:
    """Refuse a wrong sha256, and files that lack a column which the manifest names; checks each source separately."""
    if config.sources:
        for source in config.sources:
            own = [about for about in surveys if about.file.corpus == source.name]
            check_source(own, config.for_source(source.name))
        return
    template = Template.parse(config.text)
    if config.sha256 is not None:
        if len(surveys) > 1:
            found = f"{len(surveys)} files, from {surveys[0].file.name} to {surveys[-1].file.name}"
            raise UserError(
                "corpus.sha256 is for a source of one file", where=found, hint="name the file in corpus.source"
            )
        if surveys[0].sha256 != config.sha256:
            hint = f"expected {config.sha256}, found {surveys[0].sha256}; --set corpus.sha256=null accepts any content"
            raise UserError("wrong sha256", where=surveys[0].file.name, hint=hint)
    for about in surveys:
        if about.columns:
            _check_columns(about, template, surveys)
            if about.file.corpus and CORPUS in about.columns:
                hint = "rename it: the metadata of documents has the name of their source under this key"
                raise UserError(f"the name `{CORPUS}` of a column is reserved", where=about.file.name, hint=hint)
            if config.validation.column is not None:
                check_column(config.validation.column, about.columns, about.file.name, "corpus.validation.column")


def _check_columns(about: Scan, template: Template, surveys: Sequence[Scan]) -> None:
    try:
        template.check(about.columns, about.file.name)
    except UserError as error:
        others = sum(bool(other.columns) and template.missing(other.columns) is None for other in surveys)
        if not others:
            raise
        own = about.file.name.rpartition("/")[2]
        files = "another file has" if others == 1 else f"{others:,} other files have"
        more = f"; {files} the columns of corpus.text: to leave this one out, corpus.exclude: ['{own}']"
        raise UserError(error.message, where=error.where, hint=f"{error.hint}{more}") from error


def check_quarantine(candidates: Record, config: CorpusConfig, surveys: Sequence[Scan]) -> None:
    """Refuse a corpus without documents, or with too large a share of unusable records; the error has an example."""
    counters = candidates.counters
    records, documents = counters["records"], counters["documents"]
    if not records:
        names = [about.file.name for about in surveys]
        where = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise UserError("the corpus has no records", where=where, hint="check corpus.source and corpus.format")
    share = 1 - documents / records
    if documents and share <= config.max_quarantine_fraction:
        return
    reasons = {name: count for name, count in counters.items() if name.startswith("quarantined.")}
    name, count = max(reasons.items(), key=lambda item: item[1])
    reason = name.removeprefix("quarantined.")
    where = _example(candidates, reason)
    what = f"{records - documents} of {records} records cannot be used, {count} of them as `{reason}`"
    hint = TO_UTF8 if reason == "not_utf8" else "fix the corpus or the template"
    if documents:
        hint += f", or raise corpus.max_quarantine_fraction above {share:.3f}"
    file = next((about for about in surveys if where.startswith(f"{about.file.name} row ")), None)
    if file is not None and file.found:
        hint += f"; how {file.file.name} was read: {file.found}"
    raise UserError(what, where=where, hint=hint)


def check_split(assigned: Record) -> None:
    """Refuse a corpus without documents to train on."""
    if not assigned.counters.get("train"):
        held_out = f"all {assigned.counters['documents']} documents are held out"
        raise UserError("nothing left to train on", where=held_out, hint="lower corpus.validation")


def _example(candidates: Record, reason: str) -> str:
    """Return the first record that was rejected for `reason`, as text."""
    for done in candidates.completions():
        if f"quarantined.{reason}" in done.counters:
            rows = read_table(published_file(candidates, "quarantine", done.shard))
            row = rows.filter(pc.equal(rows["reason"], reason)).slice(0, 1).to_pylist()[0]
            return f"{row['source_file']} row {row['source_row']}, {row['detail']}: {row['raw'][:80]!r}"
    return ""
