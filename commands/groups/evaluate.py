"""The commands that measure policies: `rpt screen`, `evaluate`, `gate`, `study`, `worth` and `zeroshot`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from commands.groups.options import (
    POLICY,
    AsJson,
    Jobs,
    ManifestOption,
    RecipeOverrides,
    RecipePath,
    Run,
    Work,
    Workers,
    report,
    set_option,
)
from commands.launch import launch
from commands.reading import manifest_of, read_recipe
from pipeline.core.progress import say_next

commands = typer.Typer()


@commands.command(rich_help_panel=POLICY)
def screen(
    recipe: RecipePath,
    manifest: ManifestOption = None,
    overrides: RecipeOverrides = None,
    work: Work = Path("work"),
    workers: Workers = None,
) -> None:
    """Estimate the policy's pass rate at each training site before training, from a few responses per site.

    A recipe can then choose the sites whose rewards will differ: `sites: {where: pass_rate > 0 AND pass_rate < 1}`.

    Examples:

        rpt screen recipes/demo.yaml

        rpt screen recipes/demo.yaml --set screen.samples=8 --set screen.where="band = 'hard'"
    """
    from pipeline.core.executor import LocalExecutor
    from pipeline.core.workspace import own_record
    from stages.screen import screen as bring_up_to_date

    read = read_recipe(recipe, overrides)
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
            help="A policy to evaluate (repeatable; the first is what the others are compared with).  "
            "[default: the policy of the recipe as `before` and that of the run as `after`]",
        ),
    ] = None,
    overrides: RecipeOverrides = None,
    work: Work = Path("work"),
    run: Run = None,
    full: Annotated[bool, typer.Option("--full", help="Print every table and difference.")] = False,
) -> None:
    """Measure next-token accuracy on held-out documents: direct and by reasoning, before and after training.

    Prints what rose and what did not; everything else is in `runs/NAME/evaluation/report.html`.

    Examples:

        rpt evaluate recipes/demo.yaml

        rpt evaluate recipes/demo.yaml --set evaluate.samples=8 --set evaluate.bands_by=some/larger-model

        rpt evaluate recipes/demo.yaml --run runs/three --policy base=demo/policy --policy ntp=runs/ntp/policy

        rpt evaluate recipes/omnimath-14b.yaml --policy larger=Qwen/Qwen2.5-32B --policy after=runs/omnimath-14b/policy
    """
    from pipeline.core.workspace import own_record
    from pipeline.evaluation.paper_results import published_rows
    from stages.evaluate import EvaluateSpec

    read = read_recipe(recipe, overrides)
    corpus = manifest_of(read, manifest)
    spec = EvaluateSpec(
        recipe=read,
        run=run or Path("runs") / read.name,
        shards=own_record(work / corpus.name, corpus, "materialize").directory,
        bands=corpus.select.bands,
        policies=tuple(policy or ()),
        published=published_rows(corpus.corpus, corpus.select.bands),
        full=full,
    )
    launch("stages.evaluate", spec)
    say_next(
        f"open {shlex.quote(str(spec.run / 'evaluation' / 'report.html'))}",
        "everything measured, and responses to read",
    )


@commands.command(rich_help_panel=POLICY)
def gate(
    run: Annotated[Path, typer.Argument(metavar="RUN|RECIPE", help="The folder of an evaluated run, or its recipe.")],
    policy: Annotated[
        str | None, typer.Option(help="Name of the policy in the evaluation.  [default: the trained one]")
    ] = None,
    most: Annotated[float, typer.Option(min=0, max=1, help="Largest share of the sites that may think.")] = 1.0,
    out: Annotated[
        Path | None, typer.Option(help="File for the gate.  [default: gate.json in the run's policy, with a card]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Learn from a run's evaluation where thinking pays: a small gate that says at which positions to think.

    It reads what `rpt evaluate` has stored and samples nothing. The policy's folder then says how to use it.

    Examples:

        rpt gate runs/demo

        rpt gate recipes/demo.yaml --most 0.1

        rpt gate runs/demo --policy before --out before-gate.json
    """
    from commands.gate import gate as learn
    from commands.gate import run_folder, tables

    report(learn(run_folder(run), policy=policy, most=most, out=out), tables, as_json)


@commands.command(rich_help_panel=POLICY)
def study(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A YAML file of arms, e.g. recipes/study-demo.yaml.")],
    quick: Annotated[bool, typer.Option("--quick", help="Run the study's short variant.")] = False,
    workers: Jobs = None,
    overrides: Annotated[list[str] | None, set_option("`seeds=[0,1,2]`")] = None,
    work: Work = Path("work"),
    run: Run = None,
) -> None:
    """Train several variants from one policy over several seeds and report which of the paper's claims hold.

    Every part is a separate `rpt` command in its own folder; finished parts are not run again.

    Examples:

        rpt study recipes/study-demo.yaml --quick

        rpt study recipes/study-demo.yaml --set seeds=[0,1,2,3,4] --run runs/five-seeds
    """
    from pipeline.evaluation.study.jobs import default_workers
    from stages.study import read_study
    from stages.study import study as bring_up_to_date

    config = read_study(study, overrides or (), quick=quick)
    out = run or Path("runs") / config.name
    bring_up_to_date(config, work=work, out=out, workers=workers or default_workers())
    say_next(f"open {shlex.quote(str(out / 'report.html'))}", "a verdict on each claim, with every table and figure")


