"""Artifacts: how a stage's output is named, published, recorded and verified.

Layout of a stage's directory `work/<manifest>/<stage>/<fingerprint>/`:

    documents-00003.1f0c9a2be4d7.parquet   data, named by shard and content
    done/00003.json                        a shard's completion: rows, bytes, sha256, counters
    done/shards.8a3b5c7d9e0f.parquet       the completions of all shards as columns (`core/shard_list.py`)
    record.json                            written last; without it the stage is not complete

The file `current` beside the fingerprints names the latest output. Completions and records are sealed
(`core/sealed.py`), so that their counters and rows are as trustworthy as the tables; a record has the hash of its list
of shards.

Every publish is an atomic create-if-absent: a data file appears under its content's name or not at all, and the
first completion of a shard wins. Files that no completion names are left over from killed workers and harmless.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, TypeAdapter

from pipeline.config.base import canonical_json
from pipeline.config.errors import IntegrityError, UserError
from pipeline.core.completion import (
    RUN_AGAIN,
    Completion,
    Counters,
    Entry,
    read_completion,
    validated,
    write_completion,
)
from pipeline.core.files import flush, move_if_absent, progress_file, replace_text, size_of
from pipeline.core.sealed import read_sealed, write_sealed
from pipeline.core.shard_list import ShardList, Summary, list_path


@dataclass(frozen=True)
class InputFile:
    """A file that a shard reads, with the sha256 that it must have (None: not known yet)."""

    path: Path
    sha256: str | None = None

    def verified(self) -> Path:
        """Return the path, after comparing the file's bytes with the recorded hash.

        Raises:
            IntegrityError: the file is missing, or was changed since it was published.
        """
        if not self.path.exists():
            raise IntegrityError("published file is missing", where=self.path, hint=RUN_AGAIN)
        if self.sha256 is not None and content_hash(self.path) != self.sha256:
            raise IntegrityError("published file was changed after the fact", where=self.path, hint=RUN_AGAIN)
        return self.path


@dataclass(frozen=True)
class Shard:
    """The specification of one unit of work: small, picklable, the same on every executor."""

    index: int
    files: Mapping[str, InputFile]
    """Files that this shard reads, by table name."""
    details: Mapping[str, Any]
    """Further JSON values of the plan: row ranges, fold numbers."""


@dataclass(frozen=True)
class Record:
    """The record of a complete stage. `directory` is where it was opened; it is not part of the record."""

    stage: str
    version: int
    fingerprint: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    summary: Summary
    shard_list: ShardList
    directory: Path
    execution: Mapping[str, Any] = field(default_factory=dict)
    """Settings of memory and speed under which its last shards were made: no part of `fingerprint` or `content`."""

    @property
    def content(self) -> str:
        """Return the hash of everything published, which enters the fingerprints of downstream stages."""
        return self.summary.content

    @property
    def text_content(self) -> str:
        """Return the hash of what models read of documents: `Summary.text_content`."""
        return self.summary.text_content

    @property
    def names(self) -> frozenset[str]:
        """Return the hashes by which the inputs of other records may name this output."""
        return frozenset((self.content, self.text_content, self.fingerprint))

    @property
    def counters(self) -> Counters:
        """Return the counters, summed over shards."""
        return dict(self.summary.counters)

    @property
    def shards(self) -> range:
        """Return the numbers of the shards."""
        return range(self.summary.shards)

    def completions(self) -> Iterator[Completion]:
        """Yield what each shard has published, in their order.

        Raises:
            IntegrityError: the list of shards is missing or was changed.
        """
        return self.shard_list.completions()

    def files(self, table: str) -> list[InputFile]:
        """Return the published files of a table, in shard order; shards without one are left out.

        Raises:
            IntegrityError: the list of shards is missing or was changed.
        """
        return [file for file in self._of_shards(table) if file is not None]

    def file(self, table: str, shard: int) -> InputFile | None:
        """Return the published file of a table in one shard, or None.

        Raises:
            IntegrityError: the list of shards is missing or was changed.
        """
        return self._of_shards(table)[shard]

    @cached_property
    def _read(self) -> dict[str, list[InputFile | None]]:
        """Files by table and shard, as far as they were asked for."""
        return {}

    def _of_shards(self, table: str) -> list[InputFile | None]:
        if table not in self._read:
            listed = self.shard_list.files(table)
            self._read[table] = [InputFile(self.directory / file[0], file[1]) if file else None for file in listed]
        return self._read[table]


def fingerprint(stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Return the identity of a stage's output: a hash of its config, code version and inputs."""
    identity = canonical_json({"stage": stage, "version": version, "config": config, "inputs": inputs})
    return hashlib.sha256(identity.encode()).hexdigest()[:12]


