"""Completions: what a finished shard has published, and its counters, in a sealed file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.config.errors import IntegrityError
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
class Completion:
    """The result of a finished shard: published files and counters."""

    shard: int
    files: Mapping[str, Entry]
    counters: Counters
    seconds: float


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
    completion: Completion = validated(_COMPLETION, tree, path)
    if (tree.get("of"), completion.shard) != (name_of(directory), shard):
        raise IntegrityError("completion of another shard or output", where=path, hint=RUN_AGAIN)
    return completion


def completion_path(directory: Path, shard: int) -> Path:
    """Return the path of a shard's completion."""
    return directory / "done" / f"{shard:05d}.json"


def name_of(directory: Path) -> str:
    """Return `<stage>/<fingerprint>`, the name of an output in any work folder."""
    return f"{directory.parent.name}/{directory.name}"


_COMPLETION = TypeAdapter(Completion)


def validated(kind: TypeAdapter[Any], tree: object, path: Path) -> Any:
    """Return the value that the JSON of a sealed file stands for.

    Raises:
        IntegrityError: it is not what a stage writes.
    """
    try:
        return kind.validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"not what a stage writes: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise IntegrityError(what, where=path, hint=RUN_AGAIN) from error
