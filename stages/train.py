"""Train: shards and a policy → a policy that reasons about the next token, by DeepSpeed ZeRO-3 GRPO.

Input:   the `train` shards of materialize (and `validation`, to see held-out accuracy on the way); a `transformers`
         folder of the policy.
Output:  `runs/<recipe>/`, whose parts `pipeline/grpo/run/run_folder.py` lists; `policy/` in it is the trained policy.
Command: rpt train RECIPE [--manifest MANIFEST] [--ranks N]
         On several nodes: deepspeed --hostfile HOSTS --module stages.train RECIPE [--manifest MANIFEST]

A step draws sites, samples a group of responses to each, rewards them, and updates the policy on what it sampled. It is
a function of (recipe, shards, policy, step): a killed run goes on from its last checkpoint and takes the same steps.

Libraries that take seconds to load are imported where they are used: a run that is complete says so at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from pipeline.grpo.run.early_stopping import EarlyStopping
from pipeline.grpo.run.flops import ComputeUsed, ModelSize, grpo_flops
from pipeline.grpo.run.launch import command_line, end_with_launcher, run_to_exit, stop_signal
from pipeline.grpo.run.metrics import GroupSummary, Metrics, ProgressLine, Stopwatch, held_out_accuracy, rollout_metrics
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
from pipeline.grpo.run.trackers import with_trackers
from pipeline.task.answers import judge_of
from pipeline.task.templates import template_named

if TYPE_CHECKING:
    from pipeline.core.tokenizer import CorpusTokenizer
    from pipeline.grpo.data.curriculum import Curriculum
    from pipeline.grpo.rollout.prompt import PromptBuilder, PromptText
    from pipeline.grpo.rollout.rollouts import Rollout
    from pipeline.grpo.rollout.sampler import Sampler
    from pipeline.grpo.types import ResponseSampler
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
        recipe: what to train, and how.
        bands: difficulty bands of the evaluations during training; None: sites are not told apart.
        shards: record of `materialize`.
        run: the run's folder.
        screening: record of `screen`, if the recipe chooses its sites by pass rate.
        deepspeed_config: topology; by default ZeRO-3 for the devices there are.
        vllm_server: where a vLLM is that samples; None: in this process, if by vLLM at all.

    Returns:
        the folder of the trained policy; None if it was asked to stop (SIGTERM) and saved a checkpoint instead.

    Raises:
        UserError: `run` holds another run, no site matches, the policy cannot be read, the loss is not finite, or
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

    from pipeline.grpo.policy import distributed

    distributed.prepare_environment()
    from pipeline.grpo.data.curriculum import Curriculum
    from pipeline.grpo.policy import engine as ds
    from pipeline.grpo.rollout.rollouts import write_rollouts
    from pipeline.grpo.run import checkpoint

    topology = choose_config(deepspeed_config, on_gpu=distributed.on_gpu())
    rates = read_pass_rates(screening) if screening else None
    curriculum, held_out = Curriculum(shards.files("train"), recipe, rates), progress_sites(shards, recipe)
    ds.start()
    longest_context = shards.config["max_context_tokens"]
    distributed.barrier()  # until rank 0 has kept the prompt: all ranks take it from there
    text = kept_prompt(run, base, tokens, template)
    policy = load_policy(recipe, base, topology, tokens, curriculum, longest_context, text)
    if recipe.rollout.sampler == "vllm":
        policy = sampling_with_vllm(policy, recipe, base, tokens, curriculum, longest_context, vllm_server)
    engine, sampler = policy.engine, policy.sampler
    layout = layout_of(recipe, zero_stage(topology), distributed.world_size())
    steps, budget = recipe.budget.steps, recipe.budget

    done, draws, watch, spent, resumed = 0, 0, EarlyStopping(), ComputeUsed(), latest_checkpoint(run)
    if resumed:
        state = checkpoint.resume(engine, resumed, own, layout)
        done, draws, watch = state["step"], state["draws"], EarlyStopping(**state["watch"])
        spent = ComputeUsed(**state["spent"])
        sampler.load_weights(ds.gathered_weights(engine))
    if main:
        begins = f"resumes after step {done}" if resumed else "starts"
        log(f"train        {begins}: {steps} steps on {shards.directory.parent}  {run}")
        log(f"train        a response ends with {ends.described(tokens)}")
        describe(run, recipe, {"shards": shards}, base, own, layout)
        metrics_log, progress = (
            with_trackers(MetricsLog(run, done if resumed else None), run, recipe),
            ProgressLine(done, steps),
        )

    def record(step: int, metrics: Metrics) -> None:
        if main:
            metrics_log.write(step, metrics | spent.metrics())
            if line := progress.line(step, metrics):
                log(line)

    def save(step: int, metrics: Metrics) -> None:
        cursor = {"step": step, "draws": draws, "watch": watch.state(), "spent": spent.state()}
        checkpoint.save(engine, run, cursor, own, layout, budget.keep_last, held_out_accuracy(metrics))

    stopped, metrics = False, Metrics()
    with stop_signal() as stop_is_asked:
        if not resumed:
            record(0, evaluate(policy, held_out, bands, recipe))
        while done < steps and not stopped:
            sampled, draws, metrics = take_step(policy, curriculum, recipe, done, draws)
            seconds = metrics["seconds/step"] * distributed.world_size()
            spent = spent.plus(metrics["compute/step"], seconds, metrics["tokens/trained"])
            if done % budget.save_rollouts_every == 0:
                write_rollouts(run, done, distributed.all_gather(sampled))
            done += 1
            if done == steps or done % budget.evaluate_every == 0:
                metrics |= evaluate(policy, held_out, bands, recipe)
            record(done, metrics)
            if (warning := watch.see(metrics, budget.stop)) and main:
                log(f"train        warning, step {done}: {warning}")
            stopped = done < steps and distributed.all_reduce_max(stop_is_asked()) > 0
            if stopped or (done < steps and done % budget.save_every == 0):
                save(done, metrics)
    if not stopped:
        ds.export(engine, recipe.policy, policy.tokenizer, trained)
        save(done, metrics)  # last: a checkpoint of the last step says that the run is complete
    ds.close(engine, sampler)
    if main:
        metrics_log.close()
        log(
            "train        stopped: run the same command again to resume" if stopped else f"train        done  {trained}"
        )
    if held:
        held.close()
    return None if stopped else trained


@dataclass(frozen=True)
class Policy:
    """The policy in its two forms, to learn and to sample, and how it is spoken to."""

    engine: Any
    sampler: ResponseSampler
    prompts: PromptBuilder
    tokenizer: Any
    tokens: CorpusTokenizer
    reference: Any
    """The policy as it was before training, where the objective keeps to it."""
    size: ModelSize


def load_policy(
    recipe: Recipe,
    base: Path,
    topology: dict[str, Any],
    tokens: CorpusTokenizer,
    curriculum: Curriculum,
    longest_context: int,
    text: PromptText,
) -> Policy:
    """Both forms of the policy in `base`, found to agree.

    Raises:
        UserError: they do not, or the policy has too few positions for a site's prompt and the response to it.
    """
    import torch
    from transformers import AutoConfig, AutoTokenizer

    from pipeline.grpo.policy import engine as ds
    from pipeline.grpo.policy.agreement import verify
    from pipeline.grpo.rollout.positions import sites_must_fit
    from pipeline.grpo.rollout.prompt import PromptBuilder
    from pipeline.grpo.rollout.sampler import Sampler

    tokenizer = AutoTokenizer.from_pretrained(base)
    prompts, room = PromptBuilder(tokenizer, tokens, text), recipe.rollout.max_new_tokens
    longest = prompts.longest(longest_context, room)
    sites_must_fit(AutoConfig.from_pretrained(base), prompts, curriculum.sites(), longest, room)
    engine = ds.build(base, recipe.policy, recipe.optimizer, topology, longest=longest)
    dtype, rows = getattr(torch, recipe.policy.dtype), recipe.rollout.batch_rows
    sampler = Sampler.load(base, tokens, dtype=dtype, device=engine.device, batch_rows=rows, longest=longest)
    probe = prompts.ids(curriculum.draw(step=0, number=0)[0].site.context)
    verify(engine, ds.gathered_weights(engine), sampler.model, probe, recipe.rollout.temperature)
    reference = None
    if recipe.objective.kl:
        reference = ds.build_reference(engine, base, recipe.policy, topology, longest=longest)
    return Policy(engine, sampler, prompts, tokenizer, tokens, reference, ModelSize.of(base))


def sampling_with_vllm(
    policy: Policy,
    recipe: Recipe,
    base: Path,
    tokens: CorpusTokenizer,
    curriculum: Curriculum,
    longest_context: int,
    server: str | None,
) -> Policy:
    """The policy with vLLM instead of the built-in sampler, found to agree with the trainer.

    Raises:
        UserError: there is no vLLM, or it gives other log-probabilities.
    """
    from pipeline.grpo.policy import engine as ds
    from pipeline.grpo.policy.agreement import sampler_gap
    from pipeline.grpo.rollout.vllm_sampler import start_vllm
    from pipeline.grpo.types import SamplingRequest

    prompt = policy.prompts.ids(curriculum.draw(step=0, number=0)[0].site.context)
    sampler = start_vllm(
        base,
        tokens,
        policy.sampler.eos_ids,
        recipe.rollout,
        dtype=recipe.policy.dtype,
        max_tokens=policy.prompts.longest(longest_context, recipe.rollout.max_new_tokens),
        server=server,
    )
    sampler.load_weights(ds.gathered_weights(policy.engine))
    response = sampler.sample(
        SamplingRequest([prompt], 1, recipe.rollout.temperature, min(8, recipe.rollout.max_new_tokens), [0])
    )[0]
    sampler_gap(policy.engine, response, prompt, recipe.rollout.temperature)
    return replace(policy, sampler=sampler)


def take_step(
    policy: Policy, curriculum: Curriculum, recipe: Recipe, step: int, draws: int
) -> tuple[list[Rollout], int, Metrics]:
    """Sample, score, update, and hand the new weights to the sampler.

    Returns:
        this rank's rollouts, draws done since the run began, and what the step measured.
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
    """The held-out sites that the evaluations during training look at; none if nothing was held out."""
    from pipeline.evaluation.predictions import choose_sites
    from pipeline.shards.reader import ShardReader

    files = shards.files("validation")
    if not files:
        log("train        the shards have no held-out site: accuracy is not measured on the way")
        return []
    reader = ShardReader(files, recipe.evaluate.where)
    site_ids = reader.site_ids()
    return [reader[i] for i in choose_sites(site_ids, recipe.evaluate.progress_sites, recipe.seed)]


def evaluate(policy: Policy, sites: Sequence[Site], bands: BandsConfig | None, recipe: Recipe) -> Metrics:
    """Accuracy by reasoning at held-out sites, by band, with intervals: `eval/<band>/reasoning`, `…_low`, `…_high`.

    Without bands there is one, `all`.
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
    """One rank, as `rpt train`, `torchrun` or `deepspeed` starts it."""
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
            "sites are not judged as answers are",
            where=arguments.recipe,
            hint="run `rpt finetune` for questions, `rpt train` for sites",
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
