"""Which data a recipe is for: the manifest that it names, or the one that is given; never another one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from commands.cli import app
from pipeline.config.errors import UserError
from pipeline.config.loading import load, manifest_of
from pipeline.config.recipe import Recipe

COMMANDS = ("train", "ntp", "sft", "finetune", "evaluate", "screen")


def write(path: Path, **keys: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"name": path.stem, **keys}))
    return path


def recipe(path: Path, **keys: object) -> Path:
    return write(path, policy={"model": "somewhere"}, **keys)


def manifest(path: Path) -> Path:
    parts = {"corpus": {"source": "a.jsonl"}, "proxy": {"train": {}}, "materialize": {"policy_tokenizer": "p"}}
    return write(path, **parts)


def data_of(path: Path, *overrides: str, given: Path | None = None) -> str:
    return manifest_of(load(Recipe, path, overrides), given).name


@pytest.mark.parametrize("data", ["../corpora/mine.yaml", "mine.yaml", "demo", "data_manifests/demo.yaml"])
def test_a_recipe_names_its_data_from_its_own_folder_or_by_a_packaged_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str
) -> None:
    for folder in ("corpora", "recipes"):
        manifest(tmp_path / folder / "mine.yaml")
    manifest(tmp_path / "mine.yaml").write_text("name: of-the-folder-we-are-in")
    monkeypatch.chdir(tmp_path)
    read = load(Recipe, recipe(Path("recipes/one.yaml"), data=data))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert manifest_of(read, None).name == ("demo" if "demo" in data else "mine")
    copied = write(tmp_path / "elsewhere" / "copy.yaml", **read.model_dump(mode="json", exclude={"name"}))
    assert data_of(copied) == ("demo" if "demo" in data else "mine"), "as a run's folder keeps it"


def test_what_is_given_comes_before_what_is_named(tmp_path: Path) -> None:
    own, other = manifest(tmp_path / "own.yaml"), manifest(tmp_path / "other.yaml")
    path = recipe(tmp_path / "recipe.yaml", data=own.name)
    assert data_of(path) == "own"
    assert data_of(path, given=other) == "other"
    assert data_of(path, f"data={other}") == "other"


def test_data_that_is_not_there_is_looked_for_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(manifest(tmp_path / "here" / "mine.yaml").parent)
    path = recipe(tmp_path / "recipes" / "recipe.yaml", data="mine.yaml")
    with pytest.raises(UserError, match=f"manifest not found: {tmp_path / 'recipes' / 'mine.yaml'}"):
        data_of(path)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_recipe_that_names_no_data_is_not_trained_on_the_demo(tmp_path: Path, command: str) -> None:
    result = CliRunner().invoke(app, [command, str(recipe(tmp_path / "mine.yaml"))])
    assert isinstance(result.exception, UserError)
    assert "data: MANIFEST" in str(result.exception) and "--manifest" in str(result.exception)


@pytest.mark.parametrize("arguments", [["show", "00-1"], ["trace", "00-1"]])
def test_what_looks_at_a_site_asks_which_data_is_meant(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code and "SITE_ID" in f"{result.exception}{result.stderr}"


def test_the_recipes_that_are_shipped_name_their_data(repository: Path) -> None:
    found = {
        path.stem: load(Recipe, path).data
        for path in (repository / "recipes").glob("*.yaml")
        if "study" not in path.name
    }
    assert found == {
        "demo": "demo",
        "demo-finetune": "demo",
        "omnimath-1.5b": "omnimath",
        "omnimath-14b": "omnimath",
        "qwen3-0.6b": "omnimath-qwen3",
        "smollm2-135m": "omnimath-smollm2",
    }


def test_a_template_is_read_from_the_recipes_folder_and_known_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(tmp_path / "recipes" / "one.yaml", task={"template": "prompts/mine.txt"})
    file = tmp_path / "recipes" / "prompts" / "mine.txt"
    file.parent.mkdir()
    file.write_text("{context}?")
    monkeypatch.chdir(tmp_path / "recipes")
    read = load(Recipe, Path("one.yaml"))
    monkeypatch.chdir(tmp_path)
    assert read.task.template == str(file)
    own = read.task.identity()
    assert own["template"] == f"sha256:{hashlib.sha256(b'{context}?').hexdigest()}"
    moved = file.rename(tmp_path / "other.txt")
    assert load(Recipe, path, [f"task.template={moved}"]).task.identity() == own
    moved.write_text("{context}!")
    assert load(Recipe, path, [f"task.template={moved}"]).task.identity() != own
    with pytest.raises(UserError, match="cannot read the prompt template"):
        read.task.identity()
    assert load(Recipe, path, ["task.template=v4"]).task.identity()["template"] == "v4"
