"""Stats: print the numbers of a selection.

Input:   the artifacts of `rpt data` (or `rpt select`) for a manifest.
Output:  tables of funnel, certificate, bands, entropy, token classes, sizes; or JSON. Nothing is written.
Command: rpt stats data_manifests/<name>.yaml [--json]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from commands.certificate import certificate_tables
from pipeline.audit.decisions import SPLITS
from pipeline.audit.funnel import funnel_table
from pipeline.audit.lineage import lineage_of
from pipeline.audit.stats import QUANTILES
from pipeline.audit.stats import stats as count
from pipeline.config.manifest import Manifest
from pipeline.core.workspace import format_bytes


def stats(manifest: Manifest, *, work: Path) -> dict[str, Any]:
    """Return the numbers of the selection that a manifest describes, as JSON values.

    Args:
        manifest: with its overrides.
        work: folder of all manifests' artifacts.

    Raises:
        UserError: the selection does not exist.
        IntegrityError: a file that was read has been changed.
    """
    return count(lineage_of(work / manifest.name, manifest))


def tables(found: Mapping[str, Any]) -> list[Table]:
    """Render the numbers as tables."""
    title = f"{found['manifest']}, selection {found['selection']}"
    funnel = funnel_table(title, found["funnel"])
    entropy = _table("entropy, nats", "count", "mean", *(f"{100 * q:g} %" for q in QUANTILES))
    for split in SPLITS:
        for of, row in found["entropy"][split].items():
            if row:
                numbers = [row["mean"], *(row[f"{q:g}"] for q in QUANTILES)]
                entropy.add_row(f"{split} {of}", f"{row['count']:,}", *(f"{number:.3f}" for number in numbers))
    sizes = _table("stage", "shards", "rows", "size")
    for stage, size in found["sizes"].items():
        sizes.add_row(stage, f"{size['shards']:,}", f"{size['rows']:,}", format_bytes(size["bytes"]))
    if found["bytes_per_site"] is not None:
        sizes.caption = f"{found['bytes_per_site']:.1f} bytes per site in shards"
    judged = certificate_tables(found["certificate"]) if found["certificate"] else []
    corpora = [_by_split("corpus", found["corpora"], found["sites"])] if found["corpora"] else []
    return [
        funnel,
        *corpora,
        _by_split("hardest band", found["bands"], found["sites"]),
        entropy,
        _by_split("token class", found["token_classes"], found["sites"]),
        *judged,
        sizes,
    ]


def _by_split(name: str, counts: Mapping[str, Mapping[str, int]], sites: Mapping[str, int]) -> Table:
    table = _table(name, *(column for split in SPLITS for column in (f"{split} sites", "share")))
    for value, row in counts.items():
        cells = [(f"{row[s]:,}", f"{100 * row[s] / sites[s]:.1f} %" if sites[s] else "–") for s in SPLITS]
        table.add_row(value.replace("_", " "), *(cell for pair in cells for cell in pair))
    return table


def _table(first: str, *numbers: str, title: str | None = None) -> Table:
    table = Table(first, title=title, title_justify="left", caption_justify="left")
    for name in numbers:
        table.add_column(name, justify="right")
    return table
