"""Verification of published outputs: every file against its hash, every record, every link between stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.errors import IntegrityError, first_line
from pipeline.core.artifact import CURRENT, InputFile, Record, fingerprint, read_pointer, read_record
from pipeline.core.completion import Completion, Entry, completion_path, read_completion
from pipeline.core.marks import BEGUN, PULLED, begun_inputs, is_pulled, read_certificate
from pipeline.core.pointers import PATTERNS

LINKS: Mapping[str, str] = {
    "read": "read",
    "near": "near",
    "assign": "assign",
    "documents": "ingest",
    "scores": "score",
    "candidates": "candidate",
    "sites": "select",
    "shards": "materialize",
    "index": "browse",
}
"""Map from the name of an input to the stage that produces it.

Other inputs (sources, tokenizers, models, flags) are stored elsewhere: their hashes are recorded, their locations are
not.
"""


@dataclass(frozen=True)
class _Checked:
    """Result of checking one folder `work/<manifest>/<stage>/<fingerprint>/`."""

    directory: Path
    record: Record | None
    """None if it cannot be read or has not been written yet."""
    files: int
    """Number of the files that it has published, likewise their `bytes`."""
    bytes: int
    pulled: bool
    """True for pulled data, whose inputs are not on this machine."""
    damage: dict[str, str]
    """Map from path to what is wrong with it."""

    @property
    def lost(self) -> bool:
        """Return True if damage makes its content hash unknown."""
        return self.record is None and bool(self.damage)

    @property
    def names(self) -> set[str]:
        """Return the names under which other records may list it in `inputs`: its hashes or its folder."""
        return {self.directory.name} | (self.record.names if self.record else set())


@contextmanager
def noting(damage: dict[str, str]) -> Iterator[None]:
    """Note an `IntegrityError` of the block in `damage`, by path, instead of raising it."""
    try:
        yield
    except IntegrityError as error:
        damage[error.where] = error.message


def verify(work: Path) -> dict[str, Any]:
    """Check every published file in a manifest's folder.

    Args:
        work: The manifest's folder.

    Returns:
        `ok`; `stages`: one row per output with `complete`, `damage` and `made_from` (input → stage/fingerprint, or None
        if the input is not the output of a stage); `damage`: all damage, one row per file.
    """
    folders = {path.parent for name in ("record.json", "done") for path in work.glob(f"*/[!.]*/{name}")}
    checked = [_check(folder) for folder in sorted(folders)]
    made = {name: each for each in checked for name in each.names}
    rows: list[dict[str, Any]] = []
    for each in checked:
        made_from, broken = _links(each, made)
        rows.append(
            {
                "stage": each.directory.parent.name,
                "fingerprint": each.directory.name,
                "complete": each.record is not None,
                "files": each.files,
                "bytes": each.bytes,
                "made_from": made_from,
                "damage": [{"where": where, "what": what} for where, what in (each.damage | broken).items()],
            }
        )
    damage = [item for row in rows for item in row["damage"]]
    damage += [{"where": where, "what": what} for where, what in _pointers(work).items()]
    return {"work": str(work), "ok": not damage, "stages": rows, "damage": damage}


def _check(directory: Path) -> _Checked:
    """Hash the files that a record lists, and those that the shards' completions list, one shard after the other."""
    damage: dict[str, str] = {}
    record, pulled = None, False
    with noting(damage):
        record = read_record(directory)
    if not (directory / "record.json").exists() and not (directory / BEGUN).exists():
        damage[str(directory / "record.json")] = f"is missing, and so is the `{BEGUN}` that marks an unfinished output"
    elif record is None:
        with noting(damage):
            begun_inputs(directory)
    if record is not None:
        with noting(damage):
            pulled = is_pulled(record)
            read_certificate(record)
        if fingerprint(record.stage, record.version, record.config, record.inputs) != directory.name:
            damage[str(directory / "record.json")] = "configuration or inputs do not match the fingerprint"
    listed = _listed(record, damage) if record else None
    files, size = _check_shards(directory, listed, damage)
    if record is not None:
        files, size = record.summary.files, record.summary.bytes
    return _Checked(directory, record, files, size, pulled, damage)


