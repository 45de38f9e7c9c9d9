"""Artifacts: how a stage's output is named, published, recorded and trusted (design §3).

Layout of a stage's directory `work/<manifest>/<stage>/<fingerprint>/`:

    documents-00003.1f0c9a2be4d7.parquet   data, named by shard and content
    done/00003.json                        a shard's completion: rows, bytes, sha256, counters
    record.json                            written last; without it the stage is not complete

Beside the fingerprints, `current` names the one that was made last. Completions and records are sealed
(`core/sealed.py`): their counters and rows are as trustworthy as the tables.

Every publish is an atomic create-if-absent: a data file appears under its content's name or not at all, and the
first completion of a shard wins. Files that no completion names are left-overs of killed workers: harmless.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from pipeline.config.base import canonical_json
from pipeline.config.errors import IntegrityError, UserError
from pipeline.core.files import flush, replace_text
from pipeline.core.sealed import read_sealed, write_sealed

Counters = dict[str, int]
"""What a shard counted. `dropped.<reason>` and `quarantined.<reason>` are the funnel's losses."""


@dataclass(frozen=True)
class Entry:
    """A published file or folder: `path` is relative to the stage's directory."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class InputFile:
    """A file a shard reads, with the hash its bytes must have (None: not known yet)."""

    path: Path
    sha256: str | None = None

    def verified(self) -> Path:
        """The path, once its bytes are known to be the recorded ones.

        Raises:
            IntegrityError: missing, or changed since it was published.
        """
        if not self.path.exists():
            raise IntegrityError(
                "published file is missing", where=self.path, hint="delete its stage folder, run again"
            )
        if self.sha256 is not None and content_hash(self.path) != self.sha256:
            raise IntegrityError(
                "published file was changed after the fact", where=self.path, hint="delete its stage folder, run again"
            )
        return self.path


@dataclass(frozen=True)
class Shard:
    """The specification of one unit of work: small, picklable, the same on every executor."""

    index: int
    files: Mapping[str, InputFile]
    """By table name: what this shard reads."""
    details: Mapping[str, Any]
    """JSON values that are part of the plan: row ranges, fold numbers."""


@dataclass(frozen=True)
class Completion:
    """A shard is done: what it published and what it counted."""

    shard: int
    files: Mapping[str, Entry]
    counters: Counters
    seconds: float


@dataclass(frozen=True)
class Record:
    """A complete stage. `directory` is where it was opened, and no part of it."""

    stage: str
    version: int
    fingerprint: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    completions: tuple[Completion, ...]
    directory: Path

    @property
    def content(self) -> str:
        """Hash of everything published: what downstream fingerprints build on."""
        hashes = [[name, done.shard, entry.sha256] for done in self.completions for name, entry in done.files.items()]
        return hashlib.sha256(canonical_json(sorted(hashes)).encode()).hexdigest()

    @property
    def counters(self) -> Counters:
        """Sum over shards."""
        total: Counter[str] = Counter()
        for done in self.completions:
            total.update(done.counters)
        return dict(total)

    @property
    def seconds(self) -> float:
        """Sum of the shards' own seconds (not wall time)."""
        return sum(done.seconds for done in self.completions)

    def files(self, table: str) -> list[InputFile]:
        """The published files of a table, in shard order; shards without one are left out."""
        return [file for done in self.completions if (file := self.file(table, done.shard))]

    def file(self, table: str, shard: int) -> InputFile | None:
        """The published file of a table in one shard, if it has one."""
        entry = self.completions[shard].files.get(table)
        return InputFile(self.directory / entry.path, entry.sha256) if entry else None


