"""The rules of the house that only hold when tested: who imports whom, without circles, and what stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WINGS = ("config", "core", "corpus", "scoring", "selection", "shards", "task", "grpo", "evaluation", "audit", "export")
"""A wing of `pipeline/` knows itself and those before it."""
FOLDERS = {
    "corpus": ("sources", "readers", "dedup"),
    "grpo": ("types", "algorithm", "model", "policy", "rollout", "data", "run"),
}
"""A folder of a wing knows itself and those before it; modules beside these folders are free."""
LAYERS = ("pipeline", "stages", "commands")
OWNERS = {
    # third-party package: files that may import it
    "deepspeed": {"pipeline/grpo/policy/engine.py"},
    "vllm": {"pipeline/grpo/rollout/vllm_engine.py"},
    "ray": {"pipeline/core/ray_executor.py"},
    "datasets": {
        "pipeline/corpus/dataset_files.py",
        "pipeline/corpus/readers/dataset.py",
        "pipeline/evaluation/zeroshot.py",
    },
}
SOURCES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def imports_of(path: Path) -> Iterator[str]:
    """Yields the dotted names of everything a file imports, at any depth, imports for type checking included."""
    yield from _imported(ast.walk(ast.parse(path.read_text(encoding="utf-8"))), path)


def _imported(nodes: Iterator[ast.AST], path: Path) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    own = module_of(path).split(".")
    for module in imports_of(path):
        parts = module.split(".")
        assert parts[0] != "tests", f"{name} imports the tests"
        assert name in OWNERS.get(parts[0], {name}), f"{name} imports {parts[0]}, which belongs to {OWNERS[parts[0]]}"
        if parts[0] in LAYERS:
            assert LAYERS.index(parts[0]) <= LAYERS.index(own[0]), f"{name} imports {module}, a layer above its own"
        if own[0] == parts[0] == "stages":
            pytest.fail(f"{name} imports {module}: stages meet on disk")
        if own[0] == parts[0] == "pipeline" and len(own) > 1 and len(parts) > 1:
            assert WINGS.index(parts[1]) <= WINGS.index(own[1]), f"{name} imports {module}, a wing below its own"
            order = FOLDERS.get(own[1], ())
            if own[1] == parts[1] and own[2:] and parts[2:] and own[2] in order and parts[2] in order:
                assert order.index(parts[2]) <= order.index(own[2]), f"{name} imports {module}, a folder after its own"


def module_of(path: Path) -> str:
    """Returns the dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_nothing_imports_in_a_circle() -> None:
    """Imports at any depth count, those inside functions and for type checking too."""
    modules = {module_of(path): path for path in SOURCES}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        found = (name if name in modules else name.rpartition(".")[0] for name in imports_of(path))
        graph[module] = {name for name in found if name in modules and name != module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import circle: {' ← '.join(error.args[1])}")


@pytest.mark.parametrize(
    "code", ["import commands.cli", "import pipeline.config.loading", "import pipeline.task.reward"]
)
def test_light_entry_points_load_nothing_heavy(code: str) -> None:
    heavy = "{'torch', 'deepspeed', 'transformers', 'vllm', 'ray', 'datasets'}"
    script = f"import sys; {code}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_help_loads_nothing_heavy() -> None:
    """It starts at once, however many libraries the commands need: each imports its own when it is called."""
    heavy = "{'datasets', 'numpy', 'pydantic', 'polars', 'pyarrow', 'sklearn', 'torch', 'transformers'}"
    script = (
        "import sys; from commands.cli import main; sys.argv = ['rpt', '--help']\n"
        "try: main()\n"
        "except SystemExit as stop: print(f'exit {stop.code}')\n"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "Usage" in done.stdout and done.stdout.splitlines()[-2:] == ["exit 0", "[]"], done.stderr
