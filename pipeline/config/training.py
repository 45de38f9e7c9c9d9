"""The training part of a recipe: rollouts, objective, optimizer, budget and supervised batches."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Config, Expression


class RolloutConfig(Config):
    """How responses are sampled."""

    execution: ClassVar[frozenset[str]] = frozenset({"batch_rows", "sampler", "vllm_memory_fraction"})

    sites_per_step: int = Field(256, gt=0)
    """Sites (prompts) drawn per step, over all ranks."""
    group_size: int = Field(8, gt=1)
    """Responses sampled per site; their advantages are relative to each other."""
    temperature: float = Field(0.8, gt=0)
    """Sampling temperature. Log-probabilities of the update are computed at it, too."""
    max_new_tokens: int = Field(8192, gt=0)
    """Most policy tokens per response; longer responses are cut."""
    batch_rows: int = Field(1024, gt=0)
    """Responses decoded at once per rank: affects memory, not results."""
    sampler: Literal["auto", "built_in", "vllm"] = "auto"
    """`vllm` samples in the trainer's own processes, or on a server: `rpt train --vllm-server URL`. `auto` is `vllm`
    where a server is given, or it is installed and there is a GPU; else `built_in`. The choice is logged."""
    vllm_memory_fraction: float = Field(0.4, gt=0, le=1)
    """Share of a GPU's memory that vLLM may use while it samples in the trainer's process."""


class ObjectiveConfig(Config):
    """The training objective; by default GRPO as the paper uses it: group-normalised advantages, no KL.

    The functions of these names give equations and sources (`pipeline/grpo/algorithm/advantage.py`, `loss.py`).
    """

    advantage: Literal["group_std", "mean_only", "rloo"] = "group_std"
    """Advantages within a group: `group_std` is (reward − mean) / standard deviation (GRPO), `mean_only` is reward −
    mean (Dr. GRPO), `rloo` is reward − mean of the other rewards (REINFORCE leave-one-out)."""
    loss: Literal["grpo", "dapo", "dr_grpo", "gspo", "cispo"] = "grpo"
    """Policy loss: `grpo` averages per response and then over responses, `dapo` over all tokens, `dr_grpo` divides by a
    constant length, `gspo` has one ratio per response, `cispo` clips weights instead of gradients."""
    clip: float = Field(0.2, gt=0)
    """Lower clip bound: the ratio of new to old probability is kept above 1 − `clip`."""
    clip_high: float | None = Field(None, gt=0)
    """Upper clip bound: the ratio is kept below 1 + `clip_high`; null means `clip`. Ratios are 1, and nothing is
    clipped, unless `optimizer.updates_per_step` is above 1."""
    kl: float = Field(0.0, ge=0)
    """Weight of the KL divergence from the initial policy (k3 estimator). Above 0 a copy of that policy is kept in
    memory, except with adapters, which are switched off instead."""
    entropy: float = Field(0.0, ge=0)
    """Weight of a bonus for the policy's entropy (nats)."""
    top_entropy: float = Field(1.0, gt=0, le=1)
    """Share of a step's tokens that are trained on, those of highest entropy; 0.2 is "80/20". Costs one more forward
    pass."""
    learn_unfinished: bool = True
    """Train on responses cut at the length limit; if false, they only count in their group's advantages (overlong
    filtering)."""
    importance_cap: float | None = Field(None, gt=0)
    """Weight tokens by the ratio of the trainer's to the sampler's probability, truncated at this (2 is usual):
    corrects for low-precision samplers. null only measures the difference (`sampler/logprob_gap`)."""
    next_token: float = Field(0.0, ge=0)
    """Weight of an auxiliary next-token loss on the text around the sampled sites (RMT: 0.1)."""
    dynamic_sampling_from: int | None = Field(None, ge=0)
    """From this step on, draw further sites until the batch is full of groups with unequal rewards; null turns it
    off."""
    dynamic_sampling_rounds: int = Field(4, ge=1)
    """Most draws per step with `dynamic_sampling_from`."""


class OptimizerConfig(Config):
    """Settings of the optimizer, AdamW, and of the updates per step."""

    execution: ClassVar[frozenset[str]] = frozenset({"micro_batch_tokens"})

    lr: float = Field(1e-6, gt=0)
    """Learning rate after warmup; it stays constant."""
    updates_per_step: int = Field(1, gt=0)
    """Mini-batches into which the groups of a step are divided, in the order they were drawn; each is one update. The
    paper makes one update per step, which is on-policy. From the second update on, ratios of new to old probability
    differ from 1, and `objective.clip` acts. Costs one more forward pass if above 1."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's running averages of the gradient and of its square."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay: per update, weights shrink by `lr` times this."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises linearly. All updates of a step have the same rate."""
    clip_norm: float = Field(0.2, gt=0)
    """Gradients are scaled down to this global L2 norm where they exceed it."""
    micro_batch_tokens: int = Field(16384, gt=0)
    """Tokens per backward pass and rank, with a group's context counted once: affects memory, not results. A group with
    more tokens is split over several passes, each of which reads its context again."""


