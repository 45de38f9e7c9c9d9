"""The reader of each format: the records of a slice of a file, each with its location, its bytes and its columns.

A record that cannot be parsed is still a record, with the reason as its value. Therefore these are readers of our own
over Arrow and the standard library: `datasets` (tried: 5.2) stops at a line that is not JSON, reads the text "7" of a
mixed column as a number, takes the last of two values under one name, and keeps neither bytes nor offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from pipeline.config.corpus import CorpusConfig
from pipeline.corpus.readers.csv import read_csv
from pipeline.corpus.readers.dataset import read_dataset
from pipeline.corpus.readers.json import read_json, read_json_lines
from pipeline.corpus.readers.markup import read_html, read_xml
from pipeline.corpus.readers.parquet import read_parquet
from pipeline.corpus.readers.records import Record, Slice
from pipeline.corpus.readers.tables import read_arrow, read_feather, read_orc
from pipeline.corpus.readers.text import read_text
from pipeline.corpus.sources.opening import SourceFile, source_errors


def read_records(part: Slice, config: CorpusConfig) -> Iterator[Record]:
    """Yield the records of a slice, in file order.

    Raises:
        UserError: the file cannot be read: missing, truncated, damaged, or not of its format.
    """
    with source_errors(part.file.name):
        yield from _READERS[part.file.format](part, config)


def is_cut_by_bytes(file: SourceFile, config: CorpusConfig) -> bool:
    """Return whether slices of a file can begin at any line or paragraph of its unpacked bytes."""
    if config.records is not None:  # the elements of lists are counted from the start of the file
        return False
    in_utf8 = config.encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    return in_utf8 and (file.format == "jsonl" or (file.format == "text" and config.document_break != "file"))


_READERS: Mapping[str, Callable[[Slice, CorpusConfig], Iterator[Record]]] = {
    "jsonl": read_json_lines,
    "json": read_json,
    "text": read_text,
    "csv": read_csv,
    "tsv": read_csv,
    "html": read_html,
    "xml": read_xml,
    "parquet": read_parquet,
    "orc": read_orc,
    "feather": read_feather,
    "arrow": read_arrow,
    "dataset": read_dataset,
}
