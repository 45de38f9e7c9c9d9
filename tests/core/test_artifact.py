"""Records, completions and `current`: every byte of them counts, and two processes never trip over each other."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.audit.verify import verify
from pipeline.config.base import Config, canonical_json
from pipeline.config.errors import IntegrityError, UserError
from pipeline.core.artifact import (
    Counters,
    Record,
    Shard,
    check_sizes,
    current_record,
    fingerprint,
    read_record,
    seal_record,
)
from pipeline.core.completion import Completion, completion_path, read_completion, write_completion
from pipeline.core.parquet import write_rows
from pipeline.core.sealed import read_sealed, write_sealed
from pipeline.core.shard_list import ShardList
from pipeline.core.stage import Stage, run_stage
from tests.stages.published import InProcess

ROOT = Path(__file__).parent.parent.parent
SCHEMA = pa.schema([pa.field("number", pa.int64(), nullable=False)])


class Numbers(Config):
    first: int = 0


def run(config: Numbers, shard: Shard, out: Path) -> Counters:
    """Three numbers a shard; while a file `hold` lies in the folder that it is told, it goes no further."""
    if hold := shard.details.get("hold"):
        (Path(hold) / "entered").touch()
        while (Path(hold) / "hold").exists():
            time.sleep(0.01)
    write_rows(out / "numbers.parquet", SCHEMA, [{"number": config.first + n} for n in range(3)])
    return {"documents": 3, "dropped.odd": shard.index}


def made(work: Path, stage: str = "numbers", first: int = 0, inputs: dict[str, str] | None = None) -> Record:
    shards = [Shard(0, {}, {}), Shard(1, {}, {})]
    return run_stage(Stage(stage, 1, run), Numbers(first=first), shards, inputs or {"a": "1"}, work, InProcess())


# ------------------------------------------------------------------------------------------------- fingerprints


def test_a_fingerprint_hangs_on_every_input_by_name_and_content() -> None:
    """Two inputs: changed, swapped, renamed and dropped ones are all other outputs."""
    variants: list[dict[str, str]] = [
        {"documents": "aa", "scores": "bb"},
        {"documents": "ab", "scores": "bb"},
        {"documents": "aa", "scores": "ba"},
        {"documents": "bb", "scores": "aa"},
        {"documents": "aa", "sites": "bb"},
        {"documents": "aa"},
        {"scores": "bb"},
        {"documents": "aab", "scores": "b"},
    ]
    found = [fingerprint("select", 1, {"where": "true"}, inputs) for inputs in variants]
    assert len(set(found)) == len(variants)
    again = {"scores": "bb", "documents": "aa"}  # the order in which they are named is no part of it
    assert fingerprint("select", 1, {"where": "true"}, again) == found[0]


def test_a_stage_runs_anew_when_one_of_two_inputs_changes(tmp_path: Path) -> None:
    inputs = [{"a": "1", "b": "1"}, {"a": "1", "b": "2"}, {"a": "2", "b": "1"}]
    assert len({made(tmp_path, inputs=given).directory for given in inputs}) == 3


# ------------------------------------------------------------------------------------------------------ damage


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of a JSON tree stand."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from leaves(value, (*path, key)) if isinstance(value, dict | list) and value else [(*path, key)]


def edited(tree: Any, path: tuple[Any, ...]) -> None:
    """Change a value into another one of its kind."""
    for key in path[:-1]:
        tree = tree[key]
    value = tree[path[-1]]
    if isinstance(value, str):
        tree[path[-1]] = value[:-1] + ("0" if value[-1:] != "0" else "1")
    else:
        tree[path[-1]] = value + 1 if isinstance(value, int | float) else 1


def test_every_value_of_a_record_and_of_a_completion_is_under_its_hash(tmp_path: Path) -> None:
    directory = made(tmp_path).directory
    for file in ("record.json", "done/00001.json"):
        path = directory / file
        whole = path.read_text()
        places = list(leaves(json.loads(whole)))
        assert len(places) > 8
        for place in places:
            tree = json.loads(whole)
            edited(tree, place)
            path.write_text(json.dumps(tree, indent=1, ensure_ascii=False))
            with pytest.raises(IntegrityError, match=path.name):
                read_record(directory) if file == "record.json" else read_completion(directory, 1)
            assert str(path) in {item["where"] for item in verify(tmp_path)["damage"]}, place
        path.write_text(whole)
    assert verify(tmp_path)["ok"]


def resealed(record: Record, shards: list[Completion]) -> Callable[[], Record | None]:
    """Seal a record anew over other completions, and return what reads it."""
    listed = ShardList.of(shards, record.directory).save(record.directory)
    (record.directory / "record.json").unlink()
    seal_record(replace(record, shard_list=listed))
    return lambda: read_record(record.directory)


def as_earlier_versions(record: Record, shards: list[Completion]) -> Callable[[], Record | None]:
    """Seal a record as before there were lists of shards, and return what reads it."""

    def read() -> Record | None:
        path = record.directory / "record.json"
        tree = read_sealed(path)
        hashes = [[name, done.shard, entry.sha256] for done in shards for name, entry in done.files.items()]
        tree["content"] = hashlib.sha256(canonical_json(sorted(hashes)).encode()).hexdigest()
        tree["completions"] = [asdict(done) for done in shards]
        path.unlink()
        write_sealed(path, {name: value for name, value in tree.items() if name not in ("summary", "shard_list")})
        return read_record(record.directory)

    return read


def test_a_record_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    record = made(tmp_path)
    earlier = as_earlier_versions(record, list(record.completions()))()
    assert earlier is not None and "completions" in (record.directory / "record.json").read_text()
    assert (earlier.summary, earlier.files("numbers")) == (record.summary, record.files("numbers"))
    assert list(earlier.completions()) == list(record.completions())
    assert made(tmp_path).content == record.content and verify(tmp_path)["ok"]


def test_every_byte_of_a_list_of_shards_counts(tmp_path: Path) -> None:
    record = made(tmp_path)
    path = record.shard_list.path
    whole = path.read_bytes()
    changed = [whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :] for i in range(len(whole))]
    for data in [*changed, whole[:-1], whole + b"\n", b""]:
        path.write_bytes(data)
        opened = read_record(record.directory)
        assert opened is not None
        for read in (lambda r: r.files("numbers"), lambda r: list(r.completions()), check_sizes):
            with pytest.raises(IntegrityError, match=path.name):
                read(opened)
    assert [item["where"] for item in verify(tmp_path)["damage"]] == [str(path)]
    path.unlink()
    assert [item["where"] for item in verify(tmp_path)["damage"]] == [str(path)]
    (record.directory / "record.json").unlink()
    made(tmp_path)  # as the error says
    assert path.read_bytes() == whole and verify(tmp_path)["ok"]


def test_a_summary_that_its_shards_do_not_add_up_to_is_noticed(tmp_path: Path) -> None:
    record = made(tmp_path)
    path = record.directory / "record.json"
    path.unlink()
    seal_record(replace(record, summary=replace(record.summary, counters={"documents": 7})))
    (item,) = verify(tmp_path)["damage"]
    assert item == {"where": str(path), "what": "does not add up to its list of shards"}


def test_every_byte_of_a_record_counts(tmp_path: Path) -> None:
    path = made(tmp_path).directory / "record.json"
    whole = path.read_bytes()
    changed = [whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :] for i in range(len(whole))]
    changed += [whole[:i] for i in range(0, len(whole), 7)] + [whole + b"\n", b"[]", b"null", b"[" * 5000]
    for data in changed:
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match=r"record\.json"):
            read_record(path.parent)


def test_what_lies_in_the_place_of_another_is_noticed(tmp_path: Path) -> None:
    first, second = made(tmp_path), made(tmp_path, first=5)
    pairs = [
        (first.directory / "record.json", second.directory / "record.json"),
        (first.directory / "done" / "00000.json", first.directory / "done" / "00001.json"),
        (first.directory / "done" / "00000.json", second.directory / "done" / "00000.json"),
    ]
    for one, other in pairs:
        before = one.read_bytes(), other.read_bytes()
        one.write_bytes(before[1])
        other.write_bytes(before[0])
        found = {item["where"] for item in verify(tmp_path)["damage"]}
        assert {str(one), str(other)} <= found
        for path, data in zip((one, other), before, strict=True):
            path.write_bytes(data)
    (first.directory / "record.json").write_bytes((second.directory / "record.json").read_bytes())
    with pytest.raises(IntegrityError, match="another output"):
        read_record(first.directory)


def test_a_stage_is_not_sealed_over_a_file_that_is_gone(tmp_path: Path) -> None:
    """An unfinished stage, of which a published file was deleted before it is resumed."""
    record = made(tmp_path)
    (record.directory / "record.json").unlink()
    victim = record.files("numbers")[0].path
    victim.unlink()
    with pytest.raises(IntegrityError, match=victim.name):
        made(tmp_path)
    assert not (record.directory / "record.json").exists()


def test_rows_are_checked_against_the_footer(tmp_path: Path) -> None:
    """A record that is whole in itself, of a table that has fewer rows."""
    record = made(tmp_path)
    first, second = record.completions()
    entry = replace(first.files["numbers"], rows=4)
    completion_path(record.directory, 0).unlink()
    write_completion(record.directory, wrong := replace(first, files={"numbers": entry}))
    record = replace(record, summary=ShardList.of([wrong, second], record.directory).summary())
    resealed(record, [wrong, second])
    (item,) = verify(tmp_path)["damage"]
    assert item == {"where": str(record.directory / entry.path), "what": "has 3 rows, but 4 are recorded"}


@pytest.mark.parametrize("data", [None, b"\xff\xfe", b"", b"0123456789ab", b"../../etc", b"0123456789ab\n"])
def test_a_damaged_current_is_noticed_by_the_next_reader_and_by_verify(tmp_path: Path, data: bytes | None) -> None:
    record = made(tmp_path)
    pointer = tmp_path / "numbers" / "current"
    pointer.unlink() if data is None else pointer.write_bytes(data)
    with pytest.raises(IntegrityError, match="current"):
        current_record(tmp_path, "numbers")
    assert [item["where"] for item in verify(tmp_path)["damage"]] == [str(pointer)]
    made(tmp_path)  # up to date: only the pointer is written
    assert current_record(tmp_path, "numbers") == record and verify(tmp_path)["ok"]


def test_a_name_outside_the_folder_is_no_published_file(tmp_path: Path) -> None:
    record = made(tmp_path)
    first, second = record.completions()
    for name in ("../../victim", "/etc/passwd", "..", ".", "", "a/b", "a\0b"):
        forged = replace(second, files={"numbers": replace(second.files["numbers"], path=name)})
        for changed in (resealed(record, [first, forged]), as_earlier_versions(record, [first, forged])):
            for read in (lambda r: r.files("numbers"), lambda r: list(r.completions()), check_sizes):
                with pytest.raises(IntegrityError, match="outside its folder"):
                    read(changed())


# ----------------------------------------------------------------------------------------------- two at a time


def test_what_is_up_to_date_is_not_touched(tmp_path: Path) -> None:
    """As on a work folder that can only be read."""
    made(tmp_path)

    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]}

    before = state()
    made(tmp_path)
    assert state() == before


PROGRAM = """
import sys
from pathlib import Path
from pipeline.core.artifact import Shard
from pipeline.core.stage import Stage, run_stage
from tests.core.test_artifact import Numbers, run
from tests.stages.published import InProcess
work = Path(sys.argv[1])
shards = [Shard(n, {}, {"hold": str(work)}) for n in range(2)]
run_stage(Stage("numbers", 1, run), Numbers(), shards, {"a": "1"}, work, InProcess())
"""


def start(work: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(work)], env=environment, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("killed", [False, True])
def test_of_two_at_once_one_waits_and_finds_the_other_s_work(tmp_path: Path, killed: bool) -> None:
    """Or, if the one that works is killed, goes on where that was."""
    (tmp_path / "hold").touch()
    first = start(tmp_path)
    while not (tmp_path / "entered").exists():
        assert first.poll() is None
        time.sleep(0.01)
    second = start(tmp_path)
    assert second.stderr is not None
    said = second.stderr.readline()
    assert "waiting: another process works on" in said, said
    if killed:
        first.kill()
    (tmp_path / "hold").unlink()
    _, told = second.communicate(timeout=120)
    assert second.returncode == 0, told
    assert first.wait(timeout=120) == (-9 if killed else 0)
    assert ("done in" if killed else "up to date") in told
    assert verify(tmp_path)["ok"] and not list(tmp_path.glob("numbers/*/tmp"))


def test_where_folders_cannot_be_held_both_work_and_neither_takes_the_other_s_scratch_folder(tmp_path: Path) -> None:
    """As on some network file systems: a second process begins, makes all of it and ends while the first is at work."""

    def run_both(config: Numbers, shard: Shard, out: Path) -> Counters:
        if shard.index == 0 and not (tmp_path / "inside").exists():
            (tmp_path / "inside").touch()
            subprocess.run([sys.executable, "-c", UNLOCKED + PROGRAM, str(tmp_path)], env=environment, check=True)
        return run(config, shard, out)

    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    shards = [Shard(0, {}, {}), Shard(1, {}, {})]
    record = run_stage(Stage("numbers", 1, run_both), Numbers(), shards, {"a": "1"}, tmp_path, InProcess())
    assert record.counters["documents"] == 6 and verify(tmp_path)["ok"]


UNLOCKED = """
import errno, fcntl
def refuse(*_):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = refuse
"""


def test_no_output_is_a_user_s_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no output yet") as caught:
        current_record(tmp_path, "numbers")
    assert not isinstance(caught.value, IntegrityError)
