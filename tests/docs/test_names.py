"""Names in the documentation: every path exists, and every function stands in the file that is named with it."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
HISTORY = {"CHANGELOG.md"}
"""Pages that name what was there once."""
PATH = re.compile(
    r"`((?:pipeline|stages|commands|tests|benchmarks|demo|docs|cluster|containers|deepspeed_configs)/[^`\s]*)`"
)
IN_FILE = re.compile(r"((?:`[\w.]+`(?:, | and )?)+)\)? in `((?:pipeline|stages|commands)/[\w/]+\.py)`")
WITH_FILE = re.compile(r"((?:`[\w.]+`(?:, | and )?)+) \(`((?:pipeline|stages|commands)/[\w/]+\.py)`\)")
ROW = re.compile(r"^\|[^|]+\| ([^|]+) \| `([\w/]+\.py)` \|", re.MULTILINE)
WORD = re.compile(r"`(\w*_\w+|[A-Z][a-z]+[A-Z]\w*)(?:\.\w+)*`")
"""An identifier: with an underscore, or in camel case."""
MAPS = ("docs/architecture.md", "CONTRIBUTING.md")
"""Pages that lead a newcomer to functions by name."""


@pytest.mark.parametrize("page", [path for path in PAGES if path.name not in HISTORY], ids=lambda path: path.name)
def test_every_path_exists(page: Path) -> None:
    paths = PATH.findall(page.read_text(encoding="utf-8"))
    missing = [path for path in paths if not re.search(r"[<*{]", path) and not (ROOT / path).exists()]
    assert not missing


@lru_cache
def names_of(file: str) -> set[str]:
    """Returns what a file defines: `name`, and `Class.name` of what a class does."""
    found: set[str] = set()
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        found |= _defined(node)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{name}" for member in node.body for name in _defined(member)}
    return found


def _defined(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


@pytest.mark.parametrize("page", MAPS)
def test_every_function_is_defined_in_its_file(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    pairs = [
        (name, file)
        for pattern in (IN_FILE, WITH_FILE, ROW)
        for names, file in pattern.findall(text)
        for name in re.findall(r"`([\w.]+)`", names)
    ]
    assert len(pairs) >= 10
    assert not [(name, file) for name, file in pairs if name not in names_of(file)]


@pytest.mark.parametrize("page", MAPS)
def test_every_identifier_occurs_in_the_code(page: str) -> None:
    files = (path for folder in ("pipeline", "stages", "commands", "tests") for path in (ROOT / folder).rglob("*.py"))
    known = {word for path in files for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))}
    words = set(WORD.findall((ROOT / page).read_text(encoding="utf-8")))
    assert len(words) > 10
    assert words <= known
