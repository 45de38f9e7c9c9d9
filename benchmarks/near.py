"""Compare the near-duplicate passes of ingest with rensa, at equal recall and precision on planted pairs.

    python -m benchmarks.near --rensa-python ENV/bin/python [--megabytes 20] [--repeats 3]

ENV is an environment with `pip install rensa`; without it rensa is left out and nothing is judged. Texts are drawn,
of 400 words; of one in ten there is a copy in which words were replaced, so that their Jaccard similarity is 0.6 to 1.
A pair of 0.8 and more is to be found, another one is not. Ours are the passes `near` and `assign` as a worker runs
them, with their reading and writing of tables; rensa's side (`near_rensa.py`) has the texts in memory. Seconds are of
processor time on one thread. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS"):
    os.environ[_name] = "1"

import pyarrow as pa

from pipeline.config.corpus import CorpusConfig, NearDuplicatesConfig
from pipeline.core.artifact import InputFile, Shard
from pipeline.core.parquet import parquet_writer, read_table
from pipeline.corpus.documents import CANDIDATES, doc_id
from stages.ingest import run_assign, run_near

BARS = {"of_rensas_time": 1.3}
WORDS, TABLE = 400, 5000
RULE = NearDuplicatesConfig(within_training=True)

Pairs = set[tuple[int, int]]


def corpus(count: int) -> tuple[list[str], Pairs]:
    """Return texts, and the pairs of them that are to be found."""
    rng = random.Random(0)
    vocabulary = [f"{a}{b}{c}{d}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lnrst" for d in ("", "a", "ing")]
    texts, planted = list[list[str]](), Pairs()
    while len(texts) < count:
        texts.append(rng.choices(vocabulary, k=WORDS))
        if len(texts) % 11 == 10:
            copy = list(texts[-1])
            for at in rng.sample(range(WORDS), rng.randint(1, 20)):
                copy[at] = "replaced"
            if jaccard(texts[-1], copy) >= RULE.threshold:
                planted.add((len(texts) - 1, len(texts)))
            texts.append(copy)
    return [" ".join(text) for text in texts], planted


def jaccard(a: list[str], b: list[str]) -> float:
    """The similarity of two texts, plainly."""
    one, two = ({tuple(words[i : i + RULE.words]) for i in range(len(words) - RULE.words + 1)} for words in (a, b))
    return len(one & two) / len(one | two)


def candidates(texts: list[str], folder: Path) -> list[InputFile]:
    """Write the texts in tables, as the pass `read` does."""
    files = []
    for begin in range(0, len(texts), TABLE):
        part = texts[begin : begin + TABLE]
        columns: dict[str, Any] = {
            "doc_id": [doc_id(text) for text in part],
            "text": part,
            "fields": [[]] * len(part),
            "source_file": ["texts.jsonl"] * len(part),
            "source_row": range(begin, begin + len(part)),
            "meta": ["{}"] * len(part),
            "held_out": [False] * len(part),
        }
        files.append(InputFile(folder / f"documents-{begin}.parquet"))
        with parquet_writer(files[-1].path, CANDIDATES) as writer:
            table = pa.table({f.name: pa.array(columns[f.name], f.type) for f in CANDIDATES}, schema=CANDIDATES)
            writer.write_table(table, row_group_size=2048)
    return files


def ours(files: list[InputFile], scratch: Path) -> tuple[Pairs, dict[str, float]]:
    """Run both passes; return the pairs found, and seconds by pass."""
    config = CorpusConfig(source="texts.jsonl", near_duplicates=RULE, validation={"documents": 0})
    start, tables = time.process_time(), dict[str, InputFile]()
    for number, file in enumerate(files):
        out = scratch / f"near-{number}"
        out.mkdir()
        run_near(config, Shard(number, {"documents": file}, {"evaluations": []}), out)
        made = {name: InputFile(out / f"{name}.parquet") for name in ("bands", "overlaps")}
        tables |= {f"{name}-{number:05d}": of for name, of in ({"documents": file} | made).items()}
    signed = time.process_time()
    (scratch / "assign").mkdir()
    run_assign(config, Shard(0, tables, {}), scratch / "assign")
    ended = time.process_time()
    matches = read_table(InputFile(scratch / "assign" / "matches.parquet"))
    rows = zip(matches["source_row"].to_pylist(), matches["matched_row"].to_pylist(), strict=True)
    seconds = {"signatures": signed - start, "pairs": ended - signed, "all": ended - start}
    return {(min(pair), max(pair)) for pair in rows}, seconds


def rensas(python: str, texts: list[str], folder: Path) -> tuple[Pairs, dict[str, float]]:
    """Run the other side in its environment; return the same."""
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    side = [python, str(Path(__file__).with_name("near_rensa.py")), str(path), str(RULE.threshold), str(RULE.words)]
    done = subprocess.run(side, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return {(a, b) for a, b in found["pairs"]}, found["seconds"]


def measured(runs: list[tuple[Pairs, dict[str, float]]], planted: Pairs) -> dict[str, Any]:
    """Medians of the seconds, and how many of the planted pairs were found, and of those found were planted."""
    found = runs[0][0]
    return {
        "seconds": {part: round(statistics.median(s[part] for _, s in runs), 3) for part in runs[0][1]},
        "recall": round(len(found & planted) / len(planted), 4),
        "precision": round(len(found & planted) / max(1, len(found)), 4),
    }


def has_rensa(python: str | None) -> bool:
    """Return whether an environment has rensa, and say so if not."""
    there = python is not None and not subprocess.run([python, "-c", "import rensa"], capture_output=True).returncode
    if not there:
        print("rensa is left out: name an environment that has it with --rensa-python", file=sys.stderr)
    return there


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rensa-python", help="Python of an environment with rensa")
    options = parser.parse_args()
    compared = has_rensa(options.rensa_python)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts, planted = corpus(max(40, round(options.megabytes * 1e6 / (5.2 * WORDS))))
        size = sum(map(len, texts))
        files = candidates(texts, folder)
        (folder / "warm").mkdir()
        ours(candidates(texts[:40], folder / "warm"), folder / "warm")  # imports what it needs
        runs: dict[str, list[tuple[Pairs, dict[str, float]]]] = {"ours": [], "rensa": []}
        for turn in range(options.repeats):
            scratch = folder / str(turn)
            scratch.mkdir()
            runs["ours"].append(ours(files, scratch))
            if compared:
                runs["rensa"].append(rensas(options.rensa_python, texts, scratch))
    found: dict[str, Any] = {side: measured(made, planted) for side, made in runs.items() if made}
    holds: dict[str, bool | None] = {"recall_and_precision": None, "of_rensas_time": None}
    if compared:
        us, them = found["ours"], found["rensa"]
        ratio = us["seconds"]["all"] / them["seconds"]["all"]
        found["ratio"] = round(ratio, 3)
        holds["recall_and_precision"] = all(us[name] >= them[name] for name in ("recall", "precision"))
        holds["of_rensas_time"] = ratio <= BARS["of_rensas_time"]
    about = {"texts": len(texts), "bytes": size, "planted": len(planted)}
    print(json.dumps(about | found | {"bars": BARS, "holds": holds}))


if __name__ == "__main__":
    main()
