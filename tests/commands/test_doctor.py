"""`rpt doctor`, and the manners of the command line: JSON, exit codes, completion, Ctrl-C."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from commands.maintenance import doctor
from pipeline.core.artifact import content_hash
from pipeline.core.completion import read_completion
from pipeline.core.workspace import outputs
from tests.toys import byte_level_tokenizer, problems, write_jsonl

ROOT = Path(__file__).parent.parent.parent


def rpt(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "commands.cli", *map(str, arguments)]
    given = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | environment
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=given, check=False)


def test_doctor_tells_what_is_there_as_json(tmp_path: Path) -> None:
    done = rpt("doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    assert found["disk"]["free_bytes"] > 0 and found["devices"]
    assert {feature["feature"] for feature in found["features"]} == {feature.name for feature in doctor.FEATURES}


def test_what_is_missing_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    absent = {"vllm", "polars", "s3fs"}
    there = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: None if name in absent else there(name))
    found = doctor.doctor(tmp_path)
    features = {feature["feature"]: feature for feature in found["features"]}
    assert features["vLLM as sampler"]["hint"] == "pip install 'rpt[vllm]'"
    assert features["sources by s3://"]["hint"] == "pip install s3fs"
    assert features["data"]["missing"] == ["polars"] and not found["ok"]


def test_every_extra_that_doctor_names_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {feature.extra for feature in doctor.FEATURES if feature.extra} <= set(extras)


def test_an_optional_package_that_is_missing_is_one_line(tmp_path: Path) -> None:
    code = "import sys; sys.modules['ray'] = None; from commands.cli import main; main()"
    command = [sys.executable, "-c", code, "data", "demo", "--executor", "ray", "--work", str(tmp_path)]
    given = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=given, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == "error: Ray is not installed (pip install 'rpt[ray]')", done.stderr


def test_completion_knows_the_commands(tmp_path: Path) -> None:
    words = {"COMP_WORDS": "rpt ma", "COMP_CWORD": "1", "_RPT_COMPLETE": "complete_bash"}
    code = "from commands.cli import app; app(prog_name='rpt')"
    given = os.environ | {"PYTHONPATH": str(ROOT)} | words
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=given, check=False)
    assert done.stdout.split() == ["materialize"], done.stderr


def test_help_is_grouped_and_names_the_exit_codes(tmp_path: Path) -> None:
    shown = rpt("--help", cwd=tmp_path).stdout
    assert "Maintenance" in shown and "Corpus → shards" in shown and "130 interrupted" in shown


def test_ctrl_c_leaves_nothing_half_published(tmp_path: Path) -> None:
    """SIGINT to the whole group, as a terminal sends it, while shards are being written."""
    rows = problems(600)
    write_jsonl(tmp_path / "problems.jsonl", rows)
    byte_level_tokenizer(tmp_path / "policy", [row["problem"] for row in rows[:200]])
    tree = {
        "name": "toy",
        "corpus": {
            "source": "problems.jsonl",
            "text": "{problem}\n{solution}",
            "shard_documents": 4,
            "near_duplicates": None,
        },
        "proxy": {"train": {"max_steps": 1}},
        "materialize": {"policy_tokenizer": "policy"},
    }
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "commands.cli", "ingest", "toy.yaml", "--workers", "2"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("work/toy/ingest/*/done/*.json"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert told.strip().splitlines()[-1] == "interrupted: run the same command again to resume", told
    assert "Traceback" not in told, told
    (unfinished,) = [output for output in outputs(tmp_path / "work" / "toy") if output.record is None]
    assert unfinished.stage == "ingest" and 3 <= len(unfinished.done) < 150
    for done in unfinished.done:
        assert read_completion(unfinished.directory, done.shard) == done
        for entry in done.files.values():
            assert content_hash(unfinished.directory / entry.path) == entry.sha256
    assert not list(unfinished.directory.glob("tmp/*/*")), "a scratch folder was left"
    again = rpt("ingest", "toy.yaml", "--workers", "2", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert f", {len(unfinished.done)} already done" in again.stderr, again.stderr


PAGE = """
import pathlib, sys, time
from pipeline.grpo.run.launch import stop_signal
with stop_signal() as stop_is_asked:
    pathlib.Path(f"ready-{time.monotonic_ns()}").touch()
    while not stop_is_asked() or "stubborn" in pathlib.Path(sys.argv[1]).read_text():
        time.sleep(0.01)
pathlib.Path(f"saved-{time.monotonic_ns()}").touch()
"""


@pytest.mark.parametrize(("ranks", "stubborn"), [(1, False), (1, True), (2, False)])
def test_ctrl_c_ends_a_training_as_sigterm_does_and_a_second_one_at_once(
    tmp_path: Path, ranks: int, stubborn: bool
) -> None:
    """SIGINT to the whole group, as a terminal sends it: no rank dies of it with a traceback in the midst of a step."""
    (tmp_path / "page.py").write_text(PAGE)
    name = "stubborn" if stubborn else "obedient"
    code = f"""
import signal
from commands.launch import launch
from pipeline.config.recipe import PolicyConfig, Recipe
from pipeline.grpo.run.spec import RunSpec
spec = RunSpec(recipe=Recipe(name="{name}", policy=PolicyConfig(model="somewhere")), run="run")
signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal; what runs in the background may ignore it
try:
    launch("page", spec, {ranks})
except KeyboardInterrupt:
    raise SystemExit(130)
"""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, start_new_session=True, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("ready-*"))) < ranks:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        if stubborn:
            assert process.stderr is not None and "Ctrl-C again" in process.stderr.readline()
            os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, told
    assert "Traceback" not in told, told
    assert len(list(tmp_path.glob("saved-*"))) == (0 if stubborn else ranks)


def test_what_ends_the_responses_of_a_policy(tmp_path: Path) -> None:
    policy = byte_level_tokenizer(tmp_path / "policy", ["some text"])
    (policy / "generation_config.json").write_text('{"eos_token_id": 7}')
    found = doctor.doctor(tmp_path, str(policy))
    ends = {end["id"]: (end["named_by"], end["taught"]) for end in found["response_ends"]}
    assert ends == {0: (["tokenizer"], True), 7: (["generation configuration"], False)}
    assert len(doctor.tables(found)) == 3
    assert found["thinking"]["mode"] == "tags" and "are tokens" in found["thinking"]["reason"]
    plain = byte_level_tokenizer(tmp_path / "plain", ["some text"], marks=False)
    assert doctor.doctor(tmp_path, str(plain))["thinking"]["mode"] == "free"
