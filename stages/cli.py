"""The command line: `rpt data`, `rpt train`, `rpt evaluate`, one command a stage, `rpt schema`.

Heavy libraries are imported inside the commands, so that `rpt --help` and manifest checks start at once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from pipeline.core.config import Config, Manifest, Recipe, StudyConfig, TaskConfig, load
from pipeline.core.errors import IntegrityError, UserError, disk_is_full
from pipeline.core.progress import quiet_libraries, say

if TYPE_CHECKING:
    from pipeline.core.artifact import Record
    from pipeline.core.executor import Executor

app = typer.Typer(
    name="rpt",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Reinforcement Pre-Training: turn a corpus into hard next-token sites, and train a policy on them.",
    epilog="Exit codes: 0 done, 2 a mistake to mend, 3 damaged artifacts, 130 interrupted.",
)
CORPUS, POLICY, LOOK = "Corpus → shards", "Shards → policy", "Look and question"
ELSEWHERE, HOUSE = "To and from elsewhere", "Keep house"

ManifestPath = Annotated[Path, typer.Argument(help="A YAML file, or the name of one that comes with rpt: `demo`.")]
RecipePath = Annotated[Path, typer.Argument(help="A YAML file, or the name of one that comes with rpt: `demo`.")]
ManifestOption = Annotated[Path, typer.Option("--manifest", help="The manifest whose shards are used.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. `select.max_sites=1000`.")
]
Work = Annotated[Path, typer.Option(help="Folder of the stages' artifacts.")]
Run = Annotated[Path | None, typer.Option(help="Folder of the run.  [default: runs/NAME]")]
Source = Annotated[str | None, typer.Option(help="Read the corpus from here instead of the manifest's source.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Worker processes.  [default: one a core; one a GPU where a stage uses them]")
]
ExecutorName = Annotated[
    Literal["local", "ray"], typer.Option("--executor", help="Processes of this machine, or of a Ray cluster.")
]
Address = Annotated[
    str | None, typer.Option(help="With ray: the cluster, `host:port` or `auto`.  [default: one on this machine]")
]
NumGpus = Annotated[
    float | None, typer.Option(min=0, help="With ray: a scoring worker's share of GPUs.  [default: 1 if there are any]")
]

Ranks = Annotated[int, typer.Option(min=1, help="Processes on this machine (one a GPU).")]
Topology = Annotated[
    Path | None,
    typer.Option(help="DeepSpeed topology.  [default: zero3.json on GPUs, zero3_cpu.json without]"),
]
PolicyFolder = Annotated[Path | None, typer.Option(help="Start from this policy.  [default: the recipe's]")]
FlopsOf = Annotated[
    Path | None, typer.Option(metavar="RUN", help="End when as many FLOPs are spent as that run has spent.")
]
Flops = Annotated[float | None, typer.Option(help="End when so many FLOPs are spent.")]
Tokens = Annotated[int | None, typer.Option(help="End when so many tokens are learned from.")]

Runs = Annotated[Path, typer.Option(help="Folder of the runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]

DATA_STAGES = ("ingest", "score", "select", "materialize")


@app.command(rich_help_panel=CORPUS)
def data(
    manifest: ManifestPath,
    source: Source = None,
    overrides: Overrides = None,
    work: Work = Path("work"),
    workers: Workers = None,
    executor: ExecutorName = "local",
    address: Address = None,
    num_gpus: NumGpus = None,
    as_json: AsJson = False,
) -> None:
    """Corpus → Parquet shards of hard next-token sites: ingest, score, select, materialize.

    Only what is not up to date runs; a killed run resumes where it was.

    Examples:

        rpt data data_manifests/demo.yaml

        rpt data data_manifests/demo.yaml --set select.where="entropy > 1.5"

        rpt data data_manifests/omnimath.yaml --source ~/omni_math.jsonl --set 'proxy={train: {}}'

        rpt data data_manifests/omnimath.yaml --executor ray --address head:6379 --work /shared/work
    """
    read = load(Manifest, manifest, overrides or ())
    by = _executor(executor, work / read.name, workers, address, num_gpus)
    run_data(read, DATA_STAGES[-1], source, work, by, as_json)


def _stage_command(stage: str) -> None:
    """Register `rpt <stage>`: the data pipeline up to and including that stage."""

    def command(
        manifest: ManifestPath,
        source: Source = None,
        overrides: Overrides = None,
        work: Work = Path("work"),
        workers: Workers = None,
        executor: ExecutorName = "local",
        address: Address = None,
        num_gpus: NumGpus = None,
        as_json: AsJson = False,
    ) -> None:
        read = load(Manifest, manifest, overrides or ())
        by = _executor(executor, work / read.name, workers, address, num_gpus)
        run_data(read, stage, source, work, by, as_json)

    app.command(stage, rich_help_panel=CORPUS, help=f"`rpt data` up to and including {stage}.")(command)


for _stage in DATA_STAGES:
    _stage_command(_stage)


def _executor(name: str, folder: Path, workers: int | None, address: str | None, num_gpus: float | None) -> Executor:
    """Who calls the stages of the manifest whose folder this is."""
    if name == "ray":
        from pipeline.core.ray_executor import RayExecutor

        return RayExecutor(folder, address=address, workers=workers, gpus=num_gpus)
    if address is not None or num_gpus is not None:
        raise UserError("--address and --num-gpus are for a Ray cluster", mend="add `--executor ray`")
    from pipeline.core.executor import LocalExecutor

    return LocalExecutor(workers)


def run_data(
    manifest: Manifest, last: str, source: str | None, work: Path, executor: Executor, as_json: bool = False
) -> dict[str, Record]:
    """Run the data stages up to `last` and print the funnel. Returns the records by stage."""
    from pipeline.scoring.tokens import CorpusTokenizer
    from pipeline.selection.sites import wanted
    from stages.ingest import ingest
    from stages.materialize import materialize
    from stages.score import score
    from stages.select import select

    wanted(manifest.select)  # what the last stages would refuse is refused before the first one runs
    if last == "materialize":
        CorpusTokenizer.load(manifest.materialize.policy_tokenizer, manifest.materialize.policy_tokenizer_revision)

    folder = work / manifest.name
    records: dict[str, Record] = {}
    seconds: dict[str, float] = {}
    steps: dict[str, Callable[[], Record]] = {
        "ingest": lambda: ingest(manifest, source=source, work=folder, executor=executor),
        "score": lambda: score(manifest, records["ingest"], work=folder, executor=executor),
        "select": lambda: select(manifest, records["ingest"], records["score"], work=folder, executor=executor),
        "materialize": lambda: materialize(
            manifest, records["ingest"], records["score"], records["select"], work=folder, executor=executor
        ),
    }
    for name in DATA_STAGES[: DATA_STAGES.index(last) + 1]:
        begin = time.monotonic()
        records[name] = steps[name]()
        seconds[name] = time.monotonic() - begin
    stages = {
        name: {"seconds": seconds[name], "directory": str(record.directory), "counters": record.counters}
        for name, record in records.items()
    }
    found: dict[str, Any] = {"manifest": manifest.name, "stages": stages}
    if "materialize" in records:
        shards = [entry for done in records["materialize"].completions for entry in done.files.values()]
        found["shards"] = {"sites": sum(e.rows for e in shards), "bytes": sum(e.bytes for e in shards)}
    _report(found, _funnel, as_json)
    if not as_json:
        print(f"shards: {records[list(records)[-1]].directory}")
    return records


def _funnel(found: dict[str, Any]) -> list[Table]:
    """What each stage counted (what it did not meet is left out), its seconds here, and what a site costs on disk."""
    title = f"{found['manifest']}: from records to shards"
    table = Table("stage", "counted", "", "seconds", title=title, title_justify="left")
    for column in (2, 3):
        table.columns[column].justify = "right"
    for stage, about in found["stages"].items():
        rows = [(counter, f"{count:,}") for counter, count in about["counters"].items() if count]
        for i, (counter, count) in enumerate(rows):
            table.add_row(stage if i == 0 else "", counter, count, f"{about['seconds']:.1f}" if i == 0 else "")
        table.add_section()
    if "shards" in found:
        sites, size = found["shards"]["sites"], found["shards"]["bytes"]
        table.add_row("shards", "sites", f"{sites:,}", "")
        table.add_row("", "bytes", f"{size:,}", "")
        table.add_row("", "bytes per site", f"{size / max(sites, 1):.1f}", "")
    return [table]


@app.command(rich_help_panel=POLICY)
def train(
    recipe: RecipePath,
    manifest: ManifestOption = Path("data_manifests/demo.yaml"),
    ranks: Ranks = 1,
    deepspeed: Topology = None,
    vllm_server: Annotated[
        str | None, typer.Option(help="With `rollout.sampler: vllm`: http://host:port.  [default: in this process]")
    ] = None,
    overrides: Overrides = None,
    work: Work = Path("work"),
    run: Run = None,
) -> None:
    """Shards → policy: DeepSpeed ZeRO-3 GRPO with the prefix-matching reward. Resumes by itself.

    Several nodes: start `deepspeed --hostfile … --module stages.train …` yourself (docs/training.md).

    Examples:

        rpt train recipes/demo.yaml

        rpt train recipes/demo.yaml --ranks 2 --set budget.steps=20 --run runs/short
    """
    arguments = _of_run(recipe, manifest, work, run, deepspeed, overrides)
    arguments += ["--vllm-server", vllm_server] if vllm_server else []
    _launch("stages.train", arguments, ranks)


@app.command(rich_help_panel=POLICY)
def screen(
    recipe: RecipePath,
    manifest: ManifestOption = Path("data_manifests/demo.yaml"),
    overrides: Overrides = None,
    work: Work = Path("work"),
    workers: Workers = None,
) -> None:
    """How often the policy is right at each training site, before training: a few responses a site.

    A recipe can then choose sites whose rewards will differ: `sites: {where: pass_rate > 0 AND pass_rate < 1}`.

    Examples:

        rpt screen recipes/demo.yaml

        rpt screen recipes/demo.yaml --set screen.samples=8 --set screen.where="difficulty = 'hard'"
    """
    from pipeline.core.artifact import current_record
    from pipeline.core.executor import LocalExecutor
    from stages.screen import screen as bring_up_to_date

    read, folder = load(Recipe, recipe, overrides or ()), work / load(Manifest, manifest).name
    shards = current_record(folder, "materialize")
    record = bring_up_to_date(read, shards, work=folder, executor=LocalExecutor(workers))
    print(f"pass rates: {record.directory}")


@app.command(rich_help_panel=POLICY)
def evaluate(
    recipe: RecipePath,
    manifest: ManifestOption = Path("data_manifests/demo.yaml"),
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
    load(Recipe, recipe, overrides or ())
    arguments = [str(recipe), "--manifest", str(manifest), "--work", str(work)]
    arguments += ["--run", str(run)] if run else []
    for named in policy or ():
        arguments += ["--policy", named]
    for override in overrides or ():
        arguments += ["--set", override]
    _launch("stages.evaluate", arguments, ranks=1)


def _launch(module: str, arguments: list[str], ranks: int) -> None:
    """Start a compute page in fresh processes, whose allocator and threads are set before torch is loaded."""
    environment = os.environ | {
        # Page faults of large short-lived tensors stall CPU runs by up to ten times: keep freed memory.
        "MALLOC_MMAP_MAX_": os.environ.get("MALLOC_MMAP_MAX_", "0"),
        "MALLOC_TRIM_THRESHOLD_": os.environ.get("MALLOC_TRIM_THRESHOLD_", str(1 << 40)),
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-m", module, *arguments]
    if ranks > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "--module"]
        command = [sys.executable, *launcher, "--", module, *arguments]  # `--run` is not the launcher's --run-path
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    process = subprocess.Popen(command, env=environment)

    def stop(number: int, _: object) -> None:
        """Ask the ranks themselves, which save and end with 0: torchrun would end them after half a minute."""
        import psutil

        for rank in psutil.Process(process.pid).children() if ranks > 1 else [process]:
            rank.send_signal(number)

    signal.signal(signal.SIGTERM, stop)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    if code:
        raise typer.Exit(code if code > 0 else 128 - code)


@app.command(rich_help_panel=LOOK)
def audit(
    manifest: ManifestPath,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OTHER",
            help="Also write what another selection gains and loses: a manifest, a selection's folder name, or "
            "`key=value` on top of this manifest (repeat for several).",
        ),
    ] = None,
    overrides: Overrides = None,
    work: Work = Path("work"),
    out: Annotated[Path | None, typer.Option(help="Where to.  [default: WORK/NAME/audit/SELECTION]")] = None,
) -> None:
    """A page that opens offline: what a selection kept and dropped, and why; every number as JSON beside it.

    The selection must have been made (`rpt data` or `rpt select`); nothing is computed anew.

    Examples:

        rpt audit data_manifests/demo.yaml

        rpt audit data_manifests/demo.yaml --compare select.where="entropy > 1.5"

        rpt audit data_manifests/demo.yaml --compare data_manifests/other.yaml
    """
    from stages.audit import audit as write_report
    from stages.audit import compare as write_comparison

    read = load(Manifest, manifest, overrides or ())
    print(write_report(read, work=work, out=out))
    if compare:
        print(write_comparison(read, compare, path=manifest, overrides=overrides or (), work=work, out=out))


@app.command(rich_help_panel=LOOK)
def browse(
    manifest: ManifestPath,
    recipe: Annotated[
        Path | None, typer.Option(help="The recipe whose prompts are shown, and (unless --run says otherwise) its run.")
    ] = None,
    run: Run = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    overrides: Overrides = None,
    work: Work = Path("work"),
    workers: Workers = None,
) -> None:
    """A live page over what is kept and dropped, on this machine only: look, ask what if, compare, flag.

    Examples:

        rpt browse data_manifests/demo.yaml --recipe recipes/demo.yaml

        rpt browse data_manifests/omnimath.yaml --port 0
    """
    from pipeline.core.executor import LocalExecutor
    from stages.browse import open_library, serve

    read, read_recipe = load(Manifest, manifest, overrides or ()), load(Recipe, recipe) if recipe else None
    folder = work / read.name
    serve(open_library(read, work=folder, executor=LocalExecutor(workers), recipe=read_recipe, run=run), port)


@app.command(rich_help_panel=ELSEWHERE)
def export(
    format: Annotated[
        Literal["verl", "trl", "openrlhf", "nemo-rl", "jsonl"], typer.Argument(help="Whose format.", show_default=False)
    ],
    manifest: ManifestPath,
    out: Annotated[Path, typer.Option(help="A folder that is not there yet.", show_default=False)],
    template: Annotated[str, typer.Option(help="Prompt template around each context.")] = TaskConfig().template,
    where: Annotated[str, typer.Option(help="SQL over the site columns: which sites.")] = "true",
    overrides: Overrides = None,
    work: Work = Path("work"),
) -> None:
    """The shards in another trainer's format, with the reward as a file that it loads.

    Examples:

        rpt export verl data_manifests/demo.yaml --out exports/demo-verl

        rpt export trl data_manifests/demo.yaml --out exports/demo-trl --template brief --where "difficulty = 'hard'"
    """
    from pipeline.core.artifact import current_record
    from stages.export import export as write

    read = load(Manifest, manifest, overrides or ())
    shards = current_record(work / read.name, "materialize")
    write(read.name, shards, format=format, template=template, out=out, policy=read.materialize, where=where)
    print(out)


@app.command(rich_help_panel=POLICY)
def ntp(
    recipe: RecipePath,
    manifest: ManifestOption = Path("data_manifests/demo.yaml"),
    policy: PolicyFolder = None,
    flops_of: FlopsOf = None,
    flops: Flops = None,
    tokens: Tokens = None,
    ranks: Ranks = 1,
    deepspeed: Topology = None,
    overrides: Overrides = None,
    work: Work = Path("work"),
    run: Annotated[Path | None, typer.Option(help="Folder of the run.  [default: runs/NAME-ntp]")] = None,
) -> None:
    """Baseline: next-token training of the policy on the corpus' plain text, by the same engine. Resumes by itself.

    Ends after the recipe's `budget.steps`, or when as much is spent as an option says.

    Examples:

        rpt ntp recipes/demo.yaml --set optimizer.lr=1e-4

        rpt ntp recipes/demo.yaml --flops-of runs/demo
    """
    arguments = _of_run(recipe, manifest, work, run, deepspeed, _from_policy(policy, overrides))
    _launch("stages.ntp", [*arguments, *_of_budget(flops_of, flops, tokens)], ranks)


@app.command(rich_help_panel=POLICY)
def sft(
    recipe: RecipePath,
    manifest: ManifestOption = Path("data_manifests/demo.yaml"),
    rollouts: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN", help="Imitate the right responses that this run saved.  [default: true tokens, no thought]"
        ),
    ] = None,
    policy: PolicyFolder = None,
    flops_of: FlopsOf = None,
    flops: Flops = None,
    tokens: Tokens = None,
    ranks: Ranks = 1,
    deepspeed: Topology = None,
    overrides: Overrides = None,
    work: Work = Path("work"),
    run: Annotated[Path | None, typer.Option(help="Folder of the run.  [default: runs/NAME-sft]")] = None,
) -> None:
    """Baseline: supervised training on contexts, thoughts and what follows, by the same engine. Resumes by itself.

    Ends after the recipe's `budget.steps`, or when as much is spent as an option says.

    Examples:

        rpt sft recipes/demo.yaml

        rpt sft recipes/demo.yaml --rollouts runs/demo --flops-of runs/demo --set supervised.plain_text=0.5
    """
    arguments = _of_run(recipe, manifest, work, run, deepspeed, _from_policy(policy, overrides))
    arguments += [word for path in rollouts or () for word in ("--rollouts", str(path))]
    _launch("stages.sft", [*arguments, *_of_budget(flops_of, flops, tokens)], ranks)


@app.command(rich_help_panel=POLICY)
def finetune(
    recipe: RecipePath,
    manifest: ManifestOption = Path("data_manifests/demo.yaml"),
    policy: PolicyFolder = None,
    ranks: Ranks = 1,
    deepspeed: Topology = None,
    overrides: Overrides = None,
    work: Work = Path("work"),
    run: Run = None,
) -> None:
    """Questions with known answers → policy, by the GRPO of `rpt train`; accuracy before and after. Resumes by itself.

    The questions are kept beside the manifest's artifacts; nothing else of the manifest is used.

    Examples:

        python -m demo.questions && rpt finetune recipes/demo-finetune.yaml

        rpt finetune recipes/demo-finetune.yaml --policy runs/demo/policy --run runs/demo-finetuned
    """
    from pipeline.core.executor import LocalExecutor
    from stages.finetune import questions

    changed = _from_policy(policy, overrides)
    arguments = _of_run(recipe, manifest, work, run, deepspeed, changed)
    folder = work / load(Manifest, manifest).name
    record = questions(load(Recipe, recipe, changed), work=folder, executor=LocalExecutor(1))
    arguments += ["--questions", str(record.directory)]
    _launch("stages.train", arguments, ranks)
    _launch("stages.finetune", arguments, 1)


def _of_run(
    recipe: Path,
    manifest: Path,
    work: Path,
    run: Path | None,
    deepspeed: Path | None,
    overrides: list[str] | None,
) -> list[str]:
    """The arguments of a page that trains. A misspelt key fails here, before anything heavy starts."""
    load(Recipe, recipe, overrides or ())
    arguments = [str(recipe), "--manifest", str(manifest), "--work", str(work)]
    arguments += ["--run", str(run)] if run else []
    arguments += ["--deepspeed-config", str(deepspeed)] if deepspeed else []
    return arguments + [word for override in overrides or () for word in ("--set", override)]


def _from_policy(policy: Path | None, overrides: list[str] | None) -> list[str]:
    """The overrides, and those that say where the policy comes from."""
    return [*(overrides or ()), *([f"policy.model={policy}", "policy.revision=null"] if policy else [])]


def _of_budget(flops_of: Path | None, flops: float | None, tokens: int | None) -> list[str]:
    given = {"--flops-of": flops_of, "--flops": flops, "--tokens": tokens}
    return [word for name, value in given.items() if value is not None for word in (name, str(value))]


@app.command(rich_help_panel=ELSEWHERE)
def push(
    manifest: ManifestPath,
    remote: Annotated[str, typer.Argument(help="`hf://datasets/owner/name`, or a folder.", show_default=False)],
    overrides: Overrides = None,
    work: Work = Path("work"),
) -> None:
    """Shards to the hub or a folder, with a card, the audit, and Croissant metadata (sha256, provenance).

    Examples:

        rpt push data_manifests/demo.yaml hf://datasets/owner/demo-sites

        rpt push data_manifests/demo.yaml /mnt/shared/demo-sites
    """
    from stages.push import push as put

    put(load(Manifest, manifest, overrides or ()), remote, work=work)


@app.command(rich_help_panel=ELSEWHERE)
def pull(
    remote: Annotated[str, typer.Argument(help="`hf://datasets/owner/name`, or a folder.", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="Commit of the hub's data set.")] = None,
    work: Work = Path("work"),
) -> None:
    """Shards that were pushed, verified by sha256, to where `rpt train` finds them. Prints the manifest to train with.

    Example:

        rpt pull hf://datasets/owner/demo-sites
    """
    from stages.pull import pull as fetch

    print(fetch(remote, work=work, revision=revision))


@app.command(rich_help_panel=HOUSE)
def status(
    manifest: ManifestPath,
    overrides: Overrides = None,
    work: Work = Path("work"),
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """What is built, what is stale and why, how large it is, and what the runs were trained on.

    Examples:

        rpt status data_manifests/demo.yaml

        rpt status data_manifests/demo.yaml --set select.where="entropy > 1.5" --json
    """
    from stages import ingest, materialize, score, select
    from stages.status import status as look
    from stages.status import tables

    stages = (ingest.READ, ingest.NEAR, ingest.ASSIGN, ingest.INGEST)
    stages += (select.CANDIDATE, select.VERDICT, select.SELECT, materialize.MATERIALIZE)
    versions = {stage.name: stage.version for stage in stages}
    versions |= {"score": score.VERSION, "proxy": score.FIT_VERSION}
    found = look(load(Manifest, manifest, overrides or ()), work=work, runs=runs, versions=versions)
    _report(found, tables, as_json)


@app.command(rich_help_panel=HOUSE)
def clean(
    manifest: ManifestPath,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    work: Work = Path("work"),
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Remove what no record needs: earlier selections and scores, left-overs of killed workers. Asks first.

    What each stage made last stays, what that was made from, and what runs were trained on. Unfinished outputs stay.

    Examples:

        rpt clean data_manifests/demo.yaml

        rpt clean data_manifests/demo.yaml --yes
    """
    from stages.clean import remove, tables, waste

    wasted = waste(load(Manifest, manifest), work=work, runs=runs)
    found = [{"path": str(item.path), "bytes": item.bytes, "why": item.why} for item in wasted]
    _report({"waste": found, "bytes": sum(item.bytes for item in wasted)}, tables, as_json)
    if not wasted or not (yes or (sys.stdin.isatty() and typer.confirm("Remove all of this?", err=True))):
        say("clean        nothing was removed" + ("" if not wasted or sys.stdin.isatty() else " (--yes removes it)"))
        return
    remove(wasted)
    say(f"clean        {len(wasted)} removed")


