"""The comparison of selections: what it refuses before it runs, and one real comparison on the colours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.config.errors import RefusedError, UserError
from pipeline.config.loading import load
from pipeline.config.recipe import Recipe
from pipeline.evaluation.study.plan import BASE, plan
from stages.worth import Comparison, plan_power, read_rules
from tests.grpo.colours import make_policy, metrics_of, publish_shards, write_manifest, write_recipe

ROOT = Path(__file__).parent.parent.parent
RULES = {"all": "true", "hard": "band = 'hard'"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that answers with any colour, 30 training sites and 40 held-out ones."""
    folder = tmp_path_factory.mktemp("worth")
    policy = make_policy(folder / "policy")
    publish_shards(folder / "work", policy, held_out=40)
    write_manifest(folder / "manifest.yaml", policy)
    write_recipe(
        folder / "recipe.yaml", policy, data="manifest.yaml", curriculum=[], objective={},
        budget={"steps": 6, "evaluate_every": 2, "save_every": 9}, evaluate={"progress_sites": 10},
    )  # fmt: skip
    return folder


def asked(folder: Path, **rules: str) -> Comparison:
    return Comparison(folder / "recipe.yaml", folder / "manifest.yaml", rules or RULES, 800)


def power(folder: Path, asked_for: Comparison, see: float, seeds: int | None = None, spread: float = 0.02):
    return plan_power(asked_for, seeds, see=see, spread=spread, work=folder / "work")


def test_it_says_what_it_sees_and_does_not_start_without(folder: Path) -> None:
    found = power(folder, asked(folder), see=0.4, seeds=3)
    assert (found.sites, found.documents, found.seeds) == (40, 40, 3) and 0.2 < found.detectable < 0.3
    with pytest.raises(RefusedError, match=r"would not see 5 points \(give more held-out sites.*--see 2\d") as refused:
        power(folder, asked(folder), see=0.05)
    assert refused.value.exit_code == 4
    with pytest.raises(RefusedError, match=r"would not see 25 points \(give --seeds \d+, or ask for less: --see"):
        power(folder, asked(folder), see=0.25, seeds=2, spread=0.1)
    assert power(folder, asked(folder), see=0.25).seeds == 2, "the fewest that see it"


def test_selections_that_cannot_be_compared(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none matches"):
        power(folder, asked(folder, all="true", none="entropy > 99"), see=0.4)
    with pytest.raises(UserError, match="surprise"):
        power(folder, asked(folder, all="true", odd="surprise > 1"), see=0.4)
    other = yaml.safe_load((folder / "manifest.yaml").read_text()) | {"name": "elsewhere"}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    with pytest.raises(UserError, match="rpt"):  # says what to run
        power(folder, asked(folder, all="true", other=str(tmp_path / "other.yaml")), see=0.4)


def test_a_selection_of_other_documents_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("colours", "other"):
        publish_shards(tmp_path / "work", folder / "policy", name=name, documents=f"of {name}")
    manifest = yaml.safe_load((folder / "manifest.yaml").read_text()) | {"name": "other"}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(manifest))
    mixed = asked(folder, all="true", other=str(tmp_path / "other.yaml"))
    with pytest.raises(UserError, match="'other' is one of other documents"):
        plan_power(mixed, 3, see=0.4, spread=0.02, work=tmp_path / "work")


