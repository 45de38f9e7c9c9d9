"""`rpt gate` on a real evaluation of a policy whose answers are known, and the card's own code beside its weights."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from transformers import GenerationConfig

from commands.gate import gate, run_folder, tables
from pipeline.config.errors import UserError
from pipeline.config.recipe import Recipe
from pipeline.config.selection import BandsConfig
from pipeline.export.gate_files import read_gate
from pipeline.shards.reader import Site
from pipeline.task.gate import gate_of
from stages.evaluate import evaluate
from tests.evaluation.scripted import END, reasoner, site
from tests.stages.test_evaluate import shards_of

RECIPE = {
    "name": "toy",
    "policy": {"model": "unused", "dtype": "float32"},
    "task": {"template": "brief"},
    "rollout": {"max_new_tokens": 8, "batch_rows": 32},
}


def sites() -> list[Site]:
    """After "=" the policy says "4" at once and boxes "7"; after a full stop it says a space."""
    return [
        one
        for n in range(30)
        for one in (
            site(f"d{n:02}", 5, 2.0, f"{n} + 4 =", ["7" if n % 6 else "4", "."]),
            site(f"d{n:02}", 9, 0.7, f"{n} + 4 =7.", [" ", "T"]),
        )
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluated run."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    folder.mkdir()
    reasoner(folder / "policy", "7", {"=": "4", ".": " "}, "e")
    before = reasoner(folder.parent / "before", "4", {"=": "4", ".": " "}, "e")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    shards = shards_of(folder.parent / "materialize" / "0123456789ab", sites())
    policies = {"before": before, "after": folder / "policy"}
    evaluate(policies, Recipe.model_validate(RECIPE), BandsConfig(), shards, out=folder / "evaluation", run=folder)
    return folder


def test_the_gate_says_to_think_at_sums(run: Path) -> None:
    found = gate(run, policy=None, most=1.0, out=None)
    written = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert found["policy"] == "after" and found["written"] == str(run / "policy" / "gate.json")
    assert found["about"] == written["gates"]["after"], "the gate that the evaluation itself has fitted"
    assert found["sets"]["all"]["hybrid"]["after"] == written["sets"]["all"]["hybrid"]["after"]
    easy = found["sets"]["all"]["hybrid"]["after"]["easy"]
    # 25 of 30 sums by thinking, all 30 spaces at once; the oracle also has the 5 sums that are 4
    assert easy["hybrid"]["value"] == pytest.approx(55 / 60) and easy["thinks"]["value"] == 0.5
    assert easy["oracle"]["value"] == 1.0 and easy["direct"]["value"] == pytest.approx(35 / 60)
    assert easy["tokens"] == 2.0 and easy["tokens_reasoning"] == 3.0
    assert easy["over_direct"]["low"] > 0 and easy["over_reasoning"]["low"] > 0
    assert gate_of((run / "policy" / "gate.json").read_text()).text() == (run / "policy" / "gate.json").read_text()
    assert "<svg" in (run / "evaluation" / "gate.svg").read_text()
    titles = [str(table.title) for table in tables(found)]
    assert "thinking where it pays" in titles[0] and "Calibration" in titles[1] and "log-odds" in titles[2]


def test_the_card_says_how_and_its_code_does_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate(run, policy=None, most=1.0, out=None)
    monkeypatch.chdir(run / "policy")
    monkeypatch.setattr(sys, "path", list(sys.path))
    (code,) = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    try:
        assert names["complete"]("12 + 4 =7.") == (False, " ")
        assert names["complete"]("12 + 4 =") == (True, rf"</think>\boxed{{7}}{END}")
        assert names["complete"]("no <think> =") == (True, rf"</think>\boxed{{7}}{END}")
        rows = pl.read_parquet("../evaluation/responses.parquet").filter(policy="after", reading="reasoning")
        asked = names["encode"](names["BEFORE"]) + names["encode"]("0 + 4 =", True) + names["encode"](names["AFTER"])
        assert rows.filter(site_id="d00-5")["prompt_ids"].to_list() == [asked]
    finally:
        sys.modules.pop("rpt_gate", None)


def test_the_generation_configuration_is_that_of_the_evaluation(run: Path) -> None:
    before = GenerationConfig.from_pretrained(run / "policy")
    gate(run, policy=None, most=1.0, out=None)
    after = GenerationConfig.from_pretrained(run / "policy")
    assert (after.max_new_tokens, after.do_sample) == (8, False)
    assert after.eos_token_id == before.eos_token_id is not None


def test_a_card_of_the_users_stays(run: Path) -> None:
    card = run / "policy" / "README.md"
    gate(run, policy=None, most=1.0, out=None)
    own = card.read_text()
    try:
        card.write_text("mine")
        gate(run, policy=None, most=1.0, out=None)
        assert card.read_text() == "mine"
    finally:
        card.write_text(own)


def test_fewer_sites_think_if_so_asked(run: Path, tmp_path: Path) -> None:
    found = gate(run, policy="after", most=0.2, out=tmp_path / "some" / "gate.json")
    assert found["sets"]["all"]["hybrid"]["after"]["easy"]["thinks"]["value"] <= 0.2
    threshold = found["about"]["gate"]["threshold"]
    assert 0.5 < threshold == gate_of(read_gate(tmp_path / "some" / "gate.json")).threshold
    assert not (tmp_path / "some" / "README.md").exists()


def test_another_policy_wants_a_file(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"where is the policy 'before'.*--out"):
        gate(run, policy="before", most=1.0, out=None)
    found = gate(run, policy="before", most=1.0, out=tmp_path / "gate.json")
    assert found["about"]["gate"]["coefficients"] == [0.0] * 14, "it boxes what it says at once: thinking never pays"
    assert found["sets"]["all"]["hybrid"]["before"]["easy"]["thinks"]["value"] == 0.0
    with pytest.raises(UserError, match=r"no policy 'other'.*before, after"):
        gate(run, policy="other", most=1.0, out=None)


def test_a_run_without_a_readable_evaluation_is_told(run: Path, tmp_path: Path) -> None:
    assert run_folder(run) == run and run_folder(Path("demo")) in (Path("runs/demo"), Path("demo"))
    with pytest.raises(UserError, match=r"has not been evaluated.*rpt evaluate"):
        gate(tmp_path, policy=None, most=1.0, out=None)
    folder = tmp_path / "evaluation"
    folder.mkdir()
    whole = (run / "evaluation" / "evaluation.json").read_text()
    for damaged in ("", "[]", "{}", '{"policies": ["after"], "sets": {"all": {}}}', "[" * 100_000):
        (folder / "evaluation.json").write_text(damaged)
        with pytest.raises(UserError, match="not an evaluation of this version"):
            gate(tmp_path, policy=None, most=1.0, out=None)
    (folder / "evaluation.json").write_text(whole)
    (folder / "responses.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot read the responses"):
        gate(tmp_path, policy=None, most=1.0, out=None)
    rows = pl.read_parquet(run / "evaluation" / "responses.parquet")
    rows.drop("own_margin").write_parquet(folder / "responses.parquet")
    with pytest.raises(UserError, match=r"an earlier version.*own_margin"):
        gate(tmp_path, policy=None, most=1.0, out=None)
    rows.filter(reading="direct").write_parquet(folder / "responses.parquet")
    with pytest.raises(UserError, match="lacks answers"):
        gate(tmp_path, policy=None, most=1.0, out=None)


def test_a_gate_is_found_by_its_run_policy_or_file_and_checked(run: Path, tmp_path: Path) -> None:
    gate(run, policy=None, most=1.0, out=None)
    text = read_gate(run)
    assert text == read_gate(run / "policy") == read_gate(run / "policy" / "gate.json")
    with pytest.raises(UserError, match=r"no gate.*rpt gate RUN"):
        read_gate(tmp_path)
    for hostile in (b"\xff\xfe", b"{}", text.encode() * 100, b'{"__reduce__": "os.system"}'):
        (tmp_path / "gate.json").write_bytes(hostile)
        with pytest.raises(UserError, match=r"not a gate: .*rpt gate RUN"):
            read_gate(tmp_path)
