"""What commands share: the options that several take, the panels of the help, and how a report is printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

CORPUS, POLICY, LOOK = "Corpus → shards", "Shards → policy", "Look and question"
ELSEWHERE, HOUSE = "To and from elsewhere", "Keep house"

ManifestPath = Annotated[Path, typer.Argument(help="A YAML file, or the name of one that comes with rpt: `demo`.")]
RecipePath = Annotated[Path, typer.Argument(help="A YAML file, or the name of one that comes with rpt: `demo`.")]
ManifestOption = Annotated[
    Path | None, typer.Option("--manifest", help="The manifest whose shards are used.  [default: the recipe's `data`]")
]
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
SiteManifest = Annotated[Path, typer.Option("--manifest", help="The manifest whose selection is looked at.")]


def report(found: dict[str, Any], tables: Callable[[dict[str, Any]], list[Table]], as_json: bool) -> None:
    """On standard output."""
    from rich.console import Console

    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    for table in tables(found):
        Console(markup=False).print(table)
