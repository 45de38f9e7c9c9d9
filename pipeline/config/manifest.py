"""Manifests: a corpus and how it becomes shards, as frozen models. Defaults live here and nowhere else.

A manifest says *what* is computed. Its fields enter fingerprints, except those that a model lists as `locations`
(their content enters instead) or as `execution` (memory and speed). *Where and how* it is computed (output paths,
devices, worker counts) is given on the command line.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config.base import Config
from pipeline.config.corpus import CorpusConfig
from pipeline.config.selection import SelectConfig


class TrainProxyConfig(Config):
    """A small proxy fitted on the training split itself, for when there is no suitable model.

    The defaults minimised bits per byte after a few minutes on one core per fold (OmniMATH, 4 MB of text).
    """

    folds: int = Field(2, ge=1)
    """Parts of the training split; each is scored by a proxy fitted on the others. With 1, one proxy scores the
    documents that it was fitted on."""
    vocab_size: int | None = Field(None, ge=260)
    """Tokens of the byte-level BPE vocabulary that is fitted for it. By default one for every 1,024 bytes of the
    training text, at least 384 and at most 4,096."""
    hidden_size: int | None = Field(None, gt=0)
    """Width of the residual stream; the feed-forward layers are three times as wide. By default 64 for less than
    200,000 training tokens, else 128."""
    layers: int | None = Field(None, gt=0)
    """Number of transformer blocks. By default 2 for less than 200,000 training tokens, else 3."""
    heads: int = Field(4, gt=0)
    """Attention heads per block; must divide `hidden_size`."""
    context: int = Field(512, gt=1)
    """Tokens per training row, and the longest input of the model."""
    batch_tokens: int = Field(1024, gt=0)
    """Tokens per optimizer step."""
    lr: float = Field(8e-3, gt=0)
    """Learning rate of AdamW, which trains embeddings, norms and biases."""
    muon_lr: float = Field(0.02, gt=0)
    """Learning rate of Muon, which trains the matrices of the blocks."""
    epochs: float = Field(6.0, gt=0)
    """Most passes over the training split. Every twentieth document is held out of them: training ends when the loss on
    these rises, and the best weights are kept, so that a small corpus is not memorised."""
    max_steps: int = Field(1000, gt=0)
    """Most optimizer steps: training ends here or after `epochs` passes, whichever comes first."""
    sample_bytes: int = Field(64_000_000, gt=0)
    """Of a larger training split only about this many bytes of text are used, chosen by a hash of (seed, doc_id)."""
    seed: int = 0
    """Seed of the sample, the initial weights and the order of the batches."""


class CountProxyConfig(Config):
    """N-gram counts of the training split as the proxy: interpolated modified Kneser-Ney smoothing.

    Each document is scored by the counts of all others, exactly: there are no folds. It needs no GPU.
    """

    order: int = Field(5, ge=2, le=8)
    """Tokens of the longest n-grams: a token is predicted from one token less."""
    vocab_size: int | None = Field(None, ge=260)
    """Tokens of the byte-level BPE vocabulary that is fitted for it. By default one for every 1,024 bytes of the
    training text, at least 384 and at most 4,096."""
    sample_bytes: int = Field(64_000_000, gt=0)
    """Of a larger training split the tokenizer is fitted on about this many bytes, chosen by a hash of (seed, doc_id).
    The counts are of all of it."""
    seed: int = 0
    """Seed of the sample."""


class AutoProxyConfig(Config):
    """Counts and a fitted model: the one that needs fewer bits per byte on held-out documents becomes the proxy."""

    count: CountProxyConfig = CountProxyConfig()
    """How the n-grams are counted."""
    train: TrainProxyConfig = TrainProxyConfig()
    """How the model is fitted."""
    fit_from_bytes: int = Field(1_000_000, ge=0)
    """No model is fitted on a training split of less text than this: it would learn the text by heart."""

    @model_validator(mode="after")
    def _one_tokenizer(self) -> AutoProxyConfig:
        for name in ("vocab_size", "sample_bytes", "seed"):
            if getattr(self.count, name) != getattr(self.train, name):
                raise ValueError(f"{name} of count and train differ: both predict the tokens of one tokenizer")
        if self.train.folds < 2:
            raise ValueError("train.folds must be at least 2: otherwise no document is held out of the model")
        return self


class ProxyConfig(Config):
    """The model whose uncertainty selects the sites: a `transformers` causal LM, or one made from the corpus itself."""

    locations: ClassVar[frozenset[str]] = frozenset({"model", "revision", "tokenizer"})
    added: ClassVar[frozenset[str]] = frozenset({"count", "auto"})

    model: str | None = None
    """Folder or hub id of a trained model."""
    revision: str | None = None
    """Hub revision of `model` (a commit hash: a branch name is not reproducible)."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer, if it is not the model's own."""
    train: TrainProxyConfig | None = None
    """Instead of `model`: fit a small proxy on the training split."""
    count: CountProxyConfig | None = None
    """Instead of `model`: count the n-grams of the training split."""
    auto: AutoProxyConfig | None = None
    """Instead of `model`: whichever of the two predicts held-out documents better. `proxy: auto` is short for it."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the forward passes. `auto` is bfloat16 if this machine's GPU or CPU multiplies it, else float32;
    float32 for a proxy that is fitted here. Scores of this manifest that are there already are used whatever their
    format. With float32 scores are exact to about 1e-5 nats; with bfloat16 they differ by some hundredths of a nat, so
    that about one position in a hundred is on the other side of a threshold (docs/scaling.md)."""

    @model_validator(mode="after")
    def _one_source(self) -> ProxyConfig:
        if sum(source is not None for source in (self.model, self.train, self.count, self.auto)) != 1:
            raise ValueError("give exactly one of model, train, count, auto")
        return self

    @property
    def made_here(self) -> TrainProxyConfig | CountProxyConfig | AutoProxyConfig | None:
        """Return how the proxy is made from the corpus; None if it is a trained model."""
        return self.train or self.count or self.auto


