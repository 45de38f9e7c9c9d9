"""Sealed JSON files, which carry a hash of themselves, and locks on folders.

A sealed file is an object whose last member, `sha256`, hashes all the others. It is accepted only if every byte is as
it was written, so that flipped bits and edits by hand are both noticed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.config.base import canonical_json
from pipeline.config.errors import IntegrityError
from pipeline.core.files import replace_text, write_text
from pipeline.core.progress import log

SEAL = "sha256"


def write_sealed(path: Path, tree: Mapping[str, Any]) -> None:
    """Create `path` atomically with a sealed object; an existing file stays unchanged."""
    write_text(path, _text(tree))


def replace_sealed(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a sealed object atomically, over an existing file."""
    replace_text(path, _text(tree))


def read_sealed(path: Path) -> dict[str, Any]:
    """Return the object in a sealed file, without its seal.

    Raises:
        IntegrityError: the file is not as `write_sealed` wrote it.
    """
    try:
        text = path.read_bytes().decode()
        tree = json.loads(text)
        del tree[SEAL]
        whole = text == _text(tree)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        whole = False
    if not whole:
        raise IntegrityError(
            "the file was changed after it was written, or an earlier version of rpt wrote it",
            where=path,
            hint="delete it and run `rpt data` again: shards that are done stay done",
        )
    return dict(tree)


def _text(tree: Mapping[str, Any]) -> str:
    seal = hashlib.sha256(canonical_json(tree).encode()).hexdigest()
    return json.dumps({**tree, SEAL: seal}, indent=1, ensure_ascii=False)


def write_json(path: Path, value: Any) -> None:
    """Create `path` atomically with `value` as JSON; an existing file stays unchanged."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False))


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[bool]:
    """Lock a folder: other processes wait here until this one releases it, or dies.

    Yields:
        Whether it is locked. Some network file systems have no such locks: then both processes go on, and the first
        finisher wins, because every publish is a create-if-absent.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield _lock(descriptor, folder)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log(f"{folder.parent.name:<12} waiting: another process works on {folder}")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return False
    return True
