"""The documentation: it builds, and every block of code in it is run, or checked as far as a table says.

Blocks of bash and Python are run, page by page in their order, outside the repository, in a folder where the commands
of "First five minutes" were run before. What is not run stands in `NOT_RUN`, with the reason and who runs it; its
options are held against the command's own. YAML is read by the models.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
import typer.main
import yaml

from commands.cli import app
from pipeline.config.base import Config
from pipeline.config.manifest import Manifest
from pipeline.config.recipe import Recipe
from pipeline.config.study import StudyConfig
from pipeline.core.artifact import current_record
from pipeline.core.parquet import read_table
from tests.toys import problems

ROOT = Path(__file__).parent.parent.parent
PAGES = {path.name: path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
FIRST = "index.md"
BLOCK = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"bash", "python", "yaml", ""}
"""Without a language: what a command prints."""

NOT_RUN = {
    # how a command begins → why it is not run here, and who runs it
    r"make (setup|check|lint|test|docs|vllm-cpu)": "what runs these tests, and installs for them: .ci/run",
    r"(\w+=\S+ )?make test": "this",
    r".*(omnimath|SOURCE=)": "takes the hub, or somebody's corpus; tests/stages/test_ingest.py on real ones",
    r"rpt \w+ recipes/(smollm2|qwen3)": "downloads a model; tests/demo/test_configs.py reads the recipes",
    r"rpt select cmath": "takes the hub; tests/stages/test_certificate.py, on toys",
    r"rpt plan": "tests/commands/test_plan.py",
    r"make study|rpt study": "up to an hour; tests/stages/test_study.py, on toys",
    r"rpt worth": "hours; tests/stages/test_worth.py, on toys",
    r"rpt train .*(--ranks|--run|--deepspeed)": "several ranks, controls: tests/stages/test_train.py, tests/grpo",
    r"rpt (ntp|sft|finetune) ": "tests/stages/test_baselines.py, on toys",
    r"rpt (warmup|train .*--policy)": "tests/stages/test_warmup.py, on toys",
    r"make browse|rpt (browse|board)|rpt train .*--browse": "serves until it is stopped: tests/browser",
    r"tensorboard": "serves until it is stopped",
    r"\.venv-vllm/|.*--vllm-server": "an environment of its own: tests/grpo/rollout/test_vllm.py",
    r"(deepspeed|ray|python -m torch\.distributed\.run) ": "several machines: tests/core/test_ray_executor.py",
    r"pip install": "the network",
    r"rpt zeroshot": "an environment of its own: tests/evaluation/test_zeroshot.py",
}
SHORTER = {
    # how a command begins → what is added to it here
    r"rpt (train|evaluate) (recipes/)?demo": "--set budget.steps=1 --set rollout.sites_per_step=4 "
    "--set rollout.group_size=2 --set rollout.max_new_tokens=8 --set evaluate.progress_sites=8 --set evaluate.sites=20 "
    "--set budget.stop.probe_sites=null",
    r"rpt (data (data_manifests/)?demo|select|trace|verify data_manifests) ?": "--source some.jsonl",
    r"rpt data letters": "--workers 1",
}


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of a page's code blocks."""
    return BLOCK.findall(PAGES[page].read_text(encoding="utf-8"))


def commands(text: str) -> Iterator[str]:
    """The commands of a block of bash, one a line."""
    for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines():
        for command in line.split(" && "):
            if command.strip() and not command.startswith("#"):
                yield command.strip()


def found(table: dict[str, str], command: str) -> list[str]:
    """What a table says of commands that begin so."""
    return [said for begin, said in table.items() if re.match(begin, re.sub(r"\s+", " ", command))]


ALL = [
    (page, command)
    for page in PAGES
    for language, text in blocks(page)
    for command in commands(text)
    if language == "bash"
]


