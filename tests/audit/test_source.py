"""`rpt verify` opens the source: what is said of files that are gone, changed or cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands.maintenance.verify import verify
from pipeline.audit.source import CHANGED, GONE, source_damage
from tests.corpus.corpora import jsonl, manifest, run


def lines(n: int) -> list[dict[str, str]]:
    return [{"text": f"{n} says {i}"} for i in range(30)]


@pytest.fixture
def ingested(tmp_path: Path) -> Path:
    """Three files that were ingested into `work/test`, in several slices."""
    for n in range(3):
        jsonl(tmp_path / f"in/{n}.jsonl", lines(n))
    run(tmp_path / "work/test", tmp_path / "in", slice_bytes=100)
    return tmp_path


def damage(folder: Path, source: str = "in") -> list[dict[str, str]]:
    return source_damage(folder / "work/test", manifest().corpus, str(folder / source))


def test_a_source_that_is_as_it_was_is_no_damage(ingested: Path) -> None:
    assert damage(ingested) == []
    jsonl(ingested / "in/new.jsonl", lines(4))  # not read yet: no document links to it
    (ingested / "in").rename(ingested / "moved")
    assert damage(ingested, "moved") == []
    assert verify(manifest(), work=ingested / "work", source=str(ingested / "moved"))["ok"]


def test_each_file_that_changed_or_is_gone_is_named(ingested: Path) -> None:
    with (ingested / "in/0.jsonl").open("ab") as file:
        file.write(b"\n")
    (ingested / "in/2.jsonl").unlink()
    expected = [{"where": "0.jsonl", "what": CHANGED}, {"where": "2.jsonl", "what": GONE}]
    assert damage(ingested) == expected
    found = verify(manifest(), work=ingested / "work", source=str(ingested / "in"))
    assert not found["ok"] and found["damage"] == expected


def test_a_source_that_is_not_there_is_damage(ingested: Path) -> None:
    ((only,), where) = damage(ingested, "nowhere"), str(ingested / "nowhere")
    assert only["where"] == where and only["what"].startswith("source file not found")


def test_a_folder_into_which_nothing_was_read_has_no_source(tmp_path: Path) -> None:
    assert damage(tmp_path) == []


def test_what_was_recorded_of_the_source_is_verified(ingested: Path) -> None:
    table = sorted((ingested / "work/test/read").glob("*/source-*.json"))[0]
    table.write_text(table.read_text().replace("0.jsonl", "1.jsonl"))
    found = verify(manifest(), work=ingested / "work", source=str(ingested / "in"))
    assert [item["where"] for item in found["damage"]] == [str(table)]
