"""Manifests (a corpus and how it becomes shards) and recipes (a training run), as frozen models.

A manifest or recipe says *what*; its fields enter fingerprints, but for those that a model marks as `locations` (their
content enters) or as `execution` (memory and speed). Paths of outputs, devices and worker counts say *where and how*;
they are command-line arguments and never appear here. Defaults live here and nowhere else.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pipeline.core import packaged
from pipeline.core.errors import UserError


class Config(BaseModel):
    """Base of every configuration model: frozen, unknown keys refused, and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    locations: ClassVar[frozenset[str]] = frozenset()
    """Fields that say where something lies. Its content is fingerprinted instead."""

    execution: ClassVar[frozenset[str]] = frozenset()
    """Fields that change memory and speed but not the meaning of the output: recorded, and part of no identity."""

    def identity(self) -> dict[str, Any]:
        """The fields that decide the output, as JSON values: at no depth `locations` or `execution`."""
        left_out = self.locations | self.execution
        tree = self.model_dump(mode="json", exclude=set(left_out))
        for name, value in self:
            if isinstance(value, Config) and name not in left_out:
                tree[name] = value.identity()
            elif isinstance(value, tuple) and value and isinstance(value[0], Config) and name not in left_out:
                tree[name] = [part.identity() for part in value]
        return tree

    def execution_settings(self) -> dict[str, Any]:
        """The fields of `execution`, at any depth, as JSON values."""
        tree = self.model_dump(mode="json", include=set(self.execution))
        parts = {name: value.execution_settings() for name, value in self if isinstance(value, Config)}
        return tree | {name: settings for name, settings in parts.items() if settings}


Expression = Annotated[str, BeforeValidator(lambda value: str(value).lower() if isinstance(value, bool) else value)]
"""SQL over the columns of a row. YAML reads a bare `true` as a boolean; it is meant as SQL."""


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

    metadata: dict[str, Literal["text", "number", "boolean", "json"]] = {}
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


# -------------------------------------------------------------------------------------------------- recipe


class LoraConfig(Config):
    """Low-rank adapters (arXiv 2106.09685): W + alpha / rank · B A, of which A and B alone are trained."""

    rank: int = Field(gt=0)
    alpha: float = Field(gt=0)
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Names of linear layers (`q_proj`); by default all but the output head."""


class PolicyConfig(Config):
    """The model that is trained."""

    locations: ClassVar[frozenset[str]] = frozenset({"model", "revision"})
    execution: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing"})

    model: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    gradient_checkpointing: bool = False
    lora: LoraConfig | None = None
    """By default the whole model is trained. Needs peft: `pip install 'rpt[lora]'`."""


class LengthRewardConfig(Config):
    """A triangle over a response's length, highest at a budget: max(`least`, `budget` · `decay`^(step / `over_steps`)).

    `budget` and `decay` are by default RMT's (arXiv 2509.24375).
    """

    weight: float = Field(0.5, gt=0)
    """Earned by a right answer of exactly the budget's length, on top of its reward."""
    budget: int = Field(800, gt=0)
    decay: float = Field(0.2, gt=0, le=1)
    over_steps: int = Field(gt=0)
    """Steps after which the budget is `decay` of what it was."""
    least: int = Field(1, gt=0)


class TaskConfig(Config):
    """What the policy is asked and paid for."""

    template: str = "v0"
    """Name of a prompt template (`pipeline/task/templates.py`); the paper trains with `v0`."""
    reward: Literal["prefix", "first_token", "dense", "information_gain", "format_only", "answer", "math"] = "prefix"
    """What a response earns (`pipeline/grpo/reward.py`); accuracy is always that of prefix matching. But `answer` and
    `math`, for `rpt finetune`, judge answers to questions, and accuracy is theirs."""
    targets: Literal["own", "shuffled"] = "own"
    """`shuffled` is a control: each time a site is drawn for training, what follows it is taken from another training
    site of its band. Only the form of answers and what is likely at any site can then be learned."""
    length_reward: LengthRewardConfig | None = None
    """Pays right answers also for keeping to a token budget that shrinks (RMT)."""
    overlong_penalty_tokens: int | None = Field(None, gt=0)
    """Responses that end within this many tokens of the limit lose up to 1 (DAPO's soft punishment)."""


