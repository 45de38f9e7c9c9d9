"""The documentation: it builds, its commands and keys exist, and the pages that can be followed are followed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
import yaml

from pipeline.core.config import Manifest, Recipe
from stages.cli import app

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\S*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of a page's code blocks; those marked `notest` are left out."""
    for language, mark, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if "notest" not in mark:
            yield language, text


def commands() -> list[tuple[str, str]]:
    """(page, command) of every `rpt …` line, continuation lines joined, comments taken off."""
    found = []
    for page in PAGES:
        for language, text in blocks(page):
            if language == "bash":
                lines = text.replace("\\\n", " ").splitlines()
                found += [(page.name, line.strip()) for line in lines if line.strip().startswith("rpt ")]
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_that_is_shown_exists_with_its_options(page: str, line: str) -> None:
    group = typer.main.get_command(app)
    assert hasattr(group, "commands")
    if line.startswith("rpt --"):
        return
    name, *arguments = shlex.split(line, comments=True)[1:]
    assert name in group.commands, f"{page}: {line}"
    group.commands[name].make_context(name, ["demo" if a == "…" else a for a in arguments])


def merged(tree: object, kind: type) -> bool:
    """Whether a fragment's keys are keys of the model."""
    known = {"Manifest": Manifest, "Recipe": Recipe}[kind.__name__].model_fields
    return isinstance(tree, dict) and set(tree) <= set(known)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_yaml_block_has_keys_of_a_manifest_or_a_recipe(page: Path) -> None:
    for language, text in blocks(page):
        if language == "yaml":
            tree = yaml.safe_load(text)
            assert merged(tree, Manifest) or merged(tree, Recipe), text
            for kind in (Manifest, Recipe):
                fields = kind.model_fields
                for key, value in tree.items() if merged(tree, kind) else ():
                    model = fields[key].annotation
                    if isinstance(value, dict) and hasattr(model, "model_fields"):
                        assert set(value) <= set(model.model_fields), f"{key}: {value}"


@pytest.mark.slow
def test_the_site_builds_with_warnings_as_errors(tmp_path: Path) -> None:
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "reference" / "index.html").read_text()
    assert "max_quarantine_fraction" in reference and "dynamic_sampling_from" in reference


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder, in which the pages' commands are run one after the other."""
    return tmp_path_factory.mktemp("demo")


@pytest.mark.slow
@pytest.mark.parametrize("page", ["exchange.md", "machines.md"])
def test_a_page_can_be_followed(demo: Path, page: str) -> None:
    """Its bash and Python blocks, in their order, outside the repository."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for language, text in blocks(ROOT / "docs" / page):
        runner = {"bash": ["bash", "-e", "-c"], "python": [sys.executable, "-c"]}.get(language)
        if runner:
            done = subprocess.run(
                [*runner, text], cwd=demo, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_the_notebook_runs(demo: Path) -> None:
    cells = json.loads((ROOT / "docs" / "entropy.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    subprocess.run([sys.executable, "-m", "stages.cli", "data", "demo"], cwd=demo, env=environment, check=True)
    done = subprocess.run([sys.executable, "-c", code], cwd=demo, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
