"""`rpt screen`, `rpt evaluate`, `rpt study`, `rpt zeroshot`: how good policies are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from commands.groups.options import POLICY, ManifestOption, Overrides, RecipePath, Run, Work, Workers
from commands.groups.train import launch, of_recipe
from pipeline.config.loading import load, manifest_of
from pipeline.config.recipe import Recipe

commands = typer.Typer()


@commands.command(rich_help_panel=POLICY)
def screen(
    recipe: RecipePath,
    manifest: ManifestOption = None,
    overrides: Overrides = None,
    work: Work = Path("work"),
    workers: Workers = None,
) -> None:
    """How often the policy is right at each training site, before training: a few responses a site.

    A recipe can then choose sites whose rewards will differ: `sites: {where: pass_rate > 0 AND pass_rate < 1}`.

    Examples:

        rpt screen recipes/demo.yaml

        rpt screen recipes/demo.yaml --set screen.samples=8 --set screen.where="band = 'hard'"
    """
    from pipeline.core.executor import LocalExecutor
    from pipeline.core.workspace import own_record
    from stages.screen import screen as bring_up_to_date

    read = load(Recipe, recipe, overrides or ())
    corpus = manifest_of(read, manifest)
    folder = work / corpus.name
    shards = own_record(folder, corpus, "materialize")
    record = bring_up_to_date(read, shards, work=folder, executor=LocalExecutor(workers))
    print(f"pass rates: {record.directory}")


@commands.command(rich_help_panel=POLICY)
def evaluate(
    recipe: RecipePath,
    manifest: ManifestOption = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER",
            help="A policy to read (repeat for several; the others are compared with the first).  "
            "[default: the recipe's and the run's, before and after]",
        ),
    ] = None,
    overrides: Overrides = None,
    work: Work = Path("work"),
    run: Run = None,
) -> None:
    """Next-token accuracy on held-out documents: direct and by reasoning, before and after training.

    Examples:

        rpt evaluate recipes/demo.yaml

        rpt evaluate recipes/demo.yaml --set evaluate.samples=8 --set evaluate.bands_by=some/larger-model

        rpt evaluate recipes/demo.yaml --run runs/three --policy base=demo/policy --policy ntp=runs/ntp/policy
    """
    arguments = of_recipe(recipe, manifest, work, run, overrides)
    arguments += [word for named in policy or () for word in ("--policy", named)]
    launch("stages.evaluate", arguments, ranks=1)


@commands.command(rich_help_panel=POLICY)
def study(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A YAML of arms, as recipes/study-demo.yaml.")],
    quick: Annotated[bool, typer.Option("--quick", help="The study's own short variant.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Commands at a time.  [default: one a core, at most 4]")
    ] = None,
    overrides: Overrides = None,
    work: Work = Path("work"),
    run: Run = None,
) -> None:
    """Arms that start from one policy, with controls and seeds → one report: what of the paper's claims holds here.

    Every part is a command of its own in a folder of its own: what is done is not done again.

    Examples:

        rpt study recipes/study-demo.yaml --quick

        rpt study recipes/study-demo.yaml --set seeds=[0,1,2,3,4] --run runs/five-seeds
    """
    from stages.study import default_workers, read_study
    from stages.study import study as bring_up_to_date

    config = read_study(study, overrides or (), quick=quick)
    bring_up_to_date(config, work=work, out=run or Path("runs") / config.name, workers=workers or default_workers())


@commands.command(rich_help_panel=POLICY)
def zeroshot(
    policy: Annotated[str, typer.Argument(help="Folder or hub id of a policy.")],
    benchmark: Annotated[Literal["mmlu-pro", "supergpqa"], typer.Option(help="Which questions.")] = "mmlu-pro",
    source: Annotated[str | None, typer.Option(help="A copy of the benchmark.  [default: the hub's]")] = None,
    mode: Annotated[Literal["direct", "reasoning"], typer.Option(help="Likeliest letter, or a response.")] = "direct",
    questions: Annotated[int | None, typer.Option(min=1, help="How many, chosen by hash.  [default: all]")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Room for a response.")] = 12288,
    seed: Annotated[int, typer.Option(help="Of the choice of questions.")] = 0,
    out: Annotated[Path, typer.Option(help="Where to.")] = Path("runs/zeroshot"),
) -> None:
    """Accuracy on MMLU-Pro or SuperGPQA without examples, through lm-eval (`pip install 'rpt[eval]'`).

    Examples:

        rpt zeroshot runs/demo/policy --source mmlu_pro_test.jsonl --questions 200

        rpt zeroshot runs/omnimath-14b/policy --benchmark supergpqa --mode reasoning
    """
    from stages.zeroshot import zeroshot as ask

    ask(
        policy,
        benchmark=benchmark,
        source=source,
        mode=mode,
        questions=questions,
        max_new_tokens=max_new_tokens,
        seed=seed,
        out=out,
    )