class SitesConfig(Config):
    """Which rows of the shards are trained on, and when."""

    where: Expression = "true"
    """SQL over the site columns, on top of the manifest's selection; after `rpt screen` also over `pass_rate`."""


class ScreenConfig(Config):
    """How `rpt screen` estimates the policy's pass rate at each training site."""

    where: Expression = "true"
    """SQL over the site columns: which sites are screened."""
    samples: int = Field(4, gt=0)
    """Responses a site."""
    max_new_tokens: int | None = Field(None, gt=0)
    """Room for each; by default that of the rollouts."""


class CurriculumPhase(Config):
    """Until `until_step` (exclusive), only sites that match `where` are drawn."""

    until_step: int = Field(gt=0)
    where: Expression


READING_REWARDS = ("dense", "information_gain")
"""Values of `task.reward` that read probabilities off the policy, which vLLM does not give."""


class RolloutConfig(Config):
    """How responses are sampled."""

    execution: ClassVar[frozenset[str]] = frozenset({"batch_rows", "sampler", "vllm_memory_fraction"})

    sites_per_step: int = Field(256, gt=0)
    group_size: int = Field(8, gt=1)
    temperature: float = Field(0.8, gt=0)
    max_new_tokens: int = Field(8192, gt=0)
    batch_rows: int = Field(1024, gt=0)
    """Responses decoded at once on a rank (memory, not results)."""
    sampler: Literal["auto", "built_in", "vllm"] = "auto"
    """`vllm` samples in the trainer's own processes, or on a server: `rpt train --vllm-server URL`. `auto` is `vllm`
    where a server is given, or it is installed and there is a GPU; else `built_in`. The run says which it took."""
    vllm_memory_fraction: float = Field(0.4, gt=0, le=1)
    """Of an accelerator's memory that a vLLM in the trainer's process may hold while it samples."""


class ObjectiveConfig(Config):
    """GRPO as the paper uses it: group-normalised advantages, no KL.

    Equations and sources stand beside the functions of these names (`pipeline/grpo/advantage.py`, `loss.py`).
    """

    advantage: Literal["group_std", "mean_only", "rloo"] = "group_std"
    loss: Literal["grpo", "dapo", "dr_grpo", "gspo", "cispo"] = "grpo"
    clip: float = Field(0.2, gt=0)
    """The ratio of new to old probability is kept above 1 − `clip`, …"""
    clip_high: float | None = Field(None, gt=0)
    """… and below 1 + `clip_high`; by default `clip`. Ratios are 1, and nothing is clipped, unless
    `optimizer.updates_per_step` is above 1."""
    kl: float = Field(0.0, ge=0)
    """Weight of the divergence from the policy that training started from (k3); above 0 a copy of it is kept, but not
    beside adapters."""
    entropy: float = Field(0.0, ge=0)
    """Weight of a bonus for the policy's entropy."""
    top_entropy: float = Field(1.0, gt=0, le=1)
    """Share of a step's tokens that learn, those of highest entropy; 0.2 is "80/20". Costs one more forward pass."""
    learn_unfinished: bool = True
    """Whether responses cut at the length limit are learned from, or only compared with (overlong filtering)."""
    importance_cap: float | None = Field(None, gt=0)
    """Weigh tokens by what trainer and sampler think of them, up to this (2 is usual): for low-precision samplers.
    By default it is only measured (`sampler/logprob_gap`)."""
    next_token: float = Field(0.0, ge=0)
    """Weight of an auxiliary next-token loss on the text around the sites drawn (RMT: 0.1)."""
    dynamic_sampling_from: int | None = Field(None, ge=0)
    """From this step on, draw further sites until the batch is full of groups with unequal rewards."""
    dynamic_sampling_rounds: int = Field(4, ge=1)
    """At most this many draws a step."""


