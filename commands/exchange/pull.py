"""Pull: download pushed shards to where `rpt train` finds them, and verify every byte.

Input:   a data set that `rpt push` wrote, on the Hub or in a folder. Nothing in it is trusted: only files that its
         metadata list are read, no link is followed, and names are checked before they become paths.
Output:  `work/<name>/materialize/<fingerprint>/` as the stage itself would have written it, with `pulled.json`, which
         marks that its inputs are elsewhere; `work/<name>/manifest.yaml`.
Command: rpt pull hf://datasets/owner/name|FOLDER [--work work]
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.errors import IntegrityError
from pipeline.config.loading import load
from pipeline.config.manifest import Manifest
from pipeline.core.artifact import (
    Record,
    content_hash,
    fingerprint,
    read_record,
    record_in,
    seal_record,
    set_current,
)
from pipeline.core.completion import Completion, completion_path, read_completion, write_completion
from pipeline.core.marks import PULLED, is_pulled, mark_pulled
from pipeline.core.progress import log
from pipeline.core.sealed import exclusive
from pipeline.core.shard_list import ShardList, list_path
from pipeline.export.croissant import METADATA, checksums
from pipeline.export.remote import Fetched, download


def pull(remote: str, *, work: Path, revision: str | None = None) -> Path:
    """Download and verify a data set, and return the path of its manifest.

    Args:
        remote: `hf://datasets/owner/name` or a folder.
        work: folder of all manifests' artifacts.
        revision: commit of the data set on the Hub.

    Raises:
        UserError: the data set does not exist.
        IntegrityError: a file is missing or differs from what was pushed, or `rpt push` did not make the data set.
    """
    fetched = download(remote, revision)
    with tempfile.TemporaryDirectory(dir=_create(work), prefix=".pull-") as scratch:
        taken = Path(scratch)
        fetched.take(METADATA, taken / METADATA)
        listed = _checksums(taken / METADATA, fetched)
        for path, sha256 in listed.items():
            fetched.take(path, taken / path, sha256)
        name = load(Manifest, taken / "manifest.yaml").name
        record = _record(taken, listed, fetched)
        target = work / name / record.stage / record.fingerprint
        _install(taken / "data", record, _create(target))
        os.replace(taken / "manifest.yaml", work / name / "manifest.yaml")
    set_current(target)
    log(f"pull         verified  {target}")
    return work / name / "manifest.yaml"


def _create(folder: Path) -> Path:
    """Create a folder with its parents and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _checksums(metadata: Path, fetched: Fetched) -> dict[str, str]:
    """Return the sha256 of every file to pull, by path.

    Raises:
        IntegrityError: the metadata cannot be read, or lack a file that every data set has.
    """
    where = fetched.folder / METADATA
    try:
        listed = checksums(json.loads(metadata.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        raise IntegrityError("no readable metadata", where=where, hint="push it again") from error
    for needed in ("manifest.yaml", "record.json"):
        if needed not in listed:
            raise IntegrityError(f"the metadata do not list `{needed}`", where=where, hint="push it again")
    return listed


def _record(taken: Path, listed: dict[str, str], fetched: Fetched) -> Record:
    """Return the record of the shards, checked to be of `materialize` and to name exactly the listed tables.

    Raises:
        IntegrityError: a check failed.
    """
    record = record_in(taken / "record.json", taken)
    if record.shard_list.data is None and record.shard_list.path.relative_to(taken).as_posix() not in listed:
        where = fetched.folder / METADATA
        raise IntegrityError("the metadata do not list the record's list of shards", where=where, hint="push it again")
    done = tuple(record.completions())
    entries = [entry for completion in done for entry in completion.files.values()]
    own = fingerprint(record.stage, record.version, record.config, record.inputs)
    wrong = {
        "is not of `materialize`": record.stage != "materialize",
        "does not have the fingerprint of its configuration and inputs": record.fingerprint != own,
        "does not count its shards from 0": [completion.shard for completion in done] != list(record.shards),
        "does not add up to its list of shards": record.shard_list.summary() != record.summary,
        "names other tables than the metadata list": {f"data/{e.path}": e.sha256 for e in entries}
        != {path: sha256 for path, sha256 in listed.items() if path.startswith("data/")},
        "counts other rows or bytes than its tables have": any(
            (_rows(taken / "data" / e.path), (taken / "data" / e.path).stat().st_size) != (e.rows, e.bytes)
            for e in entries
            if (taken / "data" / e.path).exists()
        ),
    }
    for what, is_so in wrong.items():
        if is_so:
            raise IntegrityError(f"the record {what}", where=fetched.folder / "record.json", hint="do not trust it")
    return record


def _rows(path: Path) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowException):
        return -1


def _install(tables: Path, record: Record, target: Path) -> None:
    """Move the tables to where the stage would have put them; the files that mark it complete come last.

    Intact files stay; damaged ones are replaced.
    """
    listed = ShardList(list_path(target, record.shard_list.sha256), record.shard_list.sha256)
    here, published = replace(record, directory=target, shard_list=listed), tuple(record.completions())
    with exclusive(target):
        for done in published:
            for entry in done.files.values():
                there = target / entry.path
                if there.is_symlink() or not there.is_file() or content_hash(there) != entry.sha256:
                    os.replace(tables / entry.path, there)
        if not _is_whole(here, published):
            for path in (target / "record.json", target / PULLED, *(completion_path(target, i) for i in record.shards)):
                path.unlink(missing_ok=True)
            mark_pulled(here)
            for done in published:
                write_completion(target, done)
            record.shard_list.save(target)
            seal_record(here)


def _is_whole(record: Record, published: tuple[Completion, ...]) -> bool:
    """Return whether the same pulled record is already complete there."""
    try:
        done = tuple(read_completion(record.directory, shard) for shard in record.shards)
        same = read_record(record.directory) == record and tuple(record.completions()) == done == published
        return same and is_pulled(record)
    except IntegrityError:
        return False
