"""Measure the counting proxy: time and memory to count generated tokens and to score some of them, by corpus size.

    python -m benchmarks.count                (1 and 10 million tokens; a few minutes)
    python -m benchmarks.count --millions 1 10 100       (100 million: about 15 GB of disk)

Tokens are drawn from 4,096, each from successors of the two before it that follow Zipf's law, in documents of 200.
Every size runs in a process of its own. Seconds are of processor time on one core. Memory is the greatest anonymous
memory: mapped tables are the system's to drop. Every page of the tables is touched once before documents are scored, as
in a run, which scores all documents; otherwise the first touches would be shared by few tokens. A size is linear if a
token costs at most a tenth more than at the one before.

Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing as mp
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from pipeline.scoring.count_ngrams import count
from pipeline.scoring.count_proxy import score_counted
from pipeline.scoring.count_tables import open_tables

V, LENGTH, ORDER = 4096, 200, 5
SCORED, GROUP = 400_000, 50_000
"""Tokens that are scored, of documents spread over the corpus, and those of a group: about as many as in a run."""
BARS = {"scored_tokens_a_minute": 1_000_000, "times_as_long_a_token": 1.1, "anonymous_mib": 1500}


def documents(number: int, seed: int) -> np.ndarray[Any, Any]:
    """Return documents [number, LENGTH]."""
    rng = np.random.default_rng(seed)
    tokens = np.empty((number, LENGTH), np.int32)
    last = before = np.zeros(number, np.int64)
    for t in range(LENGTH):
        draw = np.minimum(rng.zipf(1.3, number), 400)
        # A few successors depend on two tokens, the others on one.
        context = np.where(draw < 4, last * 4099 + before, last)
        before, last = last, (context * 2_654_435_761 + draw * 40_503) % 4_294_967_291 % V
        tokens[:, t] = last
    return tokens


class Memory(threading.Thread):
    """Watches this process's anonymous memory."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mib = 0
        self.start()

    def run(self) -> None:
        """Look twenty times a second."""
        while True:
            status = Path("/proc/self/status").read_text().split()
            self.mib = max(self.mib, int(status[status.index("RssAnon:") + 1]) // 1024)
            time.sleep(0.05)


def measure(millions: float, folder: str, results: Any) -> None:
    """Count and score a corpus, and put the figures into a queue."""
    work, number = Path(folder), round(millions * 1e6 / LENGTH)
    streams = []
    for begin in range(0, number, 50_000):
        rows = documents(min(50_000, number - begin), begin)
        streams.append(work / f"{begin}.npy")
        np.save(streams[-1], np.pad(rows, ((0, 0), (1, 0)), constant_values=V).ravel())
    for name in ("tables", "scratch"):
        (work / name).mkdir()
    del rows
    memory = Memory()
    begin_count = time.process_time()
    count(streams, V, ORDER, work / "tables", work / "scratch")
    counting, counting_mib = time.process_time() - begin_count, memory.mib
    tables = open_tables(work / "tables")
    rows = np.concatenate([np.load(path).reshape(-1, LENGTH + 1)[:, 1:] for path in streams[:1]])
    some = rows[:: max(1, len(rows) * LENGTH // SCORED)]
    score_counted(tables, list(some[:50]), [True] * 50, 16)
    for order in tables.orders:
        for table in vars(order).values():
            table[::256].sum()
    memory.mib, begin_score = 0, time.process_time()
    nats = sum(
        float(score_counted(tables, list(part), [True] * len(part), 16).nll.sum())
        for part in np.array_split(some, -(-some.size // GROUP))
    )
    scoring = time.process_time() - begin_score
    results.put(
        {
            "millions": millions,
            "count_seconds_a_million": round(counting / millions, 2),
            "count_anonymous_mib": counting_mib,
            "scored_tokens_a_minute": round(60 * some.size / scoring),
            "score_anonymous_mib": memory.mib,
            "table_bytes_a_token": round(
                sum(p.stat().st_size for p in (work / "tables").iterdir()) / millions / 1e6, 1
            ),
            "nats_a_token": round(nats / some.size, 3),
        }
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 10])
    parser.add_argument("--folder", type=Path, help="where temporary files go")
    arguments = parser.parse_args()
    figures = []
    for millions in arguments.millions:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            results = mp.get_context("spawn").SimpleQueue()
            process = mp.get_context("spawn").Process(target=measure, args=(millions, folder, results))
            process.start()
            process.join()
            figures.append(results.get())
            print(figures[-1], flush=True)
    ratios = [
        {
            "millions": [a["millions"], b["millions"]],
            "count": round(b["count_seconds_a_million"] / a["count_seconds_a_million"], 3),
            "score": round(a["scored_tokens_a_minute"] / b["scored_tokens_a_minute"], 3),
        }
        for a, b in itertools.pairwise(figures)
    ]
    holds = {
        "fast": all(f["scored_tokens_a_minute"] >= BARS["scored_tokens_a_minute"] for f in figures),
        "linear": all(max(r["count"], r["score"]) <= BARS["times_as_long_a_token"] for r in ratios),
        "bounded": all(f["count_anonymous_mib"] <= BARS["anonymous_mib"] for f in figures),
    }
    print(json.dumps({"figures": figures, "ratios": ratios, "bars": BARS, "holds": holds}))


if __name__ == "__main__":
    main()
