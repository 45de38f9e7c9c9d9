"""The study page: its plan on the shipped study, without running a part."""

import shutil
from pathlib import Path

import polars as pl
import pytest
import yaml

from pipeline.config.errors import UserError
from pipeline.config.loading import load
from pipeline.config.recipe import Recipe
from pipeline.config.study import StudyConfig
from pipeline.core.artifact import Shard, publish, scratch_folder, write_record
from pipeline.evaluation.study.plan import arms_of, plan
from stages.study import read_study


@pytest.fixture(scope="module")
def shipped(repository) -> Path:
    return repository / "recipes" / "study-demo.yaml"


@pytest.fixture
def planned(shipped, repository, tmp_path, monkeypatch):
    """The shipped study's parts, over shards that hold a row each."""
    monkeypatch.chdir(repository)
    config = read_study(shipped, (), quick=False)
    folders = {"base": "demo"} | dict.fromkeys(config.arms, "demo") | {"random_positions": "demo-random-positions"}
    manifests = {}
    for name, folder in folders.items():
        manifests[name] = tmp_path / f"{folder}.yaml"
        tree = yaml.safe_load(Path(config.manifest).read_text()) | {"name": folder}
        manifests[name].write_text(yaml.safe_dump(tree))
        stage = tmp_path / folder / "materialize" / "0123456789ab"
        if not stage.exists():
            shard = Shard(0, {}, {})
            with scratch_folder(stage, 0) as scratch:
                pl.DataFrame({"of": [folder]}).write_parquet(scratch / "train.parquet")
                publish(stage, 0, scratch, {}, 0.0)
            write_record(stage, "materialize", 1, {"for": folder}, {}, [shard])
            (stage.parent / "current").write_text(stage.name)
    return config, plan(config, manifests, tmp_path), manifests


def test_every_arm_has_its_runs_evaluation_and_questions(planned):
    config, parts, _ = planned
    arms = ["rpt", "random_positions", "format_only", "shuffled_targets", "ntp", "sft"]
    assert list(config.arms) == arms and config.seeds == (0, 1, 2)
    runs = {f"{arm}-{seed}" for arm in arms for seed in range(3)}
    questions = {f"{arm}-{seed}-rlvr" for arm in ("base", "rpt", "ntp", "sft") for seed in range(3)}
    assert set(parts) == runs | {f"{arm}-evaluation" for arm in ["base", *arms]} | questions
    assert len({part.fingerprint for part in parts.values()}) == len(parts)


def test_a_larger_model_is_evaluated_once_and_changes_no_other_part(planned, tmp_path):
    config, parts, manifests = planned
    larger = config.model_copy(update={"larger": "demo/proxy"})
    more = plan(larger, manifests, tmp_path)
    added = more.pop("larger-evaluation")
    assert {name: part.fingerprint for name, part in more.items()} == {n: p.fingerprint for n, p in parts.items()}
    words = added.words(Path("out"))
    assert words[0] == "evaluate" and words[words.index("--policy") + 1].startswith("larger=") and not added.needs
    assert words[words.index("--policy") + 1].endswith("demo/proxy")
    last = arms_of(larger, more | {added.name: added}, Path("out"))[-1]
    assert last.name == "larger" and last.evaluation == added.folder(Path("out")) / "evaluation" and not last.runs


def test_baselines_get_the_compute_of_the_run_with_their_seed(planned):
    _, parts, _ = planned
    for seed in range(3):
        ntp, sft = parts[f"ntp-{seed}"], parts[f"sft-{seed}"]
        assert ntp.needs == sft.needs == (parts[f"rpt-{seed}"],)
        words = ntp.words(Path("out"))
        assert words[words.index("--flops-of") + 1] == str(parts[f"rpt-{seed}"].folder(Path("out")))
        assert "--rollouts" in sft.command and f"seed={seed}" in sft.words(Path("out"))
    assert "task.targets=shuffled" in parts["shuffled_targets-1"].words(Path("out"))


def test_all_arms_are_evaluated_at_the_same_sites(planned):
    config, parts, manifests = planned
    random = parts["random_positions-0"].words(Path("out"))
    assert random[random.index("--manifest") + 1] == str(manifests["random_positions"])
    for arm in ("base", *config.arms):
        own = parts[f"{arm}-evaluation"].words(Path("out"))
        assert own[own.index("--manifest") + 1] == config.manifest
        assert not any(word.startswith("seed=") for word in own), "the sites are chosen by the seed"


