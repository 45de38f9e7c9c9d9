"""The commands that train a policy: `rpt train`, the baselines and `rpt finetune`; training runs in child processes.

A command reads its options into the run specification of a stage, which the processes that train read.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands.groups.options import (
    POLICY,
    Flops,
    FlopsOf,
    ManifestOption,
    PolicyFolder,
    Ranks,
    RecipeOverrides,
    RecipePath,
    Run,
    Tokens,
    Topology,
    Work,
    WriteSpec,
    run_option,
)
from commands.launch import launch
from commands.next_step import after_training, evaluation_of
from commands.reading import manifest_of, read_recipe
from pipeline.config.errors import UserError
from pipeline.core.progress import log

if TYPE_CHECKING:
    from pipeline.config.recipe import Recipe
    from pipeline.core.artifact import Record
    from pipeline.grpo.run.flops import ComputeBudget
    from pipeline.grpo.run.spec import TrainingSpec

commands = typer.Typer()


@commands.command(rich_help_panel=POLICY)
def train(
    recipe: RecipePath,
    manifest: ManifestOption = None,
    policy: PolicyFolder = None,
    ranks: Ranks = 1,
    deepspeed: Topology = None,
    vllm_server: Annotated[
        str | None, typer.Option(help="Sample with the vLLM server at http://host:port.  [default: in this process]")
    ] = None,
    browse: Annotated[
        bool, typer.Option("--browse", help="Serve a page with live curves, and print its address.")
    ] = False,
    overrides: RecipeOverrides = None,
    work: Work = Path("work"),
    run: Run = None,
    write_to: WriteSpec = None,
) -> None:
    """Train the policy on the shards by DeepSpeed ZeRO-3 GRPO with the prefix-matching reward; resumes automatically.

    For several nodes write the run's specification with `--write-spec`, and start `deepspeed` or `torchrun` on it
    (docs/training.md).

    Examples:

        rpt train recipes/demo.yaml

        rpt train recipes/demo.yaml --browse

        rpt train recipes/demo.yaml --ranks 2 --set budget.steps=20 --run runs/short

        rpt train recipes/demo.yaml --policy runs/demo-warmup/policy

        rpt train recipes/demo.yaml --set sites.by=foretold --run runs/foretold

        rpt train recipes/demo.yaml --write-spec runs/demo.json && deepspeed --module stages.train runs/demo.json
    """
    from commands.inspect.board import beside_training
    from pipeline.core.workspace import own_record
    from stages.train import TrainSpec

    read = read_recipe(recipe, _with_policy(policy, overrides))
    if read.task.reward in ("answer", "math"):
        hint = "use `rpt finetune` for questions with answers, `rpt train` for sites"
        raise UserError("this recipe uses an answer reward", where=recipe, hint=hint)
    corpus = manifest_of(read, manifest)
    shards = own_record(work / corpus.name, corpus, "materialize")
    spec = TrainSpec(
        recipe=read,
        run=run or Path("runs") / read.name,
        deepspeed_config=deepspeed,
        shards=shards.directory,
        screening=_screening(read, shards, work / corpus.name),
        bands=corpus.select.bands,
        vllm_server=vllm_server,
    )
    with beside_training(spec.run) if browse and write_to is None else nullcontext():
        _start("stages.train", spec, ranks, write_to)
    if write_to is None:
        measure = evaluation_of(recipe, _with_policy(policy, overrides), work, manifest=manifest, run=run)
        after_training("train", measure, spec.run / "policy")


@commands.command(rich_help_panel=POLICY)
def warmup(
    recipe: RecipePath,
    manifest: ManifestOption = None,
    policy: PolicyFolder = None,
    flops_of: FlopsOf = None,
    flops: Flops = None,
    tokens: Tokens = None,
    ranks: Ranks = 1,
    deepspeed: Topology = None,
    overrides: RecipeOverrides = None,
    work: Work = Path("work"),
    run: Annotated[Path | None, run_option("NAME-warmup")] = None,
    write_to: WriteSpec = None,
) -> None:
    """Teach a policy the form of responses before RL, on a few training sites; resumes automatically.

    A policy that never writes a box earns nothing, and RL cannot start. Each of `warmup.examples` is learned once, or
    as often as the limit of an option allows.

    Examples:

        rpt warmup recipes/demo.yaml && rpt train recipes/demo.yaml --policy runs/demo-warmup/policy

        rpt warmup recipes/demo.yaml --set warmup.examples=300 --set warmup.where="entropy < 1.5"

        rpt screen recipes/demo.yaml && rpt warmup recipes/demo.yaml --set warmup.thoughts=sampled
    """
    from pipeline.core.workspace import own_record
    from stages.warmup import WarmupSpec, screening_for, warmup_recipe

    read = warmup_recipe(read_recipe(recipe, _with_policy(policy, overrides)))
    corpus = manifest_of(read, manifest)
    shards = own_record(work / corpus.name, corpus, "materialize")
    screening = screening_for(read, shards, work / corpus.name)
    spec = WarmupSpec(
        recipe=read,
        run=run or Path("runs") / f"{read.name}-warmup",
        deepspeed_config=deepspeed,
        documents=own_record(work / corpus.name, corpus, "ingest").directory,
        shards=shards.directory,
        screening=screening.directory if screening else None,
        budget=_budget(flops_of, flops, tokens),
    )
    _start("stages.warmup", spec, ranks, write_to)


@commands.command(rich_help_panel=POLICY)
def ntp(
    recipe: RecipePath,
    manifest: ManifestOption = None,
    policy: PolicyFolder = None,
    flops_of: FlopsOf = None,
    flops: Flops = None,
    tokens: Tokens = None,
    ranks: Ranks = 1,
    deepspeed: Topology = None,
    overrides: RecipeOverrides = None,
    work: Work = Path("work"),
    run: Annotated[Path | None, run_option("NAME-ntp")] = None,
    write_to: WriteSpec = None,
) -> None:
    """Baseline: next-token training on the plain text of the corpus; same engine; resumes automatically.

    Runs the recipe's `budget.steps`, or instead up to the limit that an option sets.

    Examples:

        rpt ntp recipes/demo.yaml --set optimizer.lr=1e-4

        rpt ntp recipes/demo.yaml --flops-of runs/demo
    """
    from pipeline.core.workspace import own_record
    from stages.ntp import NtpSpec

    read = read_recipe(recipe, _with_policy(policy, overrides))
    corpus = manifest_of(read, manifest)
    spec = NtpSpec(
        recipe=read,
        run=run or Path("runs") / f"{read.name}-ntp",
        deepspeed_config=deepspeed,
        documents=own_record(work / corpus.name, corpus, "ingest").directory,
        budget=_budget(flops_of, flops, tokens),
    )
    _start("stages.ntp", spec, ranks, write_to)


@commands.command(rich_help_panel=POLICY)
def sft(
    recipe: RecipePath,
    manifest: ManifestOption = None,
    rollouts: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN",
            help="Imitate the correct responses that this run saved.  [default: true tokens without reasoning]",
        ),
    ] = None,
    policy: PolicyFolder = None,
    flops_of: FlopsOf = None,
    flops: Flops = None,
    tokens: Tokens = None,
    ranks: Ranks = 1,
    deepspeed: Topology = None,
    overrides: RecipeOverrides = None,
    work: Work = Path("work"),
    run: Annotated[Path | None, run_option("NAME-sft")] = None,
    write_to: WriteSpec = None,
) -> None:
    """Baseline: supervised fine-tuning on (context, reasoning, continuation); same engine; resumes automatically.

    Runs the recipe's `budget.steps`, or instead up to the limit that an option sets.

    Examples:

        rpt sft recipes/demo.yaml

        rpt sft recipes/demo.yaml --rollouts runs/demo --flops-of runs/demo --set supervised.plain_text=0.5
    """
    from pipeline.core.workspace import own_record
    from stages.sft import SftSpec

    read = read_recipe(recipe, _with_policy(policy, overrides))
    corpus = manifest_of(read, manifest)
    shards = own_record(work / corpus.name, corpus, "materialize")
    spec = SftSpec(
        recipe=read,
        run=run or Path("runs") / f"{read.name}-sft",
        deepspeed_config=deepspeed,
        documents=own_record(work / corpus.name, corpus, "ingest").directory,
        shards=shards.directory,
        rollouts=tuple(rollouts or ()),
        screening=_screening(read, shards, work / corpus.name),
        budget=_budget(flops_of, flops, tokens),
    )
    _start("stages.sft", spec, ranks, write_to)


@commands.command(rich_help_panel=POLICY)
def finetune(
    recipe: RecipePath,
    manifest: ManifestOption = None,
    policy: PolicyFolder = None,
    ranks: Ranks = 1,
    deepspeed: Topology = None,
    overrides: RecipeOverrides = None,
    work: Work = Path("work"),
    run: Run = None,
) -> None:
    """Train on questions with known answers by GRPO and report accuracy before and after; resumes automatically.

    The prepared questions are stored beside the manifest's artifacts; nothing else of the manifest is used.

    Examples:

        python -m demo.questions && rpt finetune recipes/demo-finetune.yaml

        rpt finetune recipes/demo-finetune.yaml --policy runs/demo/policy --run runs/demo-finetuned
    """
    from pipeline.core.executor import LocalExecutor
    from stages.finetune import FinetuneSpec, questions
    from stages.train import TrainSpec

    read = read_recipe(recipe, _with_policy(policy, overrides))
    home, folder = work / manifest_of(read, manifest).name, run or Path("runs") / read.name
    asked = questions(read, work=home, executor=LocalExecutor(1))
    spec = TrainSpec(
        recipe=read,
        run=folder,
        deepspeed_config=deepspeed,
        shards=asked.directory,
        screening=_screening(read, asked, home),
    )
    launch("stages.train", spec, ranks)
    launch("stages.finetune", FinetuneSpec(recipe=read, run=folder, questions=asked.directory))


def _start(stage: str, spec: TrainingSpec, ranks: int, write_to: Path | None) -> None:
    """Train, or only write the specification, for a launcher of several nodes."""
    if write_to is None:
        launch(stage, spec, ranks)
        return
    from pipeline.grpo.run.spec import write_spec

    write_spec(spec, write_to)
    log(f"written to {write_to}: start `{stage} {write_to}` by `deepspeed --module` or `torchrun --module`")


def _screening(recipe: Recipe, shards: Record, work: Path) -> Path | None:
    """Return the folder of the screening that the recipe's filters use; None if they use none."""
    from pipeline.grpo.data.pass_rates import screening_of

    screening = screening_of(recipe, shards, work)
    return screening.directory if screening else None


def _with_policy(policy: Path | None, overrides: list[str] | None) -> list[str]:
    """Return the overrides together with those that replace the policy."""
    return [*(overrides or ()), *([f"policy.model={policy}", "policy.revision=null"] if policy else [])]


def _budget(flops_of: Path | None, flops: float | None, tokens: int | None) -> ComputeBudget:
    """Return the limit that one of the three options sets; without one, there is none but the recipe's steps.

    Raises:
        UserError: several are given, or `flops_of` names no run whose compute was counted.
    """
    from pipeline.grpo.run import flops as counted

    if sum(option is not None for option in (flops_of, flops, tokens)) > 1:
        raise UserError("several limits are given", hint="give one of --flops-of, --flops and --tokens")
    return counted.ComputeBudget(tokens, counted.flops_of(flops_of) if flops_of else flops)
