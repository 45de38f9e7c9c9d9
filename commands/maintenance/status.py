"""Status: show what is built for a manifest, what is stale and why, how large it is, and what runs were trained on.

Input:   records under `work/<name>/`; `run.json` and checkpoints of runs. Nothing is computed, no data is read.
Output:  a table, or JSON.
Command: rpt status [data_manifests/<name>.yaml] [--json]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from pipeline.config.manifest import Manifest
from pipeline.core.files import size_of
from pipeline.core.workspace import Output, format_bytes, made_from, outputs, runs_in, states
from pipeline.grpo.run.run_folder import latest_checkpoint, read_state

MAIN = ("ingest", "score", "select", "materialize")
"""The stages of `rpt data` that people name."""


def status(manifest: Manifest, *, work: Path, runs: Path, versions: Mapping[str, int]) -> dict[str, Any]:
    """Return the state of a manifest's stages and of the runs on its shards, as JSON values.

    Args:
        manifest: with its overrides.
        work: folder of all manifests' artifacts.
        runs: folder of all runs.
        versions: current version of each stage's code, by name.
    """
    folder = work / manifest.name
    found = outputs(folder)
    stages = [
        {
            "stage": state.stage,
            "state": state.state,
            "why": list(state.why),
            "directory": str(state.output.directory) if state.output else None,
            "bytes": state.output.bytes if state.output else 0,
            "outputs": sum(output.stage == state.stage for output in found),
        }
        for state in states(manifest, folder, versions)
    ]
    return {
        "manifest": manifest.name,
        "work": str(folder),
        "bytes": size_of(folder) if folder.exists() else 0,
        "up_to_date": all(stage["state"] == "up to date" for stage in stages),
        "stages": stages,
        "runs": _runs(runs, {output.fingerprint: output for output in found}, Path(str(stages[-1]["directory"])).name),
    }


def _runs(runs: Path, known: Mapping[str, Output], shards: str) -> list[dict[str, Any]]:
    """Return the runs that were trained on outputs of this folder."""
    found = []
    for run in runs_in(runs):
        mine = [fingerprint for fingerprint in made_from(run) if fingerprint in known]
        if mine:
            names = [f"{'' if known[f].current else 'earlier '}{known[f].stage}/{f}" for f in mine]
            found.append(_run(run) | {"made_from": names, "on_these_shards": shards in mine})
    return found


def _run(run: Path) -> dict[str, Any]:
    """Return how far a run has come, and its size."""
    checkpoint = latest_checkpoint(run)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    return {
        "run": str(run),
        "step": read_state(checkpoint)["step"] if checkpoint else 0,
        "steps": recipe["budget"]["steps"],
        "policy": (run / "policy").is_dir(),
        "bytes": size_of(run),
    }


def list_all(*, work: Path, runs: Path) -> dict[str, Any]:
    """Return what is built of every manifest, and all runs, as JSON values.

    Args:
        work: folder of all manifests' artifacts.
        runs: folder of all runs.
    """
    manifests = []
    for folder in sorted(path for path in work.glob("*/") if path.is_dir()):
        found = outputs(folder)
        if found:
            current = [output.stage for output in found if output.current and output.record is not None]
            manifests.append(
                {
                    "manifest": folder.name,
                    "stages": current,
                    "unfinished": sorted({output.stage for output in found if output.record is None}),
                    "outputs": len(found),
                    "bytes": size_of(folder),
                }
            )
    return {"work": str(work), "manifests": manifests, "runs": [_run(run) for run in runs_in(runs)]}


def tables_of_all(found: Mapping[str, Any]) -> list[Table]:
    """Render the list of everything as tables."""
    built = Table("manifest", "built", "unfinished", "size", "outputs", title=found["work"], title_justify="left")
    for each in found["manifests"]:
        stages = [stage for stage in MAIN if stage in each["stages"]]
        names = (", ".join(part) for part in (stages, each["unfinished"]))
        built.add_row(each["manifest"], *names, format_bytes(each["bytes"]), str(each["outputs"]))
    runs = Table("run", "steps", "policy", "size")
    for run in found["runs"]:
        done = "trained" if run["policy"] else "not yet"
        runs.add_row(run["run"], f"{run['step']} of {run['steps']}", done, format_bytes(run["bytes"]))
    return [built, *([runs] if found["runs"] else [])]


def tables(found: Mapping[str, Any]) -> list[Table]:
    """Render the state as tables."""
    stages = Table("stage", "state", "why", "size", "outputs", title=f"{found['work']}", title_justify="left")
    for stage in found["stages"]:
        why = "\n".join(stage["why"])
        stages.add_row(stage["stage"], stage["state"], why, format_bytes(stage["bytes"]), str(stage["outputs"]))
    runs = Table("run", "steps", "trained on", "size")
    for run in found["runs"]:
        which = "these shards" if run["on_these_shards"] else "\n".join(run["made_from"])
        runs.add_row(run["run"], f"{run['step']} of {run['steps']}", which, format_bytes(run["bytes"]))
    return [stages, *([runs] if found["runs"] else [])]
