"""Manifests: a corpus and how it becomes shards, as frozen models. Defaults live here and nowhere else.

A manifest says *what*; its fields enter fingerprints, except those that a model marks as `locations` (their content
enters instead) or as `execution` (memory and speed). Paths of outputs, devices and worker counts say *where and how*:
they are command-line arguments.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Config, Expression

# ------------------------------------------------------------------------------------------------ manifest


class ValidationConfig(Config):
    """Which documents are held out: a number, a fraction, or those a column of the corpus marks."""

    documents: int | None = Field(None, ge=0)
    """Exactly this many documents (fewer if the corpus is smaller), chosen by a hash of (seed, doc_id)."""
    fraction: float | None = Field(None, ge=0, lt=1)
    """About this share of the documents, chosen by the same hash: adding documents moves none."""
    column: str | None = None
    """Documents whose `column` equals `value`, for corpora that come with a split of their own."""
    value: str = "validation"

    @model_validator(mode="after")
    def _one_way(self) -> ValidationConfig:
        if sum(way is not None for way in (self.documents, self.fraction, self.column)) != 1:
            raise ValueError("give exactly one of documents, fraction, column")
        return self


class NearDuplicatesConfig(Config):
    """Which documents are nearly the same. Training documents that nearly duplicate a validation document leave."""

    threshold: float = Field(0.8, gt=0, le=1)
    """Jaccard similarity of two documents' sets of word n-grams from which on they are near-duplicates."""
    words: int = Field(5, gt=0)
    """Words an n-gram. In scripts without spaces, a character counts as one."""
    within_training: bool = False
    """Training documents that nearly duplicate another one leave as well; of a set of them, one stays."""


class EvaluationSetConfig(Config):
    """A set that models are evaluated on: training documents that share an n-gram with it are contaminated."""

    locations: ClassVar[frozenset[str]] = frozenset({"source", "revision"})

    source: str
    """As `corpus.source`. Its content enters the fingerprint, its place does not."""
    format: Literal["auto", "jsonl", "parquet", "csv", "json", "text"] = "auto"
    revision: str | None = None
    text: str = "{text}"
    """Template over the record's columns."""
    ngram: int = Field(13, gt=0)
    """Words that must be the same, one after the other. In scripts without spaces, a character counts as one."""


class SourceConfig(Config):
    """One of several sources of a corpus. Everything that it does not say is the corpus' own."""

    locations: ClassVar[frozenset[str]] = frozenset({"source", "revision", "sha256", "license"})

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    """Stands as `corpus` in its documents' metadata, and before the names of its files."""
    source: str
    """As `corpus.source`. Its content enters the fingerprint, its place does not."""
    format: Literal["auto", "jsonl", "parquet", "csv", "json", "text"] = "auto"
    revision: str | None = None
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    license: str | None = None
    text: str = "{text}"


class CorpusConfig(Config):
    """Where the records come from and how a record becomes a document."""

    locations: ClassVar[frozenset[str]] = frozenset(
        {"source", "revision", "sha256", "license", "max_quarantine_fraction", "max_unpacked_bytes"}
    )

    source: str = ""
    """A path, a glob, a folder, `hf://datasets/owner/name[/file]`, `s3://…` or any fsspec URL."""
    sources: tuple[SourceConfig, ...] = ()
    """Instead of `source`: several corpora, each with a template of its own, one after the other."""
    format: Literal["auto", "jsonl", "parquet", "csv", "json", "text"] = "auto"
    """`auto` goes by the file name (`.jsonl`, `.jsonl.gz`, `.parquet`, `.csv.zst`, `.txt`, …)."""
    revision: str | None = None
    """Hub revision (a commit hash: a branch name is not reproducible)."""
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """Of the one source file; checked before anything is read."""
    license: str | None = None
    text: str = "{text}"
    """Template over the record's columns. Positions remember the column they came from as `field`."""
    document_break: Literal["file", "blank_lines", "line"] = "blank_lines"
    """Text files only: what ends a document. `blank_lines` packs paragraphs up to `document_bytes`."""
    document_bytes: int = Field(4096, gt=0)
    """Text files only: paragraphs are packed into documents of at most about this many bytes."""
    max_document_bytes: int = Field(1_000_000, gt=0)
    """Longer documents are quarantined as `too_long`."""
    min_document_bytes: int = Field(1, gt=0)
    """Shorter documents are quarantined as `too_short`."""
    validation: ValidationConfig = ValidationConfig(fraction=0.05)
    near_duplicates: NearDuplicatesConfig | None = NearDuplicatesConfig()
    """null: they are not looked for."""
    decontaminate: tuple[EvaluationSetConfig, ...] = ()
    """Evaluation sets that training documents are kept apart from."""
    max_quarantine_fraction: float = Field(0.2, ge=0, le=1)
    """The run stops when a larger share of the records cannot be used."""
    max_unpacked_bytes: int = Field(1 << 30, gt=0)
    """The run stops at a file, or a row group of Parquet, that unpacks to more than this and to more than 100 times
    its own size."""
    shard_documents: int = Field(1000, gt=0)
    """Documents a shard: the unit of work and of resume."""
    seed: int = 0

    @model_validator(mode="after")
    def _source_or_sources(self) -> CorpusConfig:
        if bool(self.source) == bool(self.sources):
            raise ValueError("give exactly one of source, sources")
        names = [source.name for source in self.sources]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two of sources are named {doubled[0]}")
        return self

    def of_source(self, name: str) -> CorpusConfig:
        """The configuration that one of `sources` is read with; "" is the corpus that has one source."""
        for source in self.sources:
            if source.name == name:
                own = {field: getattr(source, field) for field in SourceConfig.model_fields if field != "name"}
                return self.model_copy(update=own | {"sources": ()})
        return self


