"""The commands that turn a corpus into shards: `rpt data`, its stages one by one, and `rpt plan`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from commands.certificate import certificate_line, certificate_tables, warn
from commands.groups.options import (
    CORPUS,
    Accept,
    Address,
    AsJson,
    ExecutorName,
    ManifestPath,
    NumGpus,
    Overrides,
    Ranks,
    Source,
    Work,
    Workers,
    report,
    set_option,
)
from commands.next_step import after_data
from commands.reading import read_manifest
from pipeline.config.errors import UserError

if TYPE_CHECKING:
    from pipeline.config.manifest import Manifest
    from pipeline.core.artifact import Record
    from pipeline.core.executor import Executor

commands = typer.Typer()


DATA_STAGES = ("ingest", "score", "select", "materialize")


@commands.command(rich_help_panel=CORPUS)
def data(
    manifest: ManifestPath,
    source: Source = None,
    overrides: Overrides = None,
    work: Work = Path("work"),
    workers: Workers = None,
    executor: ExecutorName = "local",
    address: Address = None,
    num_gpus: NumGpus = None,
    accept: Accept = False,
    as_json: AsJson = False,
) -> None:
    """Build Parquet shards of hard next-token sites from a corpus: ingest, score, select, materialize.

    Only what is out of date runs; a killed run resumes where it stopped. A certificate judges the
    selection before the shards are made: exit code 4 if it refuses, unless --accept is given.

    Examples:

        rpt data data_manifests/demo.yaml

        rpt data data_manifests/demo.yaml --set select.where="entropy > 1.5"

        rpt data data_manifests/omnimath.yaml --source ~/omni_math.jsonl --set proxy=auto

        rpt data data_manifests/omnimath.yaml --executor ray --address head:6379 --work /shared/work
    """
    read = read_manifest(manifest, overrides)
    by = _executor(executor, work / read.name, workers, address, num_gpus)
    records = run_data(read, DATA_STAGES[-1], source, work, by, as_json, accept)
    warn(records["select"])
    if not as_json:
        after_data(manifest, overrides or (), work)


def _judged_stage_command(stage: str, about: str) -> None:
    """Register `rpt <stage>`, which runs the data pipeline beyond the certificate."""

    def command(
        manifest: ManifestPath,
        source: Source = None,
        overrides: Overrides = None,
        work: Work = Path("work"),
        workers: Workers = None,
        executor: ExecutorName = "local",
        address: Address = None,
        num_gpus: NumGpus = None,
        accept: Accept = False,
        as_json: AsJson = False,
    ) -> None:
        read = read_manifest(manifest, overrides)
        by = _executor(executor, work / read.name, workers, address, num_gpus)
        warn(run_data(read, stage, source, work, by, as_json, accept)["select"])

    commands.command(stage, rich_help_panel=CORPUS, help=about)(command)


def _stage_command(stage: str) -> None:
    """Register `rpt <stage>`, which runs the data pipeline up to and including that stage."""

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
        read = read_manifest(manifest, overrides)
        by = _executor(executor, work / read.name, workers, address, num_gpus)
        run_data(read, stage, source, work, by, as_json)

    commands.command(stage, rich_help_panel=CORPUS, help=f"Run the data pipeline up to `{stage}`.")(command)


for _stage in DATA_STAGES[:2]:
    _stage_command(_stage)
_judged_stage_command(
    "select",
    """Run the data pipeline up to `select`, and write the selection's certificate: exit code 4 if it refuses.

    Examples:

        rpt select data_manifests/demo.yaml --set select.where="entropy > 1.5"

        rpt select data_manifests/cmath.yaml --set 'proxy={train: {}}' --accept

        rpt select data_manifests/demo.yaml --set select.certificate.hard_share=0.8
    """,
)
_judged_stage_command("materialize", "Run the data pipeline up to `materialize`.")


def _executor(name: str, folder: Path, workers: int | None, address: str | None, num_gpus: float | None) -> Executor:
    """Return the executor that runs the stages of the manifest whose folder this is."""
    if name == "ray":
        from pipeline.core.ray_executor import RayExecutor

        return RayExecutor(folder, address=address, workers=workers, gpus=num_gpus)
    if address is not None or num_gpus is not None:
        raise UserError("--address and --num-gpus need a Ray cluster", hint="add `--executor ray`")
    from pipeline.core.executor import LocalExecutor

    return LocalExecutor(workers)


def run_data(
    manifest: Manifest, last: str, source: str | None, work: Path, executor: Executor, as_json: bool = False,
    accept: bool = False,
) -> dict[str, Record]:  # fmt: skip
    """Run the data stages up to `last` and print the funnel and the certificate. Returns the records by stage.

    Raises:
        RefusedError: the certificate refuses the selection, and `accept` is False. No shards are made.
    """
    from pipeline.audit.funnel import funnel

    folder = work / manifest.name
    _check_early(manifest, last, folder)
    records, seconds, judged = _run_stages(manifest, last, source, folder, executor, accept)
    found: dict[str, Any] = {
        "manifest": manifest.name,
        "stages": {
            name: {"seconds": seconds[name], "directory": str(record.directory), "counters": record.counters}
            for name, record in records.items()
        },
        "funnel": [vars(step) for step in funnel(records)],
        "made": "shards" if last == "materialize" else last,
    }
    if judged is not None:
        found["certificate"] = judged
    if "materialize" in records:
        made = records["materialize"].summary
        found["shards"] = {"sites": made.rows, "bytes": made.bytes}
    report(found, _tables, as_json)
    if judged is not None and last != "select" and not as_json:
        print(certificate_line(judged))
    if not as_json:
        print(f"{found['made']}: {records[last].directory}", flush=True)
    return records


def _check_early(manifest: Manifest, last: str, folder: Path) -> None:
    """Check now what the last stages would refuse only after hours of scoring."""
    from pipeline.config.manifest import PROXYS_OWN
    from pipeline.core.tokenizer import CorpusTokenizer
    from pipeline.core.workspace import with_policy_tokenizer
    from pipeline.selection.sites import rule_expression

    rule_expression(manifest.select)
    if last == "materialize" and not (manifest.proxy.made_here and manifest.materialize.policy_tokenizer == PROXYS_OWN):
        policy = with_policy_tokenizer(manifest, folder).materialize
        CorpusTokenizer.load(policy.policy_tokenizer, policy.policy_tokenizer_revision)


def _run_stages(
    manifest: Manifest, last: str, source: str | None, folder: Path, executor: Executor, accept: bool
) -> tuple[dict[str, Record], dict[str, float], dict[str, Any] | None]:
    """Run the data stages up to `last`; return their records, their seconds and the certificate, if there is one."""
    from pipeline.core.workspace import with_policy_tokenizer
    from pipeline.selection.sites import check_columns_exist
    from stages.certificate import certify
    from stages.ingest import ingest
    from stages.materialize import materialize
    from stages.score import score
    from stages.select import select

    records: dict[str, Record] = {}
    seconds: dict[str, float] = {}
    judged: dict[str, Any] | None = None
    steps: dict[str, Callable[[], Record]] = {
        "ingest": lambda: ingest(manifest, source=source, work=folder, executor=executor),
        "score": lambda: score(manifest, records["ingest"], work=folder, executor=executor),
        "select": lambda: select(manifest, records["ingest"], records["score"], work=folder, executor=executor),
        "materialize": lambda: materialize(
            with_policy_tokenizer(manifest, folder),
            records["ingest"],
            records["score"],
            records["select"],
            work=folder,
            executor=executor,
        ),
    }
    for name in DATA_STAGES[: DATA_STAGES.index(last) + 1]:
        begin = time.monotonic()
        records[name] = steps[name]()
        seconds[name] = time.monotonic() - begin
        if name == "ingest" and last in ("select", "materialize"):
            check_columns_exist(manifest.select, records["ingest"].files("documents"))
        if name == "select":
            judged = certify(manifest, *records.values(), work=folder, executor=executor, accept=accept)
    return records, seconds, judged


def _tables(found: dict[str, Any]) -> list[Table]:
    """Return the funnel, with the examples and their bytes under it; of `select` also the certificate."""
    from pipeline.audit.funnel import funnel_table

    table = funnel_table(f"{found['manifest']}: from records to {found['made']}", found["funnel"])
    if "shards" in found:
        sites, size = found["shards"]["sites"], found["shards"]["bytes"]
        kept = found["stages"]["materialize"]["counters"]
        table.caption = (
            f"{kept['kept.train']:,} to train on, {kept['kept.validation']:,} held out; "
            f"{size / max(sites, 1):.1f} bytes per site"
        )
    return [table, *(certificate_tables(found["certificate"]) if found["made"] == "select" else [])]


@commands.command(rich_help_panel=CORPUS)
def plan(
    manifest: ManifestPath,
    source: Source = None,
    overrides: Annotated[
        list[str] | None,
        set_option("`select.max_sites=1000` of a manifest, `rollout.max_new_tokens=256` of a recipe"),
    ] = None,
    work: Work = Path("work"),
    workers: Workers = None,
    ranks: Ranks = 1,
    context_tokens: Annotated[int, typer.Option(help="Tokens of the longest prompt (recipes only).")] = 4096,
    run: Annotated[
        Path | None,
        typer.Option(
            help="An earlier run, whose forecasts are judged (recipes with foretold sites).  [default: runs/NAME]"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate what a manifest or a recipe will cost, before anything runs.

    For a manifest: tokens, time on this machine, GPU- or core-hours, and bytes; a small random sample of the corpus is
    read and scored. What `rpt data` has already made stands beside it, with how far the plan is off.
    For a recipe: memory per rank, part by part, under each shipped topology; with foretold sites, also how the
    forecasts of an earlier run came true. Nothing is kept.

    Examples:

        rpt plan data_manifests/demo.yaml

        rpt plan data_manifests/omnimath.yaml --source ~/omni_math.jsonl --set proxy.model=Qwen/Qwen2.5-0.5B --json

        rpt plan recipes/omnimath-14b.yaml --ranks 8

        rpt plan recipes/demo.yaml --set sites.by=foretold --run runs/foretold
    """
    from commands.plan.estimate import plan as estimate
    from commands.plan.tables import tables

    found = estimate(
        manifest,
        overrides or (),
        source=source,
        work=work,
        workers=workers,
        ranks=ranks,
        context_tokens=context_tokens,
        run=run,
    )
    report(found, tables, as_json)
