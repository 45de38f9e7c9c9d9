"""The last line of a command can be pasted: it has the options that the next command needs, quoted."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands.next_step import after_audit, after_data, after_training, evaluation_of
from pipeline.core.progress import PART

WORK = Path("work")


def test_data_leads_to_the_audit_of_the_same_selection(capsys: pytest.CaptureFixture[str]) -> None:
    after_data(Path("my corpora/a.yaml"), ["select.where=entropy > 1.5"], Path("/big disk"))
    assert capsys.readouterr().err == (
        "next: rpt audit 'my corpora/a.yaml' --set 'select.where=entropy > 1.5' --work '/big disk'   "
        "(what was kept and dropped, and why)\n"
    )


def test_an_audit_leads_to_training(capsys: pytest.CaptureFixture[str]) -> None:
    after_audit(Path("demo"), "demo", WORK)
    assert capsys.readouterr().err.startswith("next: rpt train recipes/demo.yaml   (")
    after_audit(Path("mine.yaml"), "mine", WORK)
    assert capsys.readouterr().err.startswith("next: rpt train RECIPE.yaml --manifest mine.yaml   (")


def test_training_leads_to_its_evaluation_or_to_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["budget.steps=6", "evaluate.sites=10", "optimizer.lr=1", "seed=3"]
    measure = evaluation_of(Path("r.yaml"), given, WORK, manifest=None, run=Path("runs/x"))
    assert measure == "rpt evaluate r.yaml --set evaluate.sites=10 --set seed=3 --run runs/x"
    after_training("train", measure, tmp_path / "policy")
    assert capsys.readouterr().err.startswith("next: the same `rpt train` again")
    (tmp_path / "policy").mkdir()
    after_training("train", measure, tmp_path / "policy")
    assert capsys.readouterr().err.startswith(f"next: {measure}   (")


def test_a_part_of_a_study_says_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(PART, "1")
    after_data(Path("demo"), [], WORK)
    assert capsys.readouterr().err == ""
