"""Check that the files of a corpus are still those that its documents were read from."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.config.corpus import CorpusConfig
from pipeline.config.errors import UserError
from pipeline.core.artifact import InputFile, published_record, read_pointer
from pipeline.core.pointers import source_pointer
from pipeline.corpus.files import corpus_files
from pipeline.corpus.scan import checksums_of
from pipeline.corpus.sources.opening import SourceFile

GONE = "the source does not have this file (another place: `--source PATH`)"
CHANGED = "the source file has changed since it was read"


def source_damage(work: Path, config: CorpusConfig, source: str | None) -> list[dict[str, str]]:
    """Hash the files of the corpus again and compare them with the hashes that its last `read` recorded.

    Args:
        work: The manifest's folder.
        config: The manifest's `corpus`.
        source: Source to check instead of `corpus.source`.

    Returns:
        One row per missing or changed file: `where`, and `what` is wrong with it. Empty if this source was not read in
        this folder, as in a pulled one, or if the recorded hashes cannot be read.
    """
    try:
        last = read_pointer(source_pointer(work, config))
        if last is None:
            return []
        tables = published_record(last).files("source")
        recorded = {row["source_file"]: row["sha256"] for table in tables for row in _rows(table)}
    except UserError:
        return []  # the record itself is damaged, which `verify` reports
    try:
        files = {file.name: file for file in corpus_files(config, source)}
    except UserError as error:
        return [{"where": error.where, "what": f"{error.message} ({error.hint})"}]
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda name: _difference(files.get(name), recorded[name]), recorded)
    return [{"where": name, "what": what} for name, what in zip(recorded, found, strict=True) if what]


def _rows(table: InputFile) -> list[dict[str, str]]:
    """Return name and sha256 of the source files of a shard."""
    rows: list[dict[str, str]] = json.loads(table.verified().read_text(encoding="utf-8"))
    return rows


def _difference(file: SourceFile | None, sha256: str) -> str | None:
    if file is None:
        return GONE
    try:
        return None if checksums_of(file).sha256 == sha256 else CHANGED
    except UserError as error:
        return error.message
