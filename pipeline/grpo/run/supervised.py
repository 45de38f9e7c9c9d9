"""Train the policy with supervision, by the engine that GRPO uses: what `rpt sft` and `rpt ntp` do in a step.

A step minimises the mean of −log p over the response tokens of its examples; prompts are read and not learned. The
update is GRPO's with the next-token loss alone: the same optimizer, clipping, partitions and numbers of backwards.
The loop over steps is `run_steps` in `loop.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.config.recipe import Recipe
from pipeline.core.artifact import Record
from pipeline.grpo.algorithm.loss import LOSSES, ClipRange
from pipeline.grpo.algorithm.objective import Objective
from pipeline.grpo.data.examples import EpochSampler, Example
from pipeline.grpo.model.batch import idle_batch, micro_batches
from pipeline.grpo.policy import distributed
from pipeline.grpo.policy import engine as ds
from pipeline.grpo.policy.agreement import verify
from pipeline.grpo.policy.deepspeed_config import choose_config
from pipeline.grpo.policy.lr_schedule import learning_rate
from pipeline.grpo.policy.update import MiniBatch, update
from pipeline.grpo.rollout.positions import must_fit
from pipeline.grpo.run.flops import ComputeBudget, ModelSize
from pipeline.grpo.run.loop import close_run, open_run, run_steps
from pipeline.grpo.run.metrics import Metrics, Stopwatch
from pipeline.grpo.run.run_folder import TrainingRun, is_up_to_date, locked
from pipeline.grpo.run.run_state import RunState
from pipeline.grpo.types import Batch, Group, Response

NEXT_TOKEN = Objective(LOSSES["dapo"], ClipRange(0.2, 0.2), temperature=1.0, max_new_tokens=1, next_token=1.0)
"""No response is rewarded: of the objective only the next-token loss is left."""


@dataclass(frozen=True)
class TrainingData:
    """The examples that a policy learns from, and the held-out ones that show whether it learns."""

    streams: tuple[EpochSampler, ...]
    """Each step learns from every one of them."""
    held_out: tuple[Example, ...]
    """The mean loss on them is measured on the way; may be empty."""
    made_from: Mapping[str, Record]
    """By name, the stages whose output is learned from."""

    def of_step(self, step: int) -> list[Example]:
        """Return the examples of a step."""
        return [example for stream in self.streams for example in stream.of_step(step)]


def step_flops(size: ModelSize, examples: Sequence[Example]) -> int:
    """Return the FLOPs of learning from examples."""
    return sum(size.learning(example.length) for example in examples)


def count_response_tokens(examples: Sequence[Example]) -> int:
    """Return the number of response tokens."""
    return sum(len(example.response) for example in examples)


def train_supervised(
    command: str,
    recipe: Recipe,
    data: TrainingData,
    base: Path,
    own: Mapping[str, Any],
    *,
    run: Path,
    budget: ComputeBudget,
    deepspeed_config: Path | None = None,
) -> Path | None:
    """Train the policy in `base` on examples, from the last checkpoint in `run` if there is one. Every rank calls it.

    Args:
        command: its name, for messages.
        recipe: its `policy`, `optimizer`, `supervised` and `budget` count.
        data: what is learned.
        base: folder of the policy that training starts from.
        own: what must be equal for a resumed run to be the same run.
        run: the run's folder.
        budget: when to end.
        deepspeed_config: topology; by default ZeRO-3 for the devices there are.

    Returns:
        The folder of the trained policy; None if the run was asked to stop (SIGTERM) and saved a checkpoint instead.

    Raises:
        UserError: `run` holds another run, or the loss is not finite.
    """
    size = ModelSize.of(base)
    plan = (data.of_step(step) for step in count())
    spending = ((step_flops(size, examples), count_response_tokens(examples)) for examples in plan)
    steps = budget.steps(spending, otherwise=recipe.budget.steps)
    must_fit(AutoConfig.from_pretrained(base), max(stream.longest for stream in data.streams), 1)
    training = TrainingRun(command, run, recipe, base, own, steps, data.made_from)
    if is_up_to_date(training):
        return training.policy
    with locked(training):
        topology = choose_config(deepspeed_config, on_gpu=distributed.on_gpu())
        ds.start()
        engine = load_engine(recipe, base, topology, data.of_step(0)[0])
        opened = open_run(training, engine, topology)

        def step(state: RunState) -> Metrics:
            return take_step(engine, data.of_step(state.step), size, recipe, state.step)

        metrics = run_steps(opened, step, partial(held_out_loss, engine, data.held_out, recipe))
        return close_run(opened, metrics)


def load_engine(recipe: Recipe, base: Path, topology: dict[str, Any], probe: Example) -> ds.Engine:
    """Load the policy under DeepSpeed and check that it agrees with a plain copy."""
    engine = ds.build(base, recipe.policy, recipe.optimizer, topology)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, recipe.policy.dtype)).eval()
    ids = [*probe.prompt.tolist(), *probe.response.tolist()]
    verify(engine, ds.gathered_weights(engine), plain.to(engine.device), ids, 1.0)
    return engine


def take_step(engine: ds.Engine, examples: Sequence[Example], size: ModelSize, recipe: Recipe, step: int) -> Metrics:
    """Make one update on the examples, divided over the ranks, and return its metrics."""
    clock, lr = Stopwatch(), learning_rate(recipe.optimizer, step)
    batches = batches_of(distributed.shard(examples), recipe.optimizer.micro_batch_tokens)
    done = update(engine, [MiniBatch(text=batches)], NEXT_TOKEN, lr)
    return {
        "loss": done.loss,
        **({} if done.grad_norm is None else {"grad_norm": done.grad_norm}),
        "lr": lr,
        "examples": len(examples),
        "tokens/trained": count_response_tokens(examples),
        "compute/step": step_flops(size, examples),
        **clock.metrics(sum(example.length for example in examples)),
    }


@torch.no_grad()
def held_out_loss(engine: ds.Engine, examples: Sequence[Example], recipe: Recipe) -> Metrics:
    """`eval/next_token_loss`: mean −log p (nats) of the response tokens; none without examples. Every rank calls it."""
    if not examples:
        return {}
    clock, total = Stopwatch(), 0.0
    with clock("evaluate"):
        batches = batches_of(distributed.shard(examples), recipe.optimizer.micro_batch_tokens)
        idle = [idle_batch()] * (
            distributed.all_reduce_max(len(batches)) - len(batches)
        )  # ranks wait in each other's gathers
        for batch in [*batches, *idle]:
            batch = batch.to(engine.device)
            logprobs_RT, _ = engine(batch, 1.0)
            total -= float(logprobs_RT.masked_fill(~batch.mask_RT, 0.0).sum())
        (everyones,) = distributed.all_reduce_sum(total)
    return {"eval/next_token_loss": everyones / count_response_tokens(examples), **clock.seconds()}


def batches_of(examples: Sequence[Example], room: int) -> list[Batch]:
    """Return micro-batches of at most `room` padded tokens, in which only the responses are learned."""
    groups = []
    for example in examples:
        ids = tuple(example.response.tolist())
        groups.append(Group(tuple(example.prompt.tolist()), (Response(ids, b"", True, (0.0,) * len(ids)),), (1.0,)))
    return micro_batches(groups, room)