def test_every_block_is_of_a_kind_that_is_checked_and_the_tables_have_nothing_else() -> None:
    for page in PAGES:
        fences = re.findall(r"^```", PAGES[page].read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(blocks(page)), f"{page}: a fence that no block begins or ends with"
        assert {language for language, _ in blocks(page)} <= LANGUAGES, page
    for begin in (*NOT_RUN, *SHORTER):
        assert any(found({begin: ""}, command) for _, command in ALL), f"nothing begins with {begin}"


# ---------------------------------------------------------------------------------------------- what is not run


@pytest.mark.parametrize(("page", "command"), [(page, c) for page, c in ALL if found(NOT_RUN, c)])
def test_what_is_not_run_exists_with_its_options(page: str, command: str) -> None:
    words = [Path(word).name if ".venv" in word else word for word in shlex.split(command, comments=True)]
    while "=" in words[0]:
        words = words[1:]
    if words[0] == "make":
        for expanded in expand(command):
            check_rpt(shlex.split(expanded))
    elif words[0] == "rpt":
        check_rpt(words)
    elif words[0] == "pip":
        (extra,) = re.findall(r"\[(\w+)\]", command)
        assert extra in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    elif "stages.train" in words:
        at = words.index("stages.train")
        check_options(words[:at])
        assert [Path(word).suffix for word in words[at + 1 :]] == [".json"], "the specification alone"
    else:
        check_options(words)


def expand(command: str) -> list[str]:
    """The commands of rpt that a call of make runs."""
    line = command.replace("make", f"make --no-print-directory --dry-run --directory '{ROOT}'", 1)
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [line.removeprefix(".venv/bin/") for line in done.stdout.splitlines() if line.startswith(".venv/bin/rpt")]


def check_rpt(words: list[str]) -> None:
    group = typer.main.get_command(app)
    assert hasattr(group, "commands") and words[1] in group.commands, words
    group.commands[words[1]].make_context(words[1], ["demo" if word == "…" else word for word in words[2:]])


def check_options(words: list[str]) -> None:
    """Against what the program says of itself, if it is installed."""
    name = words[: {"python": 3, "ray": 2}.get(words[0], 1)]
    known = options_of(*name)
    given = {word.partition("=")[0] for word in words if word.startswith("--") and word != "--"}
    assert known is None or given <= known, words


@lru_cache
def options_of(*name: str) -> set[str] | None:
    program = Path(sys.executable).parent / name[0]
    if not program.exists() or (name[0] == "python" and importlib.util.find_spec(name[2].split(".")[0]) is None):
        return None
    done = subprocess.run([program, *name[1:], "--help"], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(re.findall(r"--[\w-]+", done.stdout))


def test_the_examples_of_the_commands_help_exist_with_their_options() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    examples = [c for _, text in BLOCK.findall(generate.commands()) for c in commands(text) if c.startswith("rpt ")]
    assert len(examples) > 40
    for example in examples:
        words = shlex.split(example)
        check_rpt(words[: words.index(">")] if ">" in words else words)


@pytest.mark.parametrize("file", ["cluster/data.sbatch", "cluster/train.sbatch", "cluster/skypilot.yaml"])
def test_what_the_clusters_scripts_call_exists_with_its_options(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    called = [re.sub(r"\$\w+", "8", c) for c in commands(text) if re.match(r"rpt |.*stages\.train", c)]
    assert called
    for words in map(shlex.split, called):
        if words[0] == "rpt":
            check_rpt(words)
        else:
            at, module = words.index("python"), words.index("stages.train")
            check_options(words[at:module])
            assert [Path(word).suffix for word in words[module + 1 :]] == [".json"], "the specification alone"


# ------------------------------------------------------------------------------------------------------ models


@pytest.mark.parametrize("page", PAGES)
def test_yaml_is_read_by_the_models(page: str) -> None:
    for language, text in blocks(page):
        if language == "yaml":
            fragment, told = yaml.safe_load(text), []
            for kind, folder in ((Manifest, "data_manifests"), (Recipe, "recipes"), (StudyConfig, "recipes")):
                name = "study-demo" if kind is StudyConfig else "demo"
                whole = yaml.safe_load((ROOT / folder / f"{name}.yaml").read_text())
                told += [complaint(kind, whole | fragment), complaint(kind, joined(whole, fragment))]
            assert None in told, f"{text}\n{told}"


def joined(whole: dict, fragment: dict) -> dict:
    """`whole` with the fragment's keys, those one level below too."""
    return whole | {
        key: {**whole.get(key, {}), **value} if isinstance(value, dict) else value for key, value in fragment.items()
    }


def complaint(kind: type[Config], tree: dict) -> str | None:
    try:
        kind.model_validate(tree)
    except ValueError as error:
        return str(error)
    return None


# --------------------------------------------------------------------------------------------------- what is run


class Reader:
    """Somebody who follows the pages, in a folder that is not the repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MPLBACKEND": "Agg",
        }
        self.seen: set[str] = set()
        self.told = ""
        self.current: dict[Path, str] = {}

    def follow(self, page: str) -> list[str]:
        """Run the page's blocks; what they print on standard error."""
        told = []
        for language, text in blocks(page):
            if language == "python":
                told.append(self.run([sys.executable, "-c", text]))
            for command in commands(text) if language == "bash" else ():
                if not found(NOT_RUN, command):
                    told += [self.shell(c) for c in (expand(command) if command.startswith("make ") else [command])]
        return told

    def shell(self, command: str) -> str:
        command = command.partition("  #")[0].strip()
        command = " ".join([command, *found(SHORTER, command)])
        if command in self.seen:
            return ""
        self.seen.add(command)
        return self.run(["bash", "-c", self.filled_in(command)])

    def filled_in(self, command: str) -> str:
        """What stands for a name of the reader's own."""
        if "SITE_ID" not in command and "FINGERPRINT" not in command:
            return command
        file = current_record(self.folder / "work" / "demo", "materialize").files("train")[0]
        site = read_table(file)["site_id"][0].as_py()
        return re.sub(r"work/\S+/FINGERPRINT/\S+\.SHA\.parquet", str(file.path), command.replace("SITE_ID", site))

    def run(self, command: list[str]) -> str:
        for path, name in self.current.items():  # some commands choose other positions
            path.write_text(name)
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
        return done.stderr


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """After the first five minutes; with the files that "Your own corpus" speaks of."""
    reader = Reader(tmp_path_factory.mktemp("reader"))
    lines = gzip.decompress((ROOT / "demo" / "corpus.jsonl.gz").read_bytes()).splitlines(keepends=True)
    (reader.folder / "some.jsonl").write_bytes(b"".join([*lines[:400], *lines[-100:]]))
    reader.told = "".join(reader.follow(FIRST))
    reader.current = {path: path.read_text() for path in reader.folder.glob("work/demo/*/current")}
    (reader.folder / "letters").mkdir()
    letters = "\n".join(json.dumps({"body": row["problem"] + " " + row["solution"]}) for row in problems(200))
    (reader.folder / "letters" / "all.jsonl.gz").write_bytes(gzip.compress(letters.encode()))
    manifest = blocks("own-corpus.md")[0][1].replace("path/or/hub-id", str(ROOT / "demo" / "policy"))
    (reader.folder / "letters.yaml").write_text(manifest)
    return reader


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page != FIRST])
def test_a_page_can_be_followed(reader: Reader, page: str) -> None:
    reader.follow(page)


@pytest.mark.slow
def test_the_first_five_minutes_say_nothing_that_is_not_ours(reader: Reader) -> None:
    """No chatter of libraries on standard error: every line is of a stage, or of a step of training."""
    stages = r"audit|read|near|assign|ingest|score|select|certificate\w*|materialize|train|evaluate"
    ours = rf"({stages}|direct \w+|reasoning \w+|step \d+/\d+|next:|certificate:) "
    assert not [line for line in reader.told.splitlines() if line and not re.match(ours, line)], reader.told


@pytest.mark.slow
def test_the_notebook_runs(reader: Reader) -> None:
    cells = json.loads((ROOT / "docs" / "entropy.ipynb").read_text())["cells"]
    reader.run([sys.executable, "-c", "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")])


@pytest.mark.slow
def test_the_site_builds_with_warnings_as_errors(tmp_path: Path) -> None:
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "reference" / "index.html").read_text()
    assert "max_quarantine_fraction" in reference and "dynamic_sampling_from" in reference