class StopConfig(Config):
    """When a run stops because more steps would not help; null turns a rule off. It always stops at a loss of NaN."""

    probe_sites: int | None = Field(64, gt=0)
    """Sample responses to this many sites before the first step, and do not start if no group has unequal rewards."""
    grad_norm: float | None = Field(1e4, gt=0)
    """Stop when the gradient's L2 norm before clipping exceeds this."""
    dead_reward_steps: int | None = Field(100, gt=0)
    """Stop when no group had unequal rewards for this many steps in a row."""
    entropy: float | None = Field(1e-4, gt=0)
    """Stop when the policy's entropy (nats per token) was below this for `entropy_steps` steps in a row."""
    entropy_steps: int = Field(20, gt=0)
    """Steps in a row for `entropy`."""
    logprob_gap: float | None = Field(0.5, gt=0)
    """Stop when trainer and sampler differ by more than this in the log-probability of the sampled tokens
    (`sampler/logprob_gap`, nats per token), because one of them then computes another policy."""
    logprob_gap_warning: float | None = Field(0.1, gt=0)
    """Warn when that difference exceeds this. Rounding to bfloat16 alone causes about 0.05 nats per token."""


class BudgetConfig(Config):
    """How long to train and what to keep."""

    added: ClassVar[frozenset[str]] = frozenset({"sampled_tokens"})

    steps: int = Field(1000, ge=0)
    """Training steps of the run."""
    sampled_tokens: int | None = Field(None, gt=0)
    """End earlier: with the step in which the run has sampled so many tokens of responses, over all ranks."""
    evaluate_every: int = Field(100, gt=0)
    """Steps between measurements of held-out accuracy; the first and last step are always measured."""
    save_every: int = Field(100, gt=0)
    """Steps between checkpoints; one is also written at the end and on Ctrl-C."""
    keep_last: int = Field(2, gt=0)
    """Number of latest checkpoints to keep; the one with the best measured accuracy is kept as well."""
    save_rollouts_every: int = Field(10, gt=0)
    """Steps between those whose rollouts are written to `rollouts/step-*.parquet`."""
    stop: StopConfig = StopConfig()
    """Rules that stop the run early."""


class SupervisedConfig(Config):
    """Batches of `rpt ntp` and `rpt sft`, which end after `budget.steps` or as given on the command line."""

    batch_tokens: int = Field(65536, gt=1)
    """About this many tokens per step, prompts included, over all ranks."""
    window: int = Field(4096, gt=1)
    """Most tokens per piece of a document; pieces do not attend to each other."""
    plain_text: float = Field(0.0, ge=0, lt=1)
    """`rpt sft`: share of a step's tokens that is plain text of the training documents."""

    @model_validator(mode="after")
    def _window_fits(self) -> SupervisedConfig:
        if self.window > self.batch_tokens:
            raise ValueError(f"window ({self.window}) must not be larger than batch_tokens ({self.batch_tokens})")
        return self


class WarmupConfig(Config):
    """`rpt warmup`: a short supervised phase before RL, which teaches a policy the form of a response."""

    added: ClassVar[frozenset[str]] = frozenset({"at_once", "plain_text"})

    thoughts: Literal["rules", "sampled"] = "rules"
    """`rules` writes short thoughts by fixed rules (`pipeline/grpo/data/rule_thoughts.py`); `sampled` takes the
    policy's own right responses, which `rpt screen` has kept."""
    examples: int = Field(1000, gt=0)
    """Most training sites to learn from, chosen by a hash of the seed and their number."""
    where: Expression | None = None
    """SQL over the site columns: which training sites; null means `sites.where`."""
    lr: float = Field(1e-4, gt=0)
    """Learning rate, which rises over the first tenth of the steps."""
    batch_tokens: int = Field(2048, gt=1)
    """About this many tokens per step, prompts included, over all ranks; at least those of the longest example."""
    plain_text: float = Field(0.0, ge=0, lt=1)
    """Share of a step's tokens that is plain text of the training documents, so that the policy forgets less of what it
    predicts directly."""
    at_once: float = Field(0.0, ge=0, le=1)
    """Share of the examples that answer without a thought, chosen by a hash of the seed, with `thoughts: rules`. A
    policy that has seen both forms can learn when to think (`task.token_price`)."""

    @model_validator(mode="after")
    def _thoughts_can_be_left_out(self) -> WarmupConfig:
        if self.at_once and self.thoughts == "sampled":
            raise ValueError(
                "warmup.at_once: sampled responses are learned as they are; it needs warmup.thoughts: rules"
            )
        return self
