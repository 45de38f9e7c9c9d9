"""Recipes: one training run, as frozen models. Defaults live here and nowhere else."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Config, Expression
from pipeline.config.task import (
    READING_REWARDS,
    CurriculumPhase,
    QuestionsConfig,
    ScreenConfig,
    SitesConfig,
    TaskConfig,
)
from pipeline.config.training import (
    BudgetConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RolloutConfig,
    SupervisedConfig,
    WarmupConfig,
)


class LoraConfig(Config):
    """Low-rank adapters (arXiv 2106.09685): W + alpha / rank · B A, of which only A and B are trained."""

    rank: int = Field(gt=0)
    """Inner dimension of the adapters A and B."""
    alpha: float = Field(gt=0)
    """Scale of the update: it is multiplied by `alpha` / `rank`."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Names of the linear layers that get adapters (`q_proj`); by default all but the output head."""


class PolicyConfig(Config):
    """The model that is trained."""

    locations: ClassVar[frozenset[str]] = frozenset({"model", "revision"})
    execution: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing"})

    model: str
    """Folder or hub id of a causal language model, or of a LoRA adapter, which is merged into its base."""
    revision: str | None = None
    """Hub revision of `model` (a commit hash: a branch name is not reproducible)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the forward and backward passes; the optimizer always has float32 copies. `auto` is bfloat16 if
    this machine's GPU or CPU multiplies it, else float32. A run records which, and keeps it on every machine."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, the same results."""
    lora: LoraConfig | None = None
    """Train low-rank adapters; null trains the whole model. Needs peft: `pip install 'rpt[lora]'`."""


class EvaluateConfig(Config):
    """How next-token accuracy is measured on held-out sites."""

    locations: ClassVar[frozenset[str]] = frozenset({"bands_by", "bands_by_revision"})

    sites: int = Field(2000, gt=0)
    """Validation sites of the final evaluation, chosen by a hash of (seed, site_id) within `where`."""
    progress_sites: int = Field(300, gt=0)
    """Validation sites of the evaluations during training, chosen the same way."""
    where: Expression = "true"
    """SQL over the site columns: validation sites of the headline table. All validation sites are reported as well."""
    temperature: float = Field(0.0, ge=0)
    """Sampling temperature of the response that is judged; 0 decodes greedily."""
    samples: int = Field(0, ge=0)
    """Further responses per site, for mean accuracy and pass@k."""
    sample_temperature: float = Field(0.8, gt=0)
    """Sampling temperature of those further responses."""
    bands_by: str | None = None
    """Folder or hub id of a model whose entropy decides the difficulty bands; null means the manifest's proxy."""
    bands_by_revision: str | None = None
    """Hub revision of `bands_by` (a commit hash: a branch name is not reproducible)."""


class TrackConfig(Config):
    """Experiment trackers, in addition to `metrics.jsonl` and TensorBoard, which are always written."""

    to: tuple[Literal["wandb", "trackio", "mlflow"], ...] = ()
    """Names of the trackers. Each is an extra of its own: `pip install 'rpt[wandb]'`."""
    project: str = "rpt"
    """Project under which the trackers group runs."""


class Recipe(Config):
    """A training run."""

    locations: ClassVar[frozenset[str]] = frozenset({"data"})

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """Name of the run, and by default of its folder under `runs/`."""
    description: str = ""
    """One line about the run."""
    data: str | None = None
    """Manifest whose shards are trained on: a path relative to the recipe's folder, or the name of a packaged manifest.
    `--manifest` overrides it."""
    policy: PolicyConfig
    """The model that is trained."""
    task: TaskConfig = TaskConfig()
    """What the policy is asked and which responses are rewarded."""
    screen: ScreenConfig = ScreenConfig()
    """How `rpt screen` estimates pass rates."""
    sites: SitesConfig = SitesConfig()
    """Which sites are trained on."""
    curriculum: tuple[CurriculumPhase, ...] = ()
    """Phases that restrict the sites further, by rising `until_step`; after the last one only `sites.where` applies."""
    rollout: RolloutConfig = RolloutConfig()
    """How responses are sampled."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """The loss and its advantages."""
    supervised: SupervisedConfig = SupervisedConfig()
    """Batches of `rpt ntp` and `rpt sft`."""
    warmup: WarmupConfig = WarmupConfig()
    """The supervised phase of `rpt warmup`."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer and its updates."""
    budget: BudgetConfig = BudgetConfig()
    """How long to train, and what is evaluated and saved when."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """How next-token accuracy is measured."""
    questions: QuestionsConfig | None = None
    """Questions with known answers, for `rpt finetune`."""
    track: TrackConfig = TrackConfig()
    """Experiment trackers."""
    seed: int = 0
    """Seed of everything that is drawn in the run: sites, responses, batches and evaluation samples."""

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
        if self.task.targets == "shuffled" and self.sites.by == "foretold":
            raise ValueError("sites.by: foretold goes by a site's own target: with task.targets: shuffled use uniform")
        return self
