"""Train: shards and a policy → a policy that reasons about the next token, by DeepSpeed ZeRO-3 GRPO.

Input:   the `train` shards of materialize (and `validation`, to measure held-out accuracy during training); a
         `transformers` folder of the policy.
Output:  `runs/<recipe>/`, whose parts `pipeline/grpo/run/run_folder.py` lists; `policy/` in it is the trained policy.
Command: rpt train RECIPE [--manifest MANIFEST] [--ranks N]
         On several nodes: `rpt train RECIPE --write-spec SPEC`, then `deepspeed … --module stages.train SPEC`

A step draws sites, samples a group of responses to each, rewards them, and updates the policy on what it sampled. It is
a function of (recipe, shards, policy, step): a killed run resumes from its last checkpoint and takes the same steps.
The loop over steps is `run_steps` in `pipeline/grpo/run/loop.py`.

Libraries that take seconds to load are imported where they are used, so that a complete run reports at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pipeline.config.recipe import Recipe
from pipeline.config.selection import BandsConfig
from pipeline.core.artifact import Record, published_record
from pipeline.core.model_files import model_digest, resolve_model
from pipeline.core.progress import log
from pipeline.grpo.data.outcomes import Outcomes, with_newest
from pipeline.grpo.data.pass_rates import read_pass_rates
from pipeline.grpo.policy.deepspeed_config import choose_config
from pipeline.grpo.policy.lr_schedule import learning_rate
from pipeline.grpo.policy.rendezvous import is_first_rank
from pipeline.grpo.rollout.prompt import keep_prompt, kept_prompt
from pipeline.grpo.rollout.response_ends import response_ends
from pipeline.grpo.rollout.sampler_choice import with_sampler
from pipeline.grpo.rollout.thinking_choice import with_thinking
from pipeline.grpo.run.flops import grpo_flops
from pipeline.grpo.run.launch import run_rank
from pipeline.grpo.run.metrics import GroupSummary, Metrics, Stopwatch, rollout_metrics
from pipeline.grpo.run.policy_dtype import with_dtype
from pipeline.grpo.run.policy_loading import Policy, load_policy, with_vllm
from pipeline.grpo.run.run_folder import TrainingRun, identity, is_up_to_date, locked, policy_tokenizer, spoken
from pipeline.grpo.run.run_state import RunState
from pipeline.grpo.run.spec import TrainingSpec
from pipeline.task.answers import judge_of

if TYPE_CHECKING:
    from pipeline.core.tokenizer import CorpusTokenizer
    from pipeline.grpo.data.curriculum import Curriculum
    from pipeline.grpo.rollout.rollouts import Rollout
    from pipeline.grpo.rollout.sampler import Sampler
    from pipeline.grpo.run.loop import OpenRun
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
    recipe = with_dtype(with_sampler(recipe, vllm_server), "train", run)
    base = resolve_model(recipe.policy.model, recipe.policy.revision)
    tokens = policy_tokenizer(base, shards)
    recipe = with_thinking(recipe, base, tokens, "train")
    ends, text = response_ends(base, tokens), kept_prompt(run, base, tokens, recipe.task)
    own = identity(recipe, shards, model_digest(base), screening) | spoken(text, ends)
    training = TrainingRun("train", run, recipe, base, own, recipe.budget.steps, {"shards": shards})
    if is_up_to_date(training):
        return training.policy
    with locked(training):
        if is_first_rank():
            keep_prompt(run, text, base, tokens, recipe.task)
            log(f"train        a response ends with {ends.described(tokens)}")
        return _train(training, tokens, bands, screening, deepspeed_config, vllm_server)


def _train(
    training: TrainingRun,
    tokens: CorpusTokenizer,
    bands: BandsConfig | None,
    screening: Record | None,
    deepspeed_config: Path | None,
    vllm_server: str | None,
) -> Path | None:
    """Load the policy and train it; the arguments and what is returned are those of `train`."""
    from pipeline.grpo.policy import distributed

    distributed.prepare_environment()
    from pipeline.evaluation.foretold import calibration, sentence
    from pipeline.grpo.data.curriculum import Curriculum
    from pipeline.grpo.policy import engine as ds
    from pipeline.grpo.rollout.rollouts import write_rollouts
    from pipeline.grpo.run.loop import close_run, open_run, run_steps

    recipe, base, shards = training.recipe, training.base, training.made_from["shards"]
    topology = choose_config(deepspeed_config, on_gpu=distributed.on_gpu())
    rates = read_pass_rates(screening) if screening else None
    curriculum, held_out = Curriculum(shards.files("train"), recipe, rates), progress_sites(shards, recipe)
    ds.start()
    longest_context = shards.config["max_context_tokens"]
    distributed.barrier()  # rank 0 has stored the prompt: all ranks read it from there
    text = kept_prompt(training.folder, base, tokens, recipe.task)
    policy = load_policy(recipe, base, topology, tokens, curriculum, longest_context, text)
    if recipe.rollout.sampler == "vllm":
        policy = with_vllm(policy, recipe, base, tokens, curriculum, longest_context, vllm_server)
    opened = open_run(training, policy.engine, topology)
    if opened.resumed:
        policy.sampler.load_weights(ds.gathered_weights(policy.engine))

    def step(state: RunState) -> Metrics:
        rollouts, state.draws, state.outcomes, metrics = take_step(policy, curriculum, recipe, state)
        if state.step % recipe.budget.save_rollouts_every == 0:
            write_rollouts(training.folder, state.step, distributed.all_gather(rollouts), recipe.task.prefill)
        return metrics

    def check(metrics: Metrics) -> str | None:
        return opened.state.watch.update(metrics, recipe)

    first = Metrics() if opened.resumed else probe(opened, policy, curriculum)
    metrics = run_steps(opened, step, partial(evaluate, policy, held_out, bands, recipe), check, first)
    if is_first_rank() and (foretold := calibration(opened.state.outcomes)):
        log(f"train        forecasts: {sentence(foretold)}")
    return close_run(opened, metrics, policy.sampler)


def probe(opened: OpenRun, policy: Policy, curriculum: Curriculum) -> Metrics:
    """Sample responses before the first step, if the recipe asks for it, and return their metrics.

    Raises:
        UserError: nothing can be learned from them.
    """
    from pipeline.grpo.rollout.rewards import RewardContext
    from pipeline.grpo.run.probing import must_learn, probe_policy, report

    recipe = opened.run.recipe
    if not recipe.budget.stop.probe_sites:
        return {}
    reader = RewardContext(cast("Sampler", policy.sampler), policy.prompts, policy.tokens)
    probed = probe_policy(reader, curriculum, recipe, recipe.budget.stop.probe_sites)
    if is_first_rank():
        report(probed, opened.run.folder)
    if opened.log and probed.verdict.learns == "no":
        opened.log.write(0, probed.metrics)
    must_learn(probed)
    return probed.metrics


def take_step(
    policy: Policy, curriculum: Curriculum, recipe: Recipe, state: RunState
) -> tuple[list[Rollout], int, Outcomes, Metrics]:
    """Sample, score, update, and hand the new weights to the sampler.

    Returns:
        This rank's rollouts, the draws and outcomes since the run began, and the metrics of the step.
    """
    from pipeline.grpo.algorithm.objective import Objective
    from pipeline.grpo.policy import distributed
    from pipeline.grpo.policy import engine as ds
    from pipeline.grpo.policy.update import update
    from pipeline.grpo.rollout.rewards import RewardContext
    from pipeline.grpo.run.collection import collect, mini_batches

    clock, objective, lr = Stopwatch(), Objective.of(recipe), learning_rate(recipe.optimizer, state.step)
    sampler = cast("Sampler", policy.sampler)  # rewards that ask for probabilities are refused with vLLM
    reader = RewardContext(sampler, policy.prompts, policy.tokens)
    thinking = policy.prompts.thinking
    collected = collect(reader, curriculum, recipe, state, clock)
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
    metrics = rollout_metrics(distributed.all_gather([GroupSummary.of(rollout, thinking) for rollout in sampled]))
    (flops,) = distributed.all_reduce_sum(grpo_flops(policy.size, recipe, sampled, chosen, list(texts.values())))
    metrics |= {
        "groups/draws": collected.draws - state.draws,
        "groups/trained": collected.chosen_by_all,
        "compute/step": flops,
        "lr": lr,
    }
    outcomes = with_newest(state.outcomes, collected.outcomes) if recipe.sites.by == "foretold" else ()
    metrics |= collected.foretold
    return sampled, collected.draws, outcomes, metrics | done.metrics() | clock.metrics(metrics["tokens/sampled"])


def progress_sites(shards: Record, recipe: Recipe) -> list[Site]:
    """Return the held-out sites of the evaluations during training; none if no site was held out."""
    from pipeline.evaluation.held_out import choose_held_out

    files = shards.files("validation")
    if not files:
        log("train        the shards have no held-out site: accuracy is not measured during training")
        return []
    return choose_held_out(files, recipe.evaluate.where, recipe.evaluate.progress_sites, recipe.seed)


def evaluate(policy: Policy, sites: Sequence[Site], bands: BandsConfig | None, recipe: Recipe) -> Metrics:
    """Return accuracy by reasoning at held-out sites, by band: `eval/<band>/reasoning`, `…_low`, `…_high`.

    Without bands there is one band, `all`. The first answer is logged.
    """
    import numpy as np

    from pipeline.evaluation.accuracy import accuracy_by_band, progress_metrics
    from pipeline.evaluation.intervals import proportion
    from pipeline.evaluation.predictions import log_first, predict_with_reasoning
    from pipeline.grpo.policy import distributed

    if not sites:
        return {}
    clock = Stopwatch()
    with clock("evaluate"):
        answers = predict_with_reasoning(
            policy.sampler,
            policy.prompts,
            distributed.shard(sites),
            recipe,
            advance=lambda sites, tokens: None,
            judge=judge_of(recipe.task.reward),
        )
        hits_N = np.array(distributed.all_gather([answer.hit for answer in answers]))
    if is_first_rank():
        log_first("train", sites, answers, policy.prompts)
    documents_N = [site.doc_id for site in sites]
    by_band = accuracy_by_band(hits_N, sites, bands) if bands else {"all": proportion(hits_N, documents_N)}
    return {**progress_metrics(by_band), **clock.seconds()}


class TrainSpec(TrainingSpec):
    """The specification of a run of `rpt train`, or of the training of `rpt finetune`."""

    shards: Path
    """Output of `materialize`, or the prepared questions of `rpt finetune`."""
    screening: Path | None = None
    """Output of `screen`, if the recipe chooses its sites by pass rate."""
    bands: BandsConfig | None = None
    """Difficulty bands of the evaluations during training."""
    vllm_server: str | None = None
    """URL of a vLLM server that samples."""


def main(spec: TrainSpec) -> None:
    """Run one rank, as started by `rpt train`, `torchrun` or `deepspeed`."""
    train(
        spec.recipe,
        spec.bands,
        published_record(spec.shards),
        run=spec.run,
        screening=published_record(spec.screening) if spec.screening else None,
        deepspeed_config=spec.deepspeed_config,
        vllm_server=spec.vllm_server,
    )


if __name__ == "__main__":
    run_rank(TrainSpec, main)
