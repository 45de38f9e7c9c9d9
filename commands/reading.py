"""Read the files that commands are given. Their models are imported here only when a command runs, not by `--help`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config.manifest import Manifest
    from pipeline.config.recipe import Recipe


def read_manifest(path: Path, overrides: Sequence[str] | None = None) -> Manifest:
    """Return the manifest in a YAML file, after `--set`. Errors are those of `pipeline.config.loading.load`."""
    from pipeline.config.loading import load
    from pipeline.config.manifest import Manifest

    return load(Manifest, path, overrides or ())


def read_recipe(path: Path, overrides: Sequence[str] | None = None) -> Recipe:
    """Return the recipe in a YAML file, after `--set`. Errors are those of `pipeline.config.loading.load`."""
    from pipeline.config.loading import load
    from pipeline.config.recipe import Recipe

    return load(Recipe, path, overrides or ())


def manifest_of(recipe: Recipe | None, given: Path | None, overrides: Sequence[str] | None = None) -> Manifest:
    """Return the manifest that is given, or else the one that the recipe names."""
    from pipeline.config import loading

    return loading.manifest_of(recipe, given, overrides or ())
