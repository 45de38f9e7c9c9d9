"""Manifests, recipes and the demo that come with the package: found by name, from any folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
"""Folder of `data_manifests/`, `recipes/`, `deepspeed_configs/` and `demo/`, in a checkout and in a wheel."""


def find(path: Path, folder: str) -> Path | None:
    """Return the packaged file that `path` names: `demo`, `demo.yaml` or `<folder>/demo.yaml`; None if there is none.

    Example:
        >>> find(Path("demo"), "recipes") == find(Path("recipes/demo.yaml"), "recipes") == ROOT / "recipes/demo.yaml"
        True
        >>> find(Path("recipes/demo.yaml"), "data_manifests") is None
        True
    """
    if path.is_absolute() or path.parts[:-1] not in ((), (folder,)):
        return None
    file = ROOT / folder / f"{path.name.removesuffix('.yaml')}.yaml"
    return file if file.is_file() else None


def is_path(name: str) -> bool:
    """Return whether a value that is a name or a path is a path: it has a slash or a dot.

    Example:
        >>> [is_path(name) for name in ("v0", "prompts/mine.txt", "./mine")]
        [False, True, True]
    """
    return "/" in name or "." in name


def list_names(folder: str) -> list[str]:
    """Return the names of the packaged YAML files of a folder."""
    return sorted(path.stem for path in (ROOT / folder).glob("*.yaml"))


def resolve_paths(tree: Any) -> Any:
    """Return a packaged file's values, with paths relative to `ROOT` made absolute.

    Example:
        >>> tree = {"model": "demo/policy", "seed": 0}
        >>> resolve_paths(tree) == {"model": str(ROOT / "demo" / "policy"), "seed": 0}
        True
    """
    if isinstance(tree, dict):
        return {key: resolve_paths(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [resolve_paths(value) for value in tree]
    if isinstance(tree, str) and tree.startswith("demo/") and (ROOT / tree).exists():
        return str(ROOT / tree)
    return tree