@app.command(rich_help_panel=HOUSE)
def doctor(work: Work = Path("work"), as_json: AsJson = False) -> None:
    """What this machine has: versions, devices, compilers, disk; and what is missing for which feature.

    Example:

        rpt doctor
    """
    from stages.doctor import doctor as examine
    from stages.doctor import tables

    found = examine(work)
    _report(found, tables, as_json)
    if not found["ok"]:
        raise typer.Exit(UserError.exit_code)


def _report(found: dict[str, Any], tables: Callable[[dict[str, Any]], list[Table]], as_json: bool) -> None:
    """On standard output."""
    from rich.console import Console

    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    for table in tables(found):
        Console(markup=False).print(table)


@app.command(rich_help_panel=CORPUS)
def plan(
    manifest: ManifestPath,
    source: Source = None,
    overrides: Overrides = None,
    workers: Workers = None,
    ranks: Ranks = 1,
    context_tokens: Annotated[int, typer.Option(help="Of a recipe: tokens of the longest prompt.")] = 4096,
    as_json: AsJson = False,
) -> None:
    """What a manifest or a recipe will cost, before anything runs.

    A manifest: tokens, time on this machine, GPU- or core-hours, bytes; a small random sample of the corpus is read and
    scored. A recipe: the memory of a rank, part by part, under each of the shipped topologies. Nothing is kept.

    Examples:

        rpt plan data_manifests/demo.yaml

        rpt plan data_manifests/omnimath.yaml --source ~/omni_math.jsonl --set proxy.model=Qwen/Qwen2.5-0.5B --json

        rpt plan recipes/omnimath-14b.yaml --ranks 8
    """
    from stages.plan import plan as estimate
    from stages.plan import tables

    found = estimate(
        manifest, overrides or (), source=source, workers=workers, ranks=ranks, context_tokens=context_tokens
    )
    _report(found, tables, as_json)


