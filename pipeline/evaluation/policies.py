"""The policies of an evaluation: those that the user names, or those before and after a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config.errors import UserError
from pipeline.config.recipe import Recipe
from pipeline.core.model_files import resolve_model

WARM_UP = "warm-up"
"""Name of the policy that a run started from, if `rpt warmup` trained it."""


def before_and_after(recipe: Recipe, run: Path) -> dict[str, Path]:
    """Return the folders of the recipe's policy before training and of the run's policy after it.

    If the run started from the policy of a warm-up, `before` is what that one started from, and `warm-up` is between.
    """
    trained = run / "policy"
    if not trained.is_dir():
        raise UserError("the run has no trained policy yet", where=trained, hint="run `rpt train` first")
    if (warm_up := warm_up_of(run)) is None:
        return {"before": resolve_model(recipe.policy.model, recipe.policy.revision), "after": trained}
    base, warmed = warm_up["base"], resolve_model(str(Path(warm_up["run"]) / "policy"))
    return {"before": resolve_model(base["model"], base["revision"]), WARM_UP: warmed, "after": trained}


def warm_up_of(run: Path) -> dict[str, Any] | None:
    """Return what the warm-up was and took whose policy a run started from (`origin_of`); None if there was none."""
    try:
        origin = json.loads((run / "run.json").read_text(encoding="utf-8")).get("policy_from")
    except (OSError, ValueError):
        return None
    return origin if origin and origin["command"] == "warmup" else None


def named_policies(arguments: Sequence[str]) -> dict[str, Path]:
    """Return the policies given as `NAME=FOLDER` (or `NAME=HUB-ID`), in their order.

    Raises:
        UserError: a name is missing or repeated.
    """
    policies: dict[str, Path] = {}
    for argument in arguments:
        name, separator, folder = argument.partition("=")
        if not separator or not name.strip() or name.strip() in policies:
            raise UserError("policies are given as NAME=FOLDER, each name once", where=argument)
        policies[name.strip()] = resolve_model(folder)
    return policies
