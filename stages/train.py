"""Train: shards and a policy → a policy that reasons about the next token, by DeepSpeed ZeRO-3 GRPO.

Input:   the `train` shards of materialize (and `validation`, to measure held-out accuracy during training); a
         `transformers` folder of the policy.
Output:  `runs/<recipe>/`, whose parts `pipeline/grpo/run/run_folder.py` lists; `policy/` in it is the trained policy.
Command: rpt train RECIPE [--manifest MANIFEST] [--ranks N]
         On several nodes: deepspeed --hostfile HOSTS --module stages.train RECIPE [--manifest MANIFEST]

A step draws sites, samples a group of responses to each, rewards them, and updates the policy on what it sampled. It is
a function of (recipe, shards, policy, step): a killed run resumes from its last checkpoint and takes the same steps.

Libraries that take seconds to load are imported where they are used, so that a complete run reports at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline.config.errors import UserError
from pipeline.config.loading import load, manifest_of
from pipeline.config.recipe import Recipe
from pipeline.config.selection import BandsConfig
from pipeline.core.artifact import Record, published_record
from pipeline.core.model_files import model_digest, resolve_model
from pipeline.core.progress import log
from pipeline.core.workspace import own_record
from pipeline.grpo.data.pass_rates import read_pass_rates, screening_of
from pipeline.grpo.policy.deepspeed_config import choose_config, zero_stage
from pipeline.grpo.policy.lr_schedule import learning_rate
from pipeline.grpo.rollout.prompt import keep_prompt, kept_prompt
from pipeline.grpo.rollout.response_ends import response_ends
from pipeline.grpo.rollout.sampler_choice import with_sampler
from pipeline.grpo.run.flops import grpo_flops
from pipeline.grpo.run.launch import command_line, end_with_launcher, run_to_exit, stop_signal
from pipeline.grpo.run.metrics import GroupSummary, Metrics, ProgressLine, Stopwatch, held_out_accuracy, rollout_metrics
from pipeline.grpo.run.policy_loading import Policy, load_policy, with_vllm
from pipeline.grpo.run.run_folder import (
    MetricsLog,
    describe,
    identity,
    is_complete,
    latest_checkpoint,
    layout_of,
    lock,
    policy_tokenizer,
    spoken,
)
from pipeline.grpo.run.run_state import RunState
from pipeline.grpo.run.trackers import with_trackers
from pipeline.task.answers import judge_of
from pipeline.task.templates import Template, template_named

if TYPE_CHECKING:
    from pipeline.core.tokenizer import CorpusTokenizer
    from pipeline.grpo.data.curriculum import Curriculum
    from pipeline.grpo.rollout.response_ends import ResponseEnds
    from pipeline.grpo.rollout.rollouts import Rollout
    from pipeline.grpo.rollout.sampler import Sampler
    from pipeline.shards.reader import Site


def train(
    recipe: Recipe,
    bands: BandsConfig | None,
    shards: Record,
    *,
    run: Path,
    screening: Record | None = None,
    deepspeed_config: Path | None = None,
    vllm_server: str | None = None,
) -> Path | None:
    """Train the recipe's policy on the shards, from the last checkpoint in `run` if there is one.

    Every rank calls it; a single one needs no launcher.

    Args:
        recipe: the policy, task and training settings.
        bands: difficulty bands of the evaluations during training; None: one band for all sites.
        shards: record of `materialize`.
        run: the run's folder.
        screening: record of `screen`, if the recipe chooses its sites by pass rate.
        deepspeed_config: topology; by default ZeRO-3 for the devices there are.
        vllm_server: URL of a vLLM server that samples; None: sample in this process.

    Returns:
        The folder of the trained policy; None if the run was asked to stop (SIGTERM) and saved a checkpoint instead.

    Raises:
        UserError: `run` belongs to another run, no site matches, the policy cannot be read, the loss is not finite, or
            a rule of `budget.stop` applies.
    """
    recipe = with_sampler(recipe, vllm_server)
    base = resolve_model(recipe.policy.model, recipe.policy.revision)
    tokens, template = policy_tokenizer(base, shards), template_named(recipe.task.template)
    ends, text = response_ends(base, tokens), kept_prompt(run, base, tokens, template)
    own = identity(recipe, shards, model_digest(base), screening) | spoken(text, ends)
    main, trained = os.environ.get("RANK", "0") == "0", run / "policy"
    if is_complete(run, recipe.budget.steps, own):
        if main:
            log(f"train        up to date  {trained}")
        return trained
    held = lock(run) if main else None  # until this function or this process ends
    if main:
        keep_prompt(run, text, base, tokens, template)
    start = RunStart(recipe, shards, run, base, tokens, template, ends, own, main)
    finished = _train(start, bands, screening, deepspeed_config, vllm_server)
    if held:
        held.close()
    return trained if finished else None


@dataclass(frozen=True)
class RunStart:
    """The inputs of a run, known before its policy is loaded."""

    recipe: Recipe
    shards: Record
    run: Path
    base: Path
    """Folder of the policy before training."""
    tokens: CorpusTokenizer
    template: Template
    ends: ResponseEnds
    own: dict[str, Any]
    """Identity of the run: a checkpoint of another one is refused."""
    main: bool
    """True on rank 0, which alone writes."""


def _train(
    start: RunStart, bands: BandsConfig | None, screening: Record | None, topology_file: Path | None, server: str | None
) -> bool:
    """Load the policy, take the steps that are left and export the result. Returns False if asked to stop earlier."""
    from pipeline.grpo.policy import distributed

    distributed.prepare_environment()
    from pipeline.grpo.data.curriculum import Curriculum
    from pipeline.grpo.policy import engine as ds
    from pipeline.grpo.run import checkpoint

    recipe, shards, run, base, tokens = start.recipe, start.shards, start.run, start.base, start.tokens
    topology = choose_config(topology_file, on_gpu=distributed.on_gpu())
    rates = read_pass_rates(screening) if screening else None
    curriculum, held_out = Curriculum(shards.files("train"), recipe, rates), progress_sites(shards, recipe)
    ds.start()
    longest_context = shards.config["max_context_tokens"]
    distributed.barrier()  # rank 0 has stored the prompt: all ranks read it from there
    text = kept_prompt(run, base, tokens, start.template)
    policy = load_policy(recipe, base, topology, tokens, curriculum, longest_context, text)
    if recipe.rollout.sampler == "vllm":
        policy = with_vllm(policy, recipe, base, tokens, curriculum, longest_context, server)
    engine, sampler = policy.engine, policy.sampler
    layout = layout_of(recipe, zero_stage(topology), distributed.world_size())

    state, resumed, steps = RunState(), latest_checkpoint(run), recipe.budget.steps
    if resumed:
        state = RunState.of(checkpoint.resume(engine, resumed, start.own, layout))
        sampler.load_weights(ds.gathered_weights(engine))
    if start.main:
        begins = f"resumes after step {state.step}" if resumed else "starts"
        log(f"train        {begins}: {steps} steps on {shards.directory.parent}  {run}")
        log(f"train        a response ends with {start.ends.described(tokens)}")
        describe(run, recipe, {"shards": shards}, base, start.own, layout)
        metrics_log = with_trackers(MetricsLog(run, state.step if resumed else None), run, recipe)
        progress = ProgressLine(state.step, steps)

    def record(metrics: Metrics) -> None:
        if start.main:
            metrics_log.write(state.step, metrics | state.spent.metrics())
            if line := progress.line(state.step, metrics):
                log(line)

    def save(metrics: Metrics) -> None:
        keep, accuracy = recipe.budget.keep_last, held_out_accuracy(metrics)
        checkpoint.save(engine, run, state.state(), start.own, layout, keep, accuracy)

    measure = partial(evaluate, policy, held_out, bands, recipe)
    metrics = take_steps(start, policy, curriculum, state, measure, record, save, resumed=bool(resumed))
    if metrics is not None:
        ds.export(engine, recipe.policy, policy.tokenizer, run / "policy")
        save(metrics)  # last: a checkpoint of the last step says that the run is complete
    ds.close(engine, sampler)
    if start.main:
        metrics_log.close()
        done = f"done  {run / 'policy'}" if metrics is not None else "stopped: run the same command again to resume"
        log(f"train        {done}")
    return metrics is not None


def take_steps(
    start: RunStart,
    policy: Policy,
    curriculum: Curriculum,
    state: RunState,
    measure: Callable[[], Metrics],
    record: Callable[[Metrics], None],
    save: Callable[[Metrics], None],
    *,
    resumed: bool,
) -> Metrics | None:
    """Take the steps that are left, and advance `state` with them.

    Args:
        start: the inputs of the run.
        policy: the policy to train.
        curriculum: draws the sites of a step.
        state: how far the run has come.
        measure: evaluates the policy on held-out sites.
        record: writes the metrics of the steps done.
        save: writes a checkpoint after the steps done.
        resumed: the run goes on from a checkpoint; otherwise the policy is measured before the first step.

    Returns:
        The last step's metrics; None if the run was asked to stop, after a checkpoint was saved.
    """
    from pipeline.grpo.policy import distributed
    from pipeline.grpo.rollout.rollouts import write_rollouts

    recipe, steps, budget, metrics = start.recipe, start.recipe.budget.steps, start.recipe.budget, Metrics()
    with stop_signal() as stop_is_asked:
        if not resumed:
            record(measure())
        while state.step < steps:
            sampled, state.draws, metrics = take_step(policy, curriculum, recipe, state.step, state.draws)
            seconds = metrics["seconds/step"] * distributed.world_size()
            state.spent = state.spent.plus(metrics["compute/step"], seconds, metrics["tokens/trained"])
            if state.step % budget.save_rollouts_every == 0:
                write_rollouts(start.run, state.step, distributed.all_gather(sampled))
            state.step += 1
            if state.step == steps or state.step % budget.evaluate_every == 0:
                metrics |= measure()
            record(metrics)
            if (warning := state.watch.update(metrics, budget.stop)) and start.main:
                log(f"train        warning, step {state.step}: {warning}")
            # The ranks decide together: a signal may have reached only some of them.
            stopped = state.step < steps and distributed.all_reduce_max(stop_is_asked()) > 0
            if stopped or (state.step < steps and state.step % budget.save_every == 0):
                save(metrics)
            if stopped:
                return None
    return metrics


def take_step(
    policy: Policy, curriculum: Curriculum, recipe: Recipe, step: int, draws: int
) -> tuple[list[Rollout], int, Metrics]:
    """Sample, score, update, and hand the new weights to the sampler.

    Returns:
        This rank's rollouts, the draws since the run began, and the metrics of the step.
    """
    from pipeline.grpo.algorithm.objective import Objective
    from pipeline.grpo.policy import distributed
    from pipeline.grpo.policy import engine as ds
    from pipeline.grpo.policy.update import update
    from pipeline.grpo.rollout.rewards import RewardContext
    from pipeline.grpo.run.collection import collect, mini_batches

    clock, objective, lr = Stopwatch(), Objective.of(recipe), learning_rate(recipe.optimizer, step)
    sampler = cast("Sampler", policy.sampler)  # rewards that ask for probabilities are refused with vLLM
    reader = RewardContext(sampler, policy.prompts, policy.tokens)
    collected = collect(reader, curriculum, recipe, step, draws, clock)
    sampled, chosen = list(collected.sampled.values()), list(collected.chosen.values())
    with clock("update"):
        texts = {
            number: policy.prompts.bare_ids(rollout.text)
            for number, rollout in collected.sampled.items()
            if objective.next_token
        }
        batches = mini_batches(collected, texts, recipe)
        done = update(policy.engine, batches, objective, lr, reference=policy.reference)
    with clock("sync"):
        policy.sampler.load_weights(ds.gathered_weights(policy.engine))
    metrics = rollout_metrics(distributed.all_gather([GroupSummary.of(rollout) for rollout in sampled]))
    (flops,) = distributed.all_reduce_sum(grpo_flops(policy.size, recipe, sampled, chosen, list(texts.values())))
    metrics |= {
        "groups/draws": collected.draws - draws,
        "groups/trained": collected.chosen_by_all,
        "compute/step": flops,
        "lr": lr,
    }
    return sampled, collected.draws, metrics | done.metrics() | clock.metrics(metrics["tokens/sampled"])


def progress_sites(shards: Record, recipe: Recipe) -> list[Site]:
    """Return the held-out sites of the evaluations during training; none if no site was held out."""
    from pipeline.evaluation.predictions import choose_sites
    from pipeline.shards.reader import ShardReader

    files = shards.files("validation")
    if not files:
        log("train        the shards have no held-out site: accuracy is not measured during training")
        return []
    reader = ShardReader(files, recipe.evaluate.where)
    site_ids = reader.site_ids()
    return [reader[i] for i in choose_sites(site_ids, recipe.evaluate.progress_sites, recipe.seed)]


def evaluate(policy: Policy, sites: Sequence[Site], bands: BandsConfig | None, recipe: Recipe) -> Metrics:
    """Return accuracy by reasoning at held-out sites, by band: `eval/<band>/reasoning`, `…_low`, `…_high`.

    Without bands there is one band, `all`.
    """
    import numpy as np

    from pipeline.evaluation.accuracy import accuracy_by_band, progress_metrics
    from pipeline.evaluation.intervals import proportion
    from pipeline.evaluation.predictions import predict_with_reasoning
    from pipeline.grpo.policy import distributed

    if not sites:
        return {}
    clock = Stopwatch()
    with clock("evaluate"):
        answers = predict_with_reasoning(
            policy.sampler,
            policy.prompts,
            distributed.shard(sites),
            temperature=recipe.evaluate.temperature,
            max_new_tokens=recipe.rollout.max_new_tokens,
            seed=recipe.seed,
            batch=recipe.rollout.batch_rows,
            advance=lambda sites, tokens: None,
            judge=judge_of(recipe.task.reward),
        )
        hits_N = np.array(distributed.all_gather([answer.hit for answer in answers]))
    documents_N = [site.doc_id for site in sites]
    by_band = accuracy_by_band(hits_N, sites, bands) if bands else {"all": proportion(hits_N, documents_N)}
    return {**progress_metrics(by_band), **clock.seconds()}


def main() -> None:
    """Run one rank, as started by `rpt train`, `torchrun` or `deepspeed`."""
    end_with_launcher()
    parser = command_line("stages.train", (__doc__ or "").partition("\n")[0])
    parser.add_argument("--vllm-server")
    parser.add_argument("--questions", type=Path, help="train on these questions instead of the manifest's shards")
    arguments = parser.parse_args()
    recipe = load(Recipe, arguments.recipe, arguments.overrides)
    manifest = manifest_of(recipe, arguments.manifest)
    work, questions = arguments.work / manifest.name, arguments.questions
    if (recipe.task.reward in ("answer", "math")) != bool(questions):
        raise UserError(
            "this recipe uses an answer reward" if not questions else "this recipe has no answer reward",
            where=arguments.recipe,
            hint="use `rpt finetune` for questions with answers, `rpt train` for sites",
        )
    shards = published_record(questions) if questions else own_record(work, manifest, "materialize")
    train(
        recipe,
        None if questions else manifest.select.bands,
        shards,
        run=arguments.run or Path("runs") / recipe.name,
        screening=screening_of(recipe, shards, work),
        deepspeed_config=arguments.deepspeed_config,
        vllm_server=arguments.vllm_server,
    )


if __name__ == "__main__":
    run_to_exit(main)
