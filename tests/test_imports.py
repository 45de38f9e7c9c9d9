"""The rules of the house that only hold when tested: who may import whom, and what stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WINGS = ("core", "corpus", "scoring", "selection", "shards", "task", "grpo", "evaluation", "audit", "export")
OWNERS = {
    # third-party package: files that may import it
    "deepspeed": {"pipeline/grpo/engine.py"},
    "vllm": {"pipeline/grpo/vllm_engine.py"},
    "ray": {"pipeline/core/ray_executor.py"},
}
SOURCES = sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "stages").rglob("*.py")])


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, at any depth, type-checking imports included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    for module in imports_of(path):
        top = module.split(".")[0]
        assert top != "tests", f"{name} imports the tests"
        assert name in OWNERS.get(top, {name}), f"{name} imports {top}, which belongs to {OWNERS[top]}"
        if name.startswith("pipeline/"):
            assert top != "stages", f"{name} imports {module}: the library does not know the stages"
            if module.startswith("pipeline.") and module.count(".") >= 1:
                own, other = name.split("/")[1], module.split(".")[1]
                if own in WINGS and other in WINGS:
                    assert WINGS.index(other) <= WINGS.index(own), f"{name} imports {module}, a wing below its own"
        elif name != "stages/cli.py" and not name.startswith("stages/commands/"):
            assert top != "stages", f"{name} imports {module}: stages meet on disk"


@pytest.mark.parametrize("code", ["import stages.cli", "import pipeline.core.config", "import pipeline.task.reward"])
def test_light_entry_points_load_nothing_heavy(code: str) -> None:
    heavy = "{'torch', 'deepspeed', 'transformers', 'vllm', 'ray', 'datasets'}"
    script = f"import sys; {code}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
