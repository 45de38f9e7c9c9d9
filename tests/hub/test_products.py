"""Shipped manifests, whole, against a Hub on this machine: cold, offline, and after a cut."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests.hub.products import MANIFESTS, data, rpt, shards
from tests.hub.server import Hub
from tests.hub.test_errors import NOWHERE
from tests.toys import problems

HELD_OUT = ("--set", "corpus.validation={documents: 10}")

pytestmark = pytest.mark.slow


def texts_of(work: Path) -> list[str]:
    return [
        text for file in work.glob("ingest/*/documents-*.parquet") for text in pq.read_table(file)["text"].to_pylist()
    ]


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_a_shipped_manifest_cold_offline_and_after_a_cut(stocked: Hub, tmp_path: Path, manifest: str) -> None:
    """The same shards, byte for byte: from a Hub at first, then without it, and on another machine after a cut."""
    cold, other = tmp_path / "cold", tmp_path / "other"
    more = HELD_OUT
    for machine in (cold, other):
        machine.mkdir()
    if manifest == "text-folder":
        more = _texts(tmp_path / "texts")
    done = data(cold, stocked.endpoint, manifest, *more)
    assert done.returncode == 0, done.stderr
    made, texts = shards(cold, manifest), texts_of(cold / "work" / manifest)
    assert made and texts and not stocked.leaked
    assert not any(held in text for text in texts for held in ("held", "考试")), "no question of a test split"

    before = stocked.requests.total()
    (cold / "work").rename(cold / "before")
    done = data(cold, NOWHERE, manifest, *more, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert shards(cold, manifest) == made and stocked.requests.total() == before, "from the cache alone"

    stocked.cut[MANIFESTS[manifest]] = 100
    done = data(other, stocked.endpoint, manifest, *more)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "the Hub cannot be reached, or the connection broke" in done.stderr
    assert "run the same command again" in done.stderr and "Retrying" not in done.stderr
    assert not shards(other, manifest)
    stocked.cut.clear()
    done = data(other, stocked.endpoint, manifest, *more)
    assert done.returncode == 0, done.stderr
    assert shards(other, manifest) == made, "a run that was cut makes the shards of one that was not"
    names = {"gsm8k": "/test-", "cmath": "cmath_test"}
    if manifest in names:
        fetched = [path for path in stocked.requests if "/resolve/" in path]
        assert not any(names[manifest] in path for path in fetched), "nor downloads one"


def _texts(folder: Path) -> tuple[str, ...]:
    """Write a folder of text, and return the options with which a small proxy is fitted to it."""
    folder.mkdir()
    (folder / "a.txt").write_text("\n\n".join(row["problem"] * 2 for row in problems(60)))
    fit = "proxy.train={folds: 2, vocab_size: 300, hidden_size: 32, layers: 1, heads: 2, context: 64, max_steps: 2}"
    sets = [fit, "score.window=64", "score.overlap=16", "corpus.document_bytes=200"]
    return ("--source", str(folder), *(part for key in sets for part in ("--set", key)))


def test_datasets_and_streams_of_it_come_from_the_hub(stocked: Hub, tmp_path: Path) -> None:
    """The same rows by `corpus.dataset`, from the cache and from afar; only the split that is read is fetched."""
    (tmp_path / "m.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "m",
                "corpus": {
                    "dataset": {"path": "openai/gsm8k", "name": "main", "split": "train"},
                    "text": "{question}\n{answer}",
                    "validation": {"documents": 5},
                },
                "proxy": {"model": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"},
                "materialize": {"policy_tokenizer": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"},
            }
        )
    )
    texts = {}
    for streaming in ("false", "true"):
        more = ["--set", f"corpus.dataset.streaming={streaming}", "--work", streaming, "--workers", "1"]
        done = rpt(tmp_path, stocked.endpoint, "ingest", "m.yaml", *more)
        assert done.returncode == 0, done.stderr
        assert "leaves out 3 files" in done.stderr
        (table,) = (tmp_path / streaming / "m" / "ingest").glob("*/documents-*.parquet")
        found = pq.read_table(table)
        texts[streaming] = sorted(found["text"].to_pylist())
        assert set(found["source_file"].to_pylist()) == {"main/train/main/train-00000-of-00001.parquet"}
    assert texts["false"] == texts["true"] and len(texts["true"]) == 60
    assert not any("/test-" in path and "/resolve/" in path for path in stocked.requests)