class OptimizerConfig(Config):
    """AdamW."""

    execution: ClassVar[frozenset[str]] = frozenset({"micro_batch_tokens"})

    lr: float = Field(1e-6, gt=0)
    updates_per_step: int = Field(1, gt=0)
    """Mini-batches into which the groups of a step are divided, in the order they were drawn; each is one update. The
    paper makes one update per step, which is on-policy. From the second one on, ratios of new to old probability differ
    from 1, and `objective.clip` acts. Costs one more forward pass if above 1."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.01, ge=0)
    warmup_steps: int = Field(0, ge=0)
    """The rate rises linearly over so many steps. All updates of a step have the same rate."""
    clip_norm: float = Field(0.2, gt=0)
    micro_batch_tokens: int = Field(16384, gt=0)
    """Tokens (contexts counted once a group) of one backward on a rank: memory, not results. A group that has more is
    shared out over several, in which its context is read again."""


class StopConfig(Config):
    """When a run stops because more steps would not help; null turns a rule off. It always stops at a loss of NaN."""

    grad_norm: float | None = Field(1e4, gt=0)
    """The gradient's norm before clipping exceeds this."""
    dead_reward_steps: int | None = Field(100, gt=0)
    """No group had unequal rewards for so many steps in a row."""
    entropy: float | None = Field(1e-4, gt=0)
    """The policy's entropy (nats a token) was below this for `entropy_steps` in a row."""
    entropy_steps: int = Field(20, gt=0)
    logprob_gap: float | None = Field(0.5, gt=0)
    """Trainer and sampler differ by more than this about the sampled tokens (`sampler/logprob_gap`, nats): one of the
    two computes another policy."""
    logprob_gap_warning: float | None = Field(0.1, gt=0)
    """From here on there is a warning. Rounding to bfloat16 alone makes a gap of about 0.05."""


class BudgetConfig(Config):
    """How long to train and what to keep."""

    steps: int = Field(1000, ge=0)
    evaluate_every: int = Field(100, gt=0)
    save_every: int = Field(100, gt=0)
    keep_last: int = Field(2, gt=0)
    """Checkpoints that are kept; besides them the best of those at which accuracy was measured."""
    save_rollouts_every: int = Field(10, gt=0)
    stop: StopConfig = StopConfig()


class EvaluateConfig(Config):
    """How next-token accuracy is measured on held-out sites."""

    locations: ClassVar[frozenset[str]] = frozenset({"bands_by", "bands_by_revision"})

    sites: int = Field(2000, gt=0)
    """Validation sites of the final evaluation, chosen by a hash of (seed, site_id) within `where`."""
    progress_sites: int = Field(300, gt=0)
    """The same for the evaluations during training."""
    where: Expression = "true"
    """SQL over the site columns: the headline table. All validation sites stand beside it."""
    temperature: float = Field(0.0, ge=0)
    """0 is greedy."""
    samples: int = Field(0, ge=0)
    """Responses to each site besides that one, for mean accuracy and pass@k."""
    sample_temperature: float = Field(0.8, gt=0)
    """At which those are drawn."""
    bands_by: str | None = None
    """Folder or hub id of a model whose entropy decides the difficulty bands; by default the manifest's proxy's."""
    bands_by_revision: str | None = None


class SupervisedConfig(Config):
    """What a step of `rpt ntp` and `rpt sft` learns from. They end after `budget.steps`, or as their command says."""

    batch_tokens: int = Field(65536, gt=1)
    """About so many tokens a step, prompts included, over all ranks."""
    window: int = Field(4096, gt=1)
    """Documents are read in pieces of at most so many tokens; none attends to another."""
    plain_text: float = Field(0.0, ge=0, lt=1)
    """`rpt sft`: this share of a step's tokens is text of the training documents."""

    @model_validator(mode="after")
    def _window_fits(self) -> SupervisedConfig:
        if self.window > self.batch_tokens:
            raise ValueError(f"window ({self.window}) must not be larger than batch_tokens ({self.batch_tokens})")
        return self


