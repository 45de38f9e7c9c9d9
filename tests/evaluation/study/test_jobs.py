"""Jobs of a study: order, finished jobs are kept, failed jobs are named."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.config.errors import UserError
from pipeline.evaluation.study import jobs as module
from pipeline.evaluation.study.jobs import Commands, Job, run_jobs

SCRIPT = """
import pathlib, sys
out, *needs = map(pathlib.Path, sys.argv[1:])
text = "".join((need / "text").read_text() for need in needs) + out.name.split(".")[0]
if (out.parent / "broken").exists() and out.name.startswith("b"): sys.exit("b is broken")
(out / "text").write_text(text)
with (out.parent / "order").open("a") as order: order.write(out.name.split(".")[0])
"""


@pytest.fixture(autouse=True)
def commands(monkeypatch):
    """Parts are commands of `rpt`; these are a small script instead."""
    monkeypatch.setattr(module, "RPT", (sys.executable, "-c", SCRIPT))


def diamond(setting="1"):
    a = Job("a", ("{out}",))
    b, c = Job("b", ("{out}", "{a}"), (a,), {"setting": setting}), Job("c", ("{out}", "{a}"), (a,))
    return [a, b, c, Job("d", ("{out}", "{b}", "{c}"), (b, c))]


def order(out: Path) -> str:
    return (out / "order").read_text()


@pytest.mark.parametrize("workers", [1, 3])
def test_parts_run_after_what_they_need_and_only_once(tmp_path, workers):
    parts = diamond()
    run_jobs(parts, tmp_path, workers=workers)
    assert order(tmp_path)[0] == "a" and order(tmp_path)[-1] == "d" and len(order(tmp_path)) == 4
    assert (parts[-1].folder(tmp_path) / "text").read_text() == "abacd"
    record = json.loads((parts[-1].folder(tmp_path) / "part.json").read_text())
    assert record["command"] == [str(part.folder(tmp_path)) for part in (parts[3], parts[1], parts[2])]
    run_jobs(diamond(), tmp_path, workers=workers)
    assert len(order(tmp_path)) == 4, "what is done is not done again"


def test_a_changed_setting_runs_what_depends_on_it(tmp_path):
    run_jobs(diamond(), tmp_path, workers=1)
    run_jobs(diamond("2"), tmp_path, workers=1)
    assert sorted(order(tmp_path)) == sorted("abcd" + "bd")


def test_where_things_lie_is_no_setting():
    here, there = (Job("a", ("x",), places=("--work", folder)) for folder in ("here", "there"))
    assert here.fingerprint == there.fingerprint != Job("a", ("y",)).fingerprint


def test_a_failure_is_named_and_mended(tmp_path):
    (tmp_path / "broken").touch()
    with pytest.raises(UserError, match=r"1 jobs failed, the first is b: b is broken.*log\.txt"):
        run_jobs(diamond(), tmp_path, workers=2)
    assert sorted(order(tmp_path)) == ["a", "c"], "what does not need it goes on"
    (tmp_path / "broken").unlink()
    run_jobs(diamond(), tmp_path, workers=2)
    assert sorted(order(tmp_path)) == list("abcd")


STOPPED = """
import sys
from pathlib import Path
from pipeline.evaluation.study import jobs
jobs.RPT = (sys.executable, "-c", sys.argv[2])
jobs.run_jobs([jobs.Job(name, ("{out}",)) for name in "abc"], Path(sys.argv[1]), workers=2)
"""
SAVES = """
import os, pathlib, signal, sys, time
out = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: ((out / "saved").touch(), sys.exit(0)))
(out / "pid").write_text(str(os.getpid()))
time.sleep(60)
"""


def test_sigterm_ends_all_commands_and_none_counts_as_done(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", STOPPED, str(tmp_path), SAVES])
    while len(pids := [file for file in tmp_path.glob("*/pid") if file.read_text()]) < 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    assert len(list(tmp_path.glob("*/saved"))) == 2 and not list(tmp_path.glob("c.*")), "no further job starts"
    assert not list(tmp_path.glob("*/part.json")), "a training that was stopped ends with 0, and is not done"
    for file in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)


def test_without_a_file_output_and_errors_go_where_ours_go(capfd):
    with Commands() as running:
        words = [sys.executable, "-c", "import sys; print('out'); print('errors', file=sys.stderr)"]
        assert running.run(words, None, dict(os.environ)) == 0
    assert tuple(capfd.readouterr()) == ("out\n", "errors\n")
