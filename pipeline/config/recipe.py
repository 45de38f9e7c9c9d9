"""Recipes: one training run, as frozen models. Defaults live here and nowhere else."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Config, Expression
from pipeline.config.manifest import ValidationConfig

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
    """What a response earns (`pipeline/grpo/rollout/rewards.py`); accuracy is always that of prefix matching. But
    `answer` and `math`, for `rpt finetune`, judge answers to questions, and accuracy is theirs."""
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

    Equations and sources stand beside the functions of these names (`pipeline/grpo/algorithm/advantage.py`, `loss.py`).
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
