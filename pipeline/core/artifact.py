"""Artifacts: how a stage's output is named, published, recorded and verified.

Layout of a stage's directory `work/<manifest>/<stage>/<fingerprint>/`:

    documents-00003.1f0c9a2be4d7.parquet   data, named by shard and content
    done/00003.json                        a shard's completion: rows, bytes, sha256, counters
    record.json                            written last; without it the stage is not complete

The file `current` beside the fingerprints names the latest output. Completions and records are sealed
(`core/sealed.py`), so that their counters and rows are as trustworthy as the tables.

Every publish is an atomic create-if-absent: a data file appears under its content's name or not at all, and the
first completion of a shard wins. Files that no completion names are left over from killed workers and harmless.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any

import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from pipeline.config.base import canonical_json
from pipeline.config.errors import IntegrityError, UserError
from pipeline.core.files import flush, move_if_absent, progress_file, replace_text, size_of
from pipeline.core.sealed import read_sealed, write_sealed

RUN_AGAIN = "delete its stage folder, run again"

Counters = dict[str, int]
"""Counts of a shard, by name. `dropped.<reason>` and `quarantined.<reason>` count what the funnel loses."""


@dataclass(frozen=True)
class Entry:
    """A published file or folder: `path` is relative to the stage's directory."""

    path: str
    rows: int
    bytes: int
    sha256: str


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
class Completion:
    """The result of a finished shard: published files and counters."""

    shard: int
    files: Mapping[str, Entry]
    counters: Counters
    seconds: float


TEXT_DIGEST = "text_digest"
"""Name of the file in which `ingest` publishes, for each shard, the hash of what models read of its documents."""


@dataclass(frozen=True)
class Record:
    """The record of a complete stage. `directory` is where it was opened; it is not part of the record."""

    stage: str
    version: int
    fingerprint: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    completions: tuple[Completion, ...]
    directory: Path
    execution: Mapping[str, Any] = field(default_factory=dict)
    """Settings of memory and speed under which its last shards were made: no part of `fingerprint` or `content`."""

    @property
    def content(self) -> str:
        """Return the hash of everything published, which enters the fingerprints of downstream stages."""
        return _content(self.completions)

    @property
    def text_content(self) -> str:
        """Return the hash of what models read of documents, and `content` of an output that has no `TEXT_DIGEST`.

        Stages that read nothing else take it as their input, so that a renamed source file does not repeat them.
        """
        return _content(self.completions, TEXT_DIGEST) if self.files(TEXT_DIGEST) else self.content

    @property
    def names(self) -> frozenset[str]:
        """Return the hashes by which the inputs of other records may name this output."""
        return frozenset((self.content, self.text_content, self.fingerprint))

    @property
    def counters(self) -> Counters:
        """Return the counters, summed over shards."""
        total: Counter[str] = Counter()
        for done in self.completions:
            total.update(done.counters)
        return dict(total)

    @property
    def entries(self) -> list[Entry]:
        """Return all published files and folders, in shard order."""
        return [entry for done in self.completions for entry in done.files.values()]

    @property
    def seconds(self) -> float:
        """Return the sum of the shards' own seconds (not wall time)."""
        return sum(done.seconds for done in self.completions)

    def files(self, table: str) -> list[InputFile]:
        """Return the published files of a table, in shard order; shards without one are left out."""
        return [file for done in self.completions if (file := self.file(table, done.shard))]

    def file(self, table: str, shard: int) -> InputFile | None:
        """Return the published file of a table in one shard, or None."""
        entry = self.completions[shard].files.get(table)
        return InputFile(self.directory / entry.path, entry.sha256) if entry else None


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


def _content(completions: Sequence[Completion], table: str | None = None) -> str:
    """Return the hash of all published files, or of those of one table."""
    files = [(name, done.shard, entry.sha256) for done in completions for name, entry in done.files.items()]
    hashes = sorted([name, shard, sha256] for name, shard, sha256 in files if table in (None, name))
    return hashlib.sha256(canonical_json(hashes).encode()).hexdigest()


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


def write_completion(directory: Path, completion: Completion) -> None:
    """Write a shard's completion, unless there is one already."""
    write_sealed(completion_path(directory, completion.shard), {"of": name_of(directory), **asdict(completion)})


def read_completion(directory: Path, shard: int) -> Completion | None:
    """Return the completion of a shard, or None if it is not done.

    Raises:
        IntegrityError: it was changed, or belongs to another shard or output.
    """
    path = completion_path(directory, shard)
    if not path.exists():
        return None
    tree = read_sealed(path)
    completion = _validated(_COMPLETION, tree, path)
    if (tree.get("of"), completion.shard) != (name_of(directory), shard):
        raise IntegrityError("completion of another shard or output", where=path, hint=RUN_AGAIN)
    return completion


def completion_path(directory: Path, shard: int) -> Path:
    """Return the path of a shard's completion."""
    return directory / "done" / f"{shard:05d}.json"


def name_of(directory: Path) -> str:
    """Return `<stage>/<fingerprint>`, the name of an output in any work folder."""
    return f"{directory.parent.name}/{directory.name}"


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
    completions = tuple(done for shard in shards if (done := read_completion(directory, shard.index)))
    if len(completions) != len(shards):
        raise AssertionError(f"{len(shards) - len(completions)} shards of {directory} are not done")
    record = Record(stage, version, directory.name, config, inputs, completions, directory, execution or {})
    _check_sizes(record)
    seal_record(record)
    return record


def seal_record(record: Record) -> None:
    """Write the record into its directory, which makes the stage complete."""
    tree = {k: v for k, v in asdict(record).items() if k != "directory"} | {"content": record.content}
    write_sealed(record.directory / "record.json", tree)


def read_record(directory: Path) -> Record | None:
    """Return the record of a complete stage, or None.

    The sizes of the published files are checked here; their hashes are checked when they are read.

    Raises:
        IntegrityError: the record was changed or belongs to another output, or a published file is missing.
    """
    path = directory / "record.json"
    if not path.exists():
        return None
    record = record_in(path, directory)
    if (record.stage, record.fingerprint) != (directory.parent.name, directory.name):
        raise IntegrityError("record of another output", where=path, hint="delete its folder and run again")
    _check_sizes(record)
    return record


def record_in(path: Path, directory: Path) -> Record:
    """Return the record in a file, of an output in `directory`, without checking the published files.

    Raises:
        IntegrityError: it was changed, or names a file outside its folder.
    """
    tree = read_sealed(path)
    record = _validated(_RECORD, tree | {"directory": directory}, path)
    names = [entry.path for entry in record.entries]
    if bad := [name for name in names if PurePath(name).name != name or name in ("", "..")]:
        raise IntegrityError(f"record names a file outside its folder: {bad[0]!r}", where=path, hint="do not trust it")
    if record.content != tree.get("content"):
        raise IntegrityError("record was changed after the fact", where=path, hint="delete its folder and run again")
    return record


def _check_sizes(record: Record) -> None:
    for entry in record.entries:
        file = record.directory / entry.path
        if not file.exists() or (file.is_file() and file.stat().st_size != entry.bytes):
            raise IntegrityError("published file is missing or has another size", where=file, hint=RUN_AGAIN)


_COMPLETION, _RECORD = TypeAdapter(Completion), TypeAdapter(Record)


def _validated(kind: TypeAdapter[Any], tree: Mapping[str, Any], path: Path) -> Any:
    try:
        return kind.validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"not what a stage writes: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise IntegrityError(what, where=path, hint=RUN_AGAIN) from error


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
