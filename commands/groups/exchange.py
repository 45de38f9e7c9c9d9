"""`rpt export`, `rpt push`, `rpt pull`: shards for other trainers, to the hub and from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from commands.groups.options import ELSEWHERE, ManifestPath, Overrides, Work
from pipeline.config.loading import load
from pipeline.config.manifest import Manifest
from pipeline.config.task import TaskConfig

commands = typer.Typer()


@commands.command(rich_help_panel=ELSEWHERE)
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

        rpt export trl data_manifests/demo.yaml --out exports/demo-trl --template brief --where "band = 'hard'"
    """
    from commands.export import export as write
    from pipeline.core.workspace import own_record

    read = load(Manifest, manifest, overrides or ())
    shards = own_record(work / read.name, read, "materialize")
    write(read.name, shards, format=format, template=template, out=out, policy=read.materialize, where=where)
    print(out)


@commands.command(rich_help_panel=ELSEWHERE)
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
    from commands.push import push as put

    put(load(Manifest, manifest, overrides or ()), remote, work=work)


@commands.command(rich_help_panel=ELSEWHERE)
def pull(
    remote: Annotated[str, typer.Argument(help="`hf://datasets/owner/name`, or a folder.", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="Commit of the hub's data set.")] = None,
    work: Work = Path("work"),
) -> None:
    """Shards that were pushed, verified by sha256, to where `rpt train` finds them. Prints the manifest to train with.

    Example:

        rpt pull hf://datasets/owner/demo-sites
    """
    from commands.pull import pull as fetch

    print(fetch(remote, work=work, revision=revision))
