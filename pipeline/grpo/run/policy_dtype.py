"""Choice of the policy's number format for `policy.dtype: auto`."""

from __future__ import annotations

from pathlib import Path

import yaml

from pipeline.config.errors import IntegrityError
from pipeline.config.recipe import PolicyConfig, Recipe
from pipeline.core.precision import fastest_dtype
from pipeline.core.progress import log
from pipeline.grpo.policy.rendezvous import is_first_rank


def with_dtype(recipe: Recipe, command: str, run: Path | None = None) -> Recipe:
    """Return the recipe with `policy.dtype: auto` replaced, and log the choice on rank 0.

    A run keeps the number format that it began with, on whatever machine it is resumed or evaluated. Otherwise the
    format is this machine's.

    Args:
        recipe: the recipe.
        command: what the line of the log begins with.
        run: folder of the run, if there is one.
    """
    if recipe.policy.dtype != "auto":
        return recipe
    begun = _begun(run) if run else None
    dtype, reason = (begun, f"as {run} began") if begun else fastest_dtype()
    if is_first_rank():
        log(f"{command:<12} computes in {dtype}: {reason} (policy.dtype: auto)")
    return recipe.model_copy(update={"policy": recipe.policy.model_copy(update={"dtype": dtype})})


def _begun(run: Path) -> str | None:
    """Return the number format in a run's `recipe.yaml`; None if the run has not begun.

    Raises:
        IntegrityError: the file is damaged.
    """
    path = run / "recipe.yaml"
    if not path.is_file():
        return None
    try:
        return PolicyConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8"))["policy"]).dtype
    except (ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise IntegrityError(
            "not the recipe of a run", where=path, hint="train into another --run folder, or give `policy.dtype`"
        ) from error
