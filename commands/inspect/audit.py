"""Audit: write an offline HTML report, and JSON, of what a selection kept and dropped, and why.

Input:   what `rpt data` has published: `documents`, `quarantine`, `scores`, `sites`, the shards' record.
Output:  `report.html` (at most 5 MB) and `audit.json` in `work/<name>/audit/<selection>/`; with --compare,
         `compare.html` and `compare.json` beside them. They can be made again at any time and feed no other stage.
Command: rpt audit data_manifests/<name>.yaml [--compare OTHER]
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.audit.compare import compare as compare_lineages
from pipeline.audit.lineage import Lineage, lineage_of, lineage_of_fingerprint, proxy_tokenizer
from pipeline.audit.report import as_json, comparison_page, page
from pipeline.audit.report import audit as look
from pipeline.config.loading import load
from pipeline.config.manifest import Manifest
from pipeline.core.files import replace_text


def audit(manifest: Manifest, *, work: Path, out: Path | None = None) -> Path:
    """Write the report of the selection that `manifest` describes, and return the page's path.

    Args:
        manifest: with its overrides.
        work: folder of all manifests' artifacts.
        out: output folder; by default `WORK/NAME/audit/SELECTION`.

    Raises:
        UserError: the selection does not exist.
        IntegrityError: a published file was changed.
    """
    lineage = lineage_of(work / manifest.name, manifest)
    folder = out or _folder(work, lineage)
    summary, heat_maps = look(lineage, proxy=proxy_tokenizer(manifest, lineage))
    replace_text(folder / "audit.json", _json(summary))
    replace_text(folder / "report.html", page(summary, heat_maps))
    return folder / "report.html"


def compare(
    manifest: Manifest,
    other: Sequence[str],
    *,
    path: Path,
    overrides: Sequence[str],
    work: Path,
    out: Path | None = None,
) -> Path:
    """Compare another selection with the one that `manifest` describes, and return the page's path.

    Args:
        manifest: with its overrides.
        other: another manifest's path, a selection's fingerprint, or `key=value` overrides of this manifest.
        path: file from which `manifest` was read.
        overrides: overrides that `manifest` has.
        work: folder of all manifests' artifacts.
        out: output folder; by default `WORK/NAME/audit/SELECTION`.

    Raises:
        UserError: one of the selections does not exist.
    """
    before = lineage_of(work / manifest.name, manifest)
    after = _other(manifest, other, path, overrides, work)
    folder = out or _folder(work, before)
    comparison = compare_lineages(before, after)
    replace_text(folder / "compare.json", _json(comparison))
    replace_text(folder / "compare.html", comparison_page(comparison))
    return folder / "compare.html"


def _other(manifest: Manifest, other: Sequence[str], path: Path, overrides: Sequence[str], work: Path) -> Lineage:
    """Return the selection that `--compare` names."""
    if len(other) == 1 and Path(other[0]).suffix in (".yaml", ".yml"):
        named = load(Manifest, Path(other[0]))
        return lineage_of(work / named.name, named)
    if len(other) == 1 and "=" not in other[0]:
        return lineage_of_fingerprint(work / manifest.name, manifest, other[0])
    changed = load(Manifest, path, [*overrides, *other])
    return lineage_of(work / changed.name, changed)


def _folder(work: Path, lineage: Lineage) -> Path:
    return work / lineage.name / "audit" / lineage.select.fingerprint


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, default=as_json)