def content_hash(path: Path) -> str:
    """Return the sha256 of a file, or of a folder's (relative path, sha256) pairs."""
    if path.is_dir():
        parts = [[str(p.relative_to(path)), content_hash(p)] for p in sorted(path.rglob("*")) if p.is_file()]
        return hashlib.sha256(canonical_json(parts).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ----------------------------------------------------------------------------------------------- publishing


@contextlib.contextmanager
def scratch_folder(directory: Path, shard: int) -> Iterator[Path]:
    """Yield a temporary folder on the stage's own file system, which is removed afterwards in any case."""
    folder = directory / "tmp" / f"{shard:05d}.{uuid.uuid4().hex[:12]}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        progress_file(folder).unlink(missing_ok=True)


def publish(directory: Path, shard: int, scratch: Path, counters: Counters, seconds: float) -> Completion:
    """Publish everything in `scratch` as shard `shard`, then its completion; the first finisher wins.

    Each entry `name.ext` of `scratch` becomes `name-<shard>.<sha>.ext`. Parquet footers are read back first.

    Returns:
        The completion that counts, which may be an earlier finisher's.
    """
    files: dict[str, Entry] = {}
    for source in sorted(scratch.iterdir()):
        rows = pq.read_metadata(source).num_rows if source.suffix == ".parquet" else 0
        for member in [source, *source.rglob("*")]:
            flush(member)
        sha256 = content_hash(source)
        target = directory / f"{source.stem}-{shard:05d}.{sha256[:12]}{source.suffix}"
        move_if_absent(source, target)
        files[source.stem] = Entry(target.name, rows, size_of(target), sha256)
    completion = Completion(shard, files, dict(sorted(counters.items())), round(seconds, 3))
    write_completion(directory, completion)
    return read_completion(directory, shard) or completion


# -------------------------------------------------------------------------------------------------- records


def write_record(
    directory: Path,
    stage: str,
    version: int,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    shards: Sequence[Shard],
    execution: Mapping[str, Any] | None = None,
) -> Record:
    """Seal a stage whose shards are all done, and point `current` at it."""
    listed = ShardList.of((_done(directory, shard.index) for shard in shards), directory).save(directory)
    summary = listed.summary()
    record = Record(stage, version, directory.name, config, inputs, summary, listed, directory, execution or {})
    check_sizes(record)
    seal_record(record)
    return record


def _done(directory: Path, shard: int) -> Completion:
    completion = read_completion(directory, shard)
    if completion is None:
        raise AssertionError(f"shard {shard} of {directory} is not done")
    return completion


def seal_record(record: Record) -> None:
    """Write the record into its directory, which makes the stage complete; its list of shards must lie there."""
    tree = {name: value for name, value in asdict(record).items() if name != "directory"}
    write_sealed(record.directory / "record.json", tree | {"shard_list": record.shard_list.sha256})


def read_record(directory: Path) -> Record | None:
    """Return the record of a complete stage, or None. Its list of shards and its published files are not read yet.

    Raises:
        IntegrityError: the record was changed or belongs to another output.
    """
    path = directory / "record.json"
    if not path.exists():
        return None
    record = record_in(path, directory)
    if (record.stage, record.fingerprint) != (directory.parent.name, directory.name):
        raise IntegrityError("record of another output", where=path, hint="delete its folder and run again")
    return record


def record_in(path: Path, directory: Path) -> Record:
    """Return the record in a file, of an output in `directory`, without checking the published files.

    Raises:
        IntegrityError: it was changed, or names a file outside its folder.
    """
    tree = read_sealed(path)
    if "completions" in tree:
        tree |= _of_earlier_version(tree, path, directory)
    else:
        listed = validated(_SHA256, tree.get("shard_list"), path)
        tree["shard_list"] = ShardList(list_path(directory, listed), listed)
    record: Record = validated(_RECORD, tree | {"directory": directory}, path)
    return record


def _of_earlier_version(tree: Mapping[str, Any], path: Path, directory: Path) -> dict[str, Any]:
    """Return summary and list of shards of a record that holds the completions itself."""
    try:
        listed = ShardList.of(validated(_COMPLETIONS, tree["completions"], path), directory)
    except (ValueError, OverflowError, pa.ArrowException) as error:
        raise IntegrityError(f"not what a stage writes: {error}", where=path, hint="do not trust it") from error
    summary = replace(listed, path=path).summary()  # a name outside the folder is an error of this file
    if summary.content != tree.get("content"):
        raise IntegrityError("record was changed after the fact", where=path, hint="delete its folder and run again")
    return {"summary": summary, "shard_list": listed}


def check_sizes(record: Record) -> None:
    """Compare the size of every published file with the recorded one.

    Raises:
        IntegrityError: a file is missing or has another size, or the list of shards was changed.
    """
    for name, size in record.shard_list.sizes():
        file = os.path.join(record.directory, name)  # a `Path` would double the time for a million files
        try:
            about = os.stat(file)
        except FileNotFoundError:
            about = None
        if about is None or (stat.S_ISREG(about.st_mode) and about.st_size != size):
            raise IntegrityError("published file is missing or has another size", where=file, hint=RUN_AGAIN)


_RECORD, _COMPLETIONS = TypeAdapter(Record), TypeAdapter(tuple[Completion, ...])
_SHA256 = TypeAdapter(Annotated[str, Field(pattern="^[0-9a-f]{64}$")])


# ------------------------------------------------------------------------------------------ latest output

CURRENT = "current"


def set_current(directory: Path) -> None:
    """Make `directory` the current output of its stage, for later commands."""
    write_pointer(directory.parent / CURRENT, directory)


def write_pointer(pointer: Path, directory: Path) -> None:
    """Make the file `pointer`, beside an output's directory, name it. It is written only if it changes."""
    if not (pointer.is_file() and pointer.read_bytes() == directory.name.encode()):
        replace_text(pointer, directory.name)


def read_pointer(pointer: Path) -> Path | None:
    """Return the directory that a pointer names, or None if there is no pointer.

    Raises:
        IntegrityError: it does not name a complete output.
    """
    if not pointer.exists():
        return None
    name = pointer.read_bytes() if pointer.is_file() else b""
    if not re.fullmatch(rb"[0-9a-f]{12}", name):
        raise IntegrityError("does not name an output", where=pointer, hint="run `rpt data` again")
    directory = pointer.with_name(name.decode())
    if not (directory / "record.json").exists():
        raise IntegrityError(
            "names an output that is not complete or not there", where=pointer, hint="run `rpt data` again"
        )
    return directory


def is_current(directory: Path) -> bool:
    """Return whether an output is the latest of its stage."""
    return read_pointer(directory.parent / CURRENT) == directory


def current_record(work: Path, stage: str) -> Record:
    """Return the latest output of a stage under `work` (one manifest's folder).

    Raises:
        UserError: the stage has not run.
        IntegrityError: its `current` is lost or damaged.
    """
    directory = read_pointer(work / stage / CURRENT)
    if directory is not None:
        return published_record(directory)
    if any((work / stage).glob("[!.]*/record.json")):
        raise IntegrityError("file is missing", where=work / stage / CURRENT, hint="run `rpt data` again")
    raise UserError(f"stage `{stage}` has no output yet", where=work / stage, hint="run `rpt data` first")


def published_record(directory: Path) -> Record:
    """Return the record of the stage's output in this folder.

    Raises:
        UserError: the stage is not complete.
    """
    record = read_record(directory)
    if record is None:
        stage = directory.parent.name
        raise UserError(f"stage `{stage}` has no output yet", where=directory, hint="run `rpt data` first")
    return record
