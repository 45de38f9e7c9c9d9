"""The wheel works outside the repository: built, installed into an environment of its own, and run there."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from pipeline.config import resources

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what is committed and not yet committed, without the network and outside the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    wanted = ("pipeline/", "stages/", "commands/", "demo/", "data_manifests/", "recipes/", "deepspeed_configs/")
    for name in files:
        if (name.startswith(wanted) or "/" not in name) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(ROOT / name, source / name) if _same_disk(source) else (source / name).write_bytes(
                (ROOT / name).read_bytes()
            )
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", out]
    subprocess.run([*map(str, build), str(source)], check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def _same_disk(folder: Path) -> bool:
    return folder.stat().st_dev == ROOT.stat().st_dev


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin/` of an environment with the wheel, which sees this one's other packages."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True, with_pip=False)
    site = next(folder.glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    others = Path(sysconfig.get_path("purelib"))
    (site / "others.pth").write_text(f"{others}\n")
    return folder / "bin"


def test_everything_that_is_no_code_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    listed = [
        "git",
        "ls-files",
        "pipeline",
        "stages",
        "commands",
        "demo",
        "data_manifests",
        "recipes",
        "deepspeed_configs",
    ]
    committed = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {name for name in committed if (ROOT / name).exists() and not name.endswith(".md")} <= inside


def test_rpt_data_by_name_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    """The demo's manifest, proxy and policy are the packaged ones; its corpus is cut to 60 problems."""
    lines = gzip.decompress((resources.ROOT / "demo" / "corpus.jsonl.gz").read_bytes()).splitlines(keepends=True)
    (tmp_path / "some.jsonl").write_bytes(b"".join([*lines[:40], *lines[-20:]]))
    run = "import sys; from commands.cli import main; main()"
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}

    def rpt(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(installed / "python"), "-c", run, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    where = (
        "import pipeline.config.resources as p, pipeline.grpo.policy.deepspeed_config as t; "
        "print(p.ROOT, *t.CONFIGS.glob('*.json'))"
    )
    command = [str(installed / "python"), "-c", where]
    root = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert root.startswith(str(installed.parent)) and "zero3.json" in root
    done = rpt("data", "demo", "--source", "some.jsonl", "--workers", "1", "--set", "corpus.near_duplicates=null")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("work/demo/materialize/*/train-*.parquet"))
    audited = rpt("audit", "demo", "--set", "corpus.near_duplicates=null")
    assert audited.returncode == 0, audited.stderr
    assert rpt("train", "demos").stderr.startswith("error: recipe not found: demos")


@pytest.mark.parametrize(("name", "known"), [("demo", True), ("omnimath", True), ("nothing", False)])
def test_a_name_is_found_wherever_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, known: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (resources.find(Path(name), "data_manifests") is not None) == known
    assert resources.find(tmp_path / name, "data_manifests") is None
