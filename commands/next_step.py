"""The line that ends a command: what to run or open next, with the options that it needs."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from pipeline.config import resources
from pipeline.core.progress import say_next

EVALUATED = ("data", "evaluate", "name", "policy", "rollout", "seed", "task")
"""Parts of a recipe that an evaluation reads."""


def after_data(manifest: Path, overrides: Iterable[str], work: Path) -> None:
    """Say that the selection can be looked at."""
    say_next(_rpt("audit", manifest, overrides, work), "what was kept and dropped, and why")


def after_audit(manifest: Path, name: str, work: Path) -> None:
    """Say how to train on the shards of the manifest `name`."""
    recipe = recipe_of(name)
    if recipe is None:
        command = f"{_rpt('train', Path('RECIPE.yaml'), (), work)} --manifest {shlex.quote(str(manifest))}"
        say_next(command, "with a recipe of yours: docs/training.md")
        return
    say_next(_rpt("train", Path("recipes") / f"{recipe}.yaml", (), work), "the report opens in any browser")


def after_training(stage: str, command: str, policy: Path) -> None:
    """Say how to measure the policy, or, if the run was asked to stop, how to go on.

    Args:
        stage: the command that has trained.
        command: `rpt evaluate` with its options.
        policy: folder of the trained policy.
    """
    if policy.is_dir():
        say_next(command, "what the policy has learned, on held-out documents")
    else:
        say_next(f"the same `rpt {stage}` again", "it continues after the last checkpoint")


def evaluation_of(
    recipe: Path, overrides: Iterable[str], work: Path, *, manifest: Path | None, run: Path | None
) -> str:
    """Return the command that evaluates a run, with the options of its training that an evaluation reads."""
    own = [override for override in overrides if override.partition("=")[0].partition(".")[0] in EVALUATED]
    command = _rpt("evaluate", recipe, own, work)
    for option, value in (("--manifest", manifest), ("--run", run)):
        command += f" {option} {shlex.quote(str(value))}" if value is not None else ""
    return command


def recipe_of(manifest: str) -> str | None:
    """Return the name of the shipped recipe that trains on a shipped manifest; None if there is none.

    Example:
        >>> recipe_of("demo"), recipe_of("omnimath-smollm2"), recipe_of("mine")
        ('demo', 'smollm2-135m', None)
    """
    names = [name for name in resources.list_names("recipes") if _trains_on(name, manifest)]
    return manifest if manifest in names else next(iter(names), None)


def _trains_on(recipe: str, manifest: str) -> bool:
    import yaml

    tree = yaml.safe_load((resources.ROOT / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8"))
    return tree.get("data") == manifest and "policy" in tree and "questions" not in tree


def _rpt(command: str, config: Path, overrides: Iterable[str], work: Path) -> str:
    """Return a command line; `--work` is left out where it is the default."""
    words = ["rpt", command, str(config)]
    for override in overrides:
        words += ["--set", override]
    return shlex.join(words + (["--work", str(work)] if work != Path("work") else []))
