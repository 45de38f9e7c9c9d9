"""`policy.dtype: auto`: a run keeps the number format that it began with."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.config.errors import IntegrityError
from pipeline.config.recipe import PolicyConfig, Recipe
from pipeline.core.precision import fastest_dtype
from pipeline.grpo.run.policy_dtype import with_dtype

AUTO = Recipe(name="a", policy=PolicyConfig(model="m"))


def test_auto_is_the_default_and_this_machines_format(tmp_path: Path) -> None:
    assert AUTO.policy.dtype == "auto"
    assert with_dtype(AUTO, "train", tmp_path / "new").policy.dtype == fastest_dtype()[0]


@pytest.mark.parametrize("begun", ["float32", "bfloat16"])
def test_a_run_keeps_its_format(begun: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = AUTO.policy.model_copy(update={"dtype": begun})
    made = AUTO.model_copy(update={"policy": policy})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(made.model_dump(mode="json")))
    assert with_dtype(AUTO, "train", tmp_path).policy.dtype == begun
    assert f"computes in {begun}: as" in capsys.readouterr().err
    for asked in ("float32", "bfloat16"):  # who says which, gets it: a resume then refuses
        explicit = AUTO.model_copy(update={"policy": AUTO.policy.model_copy(update={"dtype": asked})})
        assert with_dtype(explicit, "train", tmp_path) == explicit


@pytest.mark.parametrize("text", ["", "policy: 3", "policy: {model: m, dtype: float8}", "a: [", "- 1"])
def test_a_damaged_recipe_of_a_run_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(IntegrityError, match=r"not the recipe of a run.*recipe\.yaml"):
        with_dtype(AUTO, "train", tmp_path)
