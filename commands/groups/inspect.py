"""The commands that show what was selected, why, and how training goes: `rpt audit`, `browse`, `board`, `show`, …."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from commands.groups.options import (
    INSPECT,
    AsJson,
    ManifestPath,
    Overrides,
    Place,
    Port,
    Source,
    Work,
    Workers,
    report,
)
from commands.next_step import after_audit
from commands.reading import read_manifest, read_recipe
from pipeline.config.errors import IntegrityError

commands = typer.Typer()


@commands.command(rich_help_panel=INSPECT)
def audit(
    manifest: ManifestPath,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OTHER",
            help="Also compare with another selection: a manifest, the folder name of a selection, or `key=value` on "
            "top of this manifest. Repeatable.",
        ),
    ] = None,
    overrides: Overrides = None,
    work: Work = Path("work"),
    out: Annotated[Path | None, typer.Option(help="Output folder.  [default: WORK/NAME/audit/SELECTION]")] = None,
) -> None:
    """Write an offline HTML report of what a selection kept and dropped, and why, with every number as JSON.

    The selection must exist (`rpt data` or `rpt select`); nothing is scored or selected again.

    Examples:

        rpt audit data_manifests/demo.yaml

        rpt audit data_manifests/demo.yaml --compare select.where="entropy > 1.5"

        rpt audit data_manifests/demo.yaml --compare data_manifests/other.yaml
    """
    from commands.inspect.audit import audit as write_report
    from commands.inspect.audit import compare as write_comparison

    read = read_manifest(manifest, overrides)
    print(write_report(read, work=work, out=out), flush=True)
    if compare:
        found = write_comparison(read, compare, path=manifest, overrides=overrides or (), work=work, out=out)
        print(found, flush=True)
    after_audit(manifest, read.name, work)


@commands.command(rich_help_panel=INSPECT)
def browse(
    manifest: ManifestPath,
    recipe: Annotated[
        Path | None, typer.Option(help="Recipe whose prompts are shown, and whose run unless --run is given.")
    ] = None,
    run: Annotated[
        list[Path] | None, typer.Option(help="Folder of a run to show. Repeatable.  [default: runs/RECIPE]")
    ] = None,
    port: Port = 8000,
    overrides: Overrides = None,
    work: Work = Path("work"),
    workers: Workers = None,
) -> None:
    """Serve a page to this machine only that shows what is kept and dropped: read, try other rules, compare, flag.

    The Run tab has the curves of training, live. `rpt board` shows it alone.

    Examples:

        rpt browse data_manifests/demo.yaml --recipe recipes/demo.yaml

        rpt browse data_manifests/demo.yaml --run runs/demo --run runs/other

        rpt browse data_manifests/omnimath.yaml --port 0
    """
    from commands.inspect.browse import open_library, serve
    from pipeline.core.executor import LocalExecutor

    read, with_prompts = read_manifest(manifest, overrides), read_recipe(recipe) if recipe else None
    places = [] if work == Path("work") else ["--work", str(work)]
    settings = [part for override in overrides or () for part in ("--set", override)]
    command = shlex.join(["rpt", "select", str(manifest), *places, *settings])
    executor, folder = LocalExecutor(workers), work / read.name
    library = open_library(read, work=folder, executor=executor, recipe=with_prompts, runs=run or (), command=command)
    serve(library, port)


@commands.command(rich_help_panel=INSPECT)
def board(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Folders of runs, e.g. `runs/demo`.")],
    port: Port = 8000,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the page as one offline file instead of serving it.")
    ] = None,
) -> None:
    """Serve a page to this machine only with the curves of training runs: live, finished, or copied from elsewhere.

    Several runs are drawn over each other. The page reads the files of the runs and writes nothing.

    Examples:

        rpt board runs/demo

        rpt board runs/demo runs/other --port 0

        rpt board runs/demo --html demo.html
    """
    from commands.inspect.board import export, opened, serve

    if html:
        export(opened(runs), html)
    else:
        serve(opened(runs), port)


@commands.command(rich_help_panel=INSPECT)
def show(
    manifest: ManifestPath,
    place: Place,
    recipe: Annotated[Path | None, typer.Option(help="Recipe whose prompt is shown.")] = None,
    overrides: Overrides = None,
    work: Work = Path("work"),
    as_json: AsJson = False,
) -> None:
    """Show a position in its document: the proxy's guesses, why it was kept or dropped, and its training example.

    Examples:

        rpt show data_manifests/demo.yaml 00d65ad28a2b24fcd7a6e12b7ab5a2c4-41

        rpt show demo 00d65ad28a2b24fcd7a6e12b7ab5a2c4 --recipe recipes/demo.yaml
    """
    from commands.inspect.show import show as look
    from commands.inspect.show import tables

    with_prompt = read_recipe(recipe) if recipe else None
    read = read_manifest(manifest, overrides)
    report(look(read, place, work=work, recipe=with_prompt), tables, as_json)


@commands.command(rich_help_panel=INSPECT)
def stats(
    manifest: ManifestPath, overrides: Overrides = None, work: Work = Path("work"), as_json: AsJson = False
) -> None:
    """Print the funnel, certificate, bands, entropy quantiles, token classes and sizes of a selection.

    Examples:

        rpt stats data_manifests/demo.yaml

        rpt stats data_manifests/demo.yaml --set select.where="entropy > 1.5" --json
    """
    from commands.inspect.stats import stats as count
    from commands.inspect.stats import tables

    report(count(read_manifest(manifest, overrides), work=work), tables, as_json)


@commands.command(rich_help_panel=INSPECT)
def trace(
    manifest: ManifestPath,
    place: Place,
    source: Source = None,
    overrides: Overrides = None,
    work: Work = Path("work"),
    as_json: AsJson = False,
) -> None:
    """Trace a training example back to its source record, which is read again and compared.

    Examples:

        rpt trace data_manifests/demo.yaml 00d65ad28a2b24fcd7a6e12b7ab5a2c4-41

        rpt trace demo work/demo/materialize/a5d7186ded6a/train-00000.0b3a7f6c2d1e.parquet:17
    """
    from commands.inspect.trace import tables
    from commands.inspect.trace import trace as follow

    found = follow(read_manifest(manifest, overrides), place, work=work, source=source)
    report(found, tables, as_json)
    if not found["source"]["agrees"]:
        raise typer.Exit(IntegrityError.exit_code)