def _listed(record: Record, damage: dict[str, str]) -> Iterator[Completion] | None:
    """Return what a record lists; None, with the damage, if its list of shards cannot be read."""
    with noting(damage):
        if record.shard_list.summary() != record.summary:
            damage[str(record.directory / "record.json")] = "does not add up to its list of shards"
        return record.completions()
    return None


def _check_shards(directory: Path, listed: Iterator[Completion] | None, damage: dict[str, str]) -> tuple[int, int]:
    """Check the files of all shards, and their completions against what the record lists, if it is known.

    Returns:
        Number and bytes of the files of the shards that no record lists.
    """
    unlisted, files, size = _shards_done(directory, damage), 0, 0
    for recorded in listed or ():
        unlisted.discard(recorded.shard)
        done = _completion(directory, recorded.shard, damage)
        entries = [*recorded.files.values()]
        if done != recorded:
            path = str(completion_path(directory, recorded.shard))
            damage.setdefault(path, "is missing or differs from the entry in the record")
            entries += done.files.values() if done else ()
        for entry in entries:
            _check_file(directory, entry, damage)
    for shard in sorted(unlisted):
        done = _completion(directory, shard, damage)
        for entry in done.files.values() if done else ():
            _check_file(directory, entry, damage)
            files, size = files + 1, size + entry.bytes
    return files, size


def _shards_done(directory: Path, damage: dict[str, str]) -> set[int]:
    """Return the numbers of the shards that have a completion."""
    numbers = set()
    for path in (directory / "done").glob("[0-9]*.json"):
        try:
            numbers.add(int(path.stem))
        except ValueError:
            damage[str(path)] = "is not the completion of a shard"
    return numbers


def _completion(directory: Path, shard: int, damage: dict[str, str]) -> Completion | None:
    """Return the completion of a shard; None, with the damage, if it cannot be read."""
    with noting(damage):
        return read_completion(directory, shard)
    return None


def _check_file(directory: Path, entry: Entry, damage: dict[str, str]) -> None:
    """Check the bytes of a file, and the number of rows of a table."""
    path = directory / entry.path
    try:
        with noting(damage):
            InputFile(path, entry.sha256).verified()
            rows = pq.read_metadata(path).num_rows if path.suffix == ".parquet" else 0
            if rows != entry.rows:
                damage[str(path)] = f"has {rows:,} rows, but {entry.rows:,} are recorded"
    except (OSError, pa.ArrowException) as error:
        damage[str(path)] = f"cannot be read: {first_line(error)}"


def _links(each: _Checked, made: Mapping[str, _Checked]) -> tuple[dict[str, str | None], dict[str, str]]:
    """Return what an output was made from, and the inputs that are missing.

    A damaged input is reported in its own folder.
    """
    made_from: dict[str, str | None] = {}
    broken: dict[str, str] = {}
    for name, content in each.record.inputs.items() if each.record else ():
        source = made.get(content)
        made_from[name] = f"{source.directory.parent.name}/{source.directory.name}" if source else None
        if source is None and name in LINKS and not each.pulled:
            record = str(each.directory / "record.json")
            if any(other.lost and other.directory.parent.name == LINKS[name] for other in made.values()):
                continue  # it is most likely that input, whose damage is already listed
            broken[record] = f"was made from `{name}` {content[:12]}, but no output of `{LINKS[name]}` has that content"
    return made_from, broken


def _pointers(work: Path) -> dict[str, str]:
    """Return pointers (`current`) that are damaged, or missing although their stage has outputs."""
    damage: dict[str, str] = {}
    for stage in sorted({path.parents[1] for path in work.glob("*/[!.]*/record.json")}):
        if not (stage / CURRENT).exists():
            damage[str(stage / CURRENT)] = "is missing"
    for pattern in PATTERNS:
        stage_name = pattern.partition("/")[0]
        made = [path.parent for path in work.glob(f"{stage_name}/[!.]*/record.json")]
        if any(not (folder / PULLED).exists() for folder in made) and not any(work.glob(pattern)):
            damage[str(work / pattern)] = "are missing: `rpt data` writes them"
    for path in sorted(path for pattern in (f"*/{CURRENT}", *PATTERNS) for path in work.glob(pattern)):
        with noting(damage):
            read_pointer(path)
    return damage