class QuestionsConfig(Config):
    """Questions with known answers, for `rpt finetune`."""

    locations: ClassVar[frozenset[str]] = frozenset({"source", "held_out_source", "format", "revision"})

    source: str
    """As a corpus' source: a path, a glob, a folder, `hf://datasets/owner/name[/file]`, any fsspec URL."""
    held_out_source: str | None = None
    """The held-out questions, if they are files of their own; `held_out` then says nothing."""
    format: Literal["auto", "jsonl", "parquet", "csv", "json"] = "auto"
    revision: str | None = None
    question: str = "{question}"
    """Template over the record's columns."""
    answer: str = "{answer}"
    """The same for the answer."""
    answer_after: str | None = None
    """The final answer is what stands behind the last of these in that text; in GSM8K `####`."""
    held_out: ValidationConfig = ValidationConfig(fraction=0.1)
    """Which questions are held out."""
    max_question_tokens: int = Field(1024, gt=0)
    """Policy tokens; longer questions are left out."""
    seed: int = 0


class TrackConfig(Config):
    """Trackers beside `metrics.jsonl` and TensorBoard, which are always written."""

    to: tuple[Literal["wandb", "trackio", "mlflow"], ...] = ()
    """Each is an extra of its own: `pip install 'rpt[wandb]'`."""
    project: str = "rpt"
    """Where runs stand together."""


class Recipe(Config):
    """A training run."""

    locations: ClassVar[frozenset[str]] = frozenset({"data"})

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    description: str = ""
    data: str | None = None
    """The manifest whose shards are trained on: a path from the recipe's own folder, or the name of one that comes with
    the package. `--manifest` overrides it."""
    policy: PolicyConfig
    task: TaskConfig = TaskConfig()
    screen: ScreenConfig = ScreenConfig()
    sites: SitesConfig = SitesConfig()
    curriculum: tuple[CurriculumPhase, ...] = ()
    rollout: RolloutConfig = RolloutConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    supervised: SupervisedConfig = SupervisedConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    budget: BudgetConfig = BudgetConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    questions: QuestionsConfig | None = None
    track: TrackConfig = TrackConfig()
    seed: int = 0

    @model_validator(mode="after")
    def _sampler_can_read(self) -> Recipe:
        if self.rollout.sampler == "vllm" and self.task.reward in READING_REWARDS:
            raise ValueError(f"task.reward: {self.task.reward} reads probabilities: it needs rollout.sampler: built_in")
        return self

    @model_validator(mode="after")
    def _answers_have_questions(self) -> Recipe:
        judged = self.task.reward in ("answer", "math")
        if judged and self.questions is None:
            raise ValueError(f"task.reward: {self.task.reward} judges answers: give `questions`")
        if judged and self.objective.next_token:
            raise ValueError("objective.next_token learns text around sites, questions have none: it must be 0")
        return self

    @model_validator(mode="after")
    def _text_is_true(self) -> Recipe:
        if self.task.targets == "shuffled" and self.objective.next_token:
            raise ValueError("objective.next_token would learn shuffled text: with task.targets: shuffled it must be 0")
        return self


# --------------------------------------------------------------------------------------------------- study


class ArmConfig(Config):
    """One way of training the same policy. Every seed is a run."""

    command: Literal["train", "ntp", "sft"] = "train"
    manifest: tuple[str, ...] = ()
    """`key=value` overrides of the study's manifest: other shards."""
    set: tuple[str, ...] = ()
    """`key=value` overrides of the study's recipe."""
    compute_of: str | None = None
    """Ends when it has spent the FLOPs of this arm's run with the same seed."""
    imitates: str | None = None
    """`sft`: learns from the right responses that this arm's run with the same seed saved."""
    finetune: bool = False
    """Its policies, too, go on to RL on questions."""


