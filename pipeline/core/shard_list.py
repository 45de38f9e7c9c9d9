"""The list of an output's shards: a row per shard in a Parquet file of the folder `done`, whose sha256 its record has.

A record of a million shards is thereby read in a moment, and of the list only what is asked for. Its columns:

    shard                  number of the shard, which is also the number of the row
    seconds                seconds that the shard took
    counters/<name>        a counter; null where a shard has none of that name
    files/<table>/path     the published file of a table, likewise `rows`, `bytes`, `sha256`; null where there is none
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config.errors import IntegrityError, UserError, first_line, refused
from pipeline.core.completion import Completion, Counters, Entry
from pipeline.core.files import atomic_replacement

TEXT_DIGEST = "text_digest"
"""Name of the file in which `ingest` publishes, for each shard, the hash of what models read of its documents."""

ROWS = 1 << 14
"""Shards of a row group, which is what memory holds as Python objects while a list is written or gone through."""

_OF_FILE = {"path": pa.string(), "rows": pa.int64(), "bytes": pa.int64(), "sha256": pa.binary(32)}
_COUNTER, _FILE = "counters/", "files/"
_HINT = "delete the `record.json` of its output and run `rpt data` again: shards that are done stay done"


@dataclass(frozen=True)
class TableSummary:
    """The files of one table in all shards together."""

    files: int
    rows: int
    bytes: int


@dataclass(frozen=True)
class Summary:
    """What all shards of an output have published together."""

    shards: int
    tables: Mapping[str, TableSummary]
    counters: Counters
    """Counters, summed over shards."""
    seconds: float
    """Sum of the shards' own seconds (not wall time)."""
    content: str
    """Hash of everything published, which enters the fingerprints of downstream stages."""
    text_content: str
    """Hash of what models read of documents, and `content` of an output that has no `TEXT_DIGEST`. Stages that read
    nothing else take it as their input, so that a renamed source file does not repeat them."""

    @property
    def files(self) -> int:
        """Return the number of published files."""
        return sum(table.files for table in self.tables.values())

    @property
    def rows(self) -> int:
        """Return the rows of all published tables together."""
        return sum(table.rows for table in self.tables.values())

    @property
    def bytes(self) -> int:
        """Return the bytes of all published files."""
        return sum(table.bytes for table in self.tables.values())

    @property
    def sizes(self) -> dict[str, int]:
        """Return the numbers of shards and of files, and their rows and bytes, by name."""
        return {"shards": self.shards, "files": self.files, "rows": self.rows, "bytes": self.bytes}


