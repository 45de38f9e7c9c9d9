from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config.errors import UserError
from pipeline.grpo.policy.deepspeed_config import RECIPE_KEYS, read_config, zero_stage

SHIPPED = sorted((Path(__file__).parent.parent.parent.parent / "deepspeed_configs").glob("*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_topologies_leave_results_to_the_recipe(path: Path) -> None:
    assert zero_stage(read_config(path)) == (0 if path.name == "zero0.json" else 3)


@pytest.mark.parametrize("key", RECIPE_KEYS)
def test_what_the_recipe_decides_is_refused_by_name(tmp_path: Path, key: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}, key: "auto"}))
    with pytest.raises(UserError, match=rf"sets {key}: .*mine\.json"):
        read_config(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "zero3.json").write_text("{")
    with pytest.raises(UserError, match=r"not found: .*JSON files there: zero3\.json"):
        read_config(tmp_path / "zero.json")
    with pytest.raises(UserError, match="not valid JSON"):
        read_config(tmp_path / "zero3.json")
    (tmp_path / "zero3.json").write_text("[]")
    with pytest.raises(UserError, match="JSON object"):
        read_config(tmp_path / "zero3.json")