class StudyConfig(Config):
    """Arms that start from the same policy, and what comes of them: recipes/study-demo.yaml."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    description: str = ""
    manifest: str
    """Path of the manifest whose held-out sites all arms are evaluated at."""
    recipe: str
    """Path of the recipe that all arms start from."""
    finetune: str
    """Path of the recipe of RL on questions."""
    prepare: tuple[str, ...] = ()
    """Python modules that make what the recipes read; they are run first."""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    set: tuple[str, ...] = ()
    """`key=value` overrides of the recipe, for all arms and for the evaluation."""
    finetune_set: tuple[str, ...] = ()
    """The same for RL on questions."""
    reference: str = "rpt"
    """The arm that the others are compared with."""
    arms: dict[str, ArmConfig]
    """By name, in the order of the report."""
    quick: tuple[str, ...] = ()
    """`key=value` overrides of the study itself, for `rpt study --quick`."""

    @model_validator(mode="after")
    def _arms_are_there(self) -> StudyConfig:
        for name, arm in self.arms.items():
            for other in (arm.compute_of, arm.imitates):
                if other is not None and (other == name or other not in self.arms):
                    raise ValueError(f"arms.{name} refers to {other!r}; arms: {', '.join(self.arms)}")
        if self.reference not in self.arms:
            raise ValueError(f"reference {self.reference!r} is no arm; arms: {', '.join(self.arms)}")
        return self


# ------------------------------------------------------------------------------------------------- loading

ConfigT = TypeVar("ConfigT", bound=Config)


def load(kind: type[ConfigT], path: Path, overrides: Sequence[str] = ()) -> ConfigT:
    """Read a YAML file into `kind`, apply `a.b=c` overrides, and refuse what the model does not know.

    Args:
        kind: `Manifest` or `Recipe`.
        path: the YAML file, or the name of one that comes with the package (`demo`).
        overrides: `dotted.key=value` strings; the value is parsed as YAML, so a template is quoted:
            `corpus.text="{question}"`.

    Raises:
        UserError: file missing, not YAML, unknown key (with the nearest known one), or a value out of range.
    """
    folder = {"Manifest": "data_manifests", "Recipe": "recipes"}.get(kind.__name__, "")
    found = None if path.is_file() else packaged.find(path, folder)
    if found is None and not path.is_file():
        known = ", ".join(sorted(p.name for p in path.parent.glob("*.yaml"))) or "none"
        mend = f"YAML files there: {known}; packaged: {', '.join(packaged.names(folder))}"
        raise UserError(f"{_noun(kind)} not found", where=path, mend=mend)
    try:
        tree = yaml.safe_load((found or path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError("not valid YAML", where=path, mend=" ".join(str(error).split())) from error
    if not isinstance(tree, dict):
        raise UserError("expected a mapping at the top", where=path, mend="start with `name: …`")
    if other := _other_kind(kind, tree):
        raise UserError(f"this is a {other}, not a {_noun(kind)}", where=path, mend=f"give a {_noun(kind)} here")
    if found:
        tree = packaged.anchored(tree)
    if kind is Recipe:
        tree = _with_data_found(tree, (found or path).parent)
    for override in overrides:
        tree = _with_override(tree, override)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise UserError("; ".join(_explain(kind, error)), where=path) from error


def manifest_of(recipe: Recipe | None, given: Path | None, overrides: Sequence[str] = ()) -> Manifest:
    """Read the manifest that is given, or else the one that the recipe names.

    Raises:
        UserError: neither is; or it cannot be read.
    """
    named = recipe.data if recipe else None
    if given is None and named is None:
        mend = "give --manifest" + (", or write `data: MANIFEST` into the recipe" if recipe else "")
        raise UserError("no manifest says which data is meant", where=recipe.name if recipe else "", mend=mend)
    return load(Manifest, given or Path(named or ""), overrides)


def _with_data_found(tree: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A recipe's values with `data` as a path that means the same from any folder, unless it names a packaged manifest.

    Example:
        >>> _with_data_found({"data": "demo"}, Path("/recipes")), _with_data_found({"data": "a.yaml"}, Path("/recipes"))
        ({'data': 'demo'}, {'data': '/recipes/a.yaml'})
    """
    data = tree.get("data")
    if not isinstance(data, str):
        return dict(tree)
    beside = folder / data
    is_packaged = not beside.is_file() and packaged.find(Path(data), "data_manifests")
    return {**tree, "data": data if is_packaged else str(beside.absolute())}


