"""Rollouts are indexed as they come and found by what they are and say; polars gives the same answers."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from pipeline.audit.board import rollout_index
from pipeline.audit.board.rollout_index import RolloutIndex, texts
from pipeline.audit.board.rollout_places import RolloutPlaces
from pipeline.audit.board.rollout_search import Query, RolloutFinder
from pipeline.audit.board.rollout_view import all_at, entries, of_step, site_rollouts
from pipeline.config.errors import UserError
from pipeline.grpo.rollout.rollouts import ROLLOUTS
from tests.browser.board_run import rollout_row, write_rollouts, write_run

OUTCOMES = ("match", "mismatch", "missing")
BANDS = ("easy", "hard")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three steps; the sites of the first come again in the last."""
    folder = write_run(tmp_path / "run", [])
    for step, sites in ((0, "ab"), (10, "cd"), (20, "ab")):
        rows = [
            rollout_row(
                step, site, sample, reason=OUTCOMES[(step + sample) % 3], band=BANDS[ord(site) % 2],
                response=f"Step {step} at {site}, ÉTUDE {sample}", reward=[1.0, 0.5, -0.25][(step + sample) % 3],
            )
            for site in sites
            for sample in range(4)
        ]  # fmt: skip
        write_rollouts(folder, step, rows)
    return folder


def found(index: RolloutIndex, query: Query) -> list[tuple[int, str, int]]:
    """Step, site and sample of what is found, in its order, once all texts were searched."""
    finder = RolloutFinder(index)
    answer = finder.find(query)
    while answer.searched < answer.files:
        answer = finder.find(query)
    return [(e["step"], e["site_id"], e["sample"]) for e in entries(index, answer.rollouts, answer.rows.tolist())]


@pytest.mark.parametrize(
    ("query", "condition"),
    [
        (Query(), pl.lit(True)),
        (Query(step=10), pl.col("step") == 10),
        (Query(site="b"), pl.col("site_id") == "b"),
        (Query(site="nothing"), pl.lit(False)),
        (Query(outcome="missing"), pl.col("reason") == "missing"),
        (Query(band="hard", least=0.5), (pl.col("band") == "hard") & (pl.col("reward") >= 0.5)),
        (Query(most=-0.25), pl.col("reward") <= -0.25),
        (Query(text="étude 3"), pl.col("response").str.ends_with("ÉTUDE 3")),
        (Query(text="STEP 10 at c"), pl.col("response").str.starts_with("Step 10 at c")),
        (Query(text="step .0"), pl.lit(False)),
        (Query(text="étude", step=20, outcome="match"), (pl.col("step") == 20) & (pl.col("reason") == "match")),
    ],
)
def test_a_query_finds_what_polars_finds(run: Path, query: Query, condition: pl.Expr) -> None:
    index = RolloutIndex(run)
    assert index.refresh(60)
    rows = pl.read_parquet(run / "rollouts" / "*.parquet").filter(condition)
    expected = rows.select("step", "site_id", "sample").rows()
    assert sorted(found(index, query)) == sorted(expected)


def test_orders(run: Path) -> None:
    index = RolloutIndex(run)
    index.refresh(60)
    rows = pl.read_parquet(run / "rollouts" / "*.parquet")
    for name, column, descending in (
        ("newest", "step", True), ("oldest", "step", False), ("best", "reward", True), ("worst", "reward", False),
        ("longest", "length", True), ("shortest", "length", False),
    ):  # fmt: skip
        made = RolloutFinder(index).find(Query(order=name))
        values = {"step": made.rollouts.step_R, "reward": made.rollouts.reward_R, "length": made.rollouts.length_R}
        assert values[column][made.rows].tolist() == rows[column].sort(descending=descending).to_list(), name


def test_files_that_come_change_or_go_are_noticed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_index, "SETTLING", 60.0)
    index = RolloutIndex(run)
    assert index.refresh(60) and len(index.rollouts()) == 24
    write_rollouts(run, 30, [rollout_row(30, "e", 0)])
    assert index.refresh(60) and found(index, Query(step=30)) == [(30, "e", 0)]
    write_rollouts(run, 30, [rollout_row(30, "f", sample) for sample in range(2)])
    os.utime(run / "rollouts" / "step-000030.parquet", ns=(1, 1))  # another time of change, whatever the clock says
    assert index.refresh(60) and found(index, Query(step=30)) == [(30, "f", 0), (30, "f", 1)]
    (run / "rollouts" / "step-000030.parquet").unlink()
    assert index.refresh(60) and len(index.rollouts()) == 24