class TrainProxyConfig(Config):
    """A small proxy fitted on the training split itself, for a corpus with no model at hand.

    The defaults were chosen by bits a byte after a few minutes of one core a fold (OmniMATH, 4 MB of text).
    """

    folds: int = Field(2, ge=1)
    """Each fold's documents are scored by a proxy that has not seen them. 1 scores what it was fitted on."""
    vocab_size: int = Field(4096, ge=260)
    hidden_size: int = Field(128, gt=0)
    layers: int = Field(3, gt=0)
    heads: int = Field(4, gt=0)
    context: int = Field(512, gt=1)
    batch_tokens: int = Field(1024, gt=0)
    lr: float = Field(8e-3, gt=0)
    """Of AdamW, for embeddings, norms and biases."""
    muon_lr: float = Field(0.02, gt=0)
    """Of Muon, for the blocks' matrices."""
    epochs: float = Field(6.0, gt=0)
    """Most passes over the training split: a small corpus is not learned by heart."""
    max_steps: int = Field(1000, gt=0)
    """Of `batch_tokens` each: the training ends here or after `epochs` passes, whichever comes first."""
    sample_bytes: int = Field(64_000_000, gt=0)
    """Of a larger training split only about this much text is used, chosen by a hash of (seed, doc_id)."""
    seed: int = 0


class ProxyConfig(Config):
    """The model whose uncertainty selects the sites: a `transformers` causal LM, or one trained here."""

    locations: ClassVar[frozenset[str]] = frozenset({"model", "revision", "tokenizer"})

    model: str | None = None
    """Folder or hub id."""
    revision: str | None = None
    tokenizer: str | None = None
    """Folder or hub id, if not the model's own."""
    train: TrainProxyConfig | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 if this machine has a GPU that computes with it, else float32. With float32, the strict mode, the
    scores are exact to about 1e-5; bfloat16's move with the batches, by more than that (`near.<band>` counts the
    positions that could cross a band's threshold)."""

    @model_validator(mode="after")
    def _one_source(self) -> ProxyConfig:
        if (self.model is None) == (self.train is None):
            raise ValueError("give exactly one of model, train")
        return self


class ReferenceConfig(Config):
    """A second, better model with the proxy's tokenizer. What the proxy still has to learn, and can: tokens whose loss
    it exceeds the reference's by, `excess_loss`, of which noise has little (Rho-1, arXiv 2404.07965, equation 3)."""

    locations: ClassVar[frozenset[str]] = frozenset({"model", "revision"})

    model: str
    """Folder or hub id."""
    revision: str | None = None


class ScoreConfig(Config):
    """How positions are scored (design §5)."""

    execution: ClassVar[frozenset[str]] = frozenset({"batch_tokens"})

    top_k: int = Field(16, gt=0)
    """Entropy is taken over this many most likely next tokens."""
    window: int = Field(4096, gt=1)
    """Tokens the proxy sees at once; longer documents are scored in overlapping windows."""
    overlap: int = Field(1024, ge=1)
    """Tokens consecutive windows share: every position but the first window's has at least this much context."""
    min_context_tokens: int = Field(8, ge=1)
    """Positions with fewer tokens before them are not scorable: starts look falsely hard."""
    batch_tokens: int = Field(8192, gt=0)
    """Tokens of one forward pass: memory, not results."""
    store_top: bool = False
    """Also store the top-k ids and log-probabilities of every position."""

    @model_validator(mode="after")
    def _overlap_fits(self) -> ScoreConfig:
        if self.overlap >= self.window:
            raise ValueError(f"overlap ({self.overlap}) must be smaller than window ({self.window})")
        return self


class BandsConfig(Config):
    """Nested difficulty bands: a site belongs to every band whose threshold (nats) its entropy exceeds."""

    easy: float = 0.5
    medium: float = 1.0
    hard: float = 1.5

    @model_validator(mode="after")
    def _ordered(self) -> BandsConfig:
        if not self.easy < self.medium < self.hard:
            raise ValueError("thresholds must rise: easy < medium < hard")
        return self


