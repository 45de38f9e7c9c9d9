"""Artifacts and the stage runner: atomic, resumable, byte-identical, honest about damage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.base import Config
from pipeline.config.errors import IntegrityError, UserError
from pipeline.core import artifact
from pipeline.core.artifact import Counters, InputFile, Shard, content_hash, current_record, publish, read_record
from pipeline.core.executor import LocalExecutor
from pipeline.core.parquet import read_table, write_rows
from pipeline.core.sealed import SEAL, write_sealed
from pipeline.core.stage import Stage, run_stage

SCHEMA = pa.schema([pa.field("number", pa.int64(), nullable=False), pa.field("text", pa.binary(), nullable=False)])


class Squares(Config):
    factor: int = 1
    log: str = ""
    """Where each call of `run` leaves a line; a location, as far as this test's stage goes."""
    locations = frozenset({"log"})


def run(config: Squares, shard: Shard, out: Path) -> Counters:
    """Rows of squares; leaves a trace of having run; shard 3 may be told to fail or to dawdle by a file."""
    with open(config.log, "a") as log:
        log.write(f"{shard.index}\n")
    if Path(config.log + ".fail").exists() and shard.index == 3:
        raise UserError("told to fail", where="shard 3")
    if Path(config.log + ".slow").exists():
        time.sleep(0.2)
    rows = [{"number": config.factor * n * n, "text": b"x" * n} for n in range(shard.details["rows"])]
    write_rows(out / "squares.parquet", SCHEMA, rows)
    (out / "folder").mkdir()
    (out / "folder" / "note.txt").write_text(f"shard {shard.index}")
    return {"documents": len(rows), "dropped.nothing": 0}


STAGE = Stage("squares", 1, run)
SHARDS = [Shard(index, {}, {"rows": 5 + index}) for index in range(6)]


def bring_up(tmp_path: Path, factor: int = 1, version: int = 1) -> artifact.Record:
    stage = Stage("squares", version, run)
    config = Squares(factor=factor, log=str(tmp_path / "log"))
    return run_stage(stage, config, SHARDS, {"source": "abc"}, tmp_path / "work", LocalExecutor(2))


def calls(tmp_path: Path) -> list[int]:
    return sorted(int(line) for line in (tmp_path / "log").read_text().split())


def test_a_second_run_does_nothing_and_a_changed_config_runs_anew(tmp_path: Path) -> None:
    first = bring_up(tmp_path)
    assert first.counters == {"documents": sum(5 + i for i in range(6)), "dropped.nothing": 0}
    assert bring_up(tmp_path).fingerprint == first.fingerprint
    assert calls(tmp_path) == [0, 1, 2, 3, 4, 5]
    assert bring_up(tmp_path, factor=2).fingerprint != first.fingerprint
    assert bring_up(tmp_path, version=2).fingerprint != first.fingerprint
    assert len(calls(tmp_path)) == 18
    assert current_record(tmp_path / "work", "squares").version == 2
    bring_up(tmp_path)
    assert current_record(tmp_path / "work", "squares").fingerprint == first.fingerprint


class Room(Config):
    size: int = 1
    rows: int = 8
    execution = frozenset({"rows"})


class RoomyConfig(Config):
    room: Room = Room()


def work_in(config: RoomyConfig, shard: Shard, out: Path) -> Counters:
    write_rows(out / "rooms.parquet", SCHEMA, [{"number": config.room.size, "text": b""}])
    return {"documents": 1}


def test_settings_of_execution_are_recorded_and_identify_nothing(tmp_path: Path) -> None:
    def made(room: Room, folder: str) -> artifact.Record:
        stage = Stage("rooms", 1, work_in)
        return run_stage(stage, RoomyConfig(room=room), SHARDS[:1], {}, tmp_path / folder, LocalExecutor(1))

    first, other = made(Room(), "one"), made(Room(rows=2), "other")
    assert (first.execution, other.execution) == ({"room": {"rows": 8}}, {"room": {"rows": 2}})
    assert (first.fingerprint, first.content) == (other.fingerprint, other.content)
    assert first.config == other.config == {"room": {"size": 1}}
    assert made(Room(rows=2), "one") == first, "it is up to date, and says what it was made with"
    path = first.directory / "record.json"
    path.write_text(path.read_text().replace('"rows": 8', '"rows": 9'))
    with pytest.raises(IntegrityError):
        read_record(first.directory)


def test_a_record_without_settings_of_execution_is_read(tmp_path: Path) -> None:
    """As earlier versions wrote it."""
    record = bring_up(tmp_path)
    path = record.directory / "record.json"
    tree = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("execution", SEAL)}
    path.unlink()
    write_sealed(path, tree)
    assert read_record(record.directory) == record and record.execution == {}


