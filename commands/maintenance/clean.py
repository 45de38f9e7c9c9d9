"""Clean: list what no record needs, ask, and remove it.

Input:   records under `work/<name>/`; `run.json` of the runs.
Output:  none; removes outputs of earlier configurations from which neither a stage's last output nor a run was made,
         and leftovers of killed workers that are more than an hour old. Unfinished outputs and their inputs stay,
         because a run may resume from them, and so do outputs of manifests of the same name that have another source,
         proxy or policy tokenizer.
Command: rpt clean data_manifests/<name>.yaml [--yes] [--json]
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline.config.manifest import Manifest
from pipeline.core.files import size_of
from pipeline.core.pointers import superseded_by_others
from pipeline.core.workspace import format_bytes, made_from, outputs, runs_in, unneeded

REMOVED = ".removed"


@dataclass(frozen=True)
class Waste:
    """A file or folder to remove, and the reason why nothing needs it."""

    path: Path
    bytes: int
    why: str


def waste(manifest: Manifest, *, work: Path, runs: Path) -> list[Waste]:
    """Return the removable files and folders, in the order of the stages' names.

    Args:
        manifest: names the folder.
        work: folder of all manifests' artifacts.
        runs: folder of all runs; the shards they were trained on stay, with the inputs of those shards.
    """
    found = outputs(work / manifest.name)
    theirs = superseded_by_others(work / manifest.name)
    superseded = unneeded(found, [name for run in runs_in(runs) for name in made_from(run)], theirs)
    left = [(path, output) for output in found if output not in superseded for path in output.leftovers()]
    whole = [Waste(o.directory, o.bytes, "nothing that is current was made from it") for o in superseded]
    parts = [Waste(path, size_of(path), f"left over from a killed worker of `{o.stage}`") for path, o in left]
    halves = [
        Waste(path, size_of(path), "half removed") for path in sorted(work.glob(f"{manifest.name}/*/.*{REMOVED}"))
    ]
    return whole + parts + halves


def remove(wasted: Sequence[Waste]) -> None:
    """Remove files and folders. A folder is renamed first, so that a half-removed one never looks like an output."""
    for item in wasted:
        if item.path.is_dir():
            gone = item.path if item.path.suffix == REMOVED else item.path.with_name(f".{item.path.name}{REMOVED}")
            os.replace(item.path, gone)
            shutil.rmtree(gone)
        else:
            item.path.unlink(missing_ok=True)


def tables(found: Mapping[str, Any]) -> list[Table]:
    """Render the removable files as tables."""
    table = Table("size", "what", "why", title=f"{format_bytes(found['bytes'])} can be removed", title_justify="left")
    for item in found["waste"]:
        table.add_row(format_bytes(item["bytes"]), item["path"], item["why"])
    return [table] if found["waste"] else []
