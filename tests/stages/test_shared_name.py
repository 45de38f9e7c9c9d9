"""Manifests of one name that differ in their source, in one work folder; and what `rpt clean` leaves alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from commands.audit import audit
from commands.clean import remove, waste
from commands.groups.data import run_data
from commands.stats import stats
from pipeline.config.errors import UserError
from pipeline.config.manifest import Manifest
from pipeline.core.artifact import current_record
from pipeline.core.workspace import outputs, states
from tests.stages.published import InProcess
from tests.toys import byte_level_tokenizer, problems, write_jsonl

VERSIONS: dict[str, int] = {}


class Two:
    """Manifests `a` and `b`, both named `toy`: 40 and 60 documents."""

    def __init__(self, folder: Path) -> None:
        self.work = folder / "work"
        rows = problems(100)
        byte_level_tokenizer(folder / "policy", [row["problem"] for row in rows])
        write_jsonl(folder / "a.jsonl", rows[:40])
        write_jsonl(folder / "b.jsonl", rows[40:])
        self.a, self.b = self.manifest(folder, "a"), self.manifest(folder, "b")

    def manifest(self, folder: Path, source: str) -> Manifest:
        fitted = {"vocab_size": 300, "hidden_size": 32, "layers": 1, "heads": 2, "max_steps": 2, "folds": 1}
        tree = {
            "name": "toy",
            "corpus": {"source": str(folder / f"{source}.jsonl"), "text": "{problem}\n{solution}"},
            "proxy": {"train": fitted},
            "materialize": {"policy_tokenizer": str(folder / "policy")},
        }
        return Manifest.model_validate(tree)

    def data(self, manifest: Manifest) -> None:
        run_data(manifest, "materialize", None, self.work, InProcess(), as_json=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Two:
    two = Two(tmp_path_factory.mktemp("two"))
    two.data(two.a)
    return two


@pytest.fixture
def two(built: Two, tmp_path: Path) -> Two:
    shutil.copytree(built.work, tmp_path / "work")
    copy = object.__new__(Two)
    copy.work, copy.a, copy.b = tmp_path / "work", built.a, built.b
    return copy


def documents(two: Two, manifest: Manifest) -> int:
    return int(stats(manifest, work=two.work)["funnel"][0]["count"])


def up_to_date(two: Two, manifest: Manifest) -> bool:
    return {state.state for state in states(manifest, two.work / "toy", VERSIONS)} == {"up to date"}


def test_each_is_shown_its_own_corpus(two: Two) -> None:
    assert up_to_date(two, two.a) and not up_to_date(two, two.b)
    ingest = next(state for state in states(two.b, two.work / "toy", VERSIONS) if state.stage == "ingest")
    assert (ingest.state, ingest.why) == ("stale", ("made from another source",))
    for page in (stats, audit):
        with pytest.raises(UserError, match="this selection has not been made"):
            page(two.b, work=two.work)
    two.data(two.b)
    assert (documents(two, two.a), documents(two, two.b)) == (40, 60)
    assert up_to_date(two, two.a) and up_to_date(two, two.b)
    two.data(two.a)  # nothing is made again, and `current` is this one's
    assert (documents(two, two.a), documents(two, two.b)) == (40, 60)


def test_a_source_that_grew_is_shown_as_it_was_read_last(two: Two, tmp_path: Path) -> None:
    path = tmp_path / "grown.jsonl"
    shutil.copy(two.a.corpus.source, path)
    moved = two.a.model_copy(update={"corpus": two.a.corpus.model_copy(update={"source": str(path)})})
    two.data(moved)
    assert documents(two, moved) == 40
    path.write_text(path.read_text() + Path(two.b.corpus.source).read_text())
    two.data(moved)
    assert (documents(two, moved), documents(two, two.a)) == (100, 40)


def test_clean_leaves_what_the_other_made(two: Two) -> None:
    two.data(two.b)
    assert waste(two.b, work=two.work, runs=two.work / "runs") == []
    assert waste(two.a, work=two.work, runs=two.work / "runs") == []


def test_clean_leaves_what_an_unfinished_stage_needs(two: Two) -> None:
    """`score` of one configuration is unfinished when another corpus configuration is made current."""
    score = current_record(two.work / "toy", "score")
    needed = {score.inputs["documents"]}
    for stage in ("score", "select", "materialize"):
        folder = current_record(two.work / "toy", stage).directory
        (folder.parent / "current").unlink()
        if stage != "score":
            shutil.rmtree(folder)
    (score.directory / "record.json").unlink()
    next((score.directory / "done").iterdir()).unlink()

    class Killed(Exception):
        pass

    class Dies(InProcess):
        def map(self, function, items, *, accelerated=False):  # type: ignore[no-untyped-def]
            if accelerated:
                raise Killed
            return super().map(function, items, accelerated=accelerated)

    with pytest.raises(Killed):
        run_data(two.a, "score", None, two.work, Dies(), as_json=True)
    unfinished = [output for output in outputs(two.work / "toy") if output.record is None]
    assert [output.directory for output in unfinished] == [score.directory]
    other = two.a.model_copy(update={"corpus": two.a.corpus.model_copy(update={"seed": 1})})
    run_data(other, "ingest", None, two.work, InProcess(), as_json=True)
    remove(waste(two.a, work=two.work, runs=two.work / "runs"))
    left = outputs(two.work / "toy")
    assert needed <= {output.record.content for output in left if output.record}
    assert score.directory in {output.directory for output in left}
    assert {"read", "near", "assign", "proxy"} <= {output.stage for output in left}
    two.data(two.a)
    assert documents(two, two.a) == 40
    assert json.loads((score.directory / "record.json").read_text())["completions"]