def test_ways_to_draw_are_overrides_of_the_recipe(folder: Path) -> None:
    phases = """curriculum=[{until_step: 3, where: "band = 'easy'"}]"""
    words = ["uniform=sites.by=uniform", "foretold=sites.by=foretold", "dynamic=objective.dynamic_sampling_from=0"]
    rules = read_rules([*words, f"bands={phases}", "odd=sites = 3"])
    config = asked(folder, **rules).study(2)
    recipes = {name: load(Recipe, Path(config.recipe), [*config.set, *arm.set]) for name, arm in config.arms.items()}
    assert [recipe.sites.by for recipe in recipes.values()] == ["uniform", "foretold", "uniform", "uniform", "uniform"]
    assert recipes["dynamic"].objective.dynamic_sampling_from == 0 and recipes["bands"].curriculum[0].until_step == 3
    assert recipes["odd"].sites.where == "sites = 3", "an expression over a column of that name"
    del rules["odd"]
    assert power(folder, asked(folder, **rules), see=0.4).seeds == 2
    for rule, says in (("sites.bye=foretold", "bye"), ("objective.clip=-1", "greater than 0")):
        with pytest.raises(UserError, match=says):
            power(folder, asked(folder, uniform="sites.by=uniform", other=rule), see=0.4)
    with pytest.raises(UserError, match="budget"):  # a filter: what is measured, and how long, is the same for all
        power(folder, asked(folder, all="true", longer="budget.steps=9"), see=0.4)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["a=true"], "nothing to compare"),
        (["a=true", "b"], "not a selection"),
        (["a=true", "b="], "not a selection"),
        (["a=true", "B=true"], "not a selection"),
        (["a=true", "a=false"], "is taken"),
        (["a=true", "base=true"], "is taken"),
    ],
)
def test_words_that_are_no_selections(words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_rules(words)


def test_arms_differ_in_their_selection_alone(folder: Path, tmp_path: Path) -> None:
    rules = read_rules(["all=true", "hard=field = 'text' AND entropy > 1.5", "own=" + str(folder / "manifest.yaml")])
    comparison = asked(folder, **rules)
    config = comparison.study(2)
    recipes = {name: load(Recipe, Path(config.recipe), [*config.set, *arm.set]) for name, arm in config.arms.items()}
    assert [recipe.sites.where for recipe in recipes.values()] == ["true", rules["hard"], "true"]
    budget = recipes["all"].budget
    assert budget.sampled_tokens == 800 and budget.steps == 25, "25 steps of 32 responses have at least 800 tokens"
    alike = {name: recipe.model_copy(update={"sites": recipes["all"].sites}) for name, recipe in recipes.items()}
    assert alike["hard"] == alike["own"] == recipes["all"]
    manifests = {BASE: comparison.manifest, **{name: comparison.manifest_of(name) for name in rules}}
    parts = plan(config, manifests, folder / "work")
    for name in (BASE, *rules):
        words = parts[f"{name}-evaluation"].words(tmp_path)
        assert words[words.index("--manifest") + 1] == str(folder / "manifest.yaml"), "the same held-out sites"


@pytest.mark.slow
def test_a_real_comparison_at_equal_sampled_tokens(folder: Path) -> None:
    rules = RULES | {"dynamic": "objective.dynamic_sampling_from=0"}
    command = [sys.executable, "-m", "commands.cli", "worth", "recipe.yaml", *(f"{n}={r}" for n, r in rules.items())]
    command += ["--tokens", "800", "--seeds", "2", "--see", "40", "--run", "compared", "--workers", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}

    def rpt(*more: str) -> str:
        done = subprocess.run([*command, *more], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout + done.stderr

    assert "2 seeds and 40 sites of 40 documents see" in rpt("--plan") and not (folder / "compared").exists()
    said = rpt()
    assert "6 runs of 800 sampled tokens" in " ".join(said.split())
    found = json.loads((folder / "compared" / "worth.json").read_text())
    for comparison in found["comparisons"]:
        for told in (comparison, comparison["gradient"]):
            assert told["says"] in said and told["verdict"] in ("better", "worse", "as good", "not told apart")
    assert [comparison["selection"] for comparison in found["comparisons"]] == ["hard", "dynamic"]
    for name in rules:
        for seed in (0, 1):
            (run,) = (folder / "compared").glob(f"{name}-{seed}.*")
            spent = [row["compute/sampled"] for row in metrics_of(run)]
            assert spent[-2] < 800 <= spent[-1], "it ends with the step that has sampled them"
            assert "eval/easy/reasoning" in metrics_of(run)[-1]
            drawn = [row["groups/draws"] for row in metrics_of(run) if "groups/draws" in row]
            assert (max(drawn) > 1) == (name == "dynamic"), "its further draws are among the sampled tokens"
        assert found["curves"][name][-1]["tokens"] == 800
    assert found["accuracy"][BASE]["easy"]["sites"] == 40
    assert all(0 < found["sampling"][name]["gradient"]["value"] <= 1 for name in rules)
    assert "0 of 10 jobs to run" in rpt(), "nothing is run again"
