"""Verify: check that everything published is still as it was recorded.

Input:   every output under `work/<name>/`: its files are read and hashed again, its records and the presence of its
         inputs are checked; and the source files of the documents. For a run, its record, the recipe and
         prompt that the record has the hashes of, and the files of its checkpoints.
Output:  a table, or JSON. Nothing is written. Exit code 3 if anything is damaged.
Command: rpt verify data_manifests/<name>.yaml [--source PATH] [--json]
         rpt verify runs/<name> [--json]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline.audit.source import source_damage
from pipeline.audit.verify import noting
from pipeline.audit.verify import verify as check
from pipeline.config.errors import UserError
from pipeline.config.manifest import Manifest
from pipeline.core.files import size_of
from pipeline.core.workspace import format_bytes
from pipeline.grpo.run.run_folder import (
    OTHER_CHECKPOINT,
    damage_of,
    damage_of_record,
    files_of,
    latest_checkpoint,
    whole_checkpoints,
)


def verify(manifest: Manifest, *, work: Path, source: str | None = None) -> dict[str, Any]:
    """Check all outputs of a manifest, including those of other overrides and earlier versions.

    Args:
        manifest: names the folder.
        work: folder of all manifests' artifacts.
        source: compare with this instead of `corpus.source`.

    Raises:
        UserError: nothing has been published.
    """
    found = check(work / manifest.name)
    if not found["stages"]:
        raise UserError("nothing has been published", where=work / manifest.name, hint="run `rpt data` first")
    damage = source_damage(work / manifest.name, manifest.corpus, source)
    return found | {"ok": found["ok"] and not damage, "damage": found["damage"] + damage}


def verify_run(run: Path) -> dict[str, Any]:
    """Check the record of a run, all its complete checkpoints, and that `latest` names one of them."""
    damage, rows, whole = damage_of_record(run), [], whole_checkpoints(run)
    pointer = run / "checkpoints" / "latest"
    with noting(damage):
        latest_checkpoint(run)
    if whole and not pointer.exists():
        damage[str(pointer)] = f"is missing: the run goes on from {whole[-1].name}"
    for folder in (run / "checkpoints").glob("step-*"):
        if folder not in whole and whole and folder < whole[-1]:  # one that a killed run left half written is the last
            damage[str(folder / "state.json")] = "is missing"
    for checkpoint in whole:
        own = damage_of(checkpoint)
        damage |= own
        size, files = size_of(checkpoint), len(files_of(checkpoint))
        rows.append({"checkpoint": checkpoint.name, "files": files, "bytes": size, "damaged": len(own)})
    listed = [{"where": where, "what": what} for where, what in damage.items()]
    return {"run": str(run), "ok": not damage, "checkpoints": rows, "damage": listed}


def tables_of_run(found: Mapping[str, Any]) -> list[Table]:
    """Render the result as tables."""
    checkpoints = Table("checkpoint", "files", "size", "", title=found["run"], title_justify="left")
    for row in found["checkpoints"]:
        state = f"{row['damaged']} damaged" if row["damaged"] else "ok"
        checkpoints.add_row(row["checkpoint"], f"{row['files']:,}", format_bytes(row["bytes"]), state)
    return [checkpoints, *_damage(found, OTHER_CHECKPOINT)]


def tables(found: Mapping[str, Any]) -> list[Table]:
    """Render the result as tables."""
    stages = Table("stage", "output", "made from", "files", "size", "", title=found["work"], title_justify="left")
    for column in (3, 4):
        stages.columns[column].justify = "right"
    stages.columns[2].overflow = "fold"
    for row in found["stages"]:
        made_from = "\n".join(sorted({made for made in row["made_from"].values() if made}))
        state = f"{len(row['damage'])} damaged" if row["damage"] else "ok" if row["complete"] else "unfinished, ok"
        stages.add_row(
            row["stage"], row["fingerprint"], made_from, f"{row['files']:,}", format_bytes(row["bytes"]), state
        )  # fmt: skip
    return [stages, *_damage(found, "delete the stage's folder and run `rpt data`")]


def _damage(found: Mapping[str, Any], advice: str) -> list[Table]:
    damage = Table("damaged", "what is wrong", title=advice, title_justify="left")
    damage.columns[0].overflow = damage.columns[1].overflow = "fold"
    for item in found["damage"]:
        damage.add_row(item["where"], item["what"])
    return [damage] if found["damage"] else []
