"""The command line on real files: the whole of `rpt data`, resume after kills, and what bad input is told."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.toys import byte_level_tokenizer, problems, write_jsonl

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus of 240 records, a policy tokenizer and a manifest that fits a tiny proxy."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = problems(240)
    write_jsonl(folder / "problems.jsonl", rows)
    byte_level_tokenizer(folder / "policy", [row["problem"] + row["solution"] for row in rows])
    manifest = {
        "name": "toy",
        "corpus": {
            "source": str(folder / "problems.jsonl"),
            "text": "{problem}\n{solution}",
            "validation": {"documents": 30},
            "shard_documents": 50,
        },
        "proxy": {"train": {"vocab_size": 300, "hidden_size": 32, "layers": 1, "heads": 2, "max_steps": 8}},
        "select": {
            "where": "entropy > 1.0 AND field = 'solution'",
            "certificate": {"least_tokens": 100_000},  # eight steps teach a proxy nothing
        },
        "materialize": {"policy_tokenizer": str(folder / "policy")},
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(manifest))
    return folder


def rpt(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "commands.cli", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


def published(work: Path) -> dict[str, str]:
    """Relative path → sha256 of everything a complete run published."""
    return {
        str(path.relative_to(work)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(work.rglob("*"))
        if path.is_file() and path.suffix in (".parquet", ".safetensors", ".json") and path.parent.name != "done"
        if path.name != "record.json"
    }


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `rpt data` ran undisturbed."""
    folder = tmp_path_factory.mktemp("finished")
    done = rpt("data", corpus / "toy.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "printed").write_text(done.stdout + done.stderr)
    return folder


def test_data_ends_with_one_readable_funnel_and_the_next_command(finished: Path) -> None:
    printed = (finished / "printed").read_text().splitlines()
    progress = re.compile(" running, |: step ")  # how often these lines come depends on the machine
    lines = [line for line in printed if not progress.search(line)]
    assert len(lines) <= 35, lines
    assert max(map(len, lines)) <= 100 + len(str(finished)), "wider only for the path"
    text = "\n".join(lines)
    assert text.count("records of the source") == 1 and "where: the rule does not keep it" in text
    assert "bytes per site" in text and "quarantined" not in text, "a reason that lost nothing"
    assert [line for line in lines if line.startswith("next:")] == lines[-1:]


def test_a_second_run_is_up_to_date_and_a_changed_rule_runs_only_what_follows(corpus: Path, finished: Path) -> None:
    before = published(finished / "work")
    again = rpt("data", corpus / "toy.yaml", cwd=finished)
    assert again.returncode == 0
    *stages, last = again.stderr.splitlines()
    assert stages and all("up to date" in line for line in stages), again.stderr
    assert last.startswith("next: rpt audit "), "one line, the last, says what to do next"
    changed = rpt("data", corpus / "toy.yaml", "--set", "select.where=entropy > 1.5", cwd=finished)
    assert changed.returncode == 0, changed.stderr
    ran = {line.split()[0] for line in changed.stderr.splitlines() if " done in " in line}
    assert ran == {"select", "materialize"}
    after = published(finished / "work")
    assert before.items() <= after.items(), "an artifact of the earlier rule was changed"


@pytest.mark.slow
def test_killed_at_random_moments_the_shards_are_the_same(corpus: Path, finished: Path, tmp_path: Path) -> None:
    rng = random.Random(7)
    command = [sys.executable, "-m", "commands.cli", "data", str(corpus / "toy.yaml")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for _ in range(4):
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            start_new_session=True,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        time.sleep(rng.uniform(2.0, 14.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = rpt("data", corpus / "toy.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    resumed, undisturbed = published(tmp_path / "work"), published(finished / "work")
    final = {path: digest for path, digest in undisturbed.items() if path in resumed}
    assert {p for p in resumed if "materialize" in p} <= set(undisturbed)
    assert {p: resumed[p] for p in final} == final
    assert any("materialize" in path for path in final)


def test_the_number_of_workers_does_not_change_documents(corpus: Path, finished: Path, tmp_path: Path) -> None:
    done = rpt("ingest", corpus / "toy.yaml", "--workers", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one = published(tmp_path / "work")
    assert one
    assert one.items() <= published(finished / "work").items()


BAD = {
    "missing file": (["--source", "nowhere.jsonl"], "nowhere.jsonl"),
    "wrong sha256": (["--set", f"corpus.sha256={'ab' * 32}"], "ab" * 32),
    "misspelt key": (["--set", "corpus.validaton.documents=3"], "did you mean `validation`?"),
    "absent column": (["--set", 'corpus.text="{probem}"'], "probem"),
    "unknown column in where": (["--set", "select.where=entrpy > 1"], "entropy"),
    "where that is no SQL": (["--set", "select.where=entropy >"], "where"),
    "where that selects nothing": (["--set", "select.where=entropy > 99"], "entropy > 99"),
    "nothing left": (["--set", "corpus.min_document_bytes=100000"], "too_short"),
    "no such tokenizer": (["--set", "materialize.policy_tokenizer=./nowhere"], "nowhere"),
    "no such proxy": (["--set", "proxy={model: ./nowhere}"], "nowhere"),
    "no such manifest": (None, "toi.yaml"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(corpus: Path, finished: Path, tmp_path: Path, case: str) -> None:
    shutil.copytree(finished / "work", tmp_path / "work")
    before = published(tmp_path / "work")
    arguments, word = BAD[case]
    manifest = corpus / ("toy.yaml" if arguments is not None else "toi.yaml")
    done = rpt("data", manifest, *(arguments or []), cwd=tmp_path)
    assert done.returncode in (2, 3), done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and word in errors[0], done.stderr
    assert "Traceback" not in done.stderr
    assert before.items() <= published(tmp_path / "work").items(), "something published was damaged"


def test_a_shard_changed_after_the_fact_is_refused(corpus: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "work", tmp_path / "work")
    victim = next((tmp_path / "work").rglob("scores-00001.*.parquet"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    done = rpt("data", corpus / "toy.yaml", "--set", "select.where=entropy > 1.25", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert victim.name in done.stderr and "Traceback" not in done.stderr


def test_a_file_where_the_work_folder_should_be_is_one_line(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "work").write_text("mine")
    done = rpt("ingest", corpus / "toy.yaml", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: Not a directory: work/toy") and "--work" in last


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_reported_and_damages_nothing(corpus: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", work], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.decode().strip()}")
    try:
        done = rpt("data", corpus / "toy.yaml", cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert "disk is full" in done.stderr and "Traceback" not in done.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", work], check=True)
        assert rpt("data", corpus / "toy.yaml", cwd=tmp_path).returncode == 0
    finally:
        subprocess.run(["umount", work], check=True)


@pytest.mark.parametrize("command", ["", "data", "ingest", "train", "evaluate", "schema"])
def test_help_has_examples_and_needs_nothing_heavy(tmp_path: Path, command: str) -> None:
    done = rpt(*([command] if command else []), "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "Usage" in done.stdout
    if command in ("data", "train", "evaluate", "schema"):
        assert "Example" in done.stdout


def test_the_version_is_that_of_pyproject(tmp_path: Path) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    done = rpt("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"rpt {declared}\n")
