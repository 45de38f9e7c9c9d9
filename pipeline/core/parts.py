"""Parts of a shard: what a long computation has done, kept until the shard is published.

A stage whose shards take long adds the rows of some items after the other to `Parts`. Every few seconds they are
published as a part, in a folder beside the stage's scratch folders:

    parts/00003/00000120/            a part: rows of the items from number 120 on
        scores.parquet               its tables
        part.json                    written into it last: where it ends, and its counters
    parts/00003/progress.json        how far the shard is, for the line of progress

A part appears whole or not at all. A killed run goes on after the last one, and the shard's tables are put together
from its parts: their bytes do not depend on where a run was interrupted, if its rows do not.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.core.artifact import Counters, InputFile
from pipeline.core.files import flush, progress_file
from pipeline.core.parquet import parquet_writer, read_table
from pipeline.core.sealed import read_sealed, write_sealed

FOLDER, ABOUT, PROGRESS = "parts", "part.json", "progress.json"
SECONDS = 5.0
"""Least time between two parts: what a killed run loses at most, besides the rows that are being computed."""


TELL_EVERY = 1.0
"""Least seconds between two reports of a `Teller`."""


class Share(NamedTuple):
    """How much has been done: shards, with fractions, and units of work."""

    shards: float
    units: int


@dataclass(frozen=True)
class Rows:
    """The result for some consecutive items: rows by table (a table may be missing), counters and units of work."""

    items: int
    tables: Mapping[str, pa.Table]
    counters: Counters
    units: int


class Parts:
    """The parts of one shard. `done` is the number of its first items that published parts hold.

    Args:
        scratch: the scratch folder that the stage's function was given.
        items: number of items of the shard.
    """

    def __init__(self, scratch: Path, items: int) -> None:
        self._folder = parts_folder(scratch.parent.parent, int(scratch.name.partition(".")[0]))
        self._folder.mkdir(parents=True, exist_ok=True)
        self._items = items
        self.done, self._units = 0, 0
        for _, about in self._chain():
            self.done, self._units = about["stop"], self._units + about["units"]
        self._waiting: list[Rows] = []
        self._last = time.monotonic()

    def add(self, rows: Rows) -> None:
        """Add the result for the next items. It is published with others once the last part is `SECONDS` old."""
        self._waiting.append(rows)
        if time.monotonic() - self._last >= SECONDS:
            self.publish()
        self._tell()

    def publish(self) -> None:
        """Publish what has been added since the last part."""
        if not self._waiting:
            return
        part = self._folder / f"{self.done:08d}"
        made = part.with_name(f".{part.name}.{uuid.uuid4().hex[:12]}")
        made.mkdir()
        for name in dict.fromkeys(name for rows in self._waiting for name in rows.tables):
            table = pa.concat_tables([rows.tables[name] for rows in self._waiting if name in rows.tables])
            with parquet_writer(made / f"{name}.parquet", table.schema) as writer:
                writer.write_table(table)
            flush(made / f"{name}.parquet")
        counters = Counter[str]()
        for rows in self._waiting:
            counters.update(rows.counters)
        items, units = self._added()
        about = {"stop": self.done + items, "counters": dict(counters), "units": units}
        write_sealed(made / ABOUT, about)
        flush(made)
        if part.exists() and not (part / ABOUT).exists():  # somebody deleted the file
            shutil.rmtree(part)
        try:
            os.rename(made, part)
        except OSError:  # another process, which works here without a lock, was first: its part counts
            if not part.exists():
                raise
            shutil.rmtree(made)
        flush(self._folder)
        self.done, self._units = self.done + items, self._units + units
        self._waiting, self._last = [], time.monotonic()

    def tables(self, name: str) -> Iterator[pa.Table]:
        """Yield a table's rows, part after part.

        Raises:
            IntegrityError: a part is damaged; the message names it.
        """
        for part, _ in self._chain():
            if (path := part / f"{name}.parquet").exists():
                yield read_table(InputFile(path))

    def counters(self) -> Counters:
        """Return the counters, summed over the parts."""
        total = Counter[str]()
        for _, about in self._chain():
            total.update(about["counters"])
        return dict(total)

    def _chain(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yield the parts with what their `part.json` says, each beginning where the one before it ended."""
        start = 0
        while ((part := self._folder / f"{start:08d}") / ABOUT).exists():
            about = read_sealed(part / ABOUT)
            yield part, about
            start = about["stop"]

    def _added(self) -> tuple[int, int]:
        """Return the items and the units of work that were added since the last part."""
        return sum(rows.items for rows in self._waiting), sum(rows.units for rows in self._waiting)

    def _tell(self) -> None:
        """Write how much of the shard is done, added rows included."""
        items, units = self._added()
        new = self._folder / f".{uuid.uuid4().hex[:12]}"
        new.write_text(json.dumps(((self.done + items) / self._items, self._units + units)))
        os.replace(new, self._folder / PROGRESS)


class Teller:
    """Tells how much of a shard is done where no parts are kept, for the line of progress.

    The file lies beside the scratch folder, with which it is removed: it says nothing of a worker that was killed.

    Args:
        scratch: the scratch folder that the stage's function was given.
        units: units of work of the shard; None if they are not known, so that only the rate is told.
    """

    def __init__(self, scratch: Path, units: int | None = None) -> None:
        self._path, self._total = progress_file(scratch), units
        self._done, self._last = 0, time.monotonic()

    def add(self, units: int = 1) -> None:
        """Count units of work that are done; at most once in `TELL_EVERY` seconds they are told."""
        self._done += units
        if (now := time.monotonic()) - self._last >= TELL_EVERY:
            self._last = now
            share = min(self._done / self._total, 1.0) if self._total else 0.0
            new = self._path.with_name(f".{uuid.uuid4().hex[:12]}")
            new.write_text(json.dumps((share, self._done)))
            os.replace(new, self._path)


def parts_folder(directory: Path, shard: int) -> Path:
    """Return the folder of a shard's parts in a stage's folder."""
    return directory / FOLDER / f"{shard:05d}"


def share_done(directory: Path) -> Share:
    """Return how much of the shards that are not published yet has been done, as their workers tell."""
    shards, units = 0.0, 0
    for path in (*directory.glob(f"{FOLDER}/*/{PROGRESS}"), *directory.glob(str(progress_file(Path("tmp/*"))))):
        with contextlib.suppress(OSError):  # published meanwhile
            share, count = json.loads(path.read_text())
            shards, units = shards + share, units + count
    return Share(shards, units)


def remove_parts(directory: Path, shard: int) -> None:
    """Remove the parts of a published shard."""
    shutil.rmtree(parts_folder(directory, shard), ignore_errors=True)
