"""Manifests of one name that differ in their source, in one work folder; and what `rpt clean` leaves alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from commands.cli import app
from commands.groups.data import run_data
from commands.inspect.audit import audit
from commands.inspect.stats import stats
from commands.maintenance.clean import remove, waste
from commands.maintenance.verify import verify
from pipeline.audit.lineage import lineage_of
from pipeline.config.errors import UserError
from pipeline.config.manifest import Manifest
from pipeline.core.artifact import Record, current_record
from pipeline.core.marks import mark_pulled
from pipeline.core.parquet import read_table
from pipeline.core.workspace import outputs, own_record, states
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
        with pytest.raises(UserError, match="this selection does not exist"):
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


def made_by(two: Two, stage: str) -> set[str]:
    return {output.fingerprint for output in outputs(two.work / "toy") if output.stage == stage}


def test_a_renamed_source_is_not_scored_again(two: Two, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    shutil.copy(two.a.corpus.source, folder / "old.jsonl")
    manifest = two.a.model_copy(update={"corpus": two.a.corpus.model_copy(update={"source": str(folder)})})
    kept = ("proxy", "score", "materialize")
    two.data(manifest)
    before = {stage: made_by(two, stage) for stage in kept}
    assert [len(found) for found in before.values()] == [1, 1, 1], "a.jsonl holds the same documents"
    (folder / "old.jsonl").rename(folder / "new.jsonl")
    two.data(manifest)
    assert {stage: made_by(two, stage) for stage in kept} == before
    lineage = lineage_of(two.work / "toy", manifest)
    (table,) = [read_table(file, ["source_file"]) for file in lineage.ingest.files("documents")]
    assert set(table["source_file"].to_pylist()) == {"new.jsonl"}
    assert up_to_date(two, manifest) and own(two, manifest).fingerprint in before["materialize"]
    assert lineage.materialize == own(two, manifest)
    assert verify(manifest, work=two.work)["damage"] == []
    assert documents(two, two.a) == 40, "the one that reads a.jsonl still has its own"
    remove(waste(manifest, work=two.work, runs=two.work / "runs"))
    assert [len(made_by(two, stage)) for stage in ("ingest", *kept)] == [2, 1, 1, 1], "new.jsonl, and a.jsonl of `a`"
    assert up_to_date(two, manifest) and up_to_date(two, two.a)


def test_other_text_is_scored_again(two: Two, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in Path(two.a.corpus.source).read_text().splitlines()]
    rows[3]["solution"] += "!"
    path = tmp_path / "a.jsonl"
    write_jsonl(path, rows)
    before = made_by(two, "score")
    two.data(two.a.model_copy(update={"corpus": two.a.corpus.model_copy(update={"source": str(path)})}))
    assert len(made_by(two, "score") - before) == 1


def own(two: Two, manifest: Manifest, stage: str = "materialize") -> Record:
    return own_record(two.work / "toy", manifest, stage)


@pytest.mark.parametrize("stage", ["ingest", "materialize"])
def test_each_is_trained_on_what_was_made_of_its_own_source(two: Two, stage: str) -> None:
    of_a = current_record(two.work / "toy", stage)
    assert own(two, two.a, stage) == of_a
    with pytest.raises(UserError, match=f"`{stage}` was made from another source than this manifest's"):
        own(two, two.b, stage)
    two.data(two.b)
    of_b = current_record(two.work / "toy", stage)
    assert of_b.content != of_a.content and (own(two, two.a, stage), own(two, two.b, stage)) == (of_a, of_b)


def test_what_was_made_last_of_a_source_counts_whatever_the_overrides_were(two: Two) -> None:
    select = two.a.select.model_copy(update={"where": "entropy > 2"})
    two.data(two.a.model_copy(update={"select": select}))
    assert own(two, two.a) == current_record(two.work / "toy", "materialize")
    shutil.rmtree(two.work / "toy" / "select")  # which of a's shards the manifest describes cannot be known now
    two.data(two.b)
    with pytest.raises(UserError, match="run `rpt data` with this manifest again"):
        own(two, two.a)


def test_what_was_pulled_is_not_taken_for_what_was_made_here(two: Two) -> None:
    of_a = current_record(two.work / "toy", "materialize")
    two.data(two.b)
    pulled = current_record(two.work / "toy", "materialize")
    mark_pulled(pulled)
    shutil.rmtree(two.work / "toy" / "ingest" / current_record(two.work / "toy", "ingest").fingerprint)
    (two.work / "toy" / "ingest" / "current").unlink()
    assert own(two, two.a) == of_a
    shutil.rmtree(two.work / "toy" / "read")
    assert own(two, two.b) == pulled, "nothing else was read here"


def test_every_command_refuses_what_was_made_of_another_source(two: Two, tmp_path: Path) -> None:
    """`b` has the name of `a`, whose data lie there alone."""
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(two.b.model_dump(mode="json", exclude_none=True)))
    policy = two.a.materialize.policy_tokenizer
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": "r", "policy": {"model": policy}, "data": "b.yaml"}))
    recipe = str(tmp_path / "recipe.yaml")
    trained = [[command, recipe] for command in ("train", "sft", "ntp", "screen")]
    evaluate = ["evaluate", recipe, "--policy", f"one={policy}"]
    export = ["export", "jsonl", str(tmp_path / "b.yaml"), "--out", str(tmp_path / "out")]
    for words in (*trained, evaluate, export):
        result = CliRunner().invoke(app, [*words, "--work", str(two.work)])
        assert "made from another source than this manifest's" in str(result.exception), words


def test_the_source_that_is_verified_is_the_manifests(two: Two, tmp_path: Path) -> None:
    """Both files have the same name: what `b` read says nothing of `a`'s."""
    moved = []
    for letter, manifest in (("a", two.a), ("b", two.b)):
        path = tmp_path / letter / "corpus.jsonl"
        path.parent.mkdir()
        shutil.copy(manifest.corpus.source, path)
        corpus = manifest.corpus.model_copy(update={"source": str(path)})
        moved.append(manifest.model_copy(update={"corpus": corpus}))
        two.data(moved[-1])
    assert [verify(manifest, work=two.work)["damage"] for manifest in moved] == [[], []]
    Path(moved[0].corpus.source).write_text("{}")
    assert [verify(manifest, work=two.work)["ok"] for manifest in moved] == [False, True]


