from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config.base import differences
from pipeline.config.errors import UserError
from pipeline.config.recipe import PolicyConfig, Recipe
from pipeline.grpo.rollout.prompt import PromptText
from pipeline.grpo.rollout.response_ends import ResponseEnds
from pipeline.grpo.run.run_folder import (
    MetricsLog,
    TrainingRun,
    identity,
    is_up_to_date,
    latest_checkpoint,
    layout_of,
    locked,
    spoken,
    write_state,
)
from tests.grpo.colours import publish_shards
from tests.toys import byte_level_tokenizer

RECIPE = Recipe(name="a", policy=PolicyConfig(model="somewhere"))


def finished_run(folder: Path, step: int, own: dict[str, object], sampled: int = 0) -> Path:
    checkpoints = folder / "checkpoints"
    (checkpoints / f"step-{step:06d}").mkdir(parents=True)
    write_state(checkpoints / f"step-{step:06d}", {"step": step, "spent": {"sampled": sampled}, "identity": own})
    (checkpoints / "latest").write_text(f"step-{step:06d}")
    (folder / "policy").mkdir()
    return folder


def run_of(folder: Path, steps: int, own: dict[str, object]) -> TrainingRun:
    return TrainingRun("train", folder, RECIPE, Path("somewhere"), own, steps, {})


@pytest.fixture
def own(tmp_path: Path) -> dict[str, object]:
    tokenizer = byte_level_tokenizer(tmp_path / "tokenizer", ["a text"])
    return identity(RECIPE, publish_shards(tmp_path, tokenizer), "digest")


def test_a_run_is_complete_when_its_steps_are_done_and_the_policy_is_there(tmp_path: Path, own: dict) -> None:
    assert not is_up_to_date(run_of(tmp_path / "run", 5, own))
    run = finished_run(tmp_path / "run", 5, own)
    assert is_up_to_date(run_of(run, 5, own))
    assert not is_up_to_date(run_of(run, 6, own)), "the budget was raised: go on"
    (run / "policy").rmdir()
    assert not is_up_to_date(run_of(run, 5, own))


def test_a_run_is_complete_when_it_has_sampled_its_tokens(tmp_path: Path, own: dict) -> None:
    run = finished_run(tmp_path / "run", 3, own, sampled=1000)
    for most, complete in ((1000, True), (1001, False), (None, False)):
        recipe = RECIPE.model_copy(update={"budget": RECIPE.budget.model_copy(update={"sampled_tokens": most})})
        assert is_up_to_date(TrainingRun("train", run, recipe, Path("somewhere"), own, 5, {})) == complete


def test_another_run_is_refused_field_by_field(tmp_path: Path, own: dict) -> None:
    run = finished_run(tmp_path / "run", 5, own)
    other = json.loads(json.dumps(own)) | {"shards": "other"}
    other["recipe"]["optimizer"]["lr"] = 0.5
    with pytest.raises(UserError, match=r"recipe\.optimizer\.lr: 1e-06 → 0\.5; shards: '.*' → 'other'"):
        is_up_to_date(run_of(run, 5, other))


def test_only_what_changes_a_step_is_identity(tmp_path: Path) -> None:
    record = publish_shards(tmp_path, byte_level_tokenizer(tmp_path / "tokenizer", ["a text"]))
    longer = RECIPE.model_copy(update={"name": "b", "budget": RECIPE.budget.model_copy(update={"steps": 9})})
    seeded = RECIPE.model_copy(update={"seed": 1})
    assert identity(longer, record, "d") == identity(RECIPE, record, "d") != identity(seeded, record, "d")


EXECUTION = {
    "rollout.batch_rows": 7,
    "rollout.sampler": "vllm",
    "rollout.vllm_memory_fraction": 0.1,
    "optimizer.micro_batch_tokens": 99,
    "policy.gradient_checkpointing": True,
}


def changed(key: str, value: object) -> Recipe:
    part, _, field = key.partition(".")
    return Recipe.model_validate(RECIPE.model_dump() | {part: getattr(RECIPE, part).model_dump() | {field: value}})


@pytest.mark.parametrize("key", EXECUTION)
def test_settings_of_memory_and_speed_are_recorded_and_no_identity(tmp_path: Path, key: str) -> None:
    record = publish_shards(tmp_path, byte_level_tokenizer(tmp_path / "tokenizer", ["a text"]))
    other = changed(key, EXECUTION[key])
    assert identity(other, record, "d") == identity(RECIPE, record, "d")
    layouts = [layout_of(recipe, 3, 2) for recipe in (RECIPE, other)]
    assert [line.partition(":")[0] for line in differences(*layouts)] == [f"execution.{key}"]


def test_the_policy_is_known_by_its_content_not_by_its_path(tmp_path: Path) -> None:
    record = publish_shards(tmp_path, byte_level_tokenizer(tmp_path / "tokenizer", ["a text"]))
    moved = changed("policy.model", "/elsewhere/somewhere")
    assert identity(moved, record, "d") == identity(RECIPE, record, "d") != identity(RECIPE, record, "e")
    assert identity(changed("policy.dtype", "float32"), record, "d") != identity(RECIPE, record, "d")


def test_a_checkpoint_that_was_not_finished_is_not_the_latest(tmp_path: Path, own: dict) -> None:
    run = finished_run(tmp_path / "run", 5, own)
    (run / "checkpoints" / "step-000006").mkdir()
    assert latest_checkpoint(run) == run / "checkpoints" / "step-000005"


def test_metrics_after_the_checkpoint_are_cut_off(tmp_path: Path) -> None:
    def logged() -> list[int]:
        return [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]

    log = MetricsLog(tmp_path, None)
    for step in range(6):
        log.write(step, {"loss": 0.5})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed while it wrote
    resumed = MetricsLog(tmp_path, 3)
    assert logged() == [0, 1, 2, 3]
    resumed.write(4, {"loss": 0.25})
    resumed.close()
    assert logged() == [0, 1, 2, 3, 4]
    MetricsLog(tmp_path, None).close()
    assert logged() == []


def test_two_processes_do_not_train_into_one_folder(tmp_path: Path) -> None:
    run = run_of(tmp_path, 5, {})
    with locked(run), pytest.raises(UserError, match="another process"), locked(run, patience=0.2):
        pass
    with locked(run, patience=0.2):
        pass


def test_what_a_policy_is_asked_is_the_same_after_a_checkpoint() -> None:
    own = spoken(PromptText("before", "after"), ResponseEnds({2: ("tokenizer",)}, 2, 2))
    assert json.loads(json.dumps(own)) == own, "else no run could be resumed"
