"""The training loop that `rpt train`, `warmup`, `sft` and `ntp` share, and what opens and closes a run around it.

A stage says what a step is and what is measured; the rest is the same for all of them:

    run = TrainingRun("train", folder, recipe, base, own, steps, made_from)
    if is_up_to_date(run):
        return run.policy
    with locked(run):
        engine = …                                    # the policy under DeepSpeed
        progress = open_run(run, engine, topology)    # resumes from the last checkpoint, if there is one
        metrics = run_steps(progress, take_step, measure)
        return close_run(progress, metrics)
"""

from __future__ import annotations

import resource
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.core.progress import log
from pipeline.grpo.policy import distributed
from pipeline.grpo.policy import engine as ds
from pipeline.grpo.policy.deepspeed_config import zero_stage
from pipeline.grpo.run import checkpoint
from pipeline.grpo.run.launch import stop_signal
from pipeline.grpo.run.lineage import described, origin_of
from pipeline.grpo.run.metrics import Metrics, ProgressLine, ending_lines, held_out_accuracy, read_metrics
from pipeline.grpo.run.run_folder import MetricsLog, TrainingRun, describe, latest_checkpoint, layout_of
from pipeline.grpo.run.run_state import RunState
from pipeline.grpo.run.trackers import Log, with_trackers
from pipeline.grpo.types import ResponseSampler


def run_steps(
    opened: OpenRun,
    take_step: Callable[[RunState], Metrics],
    measure: Callable[[], Metrics],
    check: Callable[[Metrics], str | None] = lambda metrics: None,
    first: Mapping[str, float] = MappingProxyType({}),
) -> Metrics | None:
    """Take the steps that are left. Every rank calls it.

    Args:
        opened: the run; its `state` advances with every step.
        take_step: makes one step and returns its metrics, among them `seconds/step`, `compute/step`, `tokens/trained`.
        measure: evaluates the policy on held-out data: before the first step, every `budget.evaluate_every` steps and
            after the last.
        check: looks at the metrics of every step; may return a warning, or raise to end the run.
        first: metrics to record with the measurement before the first step.

    Returns:
        The last step's metrics; None if the run was asked to stop (SIGTERM), after a checkpoint was saved.
    """
    state, budget, metrics = opened.state, opened.run.recipe.budget, Metrics()
    with stop_signal() as stop_is_asked:
        if not opened.resumed:
            record(opened, {**first, **measure()})
        while not opened.run.ends_at(state.step, state.spent.sampled):
            metrics = take_step(state)
            state.step += 1
            seconds = metrics["seconds/step"] * distributed.world_size()
            sampled = metrics.get("tokens/sampled", 0)
            state.spent = state.spent.plus(metrics["compute/step"], seconds, metrics["tokens/trained"], sampled)
            is_last = opened.run.ends_at(state.step, state.spent.sampled)
            if is_last or state.step % budget.evaluate_every == 0:
                metrics |= measure()
            record(opened, metrics)
            if (warning := check(metrics)) and distributed.rank() == 0:
                log(f"{opened.run.command:<12} warning, step {state.step}: {warning}")
            # The ranks decide together: a signal may have reached only some of them.
            stopped = not is_last and distributed.all_reduce_max(stop_is_asked()) > 0
            if stopped or (not is_last and state.step % budget.save_every == 0):
                save(opened, metrics)
            if stopped:
                return None
    return metrics


@dataclass
class OpenRun:
    """A run whose policy is loaded: how far it has come, and where measurements and checkpoints go."""

    run: TrainingRun
    engine: ds.Engine
    layout: dict[str, Any]
    """How it is distributed and executed (`layout_of`)."""
    state: RunState
    resumed: bool
    """True if it goes on from a checkpoint."""
    log: Log | None
    """Of rank 0; None on the others."""
    progress: ProgressLine


def open_run(run: TrainingRun, engine: ds.Engine, topology: dict[str, Any]) -> OpenRun:
    """Load the last checkpoint into the engine, if there is one, describe the run and open its logs.

    Every rank calls it.

    Raises:
        UserError: the checkpoint is damaged or belongs to another run, or a tracker is not installed.
    """
    layout = layout_of(run.recipe, zero_stage(topology), distributed.world_size())
    state, found, metrics_log = RunState(), latest_checkpoint(run.folder), None
    if found:
        state = RunState.of(checkpoint.resume(engine, found, run.own, layout))
    if distributed.rank() == 0:
        begins = f"resumes after step {state.step}" if found else "starts"
        data = " and ".join(str(record.directory.parent) for record in run.made_from.values())
        log(f"{run.command:<12} {begins}: {run.steps} steps on {data}  {run.folder}")
        if origin := origin_of(run.base):
            log(f"{run.command:<12} its policy comes from {described(origin)}")
        describe(run, layout)
        own_log = MetricsLog(run.folder, state.step if found else None)
        metrics_log = with_trackers(own_log, run.folder, run.recipe)
    return OpenRun(run, engine, layout, state, bool(found), metrics_log, ProgressLine(state.step, run.steps))


def record(opened: OpenRun, metrics: Metrics) -> None:
    """Write the metrics of the steps done to the logs and, now and then, a line to the terminal."""
    if opened.log is None:
        return
    state = opened.state
    opened.log.write(state.step, metrics | state.spent.metrics() | peak_memory())
    for line in opened.progress.lines(state.step, metrics):
        log(line)


def peak_memory() -> Metrics:
    """Return the most memory that this process has used so far, in GiB: `memory/host`, and `memory/device` on a GPU."""
    import torch

    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    used = {"memory/host": round(kib / 2**20, 3)}
    if distributed.on_gpu():
        used["memory/device"] = round(torch.cuda.max_memory_reserved() / 2**30, 3)
    return used


def save(opened: OpenRun, metrics: Metrics) -> None:
    """Write a checkpoint of the steps done, whose last metrics are given. Every rank calls it."""
    run, accuracy = opened.run, held_out_accuracy(metrics)
    cursor, keep = opened.state.state(), run.recipe.budget.keep_last
    checkpoint.save(opened.engine, run.folder, cursor, run.own, opened.layout, keep, accuracy)


def close_run(opened: OpenRun, metrics: Metrics | None, sampler: ResponseSampler | None = None) -> Path | None:
    """Export the policy of a run that took all its steps; release engine, sampler and logs. Every rank calls it.

    Args:
        opened: the run.
        metrics: what `run_steps` returned.
        sampler: is closed with the engine.

    Returns:
        The folder of the trained policy; None if the run was asked to stop.
    """
    run = opened.run
    if metrics is not None:
        ds.export(opened.engine, run.recipe.policy, run.base, run.policy)
        save(opened, metrics)  # last: a checkpoint of the last step says that the run is complete
    ds.close(opened.engine, sampler)
    if opened.log:
        opened.log.close()
        stopped = ["stopped: run the same command again to resume"]
        for line in stopped if metrics is None else _ending(run):
            log(f"{run.command:<12} {line}")
    return None if metrics is None else run.policy


def _ending(run: TrainingRun) -> list[str]:
    """Return the lines that end a complete run: what it has changed, where the policy is, how to look at the run."""
    changed = ending_lines(read_metrics(run.folder / "metrics.jsonl"))
    what = "curves and rollouts" if (run.folder / "rollouts").is_dir() else "curves"
    return [*changed, f"{what}: rpt board {shlex.quote(str(run.folder))}", f"done  {run.policy}"]
