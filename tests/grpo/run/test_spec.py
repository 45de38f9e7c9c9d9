"""What a command writes is what every rank reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.errors import UserError
from pipeline.config.loading import load
from pipeline.config.recipe import Recipe
from pipeline.config.selection import BandsConfig
from pipeline.grpo.run.flops import ComputeBudget
from pipeline.grpo.run.spec import RunSpec, read_spec, write_spec
from stages.ntp import NtpSpec
from stages.train import TrainSpec

RECIPES = sorted(
    path.stem for path in (Path(__file__).parents[3] / "recipes").glob("*.yaml") if "study" not in path.stem
)


@pytest.mark.parametrize("name", RECIPES)
def test_a_specification_is_read_as_it_was_written(tmp_path: Path, name: str) -> None:
    recipe = load(Recipe, Path(name), ["optimizer.lr=3.3e-7", "policy.revision=null"])
    spec = TrainSpec(recipe=recipe, run=tmp_path, shards=Path("some/folder"), bands=BandsConfig(), vllm_server="a:1")
    write_spec(spec, tmp_path / "new" / "spec.json")
    read = read_spec(TrainSpec, ["--local_rank=3", str(tmp_path / "new" / "spec.json")])
    assert read == spec and read.recipe.identity() == recipe.identity()


def test_a_limit_of_compute_is_read_as_it_was_written(tmp_path: Path) -> None:
    recipe = load(Recipe, Path("demo"))
    spec = NtpSpec(recipe=recipe, run=tmp_path, documents=tmp_path, budget=ComputeBudget(flops=1.5e300))
    write_spec(spec, tmp_path / "spec.json")
    assert read_spec(NtpSpec, [str(tmp_path / "spec.json")]).budget == ComputeBudget(flops=1.5e300)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a TrainSpec: Invalid JSON"),
        ("[]", "not a TrainSpec"),
        ('{"recipe": {"name": "a"}}', "not a TrainSpec: recipe.policy Field required"),
        (None, "cannot read the specification: No such file"),
    ],
)
def test_what_is_no_specification_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    file = tmp_path / "spec.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=words) as refused:
        read_spec(TrainSpec, [str(file)])
    assert "--write-spec" in str(refused.value)


def test_the_specification_of_another_stage_is_refused(tmp_path: Path) -> None:
    write_spec(RunSpec(recipe=load(Recipe, Path("demo")), run=tmp_path), tmp_path / "spec.json")
    with pytest.raises(UserError, match="not a TrainSpec: shards Field required"):
        read_spec(TrainSpec, [str(tmp_path / "spec.json")])


@pytest.mark.parametrize("arguments", [[], ["a.json", "b.json"], ["--help"]])
def test_other_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(UserError, match="give one argument"):
        read_spec(TrainSpec, arguments)
