"""The commands that exchange shards with other trainers and the Hub: `rpt export`, `rpt push`, `rpt pull`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from commands.groups.options import EXCHANGE, ManifestPath, Overrides, Remote, Work
from commands.reading import read_manifest, read_recipe

commands = typer.Typer()


@commands.command(rich_help_panel=EXCHANGE)
def export(
    format: Annotated[
        Literal["verl", "trl", "openrlhf", "nemo-rl", "jsonl"],
        typer.Argument(help="Output format.", show_default=False),
    ],
    manifest: ManifestPath,
    out: Annotated[Path, typer.Option(help="A folder that does not exist yet.", show_default=False)],
    recipe: Annotated[
        Path | None, typer.Option(help="Recipe whose `task` decides the prompts and how responses are read.")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Prompt template around each context, a name or a file; instead of the recipe's.")
    ] = None,
    where: Annotated[str, typer.Option(help="SQL condition over the site columns.")] = "true",
    gate: Annotated[
        Path | None, typer.Option(help="Gate to carry (`rpt gate`): its file, or the folder of its run or policy.")
    ] = None,
    overrides: Overrides = None,
    work: Work = Path("work"),
) -> None:
    """Export the shards to another trainer's format, with the reward as a file which that trainer loads.

    Examples:

        rpt export verl data_manifests/demo.yaml --out exports/demo-verl

        rpt export trl data_manifests/demo.yaml --out exports/demo-trl --template brief --where "band = 'hard'"

        rpt export openrlhf data_manifests/demo.yaml --out exports/demo-openrlhf --recipe recipes/demo.yaml

        rpt export trl data_manifests/demo.yaml --out exports/demo-gated --recipe recipes/demo.yaml --gate runs/demo
    """
    from commands.exchange.export import export as write
    from pipeline.config.task import TaskConfig
    from pipeline.core.workspace import own_record, with_policy_tokenizer
    from pipeline.export.gate_files import read_gate

    read = read_manifest(manifest, overrides)
    carried = None if gate is None else read_gate(gate)
    task = read_recipe(recipe).task if recipe else TaskConfig()
    if template:
        task = task.model_copy(update={"template": template})
    shards = own_record(work / read.name, read, "materialize")
    policy = with_policy_tokenizer(read, work / read.name).materialize
    write(read.name, shards, format=format, task=task, out=out, policy=policy, where=where, gate=carried)
    print(out)


@commands.command(rich_help_panel=EXCHANGE)
def push(
    manifest: ManifestPath,
    remote: Remote,
    overrides: Overrides = None,
    work: Work = Path("work"),
) -> None:
    """Upload the shards to the Hub or a folder, with a card, the audit and Croissant metadata (sha256, provenance).

    Examples:

        rpt push data_manifests/demo.yaml hf://datasets/owner/demo-sites

        rpt push data_manifests/demo.yaml /mnt/shared/demo-sites
    """
    from commands.exchange.push import push as put

    put(read_manifest(manifest, overrides), remote, work=work)


@commands.command(rich_help_panel=EXCHANGE)
def pull(
    remote: Remote,
    revision: Annotated[str | None, typer.Option(help="Commit of the data set on the Hub.")] = None,
    work: Work = Path("work"),
) -> None:
    """Download pushed shards to where `rpt train` finds them, verify their sha256, and print the manifest to use.

    Example:

        rpt pull hf://datasets/owner/demo-sites
    """
    from commands.exchange.pull import pull as fetch

    print(fetch(remote, work=work, revision=revision))