SiteManifest = Annotated[Path, typer.Option("--manifest", help="The manifest whose selection is looked at.")]


@app.command(rich_help_panel=LOOK)
def show(
    site_id: Annotated[str, typer.Argument(help="`<doc_id>-<position>`: a site, or any other position.")],
    manifest: SiteManifest = Path("data_manifests/demo.yaml"),
    recipe: Annotated[Path | None, typer.Option(help="The recipe whose prompt is shown.")] = None,
    overrides: Overrides = None,
    work: Work = Path("work"),
    as_json: AsJson = False,
) -> None:
    """A position in its document: the proxy's guesses, why it was kept or dropped, what the trainer makes of it.

    Example:

        rpt show 00d65ad28a2b24fcd7a6e12b7ab5a2c4-41 --recipe recipes/demo.yaml
    """
    from stages.show import show as look
    from stages.show import tables

    read, read_recipe = load(Manifest, manifest, overrides or ()), load(Recipe, recipe) if recipe else None
    _report(look(read, site_id, work=work, recipe=read_recipe), tables, as_json)


@app.command(rich_help_panel=LOOK)
def stats(
    manifest: ManifestPath, overrides: Overrides = None, work: Work = Path("work"), as_json: AsJson = False
) -> None:
    """Funnel, bands, quantiles of the entropy, token classes and sizes of a selection.

    Examples:

        rpt stats data_manifests/demo.yaml

        rpt stats data_manifests/demo.yaml --set select.where="entropy > 1.5" --json
    """
    from stages.stats import stats as count
    from stages.stats import tables

    _report(count(load(Manifest, manifest, overrides or ()), work=work), tables, as_json)


