"""Measure how memory and processor time grow with a corpus, in the steps that see all of it at once.

    python -m benchmarks.scale [--documents 1000000 4000000] [--candidates 4000000 16000000]
                               [--rows 100000000 1000000000] [--shards 500 5000] [--records 100000 1000000]
                               [--steps assign near …]

Inputs are faked: what each step reads is drawn, not computed from texts, so that ten million documents take minutes.

    assign   tables of candidates with unique texts; `near`: with band keys, of which 3 % are shared by fifty groups
    select   all rules over the corpus, on as many sites, of which 30 % are duplicates of fifty
    order    the rows that a step takes, from an order of so many rows
    reader   the index of so many shards with 4,096 sites each, filtered by one column
    record   the record of so many shards of `select`, as `rpt status` reads it; `files`: with all names and hashes;
             `sealed`: made from the completions

Every measurement runs in a process of its own. Memory is what it adds to the process and the system cannot take back
(anonymous pages; Linux only). The exponent of growth is that of processor time between the least and the greatest size:
1 is linear. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing as mp
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS"):
    os.environ[_name] = "1"

import numpy as np
import pyarrow as pa

from pipeline.config.corpus import CorpusConfig, ValidationConfig
from pipeline.config.selection import SelectConfig
from pipeline.core.artifact import InputFile, Record, Shard, read_record, seal_record
from pipeline.core.completion import Completion, Entry
from pipeline.core.parquet import parquet_writer
from pipeline.core.shard_list import ShardList
from pipeline.corpus.dedup.candidates import mapped
from pipeline.corpus.dedup.near import PERMUTATIONS, band_rows
from pipeline.corpus.dedup.results import BANDS, OVERLAPS
from pipeline.corpus.documents import CANDIDATES
from pipeline.selection.corpus_rules import CANDIDATES as SITES_OF_CORPUS
from pipeline.selection.corpus_rules import decisions
from pipeline.shards.order import sites_of_step
from pipeline.shards.reader import ShardReader
from pipeline.shards.schema import SHARDS
from stages.ingest import run_assign

BARS = {"memory_bytes": 1.5 * 2**30, "exponent": 1 + math.log10(1.1)}
TABLE = 50_000
SITES = 4096


def write(path: Path, table: pa.Table) -> InputFile:
    with parquet_writer(path, table.schema) as writer:
        writer.write_table(table, row_group_size=2048)
    return InputFile(path)


def candidates(rng: np.random.Generator, rows: int, number: int) -> pa.Table:
    """A table of candidates of unique texts."""
    ids = [f"{high:016x}{low:016x}" for high, low in rng.integers(0, 2**63, (rows, 2)).tolist()]
    columns = {
        "doc_id": ids,
        "text": ["one two three"] * rows,
        "fields": [[]] * rows,
        "source_file": [f"part-{number:05d}.jsonl"] * rows,
        "source_row": range(rows),
        "meta": ["{}"] * rows,
        "held_out": [False] * rows,
    }
    return pa.table({f.name: pa.array(columns[f.name], f.type) for f in CANDIDATES}, schema=CANDIDATES)


def band_keys(rng: np.random.Generator, rows: int) -> pa.Table:
    """Band keys of as many documents; 3 % of them share all keys with others."""
    count = PERMUTATIONS // band_rows(0.8)
    keys = rng.integers(0, 2**63, (rows, count)).astype(np.uint64)
    shared = rng.random(rows) < 0.03
    keys[shared] = rng.integers(1, 50, (int(shared.sum()), 1)).astype(np.uint64)
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * count)
    return pa.table([pa.ListArray.from_arrays(offsets, pa.array(keys.ravel()))], schema=BANDS)


def assign(documents: int, folder: Path, near: bool = False) -> Callable[[], object]:
    """Write the tables, and return the pass over them."""
    rng = np.random.default_rng(0)
    files: dict[str, InputFile] = {}
    for number, begin in enumerate(range(0, documents, TABLE)):
        rows = min(TABLE, documents - begin)
        tables = {"documents": candidates(rng, rows, number)}
        if near:
            tables |= {"bands": band_keys(rng, rows), "overlaps": OVERLAPS.empty_table()}
        files |= {
            f"{name}-{number:05d}": write(folder / f"{name}-{number:05d}.parquet", table)
            for name, table in tables.items()
        }
    rule = {"threshold": 0.8} if near else None
    config = CorpusConfig(source="faked", near_duplicates=rule, validation=ValidationConfig(documents=100))
    (folder / "tmp" / "out").mkdir(parents=True)
    return lambda: run_assign(config, Shard(0, files, {}), folder / "tmp" / "out")


def assign_near(documents: int, folder: Path) -> Callable[[], object]:
    return assign(documents, folder, near=True)


def select(sites: int, folder: Path) -> Callable[[], object]:
    """Write the tables, and return the decisions on all of them."""
    rng = np.random.default_rng(0)
    files = []
    for number, begin in enumerate(range(0, sites, TABLE)):
        rows = min(TABLE, sites - begin)
        columns = {
            "key": rng.integers(0, 2**63, rows).astype(np.uint64),
            "entropy": rng.gamma(2, 1, rows).astype(np.float32),
            "twin": np.where(rng.random(rows) < 0.3, rng.integers(0, 50, rows), rng.integers(0, 2**63, rows)),
            "stratum": rng.integers(0, 1000, rows).astype(str),
            "corpus": rng.choice(["a", "b"], rows),
        }
        files.append(write(folder / f"{number:05d}.parquet", pa.table(columns).cast(SITES_OF_CORPUS)))
    rules = {
        "thin": {"most": 1 + sites // 100},
        "top_fraction": 0.9,
        "strata": {"by": "field", "sites": 1 + sites // 1500},
    }
    cap = {"mixture": {"weights": {"a": 1, "b": 1}}, "max_sites": max(2, sites // 4)}
    config = SelectConfig.model_validate(rules | cap)
    (folder / "scratch").mkdir()
    verdicts = mapped(folder / "verdicts", np.uint8, sites)
    return lambda: decisions(config, files, verdicts, folder / "scratch")


def order(rows: int, folder: Path) -> Callable[[], object]:
    """A step in the middle of an epoch."""
    return lambda: sites_of_step(rows, 0, rows // 512, 256)


def reader(shards: int, folder: Path) -> Callable[[], object]:
    """Links to one shard."""
    rng = np.random.default_rng(0)
    blank: dict[str, Any] = {
        "context": b"some text before it",
        "target": b"x",
        "continuation": b"x",
        "token_lengths": [1],
    }
    rows = {field.name: [blank.get(field.name, _blank(field.type))] * SITES for field in SHARDS}
    rows["entropy"] = rng.random(SITES).tolist()
    first = write(folder / "shard.parquet", pa.table(rows, schema=SHARDS)).path
    paths = [folder / f"{number:06d}.parquet" for number in range(shards)]
    for path in paths:
        os.link(first, path)
    return lambda: ShardReader([InputFile(path) for path in paths], "entropy > 0.5")


def completions(shards: int) -> Iterator[Completion]:
    """What so many shards of `select` leave: a file and 27 counters."""
    for shard in range(shards):
        sha256 = hashlib.sha256(b"%d" % shard).hexdigest()
        entry = Entry(f"sites-{shard:05d}.{sha256[:12]}.parquet", 1000 + shard % 97, 50_000 + shard % 9973, sha256)
        counters = {f"dropped.reason_{number}": shard * number % 1009 for number in range(27)}
        yield Completion(shard, {"sites": entry}, counters, shard % 4096 / 1000)


def sealed(shards: int, folder: Path) -> Callable[[], object]:
    """The making of a record, without the reading of completions from disk."""
    directory = folder / "select" / "0123456789ab"

    def make() -> None:
        listed = ShardList.of(completions(shards), directory).save(directory)
        config = SelectConfig().identity()
        record = Record("select", 1, directory.name, config, {}, listed.summary(), listed, directory)
        seal_record(record)

    return make


def record(shards: int, folder: Path) -> Callable[[], object]:
    """A record, opened."""
    sealed(shards, folder)()
    print(json.dumps({path.name: path.stat().st_size for path in folder.rglob("*.*") if path.is_file()}))
    return lambda: read_record(folder / "select" / "0123456789ab").counters  # type: ignore[union-attr]


def files(shards: int, folder: Path) -> Callable[[], object]:
    """A record, and its files, as a stage plans from it."""
    sealed(shards, folder)()
    return lambda: read_record(folder / "select" / "0123456789ab").files("sites")  # type: ignore[union-attr]


def _blank(kind: pa.DataType) -> Any:
    return "a" if pa.types.is_string(kind) else False if pa.types.is_boolean(kind) else 0


STEPS = {
    "assign": assign,
    "near": assign_near,
    "select": select,
    "order": order,
    "reader": reader,
    "record": record,
    "files": files,
    "sealed": sealed,
}


def anonymous() -> int:
    """Bytes of memory of this process that no file backs."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) << 10


