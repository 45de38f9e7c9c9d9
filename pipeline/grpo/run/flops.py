"""Count what training computes: FLOPs by the usual formula, and device-seconds. Starts without torch.

A decoder with N weights in its matrices, L layers and H heads of size Q reads a token that attends to t tokens, itself
included, in

    C(t) = 2 N + 4 L H Q t

floating-point operations: a multiplication and an addition for every weight, and for every attended token in the
scores and in the mean of the values (Kaplan et al. 2020, arXiv 2001.08361, section 2.1; with causal attention counted
token by token, where Chowdhery et al. 2022, arXiv 2204.02311, appendix B, take the sequence's length for t). A backward
costs twice its forward. Counted is what learning needs: sampling, reading what rewards ask for, forward and backward of
what is learned from, a prompt once for all responses to it. Not counted: padding, forwards that are run again to save
memory, evaluations, the probe before the first step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.errors import UserError
from pipeline.config.recipe import Recipe
from pipeline.config.task import READING_REWARDS
from pipeline.grpo.run.metrics import read_metrics

if TYPE_CHECKING:
    from pipeline.grpo.rollout.rollouts import Rollout
    from pipeline.grpo.types import Group

BACKWARD = 2
"""Cost of a backward pass, in forward passes."""


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a model that decide what a forward pass costs per token."""

    weights: int
    """N: numbers in matrices that every token is multiplied with; the output head is one, tables of embeddings are
    not. A mixture of experts is counted with all of them."""
    attention: int
    """L H Q: layers times width of their heads together. Windows of attention are not considered."""

    @classmethod
    def of(cls, folder: Path) -> ModelSize:
        """Return the sizes of the model in a `transformers` folder; only its configuration is read."""
        import torch
        from torch import nn
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        head, tables = model.get_output_embeddings().weight, [m for m in model.modules() if isinstance(m, nn.Embedding)]
        looked_up = {id(table.weight) for table in tables} - {id(head)}
        matrices = [p for p in model.parameters() if p.ndim > 1 and id(p) not in looked_up]
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(sum(p.numel() for p in matrices), config.num_hidden_layers * heads * size)

    def forward(self, tokens: int, before: int = 0) -> int:
        """Return the FLOPs of reading `tokens` tokens that follow `before` others.

        Example:
            >>> ModelSize(weights=10, attention=1).forward(3), ModelSize(weights=10, attention=1).forward(2, before=1)
            (84, 60)
        """
        attended = tokens * before + tokens * (tokens + 1) // 2
        return 2 * self.weights * tokens + 4 * self.attention * attended

    def learning(self, tokens: int) -> int:
        """Return the FLOPs of reading a text of so many tokens and of the backward pass through them."""
        return (1 + BACKWARD) * self.forward(tokens)

    def group(self, group: Group) -> int:
        """Return the FLOPs of reading a prompt once and its responses, which sampling them costs as well."""
        before = len(group.prompt)
        return self.forward(before) + sum(self.forward(len(response.ids), before) for response in group.responses)


def grpo_flops(
    size: ModelSize,
    recipe: Recipe,
    sampled: Sequence[Rollout],
    chosen: Sequence[Rollout],
    texts: Sequence[Sequence[int]],
) -> int:
    """Return the FLOPs of a step.

    Args:
        size: of the policy.
        recipe: its objective, reward and updates per step say what is read besides.
        sampled: what was sampled.
        chosen: what of it was learned from.
        texts: token ids of the texts of the next-token loss.
    """
    read_first = recipe.objective.top_entropy < 1 or recipe.optimizer.updates_per_step > 1
    passes = 1 + BACKWARD + (recipe.objective.kl > 0) + read_first
    learned = passes * sum(size.group(rollout.group) for rollout in chosen)
    text = sum(size.learning(len(ids)) for ids in texts)
    return sum(size.group(r.group) + _reading(size, recipe.task.reward, r.group) for r in sampled) + learned + text


def _reading(size: ModelSize, reward: str, group: Group) -> int:
    """Return the FLOPs of a reward that reads: the context alone, and each thought after its own copy of the prompt."""
    alone = size.forward(len(group.prompt)) if reward in READING_REWARDS else 0
    whole = [len(group.prompt) + len(response.ids) for response in group.responses if reward == "information_gain"]
    return alone + sum(map(size.forward, whole))


@dataclass(frozen=True)
class ComputeUsed:
    """The compute that a run has used so far, on all ranks; part of a checkpoint."""

    flops: float = 0.0
    seconds: float = 0.0
    """Seconds of the steps times the number of ranks: device-seconds, if a rank has one device."""
    tokens: int = 0
    """Tokens learned from."""
    sampled: int = 0
    """Tokens sampled in responses."""

    def plus(self, flops: float, seconds: float, tokens: float, sampled: float = 0) -> ComputeUsed:
        """Return the sum with one more step."""
        tokens, sampled = self.tokens + int(tokens), self.sampled + int(sampled)
        return ComputeUsed(self.flops + flops, self.seconds + seconds, tokens, sampled)

    def metrics(self) -> dict[str, float]:
        """Return the metrics `compute/flops`, `compute/seconds`, `compute/tokens` and `compute/sampled`."""
        return {f"compute/{name}": value for name, value in self.state().items()}

    def state(self) -> dict[str, float]:
        """Return the state to store in a checkpoint; restore it with `ComputeUsed(**state)`."""
        return asdict(self)


@dataclass(frozen=True)
class ComputeBudget:
    """A limit in tokens learned from, or in FLOPs, which ends a run instead of its recipe's steps."""

    tokens: int | None = None
    flops: float | None = None

    def steps(self, spending: Iterable[tuple[int, int]], *, otherwise: int) -> int:
        """Return the first number of steps after which the budget is spent.

        Args:
            spending: FLOPs and tokens of one step after the other, without end.
            otherwise: the answer where there is no budget.

        Example:
            >>> steps = [(10, 1)] * 9
            >>> ComputeBudget(flops=25).steps(steps, otherwise=7), ComputeBudget().steps(steps, otherwise=7)
            (3, 7)
        """
        if self.tokens is None and self.flops is None:
            return otherwise
        spent = ComputeUsed()
        for step, (flops, tokens) in enumerate(spending):
            if spent.flops >= (self.flops or 0) and spent.tokens >= (self.tokens or 0):
                return step
            spent = spent.plus(flops, 0, tokens)
        raise AssertionError("spending has an end")


def flops_of(run: Path) -> float:
    """Return the FLOPs that a run has used up to its last step.

    Raises:
        UserError: there is no run, or one whose compute was not counted.
    """
    path = run / "metrics.jsonl"
    rows = read_metrics(path) if path.is_file() else []
    if not rows or "compute/flops" not in rows[-1]:
        raise UserError("no run whose compute was counted", where=path, hint="give the folder of a run of `rpt`")
    return float(rows[-1]["compute/flops"])
