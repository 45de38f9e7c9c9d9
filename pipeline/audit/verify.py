"""Whether everything that was published is still what was recorded: every file's bytes, every record, every link."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.artifact import Completion, InputFile, Record, fingerprint, read_completion, read_record
from pipeline.core.errors import IntegrityError

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
"""Input's name → the stage whose output it is. Other inputs (sources, tokenizers, models, flags) lie elsewhere; their
hashes are recorded, but nothing says where their bytes are now."""


@dataclass(frozen=True)
class _Checked:
    """One folder `work/<manifest>/<stage>/<fingerprint>/`."""

    directory: Path
    record: Record | None
    """None: it cannot be read."""
    done: tuple[Completion, ...]
    damage: dict[str, str]
    """Path → what is wrong with it."""

    @property
    def names(self) -> set[str]:
        """What others may call it by in their `inputs`: its content (its bytes may be gone: its name stays) or name."""
        known = {self.directory.name}
        return known | {self.record.content} if self.record else known


def verify(work: Path) -> dict[str, Any]:
    """Read every published file of a manifest's folder again.

    Args:
        work: the manifest's folder.

    Returns:
        `ok`; `stages`: a row an output, with its `damage` and `made_from` (input → stage/fingerprint, or None: not the
        output of a stage); `damage`: all of it, a row a file.
    """
    checked = [_check(path.parent) for path in sorted(work.glob("*/[!.]*/record.json"))]
    made = {name: each for each in checked for name in each.names}
    rows: list[dict[str, Any]] = []
    for each in checked:
        made_from, broken = _links(each, made)
        rows.append(
            {
                "stage": each.directory.parent.name,
                "fingerprint": each.directory.name,
                "files": sum(len(done.files) for done in each.done),
                "bytes": sum(entry.bytes for done in each.done for entry in done.files.values()),
                "made_from": made_from,
                "damage": [{"where": where, "what": what} for where, what in (each.damage | broken).items()],
            }
        )
    damage = [item for row in rows for item in row["damage"]] + _pointers(work)
    return {"work": str(work), "ok": not damage, "stages": rows, "damage": damage}


def _check(directory: Path) -> _Checked:
    """Hash what a record lists; where the record is damaged, what the completions of its shards list."""
    damage: dict[str, str] = {}
    record: Record | None = None
    try:
        record = read_record(directory)
    except IntegrityError as error:
        damage[error.where] = error.what
    except (KeyError, TypeError):
        damage[str(directory / "record.json")] = "not a record"
    done: tuple[Completion, ...] = record.completions if record else _completions(directory, damage)
    for entry in (entry for completion in done for entry in completion.files.values()):
        try:
            InputFile(directory / entry.path, entry.sha256).verified()
        except IntegrityError as error:
            damage[error.where] = error.what
    if record and fingerprint(record.stage, record.version, record.config, record.inputs) != directory.name:
        damage[str(directory / "record.json")] = "the record's configuration or inputs are not those of its fingerprint"
    return _Checked(directory, record, done, damage)


def _completions(directory: Path, damage: dict[str, str]) -> tuple[Completion, ...]:
    found = []
    for path in sorted((directory / "done").glob("[0-9]*.json")):
        try:
            found.append(read_completion(directory, int(path.stem)))
        except (IntegrityError, KeyError, TypeError):
            damage[str(path)] = "not a shard's completion"
    return tuple(filter(None, found))


def _links(each: _Checked, made: Mapping[str, _Checked]) -> tuple[dict[str, str | None], dict[str, str]]:
    """What an output was made from, and which of that is not there. A damaged source is damage of its own folder."""
    made_from: dict[str, str | None] = {}
    broken: dict[str, str] = {}
    for name, content in each.record.inputs.items() if each.record else ():
        source = made.get(content)
        made_from[name] = f"{source.directory.parent.name}/{source.directory.name}" if source else None
        if source is None and name in LINKS:
            record = str(each.directory / "record.json")
            if any(other.record is None and other.directory.parent.name == LINKS[name] for other in made.values()):
                continue  # most likely that one, whose damage is listed
            broken[record] = f"made from `{name}` {content[:12]}, and no `{LINKS[name]}` has that content"
    return made_from, broken


def _pointers(work: Path) -> list[dict[str, str]]:
    """`current` files that point to nothing."""
    pointers = sorted(work.glob("*/current"))
    lost = [path for path in pointers if not (path.parent / path.read_text().strip() / "record.json").exists()]
    return [{"where": str(path), "what": "names an output that is not complete or not there"} for path in lost]
