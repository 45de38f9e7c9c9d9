"""Auditing beside a running `rpt data`, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from commands.inspect.audit import audit
from commands.maintenance.verify import verify
from pipeline.core.workspace import states
from tests.stages.test_shared_name import VERSIONS, Two, built, documents, two

__all__ = ["built", "two"]


def report(two: Two) -> dict[str, Any]:
    """All figures. Of equal outputs of a stage before, the lineage names the latest."""
    figures: dict[str, Any] = json.loads(audit(two.a, work=two.work).with_name("audit.json").read_text())
    del figures["lineage"]
    return figures


def test_an_audit_beside_a_running_data_shows_what_was_whole_before(two: Two, tmp_path: Path, repository: Path) -> None:
    """`rpt data` with another seed is stopped after each shard that it publishes, looked at, and let go on."""
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(two.a.model_dump(mode="json", exclude_none=True)))
    command = [sys.executable, "-m", "commands.cli", "data", "a.yaml", "--work", str(two.work), "--workers", "1"]
    shown = report(two)
    seen, looks = set(two.work.glob("*/*/*/done/*.json")), 0
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--set", "corpus.seed=1"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        while process.poll() is None:
            published = set(two.work.glob("*/*/*/done/*.json"))
            if published <= seen:
                time.sleep(0.01)
                continue
            os.killpg(process.pid, signal.SIGSTOP)
            seen, looks = seen | published, looks + 1
            assert documents(two, two.a) == 40 and report(two) == shown
            assert verify(two.a, work=two.work)["damage"] == []
            assert {state.state for state in states(two.a, two.work / "toy", VERSIONS)} == {"up to date"}
            os.killpg(process.pid, signal.SIGCONT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0 and looks > 0, (tmp_path / "log").read_text()
    corpus = two.a.corpus.model_copy(update={"seed": 1})
    assert documents(two, two.a.model_copy(update={"corpus": corpus})) == documents(two, two.a) == 40
