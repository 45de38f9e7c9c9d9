"""The options that several commands take, the panels of the help, and the printing of reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from pipeline.core.progress import results

CORPUS, POLICY, INSPECT = "Corpus → shards", "Shards → policy", "Inspect"
EXCHANGE, MAINTENANCE = "Import / export", "Maintenance"


def set_option(example: str) -> Any:
    """Return the `--set` option of a command, whose help shows keys that the command accepts."""
    return typer.Option("--set", metavar="KEY=VALUE", help=f"Override a key, e.g. {example}. Repeatable.")


def run_option(name: str) -> Any:
    """Return the `--run` option of a command whose run has by default this name below `runs/`."""
    return typer.Option("--run", help=f"Folder of the run.  [default: runs/{name}]")


ManifestPath = Annotated[Path, typer.Argument(help="A YAML file, or the name of one that comes with rpt: `demo`.")]
RecipePath = ManifestPath
MaybeManifest = Annotated[
    Path | None, typer.Argument(help="A YAML file, or the name of one that comes with rpt.  [default: all in --work]")
]
ManifestOption = Annotated[
    Path | None, typer.Option("--manifest", help="Manifest whose shards to use.  [default: the recipe's `data`]")
]
Overrides = Annotated[list[str] | None, set_option("`select.max_sites=1000`")]
RecipeOverrides = Annotated[list[str] | None, set_option("`budget.steps=100`")]
Work = Annotated[Path, typer.Option(help="Folder of the stages' artifacts.")]
Run = Annotated[Path | None, run_option("NAME")]
Source = Annotated[str | None, typer.Option(help="Read the corpus from here instead of the manifest's source.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Worker processes.  [default: one per core, or per GPU in stages that use GPUs]"),
]
Jobs = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Commands to run at the same time.  [default: one per core, at most 4]"),
]
ExecutorName = Annotated[
    Literal["local", "ray"], typer.Option("--executor", help="Run on this machine or on a Ray cluster.")
]
Address = Annotated[
    str | None, typer.Option(help="Ray only: the cluster, `host:port` or `auto`.  [default: one on this machine]")
]
NumGpus = Annotated[
    float | None, typer.Option(min=0, help="Ray only: GPUs per scoring worker.  [default: 1 if there are any]")
]
Ranks = Annotated[int, typer.Option(min=1, help="Processes on this machine (one per GPU).")]
Topology = Annotated[
    Path | None,
    typer.Option(help="DeepSpeed configuration.  [default: zero3.json on GPUs, zero3_cpu.json without]"),
]
PolicyFolder = Annotated[Path | None, typer.Option(help="Start from this policy.  [default: the recipe's]")]
FlopsOf = Annotated[Path | None, typer.Option(metavar="RUN", help="Stop after as many FLOPs as that run has used.")]
Flops = Annotated[float | None, typer.Option(help="Stop after this many FLOPs.")]
Tokens = Annotated[int | None, typer.Option(help="Stop after training on this many tokens.")]
WriteSpec = Annotated[
    Path | None,
    typer.Option("--write-spec", metavar="FILE", help="Only write the run's specification, for several nodes."),
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any free one.")]
Runs = Annotated[Path, typer.Option(help="Folder of the runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Accept = Annotated[
    bool,
    typer.Option("--accept", help="Use a selection that its certificate refuses. It is recorded."),
]
Remote = Annotated[str, typer.Argument(help="`hf://datasets/owner/name`, or a folder.", show_default=False)]
Place = Annotated[
    str,
    typer.Argument(
        metavar="SITE_ID|DOC_ID|SHARD:ROW", help="A site or another position, a document, or a row of a shard, from 0."
    ),
]


def report(found: dict[str, Any], tables: Callable[[dict[str, Any]], list[Table]], as_json: bool) -> None:
    """Print a report to standard output as JSON or as tables."""
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    for table in tables(found):
        results().print(table)