@commands.command(rich_help_panel=POLICY)
def worth(
    recipe: RecipePath,
    selections: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=WHERE|MANIFEST|KEY=VALUE",
            help="Selections of one corpus: SQL over the sites' columns, a manifest (.yaml) whose shards exist, or a "
            "value of the recipe's `sites`, `curriculum` or `objective`. The others are compared with the first.",
        ),
    ],
    tokens: Annotated[int, typer.Option(min=1, help="Sampled tokens of each run.")],
    seeds: Annotated[
        int | None, typer.Option(min=2, help="Runs of each selection.  [default: as many as see the difference]")
    ] = None,
    see: Annotated[float, typer.Option(min=0.1, max=100, help="Difference in points that must be seen.")] = 5.0,
    spread: Annotated[
        float, typer.Option(min=0, help="Points by which seeds are assumed to differ (standard deviation).")
    ] = 2.0,
    band: Annotated[
        Literal["easy", "medium", "hard"], typer.Option(help="Band of held-out sites whose accuracy decides.")
    ] = "easy",
    only_plan: Annotated[bool, typer.Option("--plan", help="Say what the comparison would see, and run nothing.")] = (
        False
    ),
    workers: Jobs = None,
    manifest: ManifestOption = None,
    overrides: RecipeOverrides = None,
    work: Work = Path("work"),
    run: Annotated[Path | None, typer.Option(help="Folder of the comparison.  [default: runs/NAME-worth]")] = None,
) -> None:
    """Train on several selections at equal sampled tokens, over several seeds, and say which is better.

    Says first which difference it will see, and does not start if that is more than --see: exit code 4. Afterwards
    says of each selection whether it is better or worse than the first, as good, or not told apart, in accuracy and
    in the share of groups with a gradient. Differences that it cannot see are not claimed. Finished parts are not run
    again.

    Examples:

        rpt worth recipes/demo.yaml hard="entropy > 1.5" easy="entropy <= 1.5" --tokens 500000 --plan

        rpt worth recipes/demo.yaml all=true hard="entropy > 1.5" --tokens 500000 --seeds 3 --see 12

        rpt worth recipes/demo.yaml mine=mine.yaml random=random.yaml --tokens 500000

        rpt worth recipes/demo.yaml uniform=sites.by=uniform foretold=sites.by=foretold --tokens 500000 --see 12
    """
    from pipeline.evaluation.study.jobs import default_workers
    from stages.worth import Comparison, plan_power, read_rules
    from stages.worth import worth as bring_up_to_date

    read = read_recipe(recipe, overrides)
    manifest_of(read, manifest)  # there is one
    asked = Comparison(
        recipe, manifest or Path(str(read.data)), read_rules(selections), tokens, band, tuple(overrides or ())
    )
    power = plan_power(asked, seeds, see=see / 100, spread=spread / 100, work=work)
    if only_plan:
        return
    out = run or Path("runs") / f"{read.name}-worth"
    found = bring_up_to_date(asked, power, work=work, out=out, workers=workers or default_workers())
    for comparison in found["comparisons"]:
        print(comparison["says"])
        print(comparison["gradient"]["says"])
    say_next(f"open {shlex.quote(str(out / 'report.html'))}", "accuracy, differences and learning curves")


@commands.command(rich_help_panel=POLICY)
def zeroshot(
    policy: Annotated[str, typer.Argument(help="Folder or Hub id of a policy.")],
    benchmark: Annotated[Literal["mmlu-pro", "supergpqa"], typer.Option(help="Benchmark to run.")] = "mmlu-pro",
    source: Annotated[str | None, typer.Option(help="Local copy of the benchmark.  [default: download it]")] = None,
    mode: Annotated[
        Literal["direct", "reasoning"], typer.Option(help="Take the most likely letter, or generate a response.")
    ] = "direct",
    questions: Annotated[
        int | None, typer.Option(min=1, help="Number of questions, chosen by hash.  [default: all]")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum length of a response.")] = 12288,
    seed: Annotated[int, typer.Option(help="Seed of the choice of questions.")] = 0,
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("runs/zeroshot"),
) -> None:
    """Measure zero-shot accuracy on MMLU-Pro or SuperGPQA with lm-eval (`pip install 'rpt[eval]'`).

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