def test_a_failed_shard_loses_nothing_of_the_others(tmp_path: Path) -> None:
    (tmp_path / "log.fail").touch()
    with pytest.raises(UserError, match="told to fail: shard 3"):
        bring_up(tmp_path)
    assert read_record(next((tmp_path / "work" / "squares").iterdir())) is None
    (tmp_path / "log.fail").unlink()
    done_before = len(list((tmp_path / "work").rglob("done/*.json")))
    assert 0 < done_before < 6
    (tmp_path / "log").write_text("")
    bring_up(tmp_path)
    assert len(calls(tmp_path)) == 6 - done_before


def tree(record: artifact.Record) -> dict[str, str]:
    """Every published file and its hash, left-overs of killed workers not counted."""
    return {entry.path: entry.sha256 for done in record.completions() for entry in done.files.values()}


def test_killed_at_any_moment_then_resumed_gives_the_same_bytes(tmp_path: Path) -> None:
    undisturbed = bring_up(tmp_path / "a") if (tmp_path / "a").mkdir() is None else None
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "log.slow").touch()
    script = (
        f"from pathlib import Path; from tests.core.test_stage import bring_up; bring_up(Path({str(tmp_path / 'b')!r}))"
    )
    guarded = f"if __name__ == '__main__':\n    {script}"
    (tmp_path / "killme.py").write_text(guarded)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    done = set()
    for delay in (1.0, 1.6, 2.2):
        process = subprocess.Popen([sys.executable, tmp_path / "killme.py"], start_new_session=True, env=environment)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        now = {path.name for path in (tmp_path / "b" / "work").rglob("done/0*.json")}
        assert done <= now, "a published shard was lost"
        done = now
    (tmp_path / "b" / "log.slow").unlink()
    resumed = bring_up(tmp_path / "b")
    assert undisturbed is not None
    assert tree(resumed) == tree(undisturbed)
    assert resumed.content == undisturbed.content
    assert not (resumed.directory / "tmp").exists()


def test_the_first_finisher_wins(tmp_path: Path) -> None:
    for factor in (1, 2):
        scratch = tmp_path / f"scratch{factor}"
        scratch.mkdir()
        write_rows(scratch / "t.parquet", SCHEMA, [{"number": factor, "text": b""}])
        completion = publish(tmp_path, 0, scratch, {"documents": factor}, 0.0)
        assert completion.counters == {"documents": 1}
    assert read_table(InputFile(tmp_path / completion.files["t"].path))["number"].to_pylist() == [1]


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "folder"])
def test_damage_is_noticed_and_named(tmp_path: Path, damage: str) -> None:
    record = bring_up(tmp_path)
    victim = record.file("squares", 2)
    assert victim is not None
    if damage == "flip":
        data = bytearray(victim.path.read_bytes())
        data[len(data) // 2] ^= 1
        victim.path.write_bytes(data)
    elif damage == "truncate":
        victim.path.write_bytes(victim.path.read_bytes()[:-20])
    elif damage == "delete":
        victim.path.unlink()
    else:
        victim = record.file("folder", 2)
        assert victim is not None
        (victim.path / "note.txt").write_text("something else")
    with pytest.raises(IntegrityError, match=victim.path.name):
        victim.verified()
    if damage in ("truncate", "delete"):
        with pytest.raises(IntegrityError, match=victim.path.name):
            bring_up(tmp_path)


def test_page_checksums_catch_a_flipped_byte_without_the_hash(tmp_path: Path) -> None:
    record = bring_up(tmp_path)
    victim = record.files("squares")[0].path
    offset = pq.read_metadata(victim).row_group(0).column(1).data_page_offset + 40
    data = bytearray(victim.read_bytes())
    data[offset] ^= 0xFF
    victim.write_bytes(data)
    with pytest.raises(IntegrityError, match=victim.name):
        read_table(InputFile(victim))


def test_an_edited_record_is_refused(tmp_path: Path) -> None:
    record = bring_up(tmp_path)
    path = record.directory / "record.json"
    path.write_text(path.read_text().replace(record.content, "0" * 64))
    with pytest.raises(IntegrityError, match=r"record\.json"):
        read_record(record.directory)


def test_a_dead_worker_is_reported_and_the_run_resumes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="worker process was killed"):
        list(LocalExecutor(2).map(_die_on_three, [1, 2, 3, 4]))


def _die_on_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_what_a_worker_prints_is_no_result_of_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    list(LocalExecutor(1).map(print, ["what a library has to say"]))
    found = capfd.readouterr()
    assert found.out == ""
    assert "what a library has to say" in found.err


def test_rows_must_have_exactly_the_schemas_columns(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row has columns"):
        write_rows(tmp_path / "t.parquet", SCHEMA, [{"number": 1}])


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = [{"number": n, "text": b"ab" * n} for n in range(5000)]
    for name in ("a", "b"):
        write_rows(tmp_path / f"{name}.parquet", SCHEMA, rows)
    assert content_hash(tmp_path / "a.parquet") == content_hash(tmp_path / "b.parquet")
    assert pq.read_metadata(tmp_path / "a.parquet").row_group(0).num_rows == 2048


def test_no_stage_means_a_clear_word(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no output yet"):
        current_record(tmp_path, "ingest")