def measured(step: str, size: int) -> dict[str, Any]:
    """Processor seconds and added memory of one step, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        run = STEPS[step](size, Path(folder))
        before, peak, ends = anonymous(), [0], threading.Event()

        def watch() -> None:
            while not ends.wait(0.01):
                peak[0] = max(peak[0], anonymous())

        watcher, start = threading.Thread(target=watch), time.process_time()
        watcher.start()
        run()
        seconds = time.process_time() - start
        ends.set()
        watcher.join()
    added = max(0, peak[0] - before)
    return {
        "step": step,
        "size": size,
        "cpu_s": round(seconds, 2),
        "memory_bytes": added,
        "bytes_each": round(added / size, 2),
    }


def exponent(rows: list[dict[str, Any]]) -> float | None:
    """Growth of processor time with size, between the least and the greatest size; None for a single size."""
    first, last = rows[0], rows[-1]
    if first["size"] == last["size"] or not first["cpu_s"]:
        return None
    return round(math.log(last["cpu_s"] / first["cpu_s"]) / math.log(last["size"] / first["size"]), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[1_000_000, 4_000_000])
    parser.add_argument("--candidates", type=int, nargs="+", default=[4_000_000, 16_000_000])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000_000, 1_000_000_000])
    parser.add_argument("--shards", type=int, nargs="+", default=[500, 5000])
    parser.add_argument("--records", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=list(STEPS))
    options = parser.parse_args()
    sizes = {
        "assign": options.documents,
        "near": options.documents,
        "select": options.candidates,
        "order": options.rows,
        "reader": options.shards,
        "record": options.records,
        "files": options.records,
        "sealed": options.records,
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for step in options.steps:
        for size in sorted(sizes[step]):
            with mp.get_context("spawn").Pool(1) as pool:
                row = pool.apply(measured, (step, size))
            found.setdefault(step, []).append(row)
            print(json.dumps(row), flush=True)
    exponents = {step: exponent(rows) for step, rows in found.items()}
    most = max(row["memory_bytes"] for rows in found.values() for row in rows)
    grown = [value for value in exponents.values() if value is not None]
    holds = {
        "memory_bytes": most <= BARS["memory_bytes"],
        "exponent": max(grown) <= BARS["exponent"] if grown else None,
    }
    rows = [row for rows in found.values() for row in rows]
    print(json.dumps({"bars": BARS, "rows": rows, "exponents": exponents, "holds": holds}))


if __name__ == "__main__":
    main()