def test_an_unchanged_folder_is_not_read_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_index, "SETTLING", -1.0)
    index = RolloutIndex(run)
    index.refresh(60)
    monkeypatch.setattr(Path, "glob", lambda *_: pytest.fail("listed again"))
    monkeypatch.setattr(pl, "read_parquet", lambda *_, **__: pytest.fail("read again"))
    assert index.refresh(60)


def test_the_newest_files_are_read_first(run: Path) -> None:
    index = RolloutIndex(run)
    assert not index.refresh(0.0)
    assert index.progress == (1, 3)
    assert set(index.rollouts().step_R.tolist()) == {20}


def test_what_is_no_table_of_rollouts_is_named_and_left_out(run: Path) -> None:
    folder = run / "rollouts"
    (folder / "step-000040.parquet").write_bytes(b"PAR1 not really")
    (folder / "step-000050.parquet").write_bytes(b"")
    (folder / "notes.parquet").write_bytes(b"none of ours")
    other = pa.schema([pa.field("step", pa.int32()), pa.field("site_id", pa.int64())])
    write_rollouts(run, 60, [{"step": 60, "site_id": 1}], other)
    nullable = pa.schema([field.with_nullable(True) for field in ROLLOUTS])
    write_rollouts(run, 70, [rollout_row(70, "x", 0, site_id=None)], nullable)
    old = ROLLOUTS.remove(ROLLOUTS.get_field_index("band"))
    row = rollout_row(80, "old", 0, reason="a reason of the future")
    del row["band"]
    write_rollouts(run, 80, [row], old)
    index = RolloutIndex(run)
    assert index.refresh(60)
    assert index.unreadable == [f"step-0000{n}.parquet" for n in (40, 50, 60, 70)]
    assert found(index, Query(band="unknown")) == found(index, Query(outcome="other")) == [(80, "old", 0)]


def test_a_file_that_went_after_it_was_indexed(run: Path) -> None:
    index = RolloutIndex(run)
    index.refresh(60)
    rollouts = index.rollouts()
    for path in (run / "rollouts").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="cannot be read now"):
        texts(rollouts, [0])
    assert found_rows(index, "étude") == 0


def found_rows(index: RolloutIndex, text: str) -> int:
    finder = RolloutFinder(index)
    while (answer := finder.find(Query(text=text))).searched < answer.files:
        pass
    return len(answer.rows)


def test_the_newest_rollouts_stand_beside_the_first_of_their_sites(run: Path) -> None:
    index = RolloutIndex(run)
    index.refresh(60)
    shown = of_step(index, RolloutFinder(index), "longest")
    assert shown and shown["step"] == 20
    pairs = [((a["site_id"], a["sample"]), b and (b["step"], b["site_id"], b["sample"])) for a, b in shown["rollouts"]]
    assert pairs == [(("a", 3), (0, "a", 3)), (("b", 3), (0, "b", 3))]
    write_rollouts(run, 30, [rollout_row(30, "new", 0)])
    index.refresh(60)
    shown = of_step(index, RolloutFinder(index), "best")
    assert shown and [before for _, before in shown["rollouts"]] == [None]
    assert of_step(RolloutIndex(run / "nothing"), RolloutFinder(index), "best") is None


def test_the_stored_step_nearest_to_the_one_asked_for(run: Path) -> None:
    index = RolloutIndex(run)
    index.refresh(60)
    around = {}
    for asked in (None, -5, 0, 4, 6, 10, 999):
        shown = of_step(index, RolloutFinder(index), "worst", asked)
        assert shown
        around[asked] = (shown["previous"], shown["step"], shown["next"])
        rewards = [one["reward"] for one, _ in shown["rollouts"]]
        assert rewards == sorted(rewards) and rewards[0] == -0.25
    first, second, last = (None, 0, 10), (0, 10, 20), (10, 20, None)
    assert around == {None: last, -5: first, 0: first, 4: first, 6: second, 10: second, 999: last}


def test_a_site_by_step(run: Path) -> None:
    index = RolloutIndex(run)
    assert [(e["step"], e["sample"]) for e in all_at(index, "a")] == [(s, n) for s in (0, 20) for n in range(4)]
    assert list(site_rollouts(index, "a")) == [0, 20] and site_rollouts(index, "nothing") == {}


def test_places_of_rollouts_in_a_corpus(run: Path) -> None:
    document = "0" * 32
    write_rollouts(run, 30, [rollout_row(30, f"{document}-{n}", 0) for n in ("7", "12", "x", "²")])
    index = RolloutIndex(run)
    places = RolloutPlaces(index)
    while not index.refresh(1.0):
        pass
    assert places.by_document()[document] == {7, 12}
    write_rollouts(run, 40, [rollout_row(40, f"{document}-3", 0)])
    while not index.refresh(1.0):
        pass
    assert places.by_document()[document] == {3, 7, 12}
