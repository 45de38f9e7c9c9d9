"""The corpus part of a manifest: where records come from, how they become documents, and which documents are used."""

from __future__ import annotations

import codecs
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.config.base import Config

Format = Literal["auto", "jsonl", "parquet", "csv", "tsv", "json", "text", "html", "xml", "orc", "feather", "arrow"]
"""How the records of a file are stored."""


def _known_encoding(name: str) -> str:
    """Return a name of an encoding whose characters do not depend on those before them.

    Raises:
        ValueError: Python does not know it, or it is such a one (ISO-2022, HZ, UTF-7), so that the bytes of a record
            could not be told.
    """
    try:
        stateless = codecs.lookup(name).name.startswith(("utf-16", "utf-32", "utf-8")) or all(
            (2 * text).encode(name, "ignore") == 2 * text.encode(name, "ignore")
            for text in ("a", "é", "あ", "中", "한")
        )
    except LookupError as error:
        raise ValueError(
            f"Python knows no text encoding {name!r} (known are utf-16, latin-1, cp1252, gb18030, …)"
        ) from error
    if not stateless:
        raise ValueError(f"in {name} a character depends on those before it: convert the files to UTF-8")
    return name


class CsvConfig(Config):
    """How the cells of CSV and TSV files are written."""

    delimiter: str = Field("auto", pattern=r'^(auto|[^"\r\n])$')
    """Character between two cells. `auto` finds it (`,`, `;`, tab or `|`) from the first lines of each file."""
    header: bool = True
    """Whether the first row names the columns. Without, they are named `0`, `1`, …"""
    quote: str = Field("auto", pattern=r"^(auto|none|[^\r\n])$")
    """Character around cells that hold delimiters or line ends. `none`: there is none. `auto`: `"`, and none in TSV
    files whose first lines cannot be read with it."""
    escape: str | None = Field(None, min_length=1, max_length=1)
    """Character that takes the meaning from the next one, such as a backslash. A doubled quote always counts as one."""


class ReadingConfig(Config):
    """How the files of a source are chosen and read."""

    locations: ClassVar[frozenset[str]] = frozenset({"revision", "include", "exclude"})
    added: ClassVar[frozenset[str]] = frozenset({"encoding", "records", "csv"})

    format: Format = "auto"
    """`auto` goes by the file name (`.jsonl`, `.jsonl.gz`, `.parquet`, `.csv.zst`, `.txt`, …). `text` takes every text
    file of a folder."""
    revision: str | None = None
    """Hub revision (a commit hash: a branch name is not reproducible)."""
    include: tuple[str, ...] = ()
    """Globs of the files that are taken from a folder or an archive (`*.py`, `src/**/*.md`); empty: all. One without
    `/` is compared with the file's own name."""
    exclude: tuple[str, ...] = ()
    """Globs of the files that are left out."""
    encoding: Annotated[str, AfterValidator(_known_encoding)] = "utf-8"
    """Encoding of text, JSON and CSV (`utf-16`, `latin-1`, `cp1252`, `gb18030`, …). It is never guessed."""
    records: str | None = None
    """JSON: dotted path of the list that has the records (`data.items`). `[]` goes into each element of a list
    (`data[].paragraphs`). XML: path of the elements from the outermost on (`feed.entry`). Not needed where only one
    list or element has the columns of `text`."""
    csv: CsvConfig = CsvConfig()
    """CSV and TSV files: delimiter, header, quotes."""


class ValidationConfig(Config):
    """Which documents are held out: a number, a fraction, a split, or those that a column of the corpus marks."""

    added: ClassVar[frozenset[str]] = frozenset({"split"})

    documents: int | None = Field(None, ge=0)
    """Exactly this many documents (fewer if the corpus is smaller), chosen by a hash of (seed, doc_id)."""
    fraction: float | None = Field(None, ge=0, lt=1)
    """About this share of the documents, chosen by the same hash: adding documents moves none."""
    column: str | None = None
    """Documents whose `column` equals `value`, for corpora that come with a split of their own."""
    value: str = "validation"
    """Value of `column` that marks a held-out document."""
    split: str | None = None
    """The documents of this split of the source (`test`), for data sets that come in files by split."""

    @model_validator(mode="after")
    def _one_way(self) -> ValidationConfig:
        if sum(way is not None for way in (self.documents, self.fraction, self.column, self.split)) != 1:
            raise ValueError("give exactly one of documents, fraction, column, split")
        return self


class NearDuplicatesConfig(Config):
    """When two documents are near-duplicates. Training documents that nearly duplicate a validation document leave."""

    threshold: float = Field(0.8, gt=0, le=1)
    """Smallest Jaccard similarity of the two documents' sets of word n-grams."""
    words: int = Field(5, gt=0)
    """Words per n-gram. In scripts without spaces, a character counts as one."""
    within_training: bool = False
    """Also remove training documents that nearly duplicate another training document; of each set, one stays."""


class EvaluationSetConfig(ReadingConfig):
    """A set that models are evaluated on: training documents that share an n-gram with it are contaminated."""

    locations: ClassVar[frozenset[str]] = ReadingConfig.locations | {"source"}

    source: str
    """As `corpus.source`. Its content enters the fingerprint, its location does not."""
    text: str = "{text}"
    """Template over the record's columns."""
    ngram: int = Field(13, gt=0)
    """Consecutive words that must be equal. In scripts without spaces, a character counts as one."""