def fingerprint(stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Identity of a stage's output: its own config, its code version, the content of its inputs."""
    identity = canonical_json({"stage": stage, "version": version, "config": config, "inputs": inputs})
    return hashlib.sha256(identity.encode()).hexdigest()[:12]


def content_hash(path: Path) -> str:
    """sha256 of a file, or of a folder's (relative path, sha256) pairs."""
    if path.is_dir():
        parts = [[str(p.relative_to(path)), content_hash(p)] for p in sorted(path.rglob("*")) if p.is_file()]
        return hashlib.sha256(canonical_json(parts).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ----------------------------------------------------------------------------------------------- publishing


@contextlib.contextmanager
def scratch_folder(directory: Path, shard: int) -> Iterator[Path]:
    """A temporary folder on the stage's own file system, gone afterwards whatever happens."""
    folder = directory / "tmp" / f"{shard:05d}.{uuid.uuid4().hex[:12]}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(directory: Path, shard: int, scratch: Path, counters: Counters, seconds: float) -> Completion:
    """Publish everything in `scratch` as shard `shard`, then its completion; the first finisher wins.

    Each entry `name.ext` of `scratch` becomes `name-<shard>.<sha>.ext`. Parquet footers are read back first.
    Returns the completion that counts, which may be an earlier finisher's.
    """
    files: dict[str, Entry] = {}
    for source in sorted(scratch.iterdir()):
        rows = pq.read_metadata(source).num_rows if source.suffix == ".parquet" else 0
        for member in [source, *source.rglob("*")]:
            flush(member)
        sha256 = content_hash(source)
        target = directory / f"{source.stem}-{shard:05d}.{sha256[:12]}{source.suffix}"
        _create(source, target)
        size = sum(p.stat().st_size for p in [target, *target.rglob("*")] if p.is_file())
        files[source.stem] = Entry(target.name, rows, size, sha256)
    completion = Completion(shard, files, dict(sorted(counters.items())), round(seconds, 3))
    write_completion(directory, completion)
    return read_completion(directory, shard) or completion


def _create(source: Path, target: Path) -> None:
    """Move `source` to `target` unless something is there already (then it has the same content)."""
    try:
        os.rename(source, target) if source.is_dir() else os.link(source, target)
    except OSError:
        if not target.exists():
            raise
    flush(target.parent)


def write_completion(directory: Path, completion: Completion) -> None:
    """Say that a shard is done, unless that was said before."""
    write_sealed(completion_path(directory, completion.shard), {"of": name_of(directory), **asdict(completion)})


def read_completion(directory: Path, shard: int) -> Completion | None:
    """The completion of a shard, or None if it is not done.

    Raises:
        IntegrityError: it was changed, or is another shard's or output's.
    """
    path = completion_path(directory, shard)
    if not path.exists():
        return None
    tree = read_sealed(path)
    completion = _validated(_COMPLETION, tree, path)
    if (tree.get("of"), completion.shard) != (name_of(directory), shard):
        raise IntegrityError(
            "completion of another shard or output", where=path, hint="delete its stage folder, run again"
        )
    return completion


def completion_path(directory: Path, shard: int) -> Path:
    """Where a shard's completion lies."""
    return directory / "done" / f"{shard:05d}.json"


def name_of(directory: Path) -> str:
    """`<stage>/<fingerprint>`: what an output is called wherever its work folder lies."""
    return f"{directory.parent.name}/{directory.name}"


# -------------------------------------------------------------------------------------------------- records


def write_record(
    directory: Path,
    stage: str,
    version: int,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    shards: Sequence[Shard],
) -> Record:
    """Seal a stage whose shards are all done, and point `current` at it."""
    completions = tuple(done for shard in shards if (done := read_completion(directory, shard.index)))
    if len(completions) != len(shards):
        raise AssertionError(f"{len(shards) - len(completions)} shards of {directory} are not done")
    record = Record(stage, version, directory.name, config, inputs, completions, directory)
    _check_sizes(record)
    seal_record(record)
    return record


def seal_record(record: Record) -> None:
    """Write the record into its directory: from now on its stage is complete."""
    tree = {k: v for k, v in asdict(record).items() if k != "directory"} | {"content": record.content}
    write_sealed(record.directory / "record.json", tree)


def read_record(directory: Path) -> Record | None:
    """The record of a complete stage, or None. Sizes of the published files are checked, hashes when they are read.

    Raises:
        IntegrityError: the record was changed or is another output's, or a published file is missing.
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
    """The record that a file holds, of an output in `directory`; nothing else is looked at.

    Raises:
        IntegrityError: it was changed, or names something that is no published file.
    """
    tree = read_sealed(path)
    record = _validated(_RECORD, tree | {"directory": directory}, path)
    names = [entry.path for done in record.completions for entry in done.files.values()]
    if bad := [name for name in names if PurePath(name).name != name or name in ("", "..")]:
        raise IntegrityError(f"record names a file outside its folder: {bad[0]!r}", where=path, hint="do not trust it")
    if record.content != tree.get("content"):
        raise IntegrityError("record was changed after the fact", where=path, hint="delete its folder and run again")
    return record


def _check_sizes(record: Record) -> None:
    for done in record.completions:
        for entry in done.files.values():
            file = record.directory / entry.path
            if not file.exists() or (file.is_file() and file.stat().st_size != entry.bytes):
                raise IntegrityError(
                    "published file is missing or has another size",
                    where=file,
                    hint="delete its stage folder, run again",
                )


_COMPLETION, _RECORD = TypeAdapter(Completion), TypeAdapter(Record)


def _validated(kind: TypeAdapter[Any], tree: Mapping[str, Any], path: Path) -> Any:
    try:
        return kind.validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        raise IntegrityError(
            f"not what a stage writes: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            where=path,
            hint="delete its stage folder, run again",
        ) from error


# ---------------------------------------------------------------------------------------- what was made last

CURRENT = "current"


def set_current(directory: Path) -> None:
    """Remember `directory` as the output its stage made last, for the commands that follow."""
    write_pointer(directory.parent / CURRENT, directory)


def write_pointer(pointer: Path, directory: Path) -> None:
    """Make `pointer`, a file beside an output's directory, name it. One that does already is not written again."""
    if not (pointer.is_file() and pointer.read_bytes() == directory.name.encode()):
        replace_text(pointer, directory.name)


def read_pointer(pointer: Path) -> Path | None:
    """The directory that a pointer names, or None where there is no pointer.

    Raises:
        IntegrityError: it names no output that is complete.
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
    """Whether an output is what its stage made last."""
    return read_pointer(directory.parent / CURRENT) == directory


def current_record(work: Path, stage: str) -> Record:
    """The output a stage made last under `work` (one manifest's folder).

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
    """The output of a stage in this folder.

    Raises:
        UserError: the stage is not complete.
    """
    record = read_record(directory)
    if record is None:
        stage = directory.parent.name
        raise UserError(f"stage `{stage}` has no output yet", where=directory, hint="run `rpt data` first")
    return record
