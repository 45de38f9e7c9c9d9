"""Shards by way of the Hub: pushed, pulled, and loaded by `datasets`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.hub.products import SMALL, data, rpt, shards
from tests.hub.server import Hub

pytestmark = pytest.mark.slow


def test_shards_that_are_pushed_can_be_pulled_and_loaded(stocked: Hub, tmp_path: Path) -> None:
    done = data(tmp_path, stocked.endpoint, "omnimath", "--set", "corpus.validation={documents: 10}")
    assert done.returncode == 0, done.stderr
    sets = [p for key in [*SMALL, "corpus.validation={documents: 10}"] for p in ("--set", key)]
    push = ("push", "omnimath", "hf://datasets/owner/shards", *sets)
    refused = rpt(tmp_path, stocked.endpoint, *push)
    assert refused.returncode == 2 and "hf auth login" in refused.stderr, refused.stderr
    done = rpt(tmp_path, stocked.endpoint, *push, HF_TOKEN=stocked.token)
    assert done.returncode == 0, done.stderr
    pushed = stocked.repositories["datasets/owner/shards"].files
    assert {"README.md", "croissant.json", "manifest.yaml"} <= pushed.keys()

    other = tmp_path / "other"
    other.mkdir()
    refused = rpt(other, stocked.endpoint, "pull", "hf://datasets/owner/shards")
    assert refused.returncode == 2 and "private" in refused.stderr
    (table,) = (path for path in pushed if path.startswith("data/train-"))
    stocked.cut[table] = 100
    broken = rpt(other, stocked.endpoint, "pull", "hf://datasets/owner/shards", HF_TOKEN=stocked.token)
    assert broken.returncode == 2 and "run the same command again" in broken.stderr, broken.stderr
    assert not shards(other, "omnimath")
    stocked.cut.clear()
    done = rpt(other, stocked.endpoint, "pull", "hf://datasets/owner/shards", HF_TOKEN=stocked.token)
    assert done.returncode == 0, done.stderr
    assert shards(other, "omnimath") == shards(tmp_path, "omnimath")
    done = rpt(tmp_path, stocked.endpoint, *push, HF_TOKEN=stocked.token)  # again: the same files
    assert done.returncode == 0, done.stderr

    pytest.importorskip("datasets")  # it needs pandas
    script = "import datasets; n = datasets.load_dataset('owner/shards', split='train').num_rows; "
    script += "s = datasets.load_dataset('owner/shards', split='train', streaming=True); print(n, sum(1 for _ in s))"
    environment = os.environ | {
        "HF_HOME": str(other / "home"),
        "HF_ENDPOINT": stocked.endpoint,
        "HF_TOKEN": stocked.token,
    }
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | environment, timeout=120
    )
    files = (tmp_path / "work" / "omnimath" / "materialize").glob("*/train-*.parquet")
    count = sum(pq.read_metadata(file).num_rows for file in files)
    assert loaded.stdout.split() == [str(count), str(count)], loaded.stderr[-3000:]
    assert not stocked.leaked