class DatasetConfig(Config):
    """A data set that the library `datasets` reads. The keys are those of its `load_dataset`; no code in it is run."""

    path: str
    """A data set on the Hub (`openai/gsm8k`), a folder, or a builder (`json`, `webdataset`, …) for `data_files`."""
    name: str | None = None
    """Configuration (subset) of a data set that has several."""
    split: str | None = None
    """Split to read, or a part of it (`train[:10%]`, `train[100:200]`); several are joined by `+`. By default training
    files and files without a split."""
    revision: str | None = None
    """Hub revision (a commit hash: a branch name is not reproducible)."""
    data_files: str | tuple[str, ...] | dict[str, str | tuple[str, ...]] | None = None
    """Files to read: a path, a glob or an address, several of them, or either by split."""
    data_dir: str | None = None
    """Folder of the files below `path`."""
    streaming: bool = False
    """Read files on the Hub from afar, without a copy in the cache. Their identity is then the commit."""


class SourceConfig(ReadingConfig):
    """One of several sources of a corpus. All other settings are those of the corpus."""

    locations: ClassVar[frozenset[str]] = ReadingConfig.locations | {
        *("source", "dataset", "sha256", "license", "splits", "configuration")
    }

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    """Name of this source: the value of `corpus` in its documents' metadata, and the prefix of its file names."""
    source: str = ""
    """As `corpus.source`. Its content enters the fingerprint, its location does not."""
    dataset: DatasetConfig | None = None
    """As `corpus.dataset`, instead of `source`."""
    splits: tuple[str, ...] = ()
    """As `corpus.splits`, for this source."""
    configuration: str | None = None
    """As `corpus.configuration`, for this source."""
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """As `corpus.sha256`, for this source."""
    license: str | None = None
    """As `corpus.license`, for this source."""
    text: str = "{text}"
    """Template over this source's columns."""


class CorpusConfig(ReadingConfig):
    """Where the records come from and how a record becomes a document."""

    locations: ClassVar[frozenset[str]] = ReadingConfig.locations | {
        *("source", "dataset", "sha256", "license", "splits", "configuration"),
        *("max_quarantine_fraction", "max_unpacked_bytes"),
    }
    added: ClassVar[frozenset[str]] = ReadingConfig.added | {"sample"}

    source: str = ""
    """A path, a glob, a folder, a zip or tar archive, `hf://datasets/owner/name[/file]`, `s3://…` or any fsspec URL."""
    dataset: DatasetConfig | None = None
    """Instead of `source`: a data set that the library `datasets` reads."""
    sources: tuple[SourceConfig, ...] = ()
    """Instead of `source`: several corpora, each with a template of its own, one after the other."""
    splits: tuple[str, ...] = ()
    """Splits to read (`[train, dev]`, `[all]`). By default test, validation and development splits are not read, unless
    `source` names them."""
    configuration: str | None = None
    """Configuration (subset) of a data set that has several; `*` reads all of them."""
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """sha256 of the source, which must be one file; checked before anything is read."""
    license: str | None = None
    """License of the corpus (`mit`, `cc-by-4.0`), for the dataset card and Croissant metadata of an export."""
    text: str = "{text}"
    """Template over the record's columns. Positions remember the column they came from as `field`."""
    document_break: Literal["file", "blank_lines", "line"] = "blank_lines"
    """Text files only: where a document ends. `blank_lines` packs paragraphs up to `document_bytes`."""
    document_bytes: int = Field(4096, gt=0)
    """Text files only: paragraphs are packed into documents of at most about this many bytes."""
    max_document_bytes: int = Field(1_000_000, gt=0)
    """Longer documents, in bytes of UTF-8, are quarantined as `too_long`."""
    min_document_bytes: int = Field(1, gt=0)
    """Shorter documents, in bytes of UTF-8, are quarantined as `too_short`."""
    sample: float | None = Field(None, gt=0, le=1)
    """Keep about this share of the documents, chosen by a hash of (seed, doc_id); null keeps all."""
    validation: ValidationConfig = ValidationConfig(fraction=0.05)
    """Which documents are held out for validation."""
    near_duplicates: NearDuplicatesConfig | None = NearDuplicatesConfig()
    """When documents count as near-duplicates; null turns the search off."""
    decontaminate: tuple[EvaluationSetConfig, ...] = ()
    """Evaluation sets that training documents must not overlap with."""
    max_quarantine_fraction: float = Field(0.2, ge=0, le=1)
    """The stage fails when a larger share of the records is quarantined."""
    max_unpacked_bytes: int = Field(1 << 30, gt=0)
    """The stage fails at a file, or a row group of Parquet, that unpacks to more bytes than this and to more than 100
    times its own size."""
    shard_documents: int = Field(1000, gt=0)
    """Documents per shard: the unit of work and of resume."""
    seed: int = 0
    """Seed of the hashes that sample documents and assign them to the validation split."""

    @model_validator(mode="after")
    def _source_or_sources(self) -> CorpusConfig:
        if sum(map(bool, (self.source, self.dataset, self.sources))) != 1:
            raise ValueError("give exactly one of source, dataset, sources")
        if unclear := [part.name for part in self.sources if bool(part.source) == bool(part.dataset)]:
            raise ValueError(f"give exactly one of source, dataset for {unclear[0]}")
        names = [source.name for source in self.sources]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two of sources are named {doubled[0]}")
        return self

    def for_source(self, name: str) -> CorpusConfig:
        """Return the configuration for reading one of `sources`; "" names the corpus that has a single source."""
        for source in self.sources:
            if source.name == name:
                own = {field: getattr(source, field) for field in SourceConfig.model_fields if field != "name"}
                return self.model_copy(update=own | {"sources": ()})
        return self
