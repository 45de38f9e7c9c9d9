"""Sealed files beside an output's record: it was begun, it was pulled from elsewhere, or it was judged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.errors import IntegrityError
from pipeline.core.artifact import Record
from pipeline.core.completion import name_of
from pipeline.core.sealed import read_sealed, replace_sealed, write_sealed

BEGUN = "begun.json"
"""File in the folder of an incomplete output with the inputs that it is made from."""


def mark_begun(directory: Path, inputs: Mapping[str, str]) -> None:
    """Record what an output is made from, until there is a full record."""
    write_sealed(directory / BEGUN, {"of": name_of(directory), "inputs": dict(inputs)})


def begun_inputs(directory: Path) -> dict[str, str]:
    """Return the recorded inputs of an incomplete output; empty if there is no such file.

    Raises:
        IntegrityError: the marker was changed.
    """
    path = directory / BEGUN
    if not path.exists():
        return {}
    tree = read_sealed(path)
    if tree.get("of") != name_of(directory) or not isinstance(tree.get("inputs"), dict):
        raise IntegrityError("this file belongs to another output", where=path, hint="delete it, run `rpt data` again")
    return dict(tree["inputs"])


PULLED = "pulled.json"
"""File in the folder of an output that was pulled, whose inputs are on another machine."""


def mark_pulled(record: Record) -> None:
    """Mark an output as pulled."""
    write_sealed(record.directory / PULLED, {"of": name_of(record.directory), "inputs": dict(record.inputs)})


def is_pulled(record: Record) -> bool:
    """Return whether an output was pulled, that is, made on another machine.

    Raises:
        IntegrityError: the marker was changed.
    """
    path = record.directory / PULLED
    if not path.exists():
        return False
    if read_sealed(path) != {"of": name_of(record.directory), "inputs": dict(record.inputs)}:
        raise IntegrityError("this file belongs to another output", where=path, hint="pull it again")
    return True


CERTIFICATE = "certificate.json"
"""File in the folder of a selection with what was measured of it, and the verdict."""


def write_certificate(record: Record, found: Mapping[str, Any]) -> None:
    """Write the certificate of a selection, over an earlier one."""
    replace_sealed(record.directory / CERTIFICATE, {"of": name_of(record.directory), **found})


def read_certificate(record: Record) -> dict[str, Any] | None:
    """Return the certificate of a selection, or None if there is none.

    Raises:
        IntegrityError: it was changed, or belongs to another selection.
    """
    path = record.directory / CERTIFICATE
    if not path.exists():
        return None
    found = read_sealed(path)
    if found.pop("of", None) != name_of(record.directory):
        raise IntegrityError("certificate of another selection", where=path, hint="delete it, run `rpt select` again")
    return found
