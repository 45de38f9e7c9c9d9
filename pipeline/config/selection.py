"""The selection part of a manifest: which scored positions become sites."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Config, Expression


class BandsConfig(Config):
    """Nested difficulty bands: a site belongs to every band whose threshold (nats) its entropy exceeds."""

    easy: float = 0.5
    """Entropy in nats above which a site is at least `easy`."""
    medium: float = 1.0
    """Entropy in nats above which a site is at least `medium`."""
    hard: float = 1.5
    """Entropy in nats above which a site is `hard`."""

    @model_validator(mode="after")
    def _ordered(self) -> BandsConfig:
        if not self.easy < self.medium < self.hard:
            raise ValueError("thresholds must rise: easy < medium < hard")
        return self


class ThinConfig(Config):
    """Limit near-duplicate sites: those with the same token after the same last tokens."""

    suffix_tokens: int = Field(8, gt=0)
    """Proxy tokens before the site that must be equal."""
    most: int = Field(1, gt=0)
    """Sites kept per set of duplicates, over the whole corpus, chosen by a hash of (seed, site_id)."""


class StrataConfig(Config):
    """The same budget of training sites for every part of the corpus."""

    by: str = Field(pattern=r"^\w+$")
    """Column whose values are the parts: `field`, `token_class`, `band`, `source_file`, or a metadata column."""
    sites: int = Field(gt=0)
    """Most training sites per part, chosen by a hash of (seed, site_id)."""


class MixtureConfig(Config):
    """The proportions in which the sources of a corpus make up the training sites."""

    weights: dict[str, Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """Relative weight per name of `corpus.sources`. As many sites are drawn as these proportions allow (at most
    `max_sites`), those of a source by a hash of (seed, site_id)."""


class CertificateConfig(Config):
    """The bounds by which a selection is judged (docs/certificate.md)."""

    locations: ClassVar[frozenset[str]] = frozenset({"second"})

    least_tokens: int = Field(10_000, ge=1)
    """A corpus with fewer scored tokens is too small to judge."""
    sample_tokens: int = Field(2_000_000, ge=1)
    """Bits per byte are compared on documents with about this many tokens, drawn by a hash of doc_id."""
    excess_surprise: float = 0.5
    """Warn if the true token surprises the proxy by more than this many nats above its own entropy, on average over the
    positions below 1.4 nats."""
    least_slope: float = 0.5
    """Warn if the surprise rises by less than this many nats per nat of entropy."""
    hard_share: float = Field(0.6, ge=0, le=1)
    """Warn if `where` and `top_fraction` together keep more than this share of the training positions that they could
    keep."""
    names_and_digits: float = Field(0.5, ge=0, le=1)
    """Warn if more than this share of the training sites are names or digits, which mostly cannot be guessed."""
    second: str | None = None
    """Folder of another selection of the same documents, `work/NAME/select/HASH`, for instance by another proxy: the
    certificate measures how far both agree."""
    least_agreement: float = 0.4
    """Warn if the agreement with it (Cohen's kappa: 1 for equal selections, 0 for chance) is lower."""


class SelectConfig(Config):
    """Which scored positions become sites. The rules apply in the order of the fields."""

    locations: ClassVar[frozenset[str]] = frozenset({"exclude"})
    added: ClassVar[frozenset[str]] = frozenset({"certificate"})

    metadata: dict[str, Literal["text", "number", "boolean", "json"]] = Field({})
    """Metadata of documents that `where` may name, and their types: `{difficulty: number}`; lists and objects are
    `json`. They also become columns of sites and shards. `corpus`, the name of one of `corpus.sources`, needs no entry
    here."""
    where: Expression = "entropy > 1.0"
    """SQL over the score columns (docs/choosing-positions.md lists them): which training positions are kept."""
    validation_where: Expression = "entropy > 0.5"
    """The same for held-out documents; broader, so that evaluation can look at any subset."""
    exclude: str | None = None
    """File of sites to drop: `work/NAME/flags.jsonl`, which `rpt browse` writes, or Parquet or CSV with a column
    `site_id`, as it exports its flags."""
    max_per_document: int | None = Field(None, gt=0)
    """Keep at most this many sites per document, those of highest entropy (ties: first)."""
    strategy: Literal["rule", "random"] = "rule"
    """`random` is the control: in every field of every training document as many positions as the rules above keep
    there, drawn by a hash of (seed, site_id) from all that have scores and begin a character."""
    thin: ThinConfig | None = None
    """Limit near-duplicates among the training sites."""
    top_fraction: float | None = Field(None, gt=0, le=1)
    """Of the training sites that are left, keep this share: those of highest entropy in the corpus."""
    strata: StrataConfig | None = None
    """Give each part of the corpus the same budget."""
    mixture: MixtureConfig | None = None
    """Draw the training sites from the sources of the corpus by weight."""
    max_sites: int | None = Field(None, gt=0)
    """Keep at most about this many training sites of the corpus, chosen by a hash of (seed, site_id)."""
    bands: BandsConfig = BandsConfig()
    """Entropy thresholds of the difficulty bands."""
    seed: int = 0
    """Seed of every hash of (seed, site_id) above."""
    certificate: CertificateConfig = CertificateConfig()
    """Bounds of the certificate, which warns of a selection or refuses it."""