@app.command(rich_help_panel=LOOK)
def trace(
    start: Annotated[str, typer.Argument(metavar="SITE_ID|SHARD:ROW", help="A site, or file and row of a shard.")],
    manifest: SiteManifest = Path("data_manifests/demo.yaml"),
    source: Source = None,
    overrides: Overrides = None,
    work: Work = Path("work"),
    as_json: AsJson = False,
) -> None:
    """From a training example back to its record in the source, which is read again and compared.

    Examples:

        rpt trace 00d65ad28a2b24fcd7a6e12b7ab5a2c4-41

        rpt trace work/demo/materialize/a5d7186ded6a/train-00000.0b3a7f6c2d1e.parquet:17 --json
    """
    from stages.trace import tables
    from stages.trace import trace as follow

    found = follow(load(Manifest, manifest, overrides or ()), start, work=work, source=source)
    _report(found, tables, as_json)
    if not found["source"]["agrees"]:
        raise typer.Exit(IntegrityError.exit_code)


@app.command(rich_help_panel=HOUSE)
def verify(manifest: ManifestPath, work: Work = Path("work"), as_json: AsJson = False) -> None:
    """Read every published file again: are its bytes those that were recorded, and is all there that it was made from?

    Example:

        rpt verify data_manifests/demo.yaml
    """
    from stages.verify import tables
    from stages.verify import verify as check

    found = check(load(Manifest, manifest), work=work)
    _report(found, tables, as_json)
    if not found["ok"]:
        raise typer.Exit(IntegrityError.exit_code)


