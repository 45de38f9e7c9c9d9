"""Measure `rpt data` from source to shards as a corpus of short documents grows: processor time by stage, and memory.

    python -m benchmarks.corpus --folder FOLDER                             # 100,000, a million, ten million documents
    python -m benchmarks.corpus --folder FOLDER --documents 100000 1000000  # ten million take 10 GB of FOLDER

Documents have about 100 bytes, of words that follow Zipf's law; 3 % are copies of others. They lie in JSON-lines files
of 50,000, and become shards of 20,000, at each size. The proxy is made from the corpus: counts of pairs of tokens,
whose tables a larger corpus hardly enlarges. With longer n-grams they outgrow the caches (`python -m benchmarks.count`
measures that).

Killed, the same command goes on: `rpt data` with the shards that are missing, and the measurement with what was
measured before. What an attempt had begun and not finished is then counted twice; `runs` says how many there were. A
finished size is not done again.

    worker_s        processor seconds of all workers
    driver_s        those of the command itself: what it does before a stage counts for the stage, its start for `read`
    worker_bytes    the most that a worker held in memory that no file backs, looked at ten times a second
    driver_bytes    the same of the command itself

Growth is the ratio of the time per document (workers and driver) between two sizes, per decade. A start of workers that
takes as long at each size makes it small; `marginal_growth` is without that: the ratio of what a further document
costs, where there are three sizes. The exponent is that of time between the least and the greatest size. The hours of
10¹² tokens on 100 workers follow from what a further document costs between the two greatest sizes, which rises with
`marginal_growth` if that is above 1. A stage that is one shard at the greatest size uses one worker.

Linux only. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from benchmarks.corpus_texts import write_corpus
from benchmarks.stage_costs import TICKS, Meter, follow

BARS = {"memory_bytes": 1.5 * 2**30, "growth": 1.1}
SHARD_DOCUMENTS = 20_000
TOKENS, WORKERS = 1e12, 100
"""What the time of each stage is extrapolated to."""
TICK = 1 / TICKS
"""Least processor time that is told apart, in seconds."""


def write_manifest(path: Path, near_duplicates: bool) -> None:
    """Write the manifest. All passes over the whole corpus are at work, but for near-duplicates."""
    manifest = {
        "name": "corpus",
        "corpus": {
            "source": str(path.parent / "source"),
            "near_duplicates": {} if near_duplicates else None,
            "validation": {"fraction": 0.01},
            "shard_documents": SHARD_DOCUMENTS,
        },
        "proxy": {"count": {"order": 2, "vocab_size": 4096, "sample_bytes": 4_000_000}},
        "score": {"min_context_tokens": 1},
        "select": {"where": "entropy > 1.0", "max_per_document": 2, "top_fraction": 0.5},
        "materialize": {"policy_tokenizer": "proxy"},
    }
    path.write_text(yaml.safe_dump(manifest))


_libc = ctypes.CDLL(None)


def _die_with_parent() -> None:
    _libc.prctl(1, signal.SIGKILL)


def run(folder: Path, workers: int) -> dict[str, Any]:
    """Run `rpt data`, or go on with it; return what it reports, with the cost of each stage."""
    command = [sys.executable, "-m", "commands.cli", "data", str(folder / "manifest.yaml"), "--json", "--accept"]
    command += ["--work", str(folder / "work"), "--workers", str(workers)]
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    meter, before = Meter.at(folder / "meter.json"), resource.getrusage(resource.RUSAGE_CHILDREN)
    with (folder / "report.json").open("w") as report:
        process = subprocess.Popen(
            command, env=offline, stdout=report, stderr=subprocess.PIPE, text=True, preexec_fn=_die_with_parent
        )
        assert process.stderr is not None
        meter.begin(process.pid)
        last = follow(process.stderr, meter)
        process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    meter.end(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, process.returncode == 0)
    if process.returncode:
        raise SystemExit("".join(last))
    stages = {
        name: {key: round(value, 2) for key, value in asdict(cost).items()} | {"shards": meter.shards[name]}
        for name, cost in meter.stages.items()
    }
    return {"reported": json.loads((folder / "report.json").read_text()), "stages": stages, "runs": meter.runs}


def measured(folder: Path, documents: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of a size, and remove its files."""
    if (folder / "result.json").exists():
        kept: dict[str, Any] = json.loads((folder / "result.json").read_text())
        return kept
    load = os.getloadavg()[0]
    write_corpus(folder / "source", documents)
    write_manifest(folder / "manifest.yaml", options.near_duplicates)
    found = run(folder, options.workers)
    counters = {name: stage["counters"] for name, stage in found["reported"]["stages"].items()}
    if counters["ingest"]["records"] != documents:
        raise SystemExit(f"{counters['ingest']['records']:,} records instead of {documents:,}")
    size = {
        "documents": documents,
        "source_bytes": sum(path.stat().st_size for path in (folder / "source").iterdir()),
        "tokens": counters["score"]["tokens"],
        "sites": found["reported"]["shards"]["sites"],
        "dropped_copies": counters["ingest"]["dropped.duplicate"],
        "workers": options.workers,
        "runs": found["runs"],
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "stages": found["stages"],
    }
    (folder / "result.new").write_text(json.dumps(size))
    (folder / "result.new").rename(folder / "result.json")
    if not options.keep:
        for name in ("source", "work"):
            shutil.rmtree(folder / name)
    return size


# ------------------------------------------------------------------------------------------------------ the figures


