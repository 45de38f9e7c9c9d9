"""Verify: is everything that was published still what was recorded?

Input:   every output under `work/<name>/`: all its files are read and hashed again, its records checked, and that what
         each was made from is there; and the source files that the documents were read from.
Output:  a table, or JSON. Nothing is written. Exit code 3 if anything is damaged.
Command: rpt verify data_manifests/<name>.yaml [--source PATH] [--json]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline.audit.source import source_damage
from pipeline.audit.verify import verify as check
from pipeline.core.config import Manifest
from pipeline.core.errors import UserError
from pipeline.core.workspace import human


def verify(manifest: Manifest, *, work: Path, source: str | None = None) -> dict[str, Any]:
    """Check all outputs of a manifest: those of other overrides and of earlier versions, too.

    Args:
        manifest: names the folder.
        work: folder of all manifests' artifacts.
        source: compare with this instead of `corpus.source`.

    Raises:
        UserError: nothing was published.
    """
    found = check(work / manifest.name)
    if not found["stages"]:
        raise UserError("nothing is published", where=work / manifest.name, mend="run `rpt data` first")
    damage = source_damage(work / manifest.name, manifest.corpus, source)
    return found | {"ok": found["ok"] and not damage, "damage": found["damage"] + damage}


def tables(found: Mapping[str, Any]) -> list[Table]:
    """The same for people."""
    stages = Table("stage", "output", "made from", "files", "size", "", title=found["work"], title_justify="left")
    for column in (3, 4):
        stages.columns[column].justify = "right"
    stages.columns[2].overflow = "fold"
    for row in found["stages"]:
        made_from = "\n".join(sorted({made for made in row["made_from"].values() if made}))
        state = f"{len(row['damage'])} damaged" if row["damage"] else "ok" if row["complete"] else "unfinished, ok"
        stages.add_row(
            row["stage"], row["fingerprint"], made_from, f"{row['files']:,}", human(row["bytes"]), state
        )  # fmt: skip
    damage = Table(
        "damaged", "what is wrong", title="delete the stage's folder and run `rpt data`", title_justify="left"
    )
    damage.columns[0].overflow = damage.columns[1].overflow = "fold"
    for item in found["damage"]:
        damage.add_row(item["where"], item["what"])
    return [stages, *([damage] if found["damage"] else [])]
