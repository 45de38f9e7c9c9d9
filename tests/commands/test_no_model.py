"""No model at hand: the proxy is fitted on the corpus, and its tokenizer is the policy's, too."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands.groups.data import run_data
from commands.inspect.show import show
from commands.inspect.trace import trace
from commands.plan.estimate import plan
from pipeline.config.errors import UserError
from pipeline.config.manifest import Manifest
from pipeline.core.parquet import read_table
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.core.workspace import with_policy_tokenizer
from tests.commands.test_plan import TRAIN, corpus
from tests.hub.products import ROOT, rpt
from tests.hub.test_errors import NOWHERE
from tests.stages.published import InProcess
from tests.toys import problems, write_jsonl


@pytest.mark.parametrize("proxy", [{"train": TRAIN}, {"count": {"vocab_size": 300}}], ids=["train", "count"])
def test_the_policys_tokenizer_may_be_that_of_the_proxy_made_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("commands.plan.estimate.TRY_SECONDS", 600.0)
    path = corpus(tmp_path, proxy)
    tree = yaml.safe_load(path.read_text())
    tree["materialize"] = {"policy_tokenizer": "proxy"}
    tree["select"] = {"where": "entropy > 0"}
    path.write_text(yaml.safe_dump(tree))
    manifest, work = Manifest.model_validate(tree), tmp_path / "work"
    with pytest.raises(UserError, match="stage `proxy` has no output yet"):
        with_policy_tokenizer(manifest, work / "toy")
    assert plan(path, workers=1)["sites"]["value"] > 0

    records = run_data(manifest, "materialize", None, work, InProcess())
    fitted = CorpusTokenizer.load(with_policy_tokenizer(manifest, work / "toy").materialize.policy_tokenizer)
    assert records["materialize"].inputs["policy_tokenizer"] == fitted.digest
    counters = records["materialize"].counters
    assert counters["kept.train"] and not counters.get("dropped.not_a_policy_boundary"), "one tokenizer, one boundary"
    site = read_table(records["materialize"].files("train")[0])["site_id"][0].as_py()
    assert show(manifest, site, work=work)["trained"]["continuation"]
    assert trace(manifest, site, work=work)["source"]["agrees"]


@pytest.mark.slow
def test_the_line_of_the_readme_works_without_a_model_and_without_a_network(tmp_path: Path) -> None:
    """As it stands there, on a file that somebody has; then the command that it names as the next one."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in readme if "# no model, no network" in line)
    given = dict(word.split("=", 1) for word in shlex.split(line.partition("#")[0])[2:])
    asked = [{"question": row["problem"], "answer": row["solution"]} for row in problems(300)]
    write_jsonl(tmp_path / given["SOURCE"], asked)
    arguments = [str(ROOT / given["MANIFEST"]), "--source", given["SOURCE"], *shlex.split(given["ARGS"])]
    done = rpt(tmp_path, NOWHERE, "data", *arguments, "--workers", "1")
    assert done.returncode == 0 and "Retrying" not in done.stderr, done.stderr
    assert list((tmp_path / "work" / "gsm8k" / "materialize").glob("*/train-*.parquet"))
    then = re.search(r"^next: rpt (.*?)   \(", done.stderr, re.MULTILINE)
    assert then, done.stderr
    done = rpt(tmp_path, NOWHERE, *shlex.split(then[1]))
    assert done.returncode == 0, done.stderr