def seconds(size: dict[str, Any], stage: str) -> float:
    """Return the processor seconds of a stage, of all processes."""
    cost = size["stages"][stage]
    return float(cost["worker_s"] + cost["driver_s"])


def growths(sizes: Sequence[dict[str, Any]], stage: str) -> list[float]:
    """Return the ratios of the time per document between one size and the next, per decade.

    Example:
        >>> of = lambda documents, s: {"documents": documents, "stages": {"read": {"worker_s": s, "driver_s": 0}}}
        >>> growths([of(100, 1), of(1000, 11), of(100_000, 4400)], "read")
        [1.1, 2.0]
    """
    found = []
    for small, large in itertools.pairwise(sizes):
        times_larger = large["documents"] / small["documents"]
        ratio = seconds(large, stage) / max(seconds(small, stage), TICK) / times_larger
        found.append(round(ratio ** (1 / math.log10(times_larger)), 3))
    return found


def further(small: dict[str, Any], large: dict[str, Any], stage: str, who: str) -> float:
    """Return what a further document between two sizes costs, in processor seconds of the workers or the driver."""
    before, after = (size["stages"][stage][f"{who}_s"] for size in (small, large))
    return float(max(0.0, after - before) / (large["documents"] - small["documents"]))


def marginal_growth(sizes: Sequence[dict[str, Any]], stage: str) -> float | None:
    """Return the ratio of what a further document costs between the last three sizes, per decade; None with fewer."""
    if len(sizes) < 3:
        return None
    a, b, c = sizes[-3:]
    early, late = (sum(further(*pair, stage, who) for who in ("worker", "driver")) for pair in ((a, b), (b, c)))
    if not early:
        return None
    return float(round((late / early) ** (1 / math.log10(c["documents"] / b["documents"])), 3))


def hours(sizes: Sequence[dict[str, Any]], stage: str) -> float:
    """Return the hours that a stage takes for `TOKENS` on `WORKERS`."""
    *before, last = sizes
    nothing = {"documents": 0, "stages": {stage: {"worker_s": 0.0, "driver_s": 0.0}}}
    worker_s, driver_s = (further(before[-1] if before else nothing, last, stage, who) for who in ("worker", "driver"))
    at_once = WORKERS if last["stages"][stage]["shards"] > 1 else 1
    times_larger = TOKENS / last["tokens"]
    grown = max(marginal_growth(sizes, stage) or 1.0, 1.0) ** math.log10(times_larger)
    return float(round((worker_s / at_once + driver_s) * last["documents"] * times_larger * grown / 3600, 1))


def judged(sizes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of all sizes, what follows from them, and whether the bars hold."""
    first, last = sizes[0], sizes[-1]
    names, decades = list(last["stages"]), math.log10(last["documents"] / first["documents"])
    grown = {name: growths(sizes, name) for name in names}
    exponents = {
        name: round(math.log10(max(seconds(last, name), TICK) / max(seconds(first, name), TICK)) / decades, 3)
        for name in names
        if decades
    }
    most = {
        who: max(cost[f"{who}_bytes"] for size in sizes for cost in size["stages"].values())
        for who in ("worker", "driver")
    }
    ratios = [ratio for values in grown.values() for ratio in values]
    return {
        "sizes": sizes,
        "growth": grown,
        "marginal_growth": {name: marginal_growth(sizes, name) for name in names},
        "exponents": exponents,
        "hours_at_1e12_tokens_on_100_workers": {name: hours(sizes, name) for name in names},
        "memory_bytes": most,
        "bars": BARS,
        "holds": {
            "worker_memory": most["worker"] <= BARS["memory_bytes"],
            "driver_memory": most["driver"] <= BARS["memory_bytes"],
            "growth": max(ratios) <= BARS["growth"] if ratios else None,
        },
    }


def show(size: dict[str, Any]) -> None:
    """Print the figures of one size."""
    documents = size["documents"]
    print(f"\n{documents:,} documents, {size['tokens']:,} tokens, {size['sites']:,} sites, load {size['load']}")
    print(f"{'stage':<20}{'shards':>8}{'s/million':>12}{'of driver':>12}{'worker MiB':>12}{'driver MiB':>12}")
    for name, cost in size["stages"].items():
        each = [1e6 * s / documents for s in (seconds(size, name), cost["driver_s"])]
        memory = [cost[f"{who}_bytes"] >> 20 for who in ("worker", "driver")]
        columns = [f"{second:>12.1f}" for second in each] + [f"{mebibytes:>12,}" for mebibytes in memory]
        print(f"{name:<20}{cost['shards']:>8,}", *columns, sep="", flush=True)


def show_growth(found: dict[str, Any]) -> None:
    """Print the growth of every stage."""
    print(f"\n{'stage':<20}growth per decade, from size to size (bar {BARS['growth']}); of a further document")
    for name, ratios in found["growth"].items():
        print(f"{name:<20}{', '.join(map(str, ratios))}; {found['marginal_growth'][name]}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--folder", type=Path, required=True, help="where corpora, work and results go")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--near-duplicates", action="store_true", help="also look for near-duplicates")
    parser.add_argument("--keep", action="store_true", help="keep corpora and work of sizes that are finished")
    options = parser.parse_args()
    sizes = []
    for documents in sorted(set(options.documents)):
        name = f"{documents}{'-near' if options.near_duplicates else ''}"
        sizes.append(measured(options.folder.absolute() / name, documents, options))
        show(sizes[-1])
    found = judged(sizes)
    show_growth(found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
