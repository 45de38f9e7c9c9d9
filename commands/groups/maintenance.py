"""The maintenance commands: `rpt status`, `rpt clean`, `rpt verify`, `rpt doctor`, `rpt schema`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from commands.groups.options import (
    MAINTENANCE,
    AsJson,
    ManifestPath,
    MaybeManifest,
    Overrides,
    Runs,
    Source,
    Work,
    report,
)
from commands.reading import read_manifest
from pipeline.config.errors import IntegrityError, UserError
from pipeline.core.progress import log

commands = typer.Typer()


@commands.command(rich_help_panel=MAINTENANCE)
def status(
    manifest: MaybeManifest = None,
    overrides: Overrides = None,
    work: Work = Path("work"),
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Show what is built, what is stale and why, how large it is, and what the runs were trained on.

    Without a manifest, list what is built of every manifest, and all runs.

    Examples:

        rpt status

        rpt status data_manifests/demo.yaml

        rpt status data_manifests/demo.yaml --set select.where="entropy > 1.5" --json
    """
    from commands.maintenance.status import list_all, tables, tables_of_all
    from commands.maintenance.status import status as look
    from pipeline.scoring import own_proxy
    from stages import ingest, materialize, score, select

    if manifest is None:
        if overrides:
            raise UserError("overrides need a manifest", where="--set", hint="name the manifest that they change")
        report(list_all(work=work, runs=runs), tables_of_all, as_json)
        return
    stages = [ingest.READ, ingest.NEAR, ingest.ASSIGN, ingest.INGEST]
    stages += [select.CANDIDATE, select.VERDICT, select.SELECT, materialize.MATERIALIZE]
    versions = {stage.name: stage.version for stage in stages}
    versions |= {"score": score.VERSION} | dict.fromkeys(("proxy", "tokenizer", "tokens"), own_proxy.VERSION)
    found = look(read_manifest(manifest, overrides), work=work, runs=runs, versions=versions)
    report(found, tables, as_json)


@commands.command(rich_help_panel=MAINTENANCE)
def clean(
    manifest: ManifestPath,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    work: Work = Path("work"),
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Remove what no record needs: earlier selections and scores, leftovers of killed workers. Asks first.

    The last output of each stage (for each source, proxy and policy tokenizer), its inputs, what runs were trained on,
    and unfinished outputs are kept.

    Examples:

        rpt clean data_manifests/demo.yaml

        rpt clean data_manifests/demo.yaml --yes
    """
    from commands.maintenance.clean import remove, tables, waste

    wasted = waste(read_manifest(manifest), work=work, runs=runs)
    found = [{"path": str(item.path), "bytes": item.bytes, "why": item.why} for item in wasted]
    report({"waste": found, "bytes": sum(item.bytes for item in wasted)}, tables, as_json)
    if not wasted or not (yes or (sys.stdin.isatty() and typer.confirm("Remove all of this?", err=True))):
        log("clean        nothing was removed" + ("" if not wasted or sys.stdin.isatty() else " (--yes removes it)"))
        return
    remove(wasted)
    log(f"clean        {len(wasted)} removed")


@commands.command(rich_help_panel=MAINTENANCE)
def doctor(
    work: Work = Path("work"),
    policy: Annotated[
        str | None,
        typer.Option(help="Folder or Hub id of a policy: show how it thinks and what ends its responses."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what this machine has (versions, devices, compilers, disk) and what is missing for which feature.

    Examples:

        rpt doctor

        rpt doctor --policy demo/policy
    """
    from commands.maintenance.doctor import doctor as examine
    from commands.maintenance.doctor import tables

    found = examine(work, policy)
    report(found, tables, as_json)
    if not found["ok"]:
        raise typer.Exit(UserError.exit_code)


@commands.command(rich_help_panel=MAINTENANCE)
def verify(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST|RUN", help="A manifest or the folder of a run.")],
    source: Source = None,
    work: Work = Path("work"),
    as_json: AsJson = False,
) -> None:
    """Check that every published file, and the source, still has the bytes that were recorded.

    Examples:

        rpt verify data_manifests/demo.yaml

        rpt verify runs/demo
    """
    from commands.maintenance.verify import tables, tables_of_run, verify_run
    from commands.maintenance.verify import verify as check

    if (manifest / "run.json").is_file() or (manifest / "checkpoints").is_dir():
        found = verify_run(manifest)
        report(found, tables_of_run, as_json)
    else:
        found = check(read_manifest(manifest), work=work, source=source)
        report(found, tables, as_json)
    if not found["ok"]:
        raise typer.Exit(IntegrityError.exit_code)


@commands.command(rich_help_panel=MAINTENANCE)
def schema(kind: Annotated[str, typer.Argument(help="`manifest`, `recipe` or `study`.")]) -> None:
    """Print the JSON Schema of manifests, recipes or studies, which editors use to complete YAML.

    Example:

        rpt schema manifest > manifest.schema.json
    """
    from pipeline.config.base import Config
    from pipeline.config.manifest import Manifest
    from pipeline.config.recipe import Recipe
    from pipeline.config.study import StudyConfig

    kinds: dict[str, type[Config]] = {"manifest": Manifest, "recipe": Recipe, "study": StudyConfig}
    if kind not in kinds:
        raise UserError("unknown schema", where=kind, hint=f"choose one of: {', '.join(kinds)}")
    print(json.dumps(kinds[kind].model_json_schema(), indent=2, ensure_ascii=False))