@app.command(rich_help_panel=POLICY)
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


@app.command(rich_help_panel=POLICY)
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


@app.command(rich_help_panel=HOUSE)
def schema(kind: Annotated[str, typer.Argument(help="`manifest`, `recipe` or `study`.")]) -> None:
    """Print the JSON Schema of manifests, recipes or studies, for editors that complete YAML.

    Example:

        rpt schema manifest > manifest.schema.json
    """
    kinds: dict[str, type[Config]] = {"manifest": Manifest, "recipe": Recipe, "study": StudyConfig}
    if kind not in kinds:
        raise UserError("no such schema", where=kind, mend=f"one of: {', '.join(kinds)}")
    print(json.dumps(kinds[kind].model_json_schema(), indent=2, ensure_ascii=False))


def main() -> None:
    """Entry point. Exit codes: 0 done, 2 a mistake to mend, 3 damaged artifacts, 130 interrupted."""
    quiet_libraries()
    try:
        app()
    except UserError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)
    except SystemExit as over:
        if over.code == 130:  # what typer makes of Ctrl-C
            say("interrupted: run the same command again to resume")
        raise
    except Exception as error:
        if not disk_is_full(error):
            raise
        say(f"error: the disk is full: {error} (free some space and run again)")
        sys.exit(2)


if __name__ == "__main__":
    main()
