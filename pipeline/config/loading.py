"""Load a manifest, recipe or study from YAML, with overrides and errors that name the nearest known key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from pipeline.config import resources
from pipeline.config.base import Config
from pipeline.config.errors import UserError
from pipeline.config.manifest import Manifest
from pipeline.config.recipe import Recipe
from pipeline.config.study import StudyConfig

ConfigT = TypeVar("ConfigT", bound=Config)


def load(kind: type[ConfigT], path: Path, overrides: Sequence[str] = ()) -> ConfigT:
    """Read a YAML file into `kind`, apply `a.b=c` overrides, and refuse unknown keys.

    Args:
        kind: `Manifest`, `Recipe` or `StudyConfig`.
        path: the YAML file, or the name of one that comes with the package (`demo`).
        overrides: `dotted.key=value` strings; the value is parsed as YAML, so a template is quoted:
            `corpus.text="{question}"`.

    Raises:
        UserError: file missing, not YAML, unknown key (with the nearest known one), or a value out of range.
    """
    folder = {"Manifest": "data_manifests", "Recipe": "recipes"}.get(kind.__name__, "")
    found = resources.find(path, folder)
    if found and path.is_file() and not found.samefile(path):
        found = None  # the user's own file of that name
    if found is None and not path.is_file():
        known = ", ".join(sorted(p.name for p in path.parent.glob("*.yaml"))) or "none"
        hint = f"YAML files there: {known}; packaged: {', '.join(resources.list_names(folder))}"
        raise UserError(f"{_noun(kind)} not found", where=path, hint=hint)
    try:
        tree = yaml.safe_load((found or path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError("not valid YAML", where=path, hint=" ".join(str(error).split())) from error
    if not isinstance(tree, dict):
        raise UserError("expected a mapping at the top", where=path, hint="start with `name: …`")
    if other := _other_kind(kind, tree):
        raise UserError(f"this is a {other}, not a {_noun(kind)}", where=path, hint=f"give a {_noun(kind)} here")
    if found:
        tree = resources.resolve_paths(tree)
    if kind is Recipe:
        tree = _with_template_found(_with_data_found(tree, (found or path).parent), (found or path).parent)
    for override in overrides:
        tree = _with_override(tree, override)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise UserError("; ".join(_explain(kind, error)), where=path) from error


def manifest_of(recipe: Recipe | None, given: Path | None, overrides: Sequence[str] = ()) -> Manifest:
    """Read the given manifest, or else the one that the recipe names.

    Raises:
        UserError: there is neither, or it cannot be read.
    """
    named = recipe.data if recipe else None
    if given is None and named is None:
        hint = "give --manifest" + (", or write `data: MANIFEST` into the recipe" if recipe else "")
        raise UserError("no manifest given", where=recipe.name if recipe else "", hint=hint)
    return load(Manifest, given or Path(named or ""), overrides)


def _with_data_found(tree: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a recipe's values with `data` as an absolute path, unless it names a packaged manifest.

    Example:
        >>> _with_data_found({"data": "demo"}, Path("/recipes")), _with_data_found({"data": "a.yaml"}, Path("/recipes"))
        ({'data': 'demo'}, {'data': '/recipes/a.yaml'})
    """
    data = tree.get("data")
    if not isinstance(data, str):
        return dict(tree)
    beside = folder / data
    is_packaged = not beside.is_file() and resources.find(Path(data), "data_manifests")
    return {**tree, "data": data if is_packaged else str(beside.absolute())}


def _with_template_found(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a recipe's values with a prompt template's file as an absolute path.

    Example:
        >>> _with_template_found({"task": {"template": "prompts/mine.txt"}}, Path("/recipes"))
        {'task': {'template': '/recipes/prompts/mine.txt'}}
        >>> _with_template_found({"task": {"template": "v0"}}, Path("/recipes"))
        {'task': {'template': 'v0'}}
    """
    task = tree.get("task")
    template = task.get("template") if isinstance(task, dict) else None
    if not isinstance(task, dict) or not isinstance(template, str) or not resources.is_path(template):
        return tree
    return {**tree, "task": task | {"template": str((folder / template).absolute())}}


def _noun(kind: type[Config]) -> str:
    return kind.__name__.removesuffix("Config").lower()


def _other_kind(kind: type[Config], tree: Mapping[str, Any]) -> str | None:
    """Return the kind of file that the keys fit, if they fit another kind and not `kind`.

    Example:
        >>> _other_kind(Manifest, {"name": "demo", "policy": {}, "budget": {}})
        'recipe'
    """
    for other in (Manifest, Recipe, StudyConfig):
        if set(tree) <= set(other.model_fields) and not set(tree) <= set(kind.model_fields):
            return _noun(other)
    return None


def _with_override(tree: Mapping[str, Any], override: str) -> dict[str, Any]:
    """Return a copy of `tree` with one `a.b=c` applied.

    Example:
        >>> _with_override({"select": {"where": "true"}}, "select.max_sites=5")
        {'select': {'where': 'true', 'max_sites': 5}}
    """
    key, separator, value = override.partition("=")
    if not separator or not re.fullmatch(r"\w+(\.\w+)*", key.strip()):
        raise UserError("override is not of the form key.subkey=value", where=override)
    head, _, rest = key.strip().partition(".")
    if not rest:
        try:
            return {**tree, head: yaml.safe_load(value)}
        except yaml.YAMLError as error:
            raise UserError("the value is not valid YAML", where=value, hint=" ".join(str(error).split())) from error
    below = tree.get(head)
    return {**tree, head: _with_override(below if isinstance(below, Mapping) else {}, f"{rest}={value}")}


def _explain(kind: type[Config], error: ValidationError) -> Iterable[str]:
    """Yield one message per problem that pydantic found."""
    for problem in error.errors():
        location = [part for part in problem["loc"] if part != "__root__"]
        dotted = ".".join(map(str, location)) or "(top level)"
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(location[-1]), _known_keys(kind, location[:-1]), n=1, cutoff=0.4)
            hint = f", did you mean `{near[0]}`?" if near else f"; known: {', '.join(_known_keys(kind, location[:-1]))}"
            yield f"unknown key `{dotted}`{hint}"
        elif problem["type"] == "literal_error":
            known = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
            near = difflib.get_close_matches(str(problem["input"]), known, n=1, cutoff=0.4)
            hint = f", did you mean `{near[0]}`?" if near else ""
            yield f"`{dotted}`: no {problem['input']!r}{hint} (known: {', '.join(known)})"
        elif problem["type"] == "missing":
            yield f"`{dotted}` is required"
        elif problem["type"] == "string_type" and isinstance(problem["input"], dict):
            yield f'`{dotted}`: braces are a mapping in YAML; quote a text that has them: {location[-1]}: "{{name}}"'
        else:
            where = f"`{dotted}`: " if location else ""
            got = "" if isinstance(problem["input"], dict) else f" (got {problem['input']!r:.80})"
            yield f"{where}{problem['msg'].removeprefix('Value error, ')}{got}"


def _known_keys(kind: type[Config], location: Sequence[int | str]) -> list[str]:
    """Return the field names of the model at `location` below `kind`, through optionals and tuples."""
    if not location:
        return list(kind.model_fields)
    if isinstance(location[0], int):
        return _known_keys(kind, location[1:])
    annotation = kind.model_fields[location[0]].annotation if location[0] in kind.model_fields else None
    below = next((model for model in _models_in(annotation)), None)
    return _known_keys(below, location[1:]) if below else []


def _models_in(annotation: Any) -> Iterable[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)