class ReferenceConfig(Config):
    """A second, better model with the proxy's tokenizer, for `excess_loss` = proxy's loss − its loss, in nats.

    Tokens of high excess loss can be learned and are not yet; noise has little (Rho-1, arXiv 2404.07965, equation 3).
    """

    locations: ClassVar[frozenset[str]] = frozenset({"model", "revision"})

    model: str
    """Folder or hub id of the model."""
    revision: str | None = None
    """Hub revision of `model` (a commit hash: a branch name is not reproducible)."""


class ScoreConfig(Config):
    """How positions are scored."""

    execution: ClassVar[frozenset[str]] = frozenset({"batch_tokens"})

    top_k: int = Field(16, gt=0)
    """Entropy is computed over this many most likely next tokens."""
    window: int = Field(4096, gt=1)
    """Proxy tokens per input; longer documents are scored in overlapping windows."""
    overlap: int = Field(1024, ge=1)
    """Proxy tokens that consecutive windows share. Positions after the first window have at least this much context."""
    min_context_tokens: int = Field(8, ge=1)
    """Positions with fewer proxy tokens before them are not scored, because starts of documents look too hard."""
    batch_tokens: int = Field(8192, gt=0)
    """Tokens per forward pass: affects memory, not results."""
    store_top: bool = False
    """Also store the ids and log-probabilities (nats) of the `top_k` tokens at every position."""

    @model_validator(mode="after")
    def _overlap_fits(self) -> ScoreConfig:
        if self.overlap >= self.window:
            raise ValueError(f"overlap ({self.overlap}) must be smaller than window ({self.window})")
        return self


PROXYS_OWN = "proxy"
"""As `materialize.policy_tokenizer`: the tokenizer of the proxy."""


class MaterializeConfig(Config):
    """How a site becomes a training example."""

    locations: ClassVar[frozenset[str]] = frozenset({"policy_tokenizer", "policy_tokenizer_revision"})

    policy_tokenizer: str
    """Folder or hub id of the policy's tokenizer: targets and boundaries are its tokens. `proxy`: the proxy's own, also
    of one that is fitted on the corpus, so that no model is needed."""
    policy_tokenizer_revision: str | None = None
    """Hub revision of `policy_tokenizer` (a commit hash: a branch name is not reproducible)."""
    max_context_tokens: int = Field(4096, gt=0)
    """Most policy tokens of a context; longer ones lose their beginning and are marked `context_truncated`."""
    continuation_tokens: int = Field(16, gt=0)
    """Policy tokens of the true continuation stored per site, for the prefix-matching reward."""
    row_group: int = Field(2048, gt=0)
    """Rows per Parquet row group of the shards, which is what a reader decodes to get one row."""


class Manifest(Config):
    """A corpus and how it becomes shards."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """Name of the dataset, and of its folder under `work/`."""
    description: str = ""
    """One line about the dataset, for its card."""
    corpus: CorpusConfig
    """Where the records come from and how they become documents."""
    proxy: Annotated[
        ProxyConfig,
        BeforeValidator(
            lambda given: {"auto": {}} if given == "auto" else given,
            json_schema_input_type=ProxyConfig | Literal["auto"],
        ),
    ]
    """The model whose uncertainty selects the sites."""
    reference: ReferenceConfig | None = None
    """A second model; adds the score columns `reference_nll` and `excess_loss`, which `select.where` may name."""
    score: ScoreConfig = ScoreConfig()
    """How positions are scored."""
    select: SelectConfig = SelectConfig()
    """Which scored positions become sites."""
    materialize: MaterializeConfig
    """How a site becomes a training example."""

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
