"""Gate: learn from a run's evaluation where thinking pays, and write it beside the policy.

Input:   `evaluation/` of a run, as `rpt evaluate` wrote it: nothing is sampled.
Output:  `policy/gate.json` of the run (coefficients, no code), and beside it `rpt_gate.py`, which applies it,
         `README.md`, which says how, and `generation_config.json` with the lengths and temperature that were
         evaluated; with --out, the gate alone. `evaluation/gate.svg`, and tables on standard output.
Command: rpt gate runs/<recipe> [--policy NAME] [--most SHARE] [--out FILE] [--json]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rich.table

from pipeline.config.errors import UserError
from pipeline.config.loading import load
from pipeline.config.recipe import Recipe
from pipeline.core.files import replace_text
from pipeline.core.progress import log
from pipeline.evaluation.gate_plot import draw_gate
from pipeline.evaluation.hybrid import Gated, gated, summarize_hybrid
from pipeline.evaluation.report import Table, hybrid_table, title_of
from pipeline.evaluation.stored import Evaluation, read_evaluation
from pipeline.export.gate_files import GATE_FILE
from pipeline.export.policy_card import describe_policy

TRAINED = "after"
"""Name of the run's own policy in an evaluation."""
PICTURE = "gate.svg"


def run_folder(place: Path) -> Path:
    """Return the folder of a run, given as a folder or as the recipe that was trained."""
    return place if place.is_dir() else Path("runs") / load(Recipe, place).name


def gate(run: Path, *, policy: str | None, most: float, out: Path | None) -> dict[str, Any]:
    """Fit the gate of a run's policy and write it.

    Args:
        run: the run's folder.
        policy: name of the policy in the evaluation; None: the last one.
        most: share of the evaluated sites that may think.
        out: file to write the gate to; None: into the folder of the run's trained policy.

    Returns:
        JSON values: `policy`, `written`, `about` (the gate, its calibration) and `sets` (see `summarize_hybrid`).

    Raises:
        UserError: the run has no evaluation that can be read, or `out` is missing for a policy that lies elsewhere.
    """
    evaluation = read_evaluation(run / "evaluation", policy)
    own = run / "policy"
    if out is None and (evaluation.policy != TRAINED or not own.is_dir()):
        raise UserError(
            f"where is the policy {evaluation.policy!r}?", where=run, hint="name a file for its gate with --out"
        )
    found = gated(evaluation.observed, most)
    sets = {
        name: {
            "where": summary["where"],
            "bands": summary["bands"],
            "hybrid": {
                evaluation.policy: summarize_hybrid(
                    found, evaluation.entropy_N, evaluation.bands, evaluation.sets[name]
                )
            },
        }
        for name, summary in evaluation.summaries.items()
    }
    if out is not None:
        replace_text(out, found.gate.text())
    else:
        describe_policy(own, run, found.gate, sets)
    widest = sets[list(sets)[-1]]
    draw_gate(
        widest["hybrid"][evaluation.policy],
        found.about()["calibration"],
        run / "evaluation" / PICTURE,
        f"{title_of(widest)}, policy {evaluation.policy}",
    )
    written = out or own / GATE_FILE
    log(f"gate         {_in_words(found, evaluation)}  {written}")
    return {"policy": evaluation.policy, "written": str(written), "about": found.about(), "sets": sets}


def tables(found: Mapping[str, Any]) -> list[rich.table.Table]:
    """Render the hybrid reading, the calibration and the gate as tables."""
    about = found["about"]
    rows = tuple(
        (f"{100 * each['expected']:.0f}", f"{100 * each['observed']:.0f}", f"{each['sites']:,}")
        for each in about["calibration"]
    )
    title = "Calibration: sites where one answer is right, by the expected share where it is the thought's, %"
    weights = sorted(
        zip(about["gate"]["features"], about["gate"]["coefficients"], strict=True), key=lambda w: -abs(w[1])
    )
    shown = tuple((name, f"{weight:+.2f}".replace("-", "−")) for name, weight in weights)
    parts = [
        *(hybrid_table(summary) for summary in found["sets"].values()),
        Table(title, ("expected", "observed", "sites"), rows),
        Table("Gate: log-odds per standard deviation", ("", "weight"), shown),
    ]
    return [part.terminal() for part in parts]


def _in_words(found: Gated, evaluation: Evaluation) -> str:
    about = found.about()
    return (
        f"{evaluation.policy}: thinking pays at {about['pays']:,} and costs at {about['costs']:,} of "
        f"{about['sites']:,} sites; thinks at {100 * found.thinks_N.mean():.0f} %"
    )