class ThinConfig(Config):
    """Of sites with the same last tokens before them and the same token, keep a few."""

    suffix_tokens: int = Field(8, gt=0)
    """Proxy tokens before the site that must be the same."""
    most: int = Field(1, gt=0)
    """Kept of each such set, over the whole corpus, chosen by a hash of (seed, site_id)."""


class StrataConfig(Config):
    """A budget for every part of the corpus."""

    by: str = Field(pattern=r"^\w+$")
    """What tells the parts apart: `field`, `token_class`, `band`, `source_file`, or a metadata column."""
    sites: int = Field(gt=0)
    """Most training sites of each, chosen by a hash of (seed, site_id)."""


class MixtureConfig(Config):
    """In which proportions the sources of a corpus make up the training sites."""

    weights: dict[str, Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """By the name of each of `corpus.sources`. As many sites are drawn as these proportions allow (at most
    `max_sites`), those of a source by a hash of (seed, site_id)."""


class SelectConfig(Config):
    """Which scored positions become sites. The rules apply in the order of the fields."""

    locations: ClassVar[frozenset[str]] = frozenset({"exclude"})

    metadata: dict[str, Literal["text", "number", "boolean", "json"]] = Field({})
    """Metadata of documents that `where` may name, and what they hold: `{difficulty: number}`; lists and objects are
    `json`. They are columns of sites and shards, too. `corpus`, the name of one of `corpus.sources`, may be named
    without."""
    where: Expression = "entropy > 1.0"
    """SQL over the score columns (docs/own-corpus.md lists them): which training positions are kept."""
    validation_where: Expression = "entropy > 0.5"
    """The same for held-out documents; broader, so that evaluation can look at any subset."""
    exclude: str | None = None
    """A Parquet or CSV file with a column `site_id`: sites that are not wanted, as `rpt browse` exports its flags."""
    max_per_document: int | None = Field(None, gt=0)
    """Keep at most this many sites of a document, those of highest entropy (ties: first)."""
    strategy: Literal["rule", "random"] = "rule"
    """`random` is the control: in every field of every training document as many positions as the rules above keep
    there, drawn by a hash of (seed, site_id) from all that have scores and begin a character."""
    thin: ThinConfig | None = None
    """Thin near-duplicates among the training sites."""
    top_fraction: float | None = Field(None, gt=0, le=1)
    """Of the training sites that are left, keep this share: those of highest entropy in the corpus."""
    strata: StrataConfig | None = None
    """Give each part of the corpus the same budget."""
    mixture: MixtureConfig | None = None
    """Draw the training sites from the sources of the corpus by weight."""
    max_sites: int | None = Field(None, gt=0)
    """Keep at most about this many training sites of the corpus, chosen by a hash of (seed, site_id)."""
    bands: BandsConfig = BandsConfig()
    seed: int = 0


class MaterializeConfig(Config):
    """How a site becomes a training example."""

    locations: ClassVar[frozenset[str]] = frozenset({"policy_tokenizer", "policy_tokenizer_revision"})

    policy_tokenizer: str
    """Folder or hub id of the policy's tokenizer: targets and boundaries are its tokens."""
    policy_tokenizer_revision: str | None = None
    max_context_tokens: int = Field(4096, gt=0)
    """Policy tokens; longer contexts lose their beginning and are marked `context_truncated`."""
    continuation_tokens: int = Field(16, gt=0)
    """Policy tokens of true continuation stored for the prefix-matching reward."""
    row_group: int = Field(2048, gt=0)


class Manifest(Config):
    """A corpus and how it becomes shards."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    description: str = ""
    corpus: CorpusConfig
    proxy: ProxyConfig
    reference: ReferenceConfig | None = None
    """Gives positions `reference_nll` and `excess_loss`, which `select.where` may name."""
    score: ScoreConfig = ScoreConfig()
    select: SelectConfig = SelectConfig()
    materialize: MaterializeConfig

    @model_validator(mode="after")
    def _mixture_is_of_the_sources(self) -> Manifest:
        names, mixture = [source.name for source in self.corpus.sources], self.select.mixture
        if mixture is not None and mixture.weights.keys() != set(names):
            raise ValueError(f"select.mixture.weights are of {', '.join(mixture.weights)}, corpus.sources: {names}")
        return self

    @model_validator(mode="after")
    def _reference_is_there(self) -> Manifest:
        rules = f"{self.select.where} {self.select.validation_where}"
        if self.reference is None and (named := re.search(r"\b(excess_loss|reference_nll)\b", rules)):
            raise ValueError(f"select.where names {named[0]}: it needs a second model, `reference: {{model: …}}`")
        return self