def changed(manifest: Manifest, **blocks: dict[str, object]) -> Manifest:
    return Manifest.model_validate(manifest.model_dump(mode="json", exclude_none=True) | blocks)


def test_each_is_shown_the_scores_of_its_own_proxy_and_the_shards_of_its_own_tokenizer(
    two: Two, tmp_path: Path
) -> None:
    """All have the name and the source of `a`."""
    toy = two.work / "toy"
    fitted = two.a.proxy.model_dump(mode="json", exclude_none=True)
    longer = changed(two.a, proxy={"train": fitted["train"] | {"max_steps": 3}})
    others = {"proxy": [longer], "policy tokenizer": []}
    for manifest in (two.a, longer):
        two.data(manifest)
        (folder,) = current_record(toy, "proxy").files("model")
        copy = shutil.copytree(folder.path, tmp_path / f"model-{len(others['proxy'])}")
        others["proxy"].append(changed(two.a, proxy={"model": str(copy)}))
    byte_level_tokenizer(tmp_path / "policy", ["other text, other merges"] * 9)
    others["policy tokenizer"].append(changed(two.a, materialize={"policy_tokenizer": str(tmp_path / "policy")}))
    two.data(two.a)
    done = [two.a, longer]
    for what, manifest in ((what, manifest) for what, manifests in others.items() for manifest in manifests):
        if manifest not in done:
            found = {state.stage: state for state in states(manifest, toy, VERSIONS)}
            stage = "score" if what == "proxy" else "materialize"
            assert found[stage].state == "stale" and f"made with another {what}" in found[stage].why
            if what == "proxy":
                with pytest.raises(UserError, match="this selection does not exist"):
                    stats(manifest, work=two.work)
            else:
                assert lineage_of(toy, manifest).materialize is None
            two.data(manifest)
            done.append(manifest)
        made = [lineage_of(toy, each) for each in done]
        scores = {lineage.score.fingerprint for lineage in made}
        shards = {lineage.materialize and lineage.materialize.fingerprint for lineage in made}
        assert (len(scores), len(shards)) == (len([m for m in done if m not in others["policy tokenizer"]]), len(done))
        assert all(up_to_date(two, each) for each in done)
        assert [waste(each, work=two.work, runs=two.work / "runs") for each in done] == [[]] * len(done)
    assert verify(two.a, work=two.work)["damage"] == []


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
        for pointer in (*folder.parent.glob("proxy-*"), *folder.parent.glob("policy-*")):
            pointer.unlink()
        if stage != "score":
            shutil.rmtree(folder)
    (score.directory / "record.json").unlink()
    next((score.directory / "done").glob("*.json")).unlink()

    class Killed(Exception):
        pass

    class Dies(InProcess):
        def map(self, function, items, *, accelerated=False, **how):  # type: ignore[no-untyped-def]
            if accelerated:
                raise Killed
            return super().map(function, items, accelerated=accelerated, **how)

    with pytest.raises(Killed):
        run_data(two.a, "score", None, two.work, Dies(), as_json=True)
    unfinished = [output for output in outputs(two.work / "toy") if output.record is None]
    assert [output.directory for output in unfinished] == [score.directory]
    other = two.a.model_copy(update={"corpus": two.a.corpus.model_copy(update={"seed": 1})})
    run_data(other, "ingest", None, two.work, InProcess(), as_json=True)
    remove(waste(two.a, work=two.work, runs=two.work / "runs"))
    left = outputs(two.work / "toy")
    assert needed <= {name for output in left if output.record for name in output.record.names}
    assert score.directory in {output.directory for output in left}
    assert {"read", "near", "assign", "proxy"} <= {output.stage for output in left}
    two.data(two.a)
    assert documents(two, two.a) == 40
    assert json.loads((score.directory / "record.json").read_text())["shard_list"]
