from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from typer.testing import CliRunner

from commands.cli import app
from pipeline.config.errors import IntegrityError, UserError
from pipeline.core.artifact import content_hash
from pipeline.core.sealed import replace_sealed
from pipeline.grpo.policy import distributed
from pipeline.grpo.run.checkpoint import resume, superfluous
from pipeline.grpo.run.run_folder import files_of, latest_checkpoint, must_be_intact, read_state, write_state
from tests.grpo.models import saved as saved_policy

ROOT = Path(__file__).parent.parent.parent.parent


def saved(folder: Path, **state: object) -> Path:
    folder.mkdir(parents=True)
    write_state(folder, {"identity": {"shards": "a"}, "files": {}, **state})
    return folder


def test_what_cannot_be_redistributed_is_refused_before_anything_is_loaded(tmp_path: Path, alone: None) -> None:
    folder = saved(tmp_path / "checkpoints" / "step-000002", step=2, layout={"zero_stage": 2, "ranks": 4})
    with pytest.raises(UserError, match=r"ZeRO-2 resumes on as many ranks as it saved on: 4, not 2.*--ranks 4"):
        resume(None, folder, {"shards": "a"}, {"zero_stage": 2, "ranks": 2})
    with pytest.raises(UserError, match="zero_stage: 2 → 3"):
        resume(None, folder, {"shards": "a"}, {"zero_stage": 3, "ranks": 4})
    with pytest.raises(UserError, match="shards: 'a' → 'b'"):
        resume(None, folder, {"shards": "b"}, {"zero_stage": 2, "ranks": 4})


def test_the_last_and_the_best_stay(tmp_path: Path) -> None:
    accuracies = [None, 0.5, 0.7, None, 0.7, 0.6]
    folders = [saved(tmp_path / f"step-{i}", accuracy=accuracy) for i, accuracy in enumerate(accuracies)]
    assert [folder.name for folder in superfluous(folders, folders[-1], 2)] == ["step-0", "step-1", "step-3"]
    assert superfluous(folders[:2], folders[1], 2) == []


def test_what_latest_names_stays_whatever_lies_behind_it(tmp_path: Path) -> None:
    folders = [saved(tmp_path / f"step-{i}", accuracy=None) for i in range(4)]
    half = tmp_path / "step-5"
    half.mkdir()
    assert superfluous([*folders, half], folders[-1], 1) == [*folders[:-1], half]
    assert superfluous(folders, folders[1], 1) == folders[:1], "whole ones behind the latest are not counted"


# --------------------------------------------------------------------------------- real checkpoints of real engines


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one rank, as a run has it."""
    distributed.prepare_environment()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_policy(tmp_path_factory.mktemp("policy"))


def worker(
    policy: Path, run: Path, *actions: str, code: int = 0, before: Callable[[], None] | None = None
) -> list[str]:
    """What a rank says that saves or resumes; without tracebacks."""
    topology = ROOT / "deepspeed_configs" / "zero3_cpu.json"
    command = [sys.executable, "-m", "tests.grpo.run.checkpoint_worker", policy, topology, run, *actions]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, preexec_fn=before
    )
    assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr
    return [*done.stdout.splitlines(), *(line for line in done.stderr.splitlines() if line.startswith("error: "))]


@pytest.fixture(scope="module")
def run(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that was saved at steps 1 and 2, keeping one, over what a killed one left; and what it then held."""
    run = tmp_path_factory.mktemp("saved")
    (run / "checkpoints" / "step-000003").mkdir(parents=True)
    (run / "checkpoints" / "step-000003" / "zero_pp_rank_0_mp_rank_00_model_states.pt").write_bytes(b"half")
    return run, worker(policy, run, "save:1", "save:2")[-1]


@pytest.fixture
def copy(run: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(run[0], tmp_path / "copy"))


def test_the_checkpoint_just_saved_stays_and_what_was_half_written_goes(run: tuple[Path, str]) -> None:
    latest = latest_checkpoint(run[0])
    assert latest and latest.name == "step-000002" and files_of(latest)
    assert [path.name for path in sorted((run[0] / "checkpoints").glob("step-*"))] == ["step-000002"]


