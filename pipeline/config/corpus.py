"""The corpus part of a manifest: where records come from, how they become documents, and which documents are used."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Config


class ValidationConfig(Config):
    """Which documents are held out: a number, a fraction, a split, or those that a column of the corpus marks."""

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


class EvaluationSetConfig(Config):
    """A set that models are evaluated on: training documents that share an n-gram with it are contaminated."""

    locations: ClassVar[frozenset[str]] = frozenset({"source", "revision"})

    source: str
    """As `corpus.source`. Its content enters the fingerprint, its location does not."""
    format: Literal["auto", "jsonl", "parquet", "csv", "json", "text", "arrow"] = "auto"
    """As `corpus.format`."""
    revision: str | None = None
    """As `corpus.revision`."""
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
    """Split to read; several are joined by `+`. By default training files and files without a split."""
    revision: str | None = None
    """Hub revision (a commit hash: a branch name is not reproducible)."""
    data_files: str | tuple[str, ...] | dict[str, str | tuple[str, ...]] | None = None
    """Files to read: a path, a glob or an address, several of them, or either by split."""
    data_dir: str | None = None
    """Folder of the files below `path`."""
    streaming: bool = False
    """Read files on the Hub from afar, without a copy in the cache. Their identity is then the commit."""


class SourceConfig(Config):
    """One of several sources of a corpus. All other settings are those of the corpus."""

    locations: ClassVar[frozenset[str]] = frozenset(
        {"source", "dataset", "revision", "sha256", "license", "splits", "configuration"}
    )

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    """Name of this source: the value of `corpus` in its documents' metadata, and the prefix of its file names."""
    source: str = ""
    """As `corpus.source`. Its content enters the fingerprint, its location does not."""
    dataset: DatasetConfig | None = None
    """As `corpus.dataset`, instead of `source`."""
    format: Literal["auto", "jsonl", "parquet", "csv", "json", "text", "arrow"] = "auto"
    """As `corpus.format`."""
    revision: str | None = None
    """As `corpus.revision`."""
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


class CorpusConfig(Config):
    """Where the records come from and how a record becomes a document."""

    locations: ClassVar[frozenset[str]] = frozenset(
        {
            *("source", "dataset", "revision", "splits", "configuration", "sha256", "license"),
            *("max_quarantine_fraction", "max_unpacked_bytes"),
        }
    )

    source: str = ""
    """A path, a glob, a folder, `hf://datasets/owner/name[/file]`, `s3://…` or any fsspec URL."""
    dataset: DatasetConfig | None = None
    """Instead of `source`: a data set that the library `datasets` reads."""
    sources: tuple[SourceConfig, ...] = ()
    """Instead of `source`: several corpora, each with a template of its own, one after the other."""
    format: Literal["auto", "jsonl", "parquet", "csv", "json", "text", "arrow"] = "auto"
    """`auto` goes by the file name (`.jsonl`, `.jsonl.gz`, `.parquet`, `.csv.zst`, `.txt`, …)."""
    revision: str | None = None
    """Hub revision (a commit hash: a branch name is not reproducible)."""
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
    """Seed of the hash that assigns documents to the validation split."""

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
