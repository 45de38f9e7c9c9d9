"""A killed scoring goes on within its shard: the same bytes, and nothing is computed twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.core.artifact import Record
from pipeline.core.parts import ABOUT, FOLDER
from pipeline.core.sealed import read_sealed
from pipeline.core.workspace import Output
from tests.scoring.models import qwen, save
from tests.stages.scoring_worker import DOCUMENTS, score_in_parts

ROOT = Path(__file__).parent.parent.parent


def hashes(record: Record) -> dict[str, str]:
    return {name: entry.sha256 for done in record.completions() for name, entry in done.files.items()}


def test_killed_at_random_moments_within_a_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, work = save(tmp_path / "model", qwen(300)), tmp_path / "killed"
    undisturbed = score_in_parts(tmp_path / "undisturbed", model)
    rng, before = random.Random(0), published(work)
    command = [sys.executable, "-m", "tests.stages.scoring_worker", str(work), str(model)]
    for _ in range(3):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
        more = len(before) + rng.randrange(1, 12)
        while process.poll() is None and len(published(work)) < more:
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        said = process.communicate()[1]
        assert before.items() <= published(work).items(), "a part was made again or lost"
        assert not before or f"goes on after {documents_in(before)} of {DOCUMENTS} documents" in said
        before = published(work)
    (folder,) = (work / "score").glob("[!.]*/")
    left = Output("score", folder, None, (), current=False, inputs={}).leftovers(now=time.time() + 1e6)
    assert folder / "parts" not in left, "`rpt clean` keeps the parts of what is not done"

    capsys.readouterr()
    reached = documents_in(before)
    resumed = score_in_parts(work, model)
    assert 0 < reached < DOCUMENTS
    assert f"shard 0 goes on after {reached} of {DOCUMENTS} documents" in capsys.readouterr().err
    assert hashes(resumed) == hashes(undisturbed)
    assert resumed.counters == undisturbed.counters
    names = {entry.path for entry in next(resumed.completions()).files.values()}
    assert {path.name for path in resumed.directory.iterdir()} == {"record.json", "done", *names}


def published(work: Path) -> dict[str, int]:
    """The parts there are, by name, with the time of their last file: a part that is made again has another."""
    found = (work / "score").glob(f"[!.]*/{FOLDER}/00000/0*/{ABOUT}")
    return {str(path): path.stat().st_mtime_ns for path in found}


def documents_in(parts: dict[str, int]) -> int:
    """Return the documents in published parts, which the last part knows."""
    return int(read_sealed(Path(max(parts)))["stop"])
