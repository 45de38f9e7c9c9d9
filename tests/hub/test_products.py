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
def test_a_shipped_manifest_after_a_cut_and_offline(stocked: Hub, tmp_path: Path, manifest: str) -> None:
    """A download breaks, the same command goes on and ends; then all of it again without a Hub, with equal shards."""
    more = HELD_OUT
    if manifest == "text-folder":
        (tmp_path / "texts").mkdir()
        (tmp_path / "texts" / "a.txt").write_text("\n\n".join(row["problem"] * 2 for row in problems(60)))
        fit = "proxy.train={folds: 2, vocab_size: 300, hidden_size: 32, layers: 1, heads: 2, context: 64, max_steps: 2}"
        more = (
            "--set",
            fit,
            "--set",
            "score.window=64",
            "--set",
            "score.overlap=16",
            "--source",
            "texts",
            "--set",
            "corpus.document_bytes=200",
        )
    stocked.cut[MANIFESTS[manifest]] = 100
    done = data(tmp_path, stocked.endpoint, manifest, *more)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "the Hub cannot be reached, or the connection broke" in done.stderr
    assert "run the same command again" in done.stderr and "Retrying" not in done.stderr
    stocked.cut.clear()
    done = data(tmp_path, stocked.endpoint, manifest, *more)
    assert done.returncode == 0, done.stderr
    made = shards(tmp_path, manifest)
    texts = texts_of(tmp_path / "work" / manifest)
    assert made and texts and not stocked.leaked
    assert not any(held in text for text in texts for held in ("held", "考试")), "no question of a test split"

    before = stocked.requests.total()
    (tmp_path / "work").rename(tmp_path / "before")
    done = data(tmp_path, NOWHERE, manifest, *more, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert shards(tmp_path, manifest) == made and stocked.requests.total() == before, "from the cache alone"
    names = {"gsm8k": "/test-", "cmath": "cmath_test"}
    if manifest in names:
        assert not any(names[manifest] in path and "/resolve/" in path for path in stocked.requests), (
            "nor downloads one"
        )


def test_a_run_that_was_cut_makes_the_shards_of_one_that_was_not(stocked: Hub, tmp_path: Path) -> None:
    for name in ("cold", "cut"):
        (tmp_path / name).mkdir()
    done = data(tmp_path / "cold", stocked.endpoint, "omnimath", *HELD_OUT)
    assert done.returncode == 0, done.stderr
    stocked.cut["model.safetensors"] = 100
    assert data(tmp_path / "cut", stocked.endpoint, "omnimath", *HELD_OUT).returncode == 2
    stocked.cut.clear()
    done = data(tmp_path / "cut", stocked.endpoint, "omnimath", *HELD_OUT)
    assert done.returncode == 0, done.stderr
    assert shards(tmp_path / "cut", "omnimath") == shards(tmp_path / "cold", "omnimath") != {}


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
