"""A corpus for which `rpt data` runs every pass over the whole corpus, and what such a run published."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import yaml

from pipeline.core.artifact import content_hash
from tests.corpus.corpora import jsonl
from tests.stages.test_matches import corpus

ROOT = Path(__file__).parents[2]
SMALL, ORDINARY = "tests.stages.data_in_small_parts", "commands.cli"
"""Programs: `rpt` with tiny parts in memory, and as it is."""
DEDUPLICATION = ("near", "assign", "ingest")
SELECTION = ("select_candidates", "select_verdicts", "select")


def write_manifest(folder: Path) -> Path:
    """Two sources with exact and near-duplicates, an evaluation set that overlaps, and all rules over the corpus."""
    big, small = [row for seed in range(4) for row in corpus(seed)], corpus(4)
    copies = random.Random(0).sample(big, 60)
    evaluation = [{"text": " ".join(row["text"].split()[20:50])} for row in big[3::97]]
    manifest = {
        "name": "passes",
        "corpus": {
            "sources": [
                {"name": "big", "source": str(jsonl(folder / "big.jsonl", [*big, *copies])), "text": "{text}"},
                {"name": "small", "source": str(jsonl(folder / "small.jsonl", small)), "text": "<{text}>"},
            ],
            "validation": {"documents": 30},
            "near_duplicates": {"within_training": True},
            "decontaminate": [{"source": str(jsonl(folder / "evaluation.jsonl", evaluation))}],
            "shard_documents": 60,
        },
        "proxy": {"count": {"order": 3, "vocab_size": 400}},
        "select": {
            "where": "entropy > 0.5",
            "thin": {"most": 3, "suffix_tokens": 2},
            "top_fraction": 0.9,
            "strata": {"by": "token_class", "sites": 4000},
            "mixture": {"weights": {"big": 3, "small": 1}},
            "max_sites": 3000,
        },
        "materialize": {"policy_tokenizer": "proxy"},
    }
    (folder / "passes.yaml").write_text(yaml.safe_dump(manifest))
    return folder / "passes.yaml"


def command(program: str, manifest: Path, work: Path, *how: str) -> list[str]:
    return [sys.executable, "-m", program, "data", str(manifest), "--work", str(work), "--accept", *how]


def data(program: str, manifest: Path, work: Path, *how: str) -> str:
    """Run `rpt data` to its end; returns what it logged."""
    done = subprocess.run(command(program, manifest, work, *how), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def published(work: Path) -> dict[str, str]:
    """Every file of all stages with the hash of its bytes; completions and records without the seconds they took.

    Names that begin with a dot are not published: killed processes leave them, and `rpt clean` removes them.
    """
    files = (path for path in sorted((work / "passes").glob("*/*/**/*")) if path.is_file())
    return {_name(work, path): _content(path) for path in files if not path.name.startswith(".")}


def _name(work: Path, path: Path) -> str:
    """The name of a file; a list of shards has its own hash in it, which covers the seconds."""
    return re.sub(r"/done/shards\.[0-9a-f]+\.parquet$", "/done/shards.parquet", str(path.relative_to(work)))


def _content(path: Path) -> str:
    if path.parent.name == "done" and path.suffix == ".parquet":
        listed = pl.read_parquet(path)
        return str(listed.drop("seconds").rows())
    if path.name != "record.json" and path.parent.name != "done":
        return content_hash(path)
    tree = json.loads(path.read_text())
    for of_all in ("sha256", "shard_list", "seconds"):  # the seal, which covers the seconds, and what they go into
        tree.pop(of_all, None)
    tree.get("summary", {}).pop("seconds", None)
    return json.dumps(tree, sort_keys=True)


def tables(work: Path, stages: tuple[str, ...]) -> dict[str, str]:
    """The tables of some stages with the hashes of their bytes, whatever the folder that is named by the inputs."""
    return {
        f"{stage}/{path.name}": content_hash(path)
        for stage in stages
        for path in sorted((work / "passes" / stage).glob("*/*.parquet"))
    }
