"""Small sealed files in an output's folder that say where it stands: it was begun, or it was pulled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.config.errors import IntegrityError
from pipeline.core.artifact import Record, name_of
from pipeline.core.sealed import read_sealed, write_sealed

BEGUN = "begun.json"
"""In the folder of an output that is not complete: what it is made from."""


def mark_begun(directory: Path, inputs: Mapping[str, str]) -> None:
    """Say what an output is made from, while there is no record that says it."""
    write_sealed(directory / BEGUN, {"of": name_of(directory), "inputs": dict(inputs)})


def begun_inputs(directory: Path) -> dict[str, str]:
    """The inputs of an output that is not complete, as far as it says them.

    Raises:
        IntegrityError: what says so was changed.
    """
    path = directory / BEGUN
    if not path.exists():
        return {}
    tree = read_sealed(path)
    if tree.get("of") != name_of(directory):
        raise IntegrityError("is of another output", where=path, hint="delete it, run `rpt data` again")
    return dict(tree["inputs"])


PULLED = "pulled.json"
"""In the folder of an output that was pulled: what it was made from lies elsewhere."""


def mark_pulled(record: Record) -> None:
    """Say so."""
    write_sealed(record.directory / PULLED, {"of": name_of(record.directory), "inputs": dict(record.inputs)})


def is_pulled(record: Record) -> bool:
    """Whether an output was made on another machine.

    Raises:
        IntegrityError: what says so was changed.
    """
    path = record.directory / PULLED
    if not path.exists():
        return False
    if read_sealed(path) != {"of": name_of(record.directory), "inputs": dict(record.inputs)}:
        raise IntegrityError("is of another output", where=path, hint="pull it again")
    return True
