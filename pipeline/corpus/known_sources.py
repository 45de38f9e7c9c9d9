"""What earlier scans told of source files, so that an unchanged file is neither read nor hashed again.

A file of the manifest's folder, `sources.jsonl`, has a line per scan. A scan is taken from there if the file has the
same *state* as then: on this machine its size, time of change and inode; on the Hub the commit in its address; in an
object store or on a web server its size with the ETag, generation or checksum that the store gives. A file without
such a state is scanned every time. Whatever is read later is compared with the remembered hashes, block by block.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from pipeline.config.base import canonical_json
from pipeline.config.corpus import CorpusConfig
from pipeline.corpus.scan import Scan, scan, scanned
from pipeline.corpus.sources.checksums import Checksums
from pipeline.corpus.sources.opening import HUB, SourceFile, source_errors

VERSION = 1
"""Raised when `scan` finds something else in the same file."""

_SETTLED = 2.0
"""Seconds since the last change of a file before it is remembered: a later change has another time for certain, even
where times are whole seconds."""

_STRONG = ("ETag", "etag", "md5Hash", "md5", "content_md5", "crc32c", "checksum", "sha256", "generation", "version_id")
"""What object stores call a value that differs for other content."""


class KnownSources:
    """The scans of a manifest's source files. Threads and processes may use it at the same time."""

    def __init__(self, path: Path) -> None:
        """Read the scans in a file; damaged lines, as a killed process leaves them, are ignored.

        Args:
            path: `sources.jsonl`; it need not exist.
        """
        self._path, self._lock = path, threading.Lock()
        self._known: dict[str, dict[str, Any]] = {}
        if path.is_file():
            with path.open("rb") as lines:
                for line in lines:
                    if (entry := _entry(line)) is not None:
                        self._known[entry["key"]] = entry

    def scan(self, file: SourceFile, config: CorpusConfig, slice_bytes: int) -> Scan:
        """Return the scan of a file: a remembered one, or a new one, which is then remembered.

        Args:
            file: the file.
            config: the configuration of its source.
            slice_bytes: as for `scan`.

        Raises:
            UserError: the file cannot be read.
        """
        key = _key(file, config, slice_bytes)
        with source_errors(file.name):
            state = state_of(file)
        known = self._known.get(key)
        if state is not None and known is not None and known["state"] == state:
            return _from_tree(file, known["scan"])
        began = time.time()
        found = scan(file, config, slice_bytes)
        with source_errors(file.name):
            settled = state is not None and state == state_of(file) and _changed(file) < began - _SETTLED
        if settled:
            self._remember({"key": key, "state": state, "name": file.name, "scan": _tree(found)})
        return found

    def _remember(self, entry: Mapping[str, Any]) -> None:
        text = canonical_json(entry)
        line = f"{hashlib.sha256(text.encode()).hexdigest()} {text}\n".encode()
        # Where the folder cannot be written, the file is scanned again next time; a stage that has to write says so.
        with self._lock, suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab", buffering=0) as file:
                file.write(line)  # one call, so that lines of several processes do not mix


def state_of(file: SourceFile) -> list[Any] | None:
    """Return a value that differs once the content of a file does, as far as its file system tells; None if unknown.

    A file on this machine that is overwritten in place with as many bytes, and whose time of change is then set back,
    has the same state.
    """
    if HUB.fullmatch(file.url):
        return [file.url]
    if file.url.startswith("file://"):
        status = os.stat(file.url.removeprefix("file://"))
        return [status.st_size, status.st_mtime_ns, status.st_ino]
    fs, path = url_to_fs(file.url)
    about = fs.info(path)
    strong = {name: str(about[name]) for name in _STRONG if about.get(name)}
    if not strong or any(value.startswith("W/") for value in strong.values()):
        return None
    return [about.get("size"), strong]


def _changed(file: SourceFile) -> float:
    """Return when a file on this machine was changed (seconds since 1970); 0 elsewhere, where no state rests on it."""
    local = file.url.startswith("file://")
    return os.stat(file.url.removeprefix("file://")).st_mtime if local else 0.0


def _key(file: SourceFile, config: CorpusConfig, slice_bytes: int) -> str:
    about = asdict(replace(file, checksums=None))
    settings = [config.identity(), config.execution_settings(), slice_bytes]  # limits are no part of the identity
    return hashlib.sha256(canonical_json([VERSION, about, settings]).encode()).hexdigest()


def _entry(line: bytes) -> dict[str, Any] | None:
    """Return the entry in a line, or None if any byte of it is not as it was written."""
    digest, _, text = line.rstrip(b"\n").partition(b" ")
    if hashlib.sha256(text).hexdigest().encode() != digest:
        return None
    entry: dict[str, Any] = json.loads(text)
    return entry


def _tree(found: Scan) -> dict[str, Any]:
    checksums = found.file.checksums
    return {
        "checksums": asdict(checksums) if checksums else None,
        "cuts": [(part.start, part.row) for part in found.slices],
        "columns": found.columns,
        "found": found.found,
    }


def _from_tree(file: SourceFile, tree: Mapping[str, Any]) -> Scan:
    checksums = Checksums(**tree["checksums"]) if tree["checksums"] else None
    cuts: Sequence[tuple[int, int]] = [(start, row) for start, row in tree["cuts"]]
    return scanned(replace(file, checksums=checksums), cuts, tuple(tree["columns"]), tree["found"])