@dataclass(frozen=True)
class ShardList:
    """A list. Its file is read and hashed once, and methods decode what they need of it."""

    path: Path
    sha256: str
    data: bytes | None = field(default=None, compare=False, repr=False)
    """The bytes of the file, of a list that has none yet."""

    @classmethod
    def of(cls, completions: Iterable[Completion], directory: Path) -> ShardList:
        """Return the list of completions, which are those of the shards 0, 1, …; `save` writes it."""
        sink = pa.BufferOutputStream()
        shards = _table(completions)
        with pq.ParquetWriter(
            sink,
            shards.schema,
            compression="zstd",
            use_dictionary=False,
            write_page_checksum=True,
            write_statistics=False,
        ) as writer:
            writer.write_table(shards.combine_chunks(), row_group_size=ROWS)
        data = sink.getvalue().to_pybytes()
        found = hashlib.sha256(data).hexdigest()
        return cls(list_path(directory, found), found, data)

    def save(self, directory: Path) -> ShardList:
        """Write the list for a record in this folder that will name it, and return it as it lies there."""
        path = list_path(directory, self.sha256)
        with atomic_replacement(path) as temporary:  # over a damaged one: its name says what it has to hold
            temporary.write_bytes(self._bytes)
        return ShardList(path, self.sha256)

    def completions(self) -> Iterator[Completion]:
        """Yield the completions in the order of the shards, `ROWS` of them in memory at a time.

        Raises:
            IntegrityError: the list is missing or was changed, or names a file outside its folder.
        """
        opened = self._open()
        for group in range(opened.num_row_groups):
            yield from _completions(self._checked(partial(opened.read_row_group, group)))

    def files(self, table: str) -> list[tuple[str, str] | None]:
        """Return path and sha256 of a table's file in every shard, None where there is none; reads two columns.

        Raises:
            IntegrityError: the list is missing or was changed, or names a file outside its folder.
        """
        opened, names = self._open(), [f"{_FILE}{table}/{key}" for key in ("path", "sha256")]
        if not set(names) <= set(opened.schema_arrow.names):
            return [None] * int(opened.metadata.num_rows)
        path, sha256 = self._checked(partial(opened.read, names)).select(names).columns
        pairs = zip(path.to_pylist(), sha256.to_pylist(), strict=True)
        return [None if name is None or digest is None else (name, digest.hex()) for name, digest in pairs]

    def rows(self, table: str) -> list[int]:
        """Return the rows of a table in every shard, 0 where it has none; reads one column.

        Raises:
            IntegrityError: the list is missing or was changed.
        """
        opened, name = self._open(), f"{_FILE}{table}/rows"
        if name not in opened.schema_arrow.names:
            return [0] * int(opened.metadata.num_rows)
        rows: list[int] = self._checked(partial(opened.read, [name]))[name].fill_null(0).to_pylist()
        return rows

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Yield path and bytes of every published file.

        Raises:
            IntegrityError: the list is missing or was changed, or names a file outside its folder.
        """
        opened = self._open()
        for table in _tables(opened.schema_arrow.names):
            names = [f"{_FILE}{table}/{key}" for key in ("path", "bytes")]
            path, size = self._checked(partial(opened.read, names)).select(names).columns
            pairs = zip(path.to_pylist(), size.to_pylist(), strict=True)
            yield from ((name, count) for name, count in pairs if name is not None)

    def summary(self) -> Summary:
        """Return what the list adds up to; reads all of it.

        Raises:
            IntegrityError: the list is missing or was changed, or names a file outside its folder.
        """
        return _summary(self._checked(self._open().read))

    @cached_property
    def _bytes(self) -> bytes:
        """The bytes of the file, whose hash was checked; some 50 a shard."""
        if self.data is not None:
            return self.data
        try:
            data = self.path.read_bytes()
        except OSError as error:
            if (why := refused(error)) is not None:
                raise UserError("file cannot be read", where=self.path, hint=why) from error
            raise IntegrityError("the list of shards is missing", where=self.path, hint=_HINT) from error
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise IntegrityError("the list of shards was changed after it was written", where=self.path, hint=_HINT)
        return data

    def _open(self) -> pq.ParquetFile:
        try:
            opened = pq.ParquetFile(pa.BufferReader(self._bytes), page_checksum_verification=True)
        except pa.ArrowException as error:
            raise self._foreign(first_line(error)) from error
        names = opened.schema_arrow.names
        counters = [name.removeprefix(_COUNTER) for name in names if name.startswith(_COUNTER)]
        if not opened.schema_arrow.remove_metadata().equals(_schema(counters, _tables(names))):
            raise self._foreign(f"columns: {', '.join(names)[:200]}")
        return opened

    def _checked(self, read: Callable[[], pa.Table]) -> pa.Table:
        """Return rows after looking at their names of files: a list may come from elsewhere."""
        try:
            rows = read()
        except (OSError, pa.ArrowException) as error:
            raise self._foreign(first_line(error)) from error
        for column in (name for name in rows.column_names if name.startswith(_FILE) and name.endswith("/path")):
            plain = pc.match_substring_regex(rows[column], r"^[^/\\\x00]+$")
            named = pc.and_(plain, pc.invert(pc.is_in(rows[column], value_set=pa.array([".", ".."]))))
            if not pc.all(named, min_count=0).as_py():
                bad = rows[column].filter(pc.invert(named))[0].as_py()
                raise IntegrityError(
                    f"record names a file outside its folder: {bad!r}", where=self.path, hint="do not trust it"
                )
        return rows

    def _foreign(self, what: str) -> IntegrityError:
        return IntegrityError(f"not a list of shards ({what})", where=self.path, hint="do not trust it")


def list_path(directory: Path, sha256: str) -> Path:
    """Return the path of the list that has this hash."""
    return directory / "done" / f"shards.{sha256[:12]}.parquet"


def _table(completions: Iterable[Completion]) -> pa.Table:
    waiting, parts = iter(completions), []
    while batch := list(islice(waiting, ROWS)):
        parts.append(_columns(batch))
    whole = pa.concat_tables(parts, promote_options="default") if parts else _schema((), ()).empty_table()
    counters = [name.removeprefix(_COUNTER) for name in whole.column_names if name.startswith(_COUNTER)]
    return whole.select(_schema(counters, _tables(whole.column_names)).names)


def _summary(shards: pa.Table) -> Summary:
    """Return what the rows of a list add up to."""
    names, tables = shards.column_names, _tables(shards.column_names)

    def total(column: str) -> int:
        return int(pc.sum(shards[column], min_count=0).as_py())

    content = _content(shards, tables)
    return Summary(
        shards=len(shards),
        tables={
            name: TableSummary(
                len(shards) - shards[f"{_FILE}{name}/sha256"].null_count,
                total(f"{_FILE}{name}/rows"),
                total(f"{_FILE}{name}/bytes"),
            )
            for name in tables
        },
        counters={name.removeprefix(_COUNTER): total(name) for name in names if name.startswith(_COUNTER)},
        seconds=round(pc.sum(shards["seconds"], min_count=0).as_py(), 3),
        content=content,
        text_content=_content(shards, [TEXT_DIGEST]) if TEXT_DIGEST in tables else content,
    )


def _content(shards: pa.Table, tables: Sequence[str]) -> str:
    """Return the hash of the canonical JSON of [table, shard, sha256] of every file, in order."""
    found, comma = hashlib.sha256(b"["), ""
    for table in sorted(tables):
        name = json.dumps(table, ensure_ascii=False)
        first = 0
        for chunk in shards[f"{_FILE}{table}/sha256"].chunks:
            listed = enumerate(chunk.to_pylist(), first)
            text = ",".join(f'[{name},{shard},"{sha256.hex()}"]' for shard, sha256 in listed if sha256 is not None)
            if text:
                found.update(f"{comma}{text}".encode())
                comma = ","
            first += len(chunk)
    found.update(b"]")
    return found.hexdigest()


def _schema(counters: Collection[str], tables: Collection[str]) -> pa.Schema:
    fields = [pa.field("shard", pa.int64()), pa.field("seconds", pa.float64())]
    fields += [pa.field(f"{_COUNTER}{name}", pa.int64()) for name in sorted(counters)]
    fields += [pa.field(f"{_FILE}{name}/{key}", kind) for name in sorted(tables) for key, kind in _OF_FILE.items()]
    return pa.schema(fields)


def _tables(columns: Iterable[str]) -> list[str]:
    """Return the tables of which there are columns."""
    return [
        c.removeprefix(_FILE).removesuffix("/sha256") for c in columns if c.startswith(_FILE) and c[-7:] == "/sha256"
    ]


def _columns(batch: Sequence[Completion]) -> pa.Table:
    counters = {name for done in batch for name in done.counters}
    tables = {name for done in batch for name in done.files}
    columns: dict[str, list[Any]] = {"shard": [c.shard for c in batch], "seconds": [c.seconds for c in batch]}
    columns |= {f"{_COUNTER}{name}": [done.counters.get(name) for done in batch] for name in counters}
    for name in tables:
        entries = [done.files.get(name) for done in batch]
        for key in _OF_FILE:
            columns[f"{_FILE}{name}/{key}"] = [entry and getattr(entry, key) for entry in entries]
        columns[f"{_FILE}{name}/sha256"] = [entry and bytes.fromhex(entry.sha256) for entry in entries]
    return pa.table(columns, schema=_schema(counters, tables))


def _completions(rows: pa.Table) -> Iterator[Completion]:
    values = {name: rows[name].to_pylist() for name in rows.column_names}
    counters = {name.removeprefix(_COUNTER): column for name, column in values.items() if name.startswith(_COUNTER)}
    files = {
        table: list(zip(*(values[f"{_FILE}{table}/{key}"] for key in _OF_FILE), strict=True))
        for table in _tables(rows.column_names)
    }
    for row, (shard, seconds) in enumerate(zip(values["shard"], values["seconds"], strict=True)):
        yield Completion(
            shard,
            {
                table: Entry(path, count, size, sha256.hex())
                for table, entries in files.items()
                for path, count, size, sha256 in (entries[row],)
                if sha256 is not None
            },
            {name: column[row] for name, column in counters.items() if column[row] is not None},
            seconds,
        )