def test_any_changed_byte_of_a_checkpoint_is_an_error_that_names_the_file(
    run: tuple[Path, str], tmp_path: Path, alone: None
) -> None:
    names = [*files_of(run[0] / "checkpoints" / "step-000002"), "state.json", "../latest"]
    assert sum(name.endswith("optim_states.pt") for name in names) == 1
    own, layout = {"shards": "a"}, {"zero_stage": 3, "ranks": 1}
    for name in names:
        size = (run[0] / "checkpoints" / "step-000002" / name).stat().st_size
        for place in (0, size // 2, size - 1):
            copied = Path(shutil.copytree(run[0], tmp_path / f"{name.strip('./')}-{place}"))
            path = copied / "checkpoints" / "step-000002" / name
            flipped = bytearray(path.read_bytes())
            flipped[place] ^= 0x04
            path.write_bytes(bytes(flipped))
            with pytest.raises(IntegrityError) as caught:
                resume(None, latest_checkpoint(copied) or Path(), own, layout)  # None: nothing may be loaded before
            assert Path(caught.value.where).name == path.name, f"{name} at {place}"


def test_missing_and_foreign_files_of_a_checkpoint_are_noticed(copy: Path, alone: None) -> None:
    folder = copy / "checkpoints" / "step-000002"
    state, (first, *_) = read_state(folder), files_of(folder)
    (folder / "zero_pp_rank_1_mp_rank_00_model_states.pt").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"not what was written: .*rank_1"):
        resume(None, folder, {"shards": "a"}, {"zero_stage": 3, "ranks": 1})
    (folder / first).unlink()
    with pytest.raises(IntegrityError, match=f"missing: .*{first}"):
        must_be_intact(folder, [first], state["files"])


def test_verify_reads_the_checkpoints_of_a_run(copy: Path) -> None:
    def verified() -> tuple[int, Any]:
        done = CliRunner().invoke(app, ["verify", str(copy), "--json"])
        return done.exit_code, json.loads(done.stdout)

    replace_sealed(copy / "run.json", {})
    (copy / "checkpoints" / "step-000009").mkdir()  # half written: no damage
    assert verified()[0] == 0 and [row["damaged"] for row in verified()[1]["checkpoints"]] == [0]
    path = next(copy.rglob("*optim_states.pt"))
    path.write_bytes(path.read_bytes()[:-1])
    (copy / "checkpoints" / "latest").write_bytes(b"\xff")
    code, found = verified()
    assert code == IntegrityError.exit_code
    assert {item["where"] for item in found["damage"]} == {str(path), str(copy / "checkpoints" / "latest")}


@pytest.mark.parametrize("saved_on", [1, 2])
def test_a_checkpoint_of_somebody_else_runs_nothing(policy: Path, copy: Path, saved_on: int) -> None:
    """Its hashes are as they should be: who copies a run can write them, too. On other ranks DeepSpeed converts it."""
    folder, marker = copy / "checkpoints" / "step-000002", copy / "marker"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.system, (f"touch {marker}",))

    path = next(folder.glob("*model_states.pt"))
    torch.save(torch.load(path) | {"payload": Payload()}, path)
    state = read_state(folder)
    hashes = {name: content_hash(folder / name) for name in files_of(folder)}
    write_state(folder, state | {"files": hashes, "layout": state["layout"] | {"ranks": saved_on}})
    (error,) = worker(policy, copy, "resume", code=UserError.exit_code)[-1:]
    assert "contains more than weights" in error and not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the payload works where it is let"


def test_a_full_disk_is_said_and_the_last_checkpoint_stays(policy: Path, run: tuple[Path, str], copy: Path) -> None:
    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    said = worker(policy, copy, "resume", "save:3", code=UserError.exit_code, before=small_files_only)
    assert said[0] == "resumed 2" and "the disk is full, the checkpoint was not written" in said[-1]
    assert [path.name for path in sorted((copy / "checkpoints").glob("step-*"))] == ["step-000002"]
    assert worker(policy, copy, "resume") == ["resumed 2", run[1]]