def _noun(kind: type[Config]) -> str:
    return kind.__name__.removesuffix("Config").lower()


def _other_kind(kind: type[Config], tree: Mapping[str, Any]) -> str | None:
    """What the file is, if all its keys are of another kind and not all are of `kind`.

    Example:
        >>> _other_kind(Manifest, {"name": "demo", "policy": {}, "budget": {}})
        'recipe'
    """
    for other in (Manifest, Recipe, StudyConfig):
        if set(tree) <= set(other.model_fields) and not set(tree) <= set(kind.model_fields):
            return _noun(other)
    return None


def _with_override(tree: Mapping[str, Any], override: str) -> dict[str, Any]:
    """A copy of `tree` with one `a.b=c` applied.

    Example:
        >>> _with_override({"select": {"where": "true"}}, "select.max_sites=5")
        {'select': {'where': 'true', 'max_sites': 5}}
    """
    key, separator, value = override.partition("=")
    if not separator or not re.fullmatch(r"\w+(\.\w+)*", key.strip()):
        raise UserError("override is not of the form key.subkey=value", where=override)
    head, _, rest = key.strip().partition(".")
    if not rest:
        try:
            return {**tree, head: yaml.safe_load(value)}
        except yaml.YAMLError as error:
            raise UserError("the value is not valid YAML", where=value, mend=" ".join(str(error).split())) from error
    below = tree.get(head)
    return {**tree, head: _with_override(below if isinstance(below, Mapping) else {}, f"{rest}={value}")}


def _explain(kind: type[Config], error: ValidationError) -> Iterable[str]:
    for problem in error.errors():
        location = [part for part in problem["loc"] if part != "__root__"]
        dotted = ".".join(map(str, location)) or "(top level)"
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(location[-1]), _known_keys(kind, location[:-1]), n=1, cutoff=0.4)
            hint = f", did you mean `{near[0]}`?" if near else f"; known: {', '.join(_known_keys(kind, location[:-1]))}"
            yield f"unknown key `{dotted}`{hint}"
        elif problem["type"] == "literal_error":
            known = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
            near = difflib.get_close_matches(str(problem["input"]), known, n=1, cutoff=0.4)
            hint = f", did you mean `{near[0]}`?" if near else ""
            yield f"`{dotted}`: no {problem['input']!r}{hint} (known: {', '.join(known)})"
        elif problem["type"] == "missing":
            yield f"`{dotted}` is required"
        elif problem["type"] == "string_type" and isinstance(problem["input"], dict):
            yield f'`{dotted}`: braces are a mapping in YAML; quote a text that has them: {location[-1]}: "{{name}}"'
        else:
            where = f"`{dotted}`: " if location else ""
            got = "" if isinstance(problem["input"], dict) else f" (got {problem['input']!r:.80})"
            yield f"{where}{problem['msg'].removeprefix('Value error, ')}{got}"


def _known_keys(kind: type[Config], location: Sequence[int | str]) -> list[str]:
    """Field names of the model that sits at `location` below `kind`, through optionals and tuples."""
    if not location:
        return list(kind.model_fields)
    if isinstance(location[0], int):
        return _known_keys(kind, location[1:])
    annotation = kind.model_fields[location[0]].annotation if location[0] in kind.model_fields else None
    below = next((model for model in _models_in(annotation)), None)
    return _known_keys(below, location[1:]) if below else []


def _models_in(annotation: Any) -> Iterable[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def canonical_json(value: Any) -> str:
    """One spelling for equal values: sorted keys, no spaces. Models are dumped first.

    Example:
        >>> canonical_json({"b": 1, "a": [1.0, None]})
        '{"a":[1.0,null],"b":1}'
    """
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Field-by-field difference of two dumped configurations, as lines a person can read.

    Example:
        >>> differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
        ['a.b: 1 → 3']
    """
    lines: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before!r} → {after!r}")
    return lines
