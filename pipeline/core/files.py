"""Files: atomic writes (under another name, made durable, then moved into place), and how large files are."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path


@contextmanager
def atomic_replacement(path: Path) -> Iterator[Path]:
    """Yield a temporary path; the file written there atomically replaces `path`, unless an error is raised."""
    with _written_beside(path) as temporary:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)


@contextmanager
def _written_beside(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Replace the content of a file with `text`, atomically."""
    with atomic_replacement(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_text(path: Path, text: str) -> None:
    """Create a file with `text` atomically and durably; an existing one stays unchanged: the first writer wins."""
    with _written_beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        flush(temporary)
        move_if_absent(temporary, path)


def flush(path: Path) -> None:
    """Make the content of a file, or the entries of a folder, durable (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_if_absent(source: Path, target: Path) -> None:
    """Move `source` to `target` unless something is there already (then it has the same content)."""
    # A hard link is created only if the name is free. Folders cannot be linked, but `rename` onto a folder that is not
    # empty fails as well.
    try:
        os.rename(source, target) if source.is_dir() else os.link(source, target)
    except OSError:
        if not target.exists():
            raise
    flush(target.parent)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return sum(each.st_size for each in status_of_all(path) if stat.S_ISREG(each.st_mode))


def status_of_all(path: Path) -> Iterator[os.stat_result]:
    """Yield the status of a path and of everything in it, without what a running stage removes meanwhile."""
    inside = (Path(folder, name) for folder, *names in os.walk(path) for name in chain(*names))
    for each in chain([path], inside):
        with suppress(FileNotFoundError):
            yield each.stat()


def progress_file(scratch: Path) -> Path:
    """Return the file beside a shard's scratch folder in which its worker tells how far it is."""
    return scratch.with_name(f"{scratch.name}.progress")