def test_other_data_or_settings_are_other_parts_and_another_place_is_not(planned, tmp_path):
    config, parts, manifests = planned
    shutil.copytree(tmp_path / "demo", tmp_path / "elsewhere" / "demo")
    shutil.copytree(tmp_path / "demo-random-positions", tmp_path / "elsewhere" / "demo-random-positions")
    moved = plan(config, manifests, tmp_path / "elsewhere")
    assert {name: part.fingerprint for name, part in moved.items()} == {n: p.fingerprint for n, p in parts.items()}
    memory = ("rollout.batch_rows=7", "optimizer.micro_batch_tokens=512")
    smaller = plan(
        config.model_copy(update={"set": (*config.set, *memory), "finetune_set": (*config.finetune_set, *memory)}),
        manifests,
        tmp_path,
    )
    assert {name: part.fingerprint for name, part in smaller.items()} == {n: p.fingerprint for n, p in parts.items()}
    assert "rollout.batch_rows=7" in smaller["rpt-0"].words(Path("out"))
    steps = config.model_copy(update={"set": (*config.set, "budget.steps=61")})
    longer = plan(steps, manifests, tmp_path)
    same = {name for name in parts if longer[name].fingerprint == parts[name].fingerprint}
    assert same == {f"base-{seed}-rlvr" for seed in range(3)}


def test_arms_read_where_parts_write(planned):
    config, parts, _ = planned
    arms = {arm.name: arm for arm in arms_of(config, parts, Path("out"))}
    assert next(iter(arms)) == "base" and not arms["base"].runs and len(arms["base"].finetuned) == 3
    assert arms["rpt"].runs[1] == parts["rpt-1"].folder(Path("out"))
    assert arms["rpt"].evaluation == parts["rpt-evaluation"].folder(Path("out")) / "evaluation"
    assert not arms["format_only"].finetuned


def test_a_study_without_questions_trains_and_evaluates_only(shipped, repository, tmp_path, planned, monkeypatch):
    _, _, manifests = planned
    tree = yaml.safe_load(shipped.read_text())
    del tree["finetune"], tree["finetune_set"], tree["quick"]
    tree["arms"] = {"rpt": {}, "warmup": {"command": "warmup", "compute_of": "rpt"}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tree))
    config = read_study(tmp_path / "study.yaml", (), quick=False)
    parts = plan(config, dict.fromkeys(("base", *config.arms), manifests["base"]), tmp_path)
    runs = {f"{arm}-{seed}" for arm in ("rpt", "warmup") for seed in range(3)}
    assert set(parts) == runs | {f"{arm}-evaluation" for arm in ("base", "rpt", "warmup")}
    assert parts["warmup-1"].command[:2] == ("warmup", "--flops-of")
    with pytest.raises(UserError, match=r"arms\.rpt\.finetune needs `finetune`"):
        read_study(tmp_path / "study.yaml", ["arms.rpt.finetune=true"], quick=False)


def test_the_quick_study_is_smaller_and_elsewhere(shipped, repository, monkeypatch):
    monkeypatch.chdir(repository)
    whole, quick = (read_study(shipped, (), quick=quick) for quick in (False, True))
    assert whole.name != quick.name and len(quick.seeds) >= 3
    steps = [load(Recipe, Path(s.recipe), s.set).budget.steps for s in (quick, whole)]
    assert steps[0] < steps[1]


def test_what_a_study_cannot_be(shipped, repository, monkeypatch):
    monkeypatch.chdir(repository)
    with pytest.raises(UserError, match=r"arms\.ntp refers to 'nobody'"):
        read_study(shipped, ["arms.ntp.compute_of=nobody"], quick=False)
    with pytest.raises(UserError, match="no arm"):
        read_study(shipped, ["reference=nobody"], quick=False)
    with pytest.raises(UserError, match=r"unknown key `budget\.step`"):
        read_study(shipped, ["arms.rpt.set=[budget.step=3]"], quick=False)
    assert load(StudyConfig, shipped).arms["rpt"].finetune
