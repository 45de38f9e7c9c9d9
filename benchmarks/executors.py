"""Compare the Ray executor with the local one: scoring on the same cores, without faults.

    python -m benchmarks.executors              # on two idle cores 12 minutes: 8 turns of more than a minute each

Both score the demo corpus, repeated with a number in front so that no two documents are the same, with the demo's
proxy and as many workers as there are cores, in pairs of turns whose order changes (local, Ray, Ray, local, …); Ray is
started once, as one cluster of this machine. A side's speed is tokens per second between its first published shard and
its last: workers have started and loaded the proxy by then. Start-up, everything before the first shard, stands beside
it, and so does Ray's own start.

The ratio is the geometric mean of the pairs' ratios, with its 95 % interval (Student's t). The bar holds if the ratio
is above it; `told_apart` says whether the interval leaves it out, so whether the turns were long and calm enough.

Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.loading import load
from pipeline.config.manifest import Manifest
from pipeline.core.executor import Executor, LocalExecutor
from pipeline.core.hardware import cores
from pipeline.core.ray_executor import RayExecutor
from stages.ingest import ingest
from stages.score import score

BAR = 0.95
STUDENT_T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 8: 2.36, 10: 2.26}
"""Quantiles of Student's t for the 95 % interval of a mean, by number of values."""

ROOT = Path(__file__).parent.parent


class Watched:
    """An executor that records when each of its results arrives."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.begin = 0.0
        self.came: list[tuple[float, int]] = []

    @property
    def devices(self) -> Sequence[str]:
        """The devices of the executor inside."""
        return self.executor.devices

    def map(self, function: Callable[[Any], Any], items: Sequence[Any], **how: Any) -> Iterator[Any]:
        """Yield the results and record when each of them arrives."""
        self.begin = time.monotonic()
        self.came = []
        for done in self.executor.map(function, items, **how):
            self.came.append((time.monotonic(), done.counters["tokens"]))
            yield done

    def speed(self) -> tuple[float, float]:
        """Return tokens per second from the first shard on, and the seconds before it."""
        first = self.came[0][0]
        return sum(count for _, count in self.came[1:]) / (self.came[-1][0] - first), first - self.begin


def corpus(path: Path, count: int) -> None:
    """Write the demo's problems repeatedly, each with its number in front."""
    import gzip

    lines = gzip.decompress((ROOT / "demo" / "corpus.jsonl.gz").read_bytes()).splitlines()
    with path.open("w") as out:
        for n in range(count):
            rows = [json.loads(lines[(n * 16 + i) % len(lines)]) for i in range(16)]
            solution = "\n".join(f"{row['problem']} {row['solution']}" for row in rows)
            out.write(json.dumps({"problem": f"Sheet {n}", "solution": solution, "split": "train"}) + "\n")


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Return the geometric mean of the ratios, and the ends of its 95 % interval."""
    logs = [math.log(ratio) for ratio in ratios]
    mean, half = statistics.mean(logs), STUDENT_T[len(logs)] * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=4200)
    parser.add_argument("--shards", type=int, default=60)
    parser.add_argument("--repeats", type=int, choices=tuple(STUDENT_T), default=4, help="pairs of turns")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        corpus(folder / "corpus.jsonl", arguments.documents)
        overrides = [
            "corpus.near_duplicates=null",
            "corpus.validation={documents: 0}",
            f"corpus.shard_documents={-(-arguments.documents // arguments.shards)}",
        ]
        manifest = load(Manifest, ROOT / "data_manifests" / "demo.yaml", overrides)
        local = LocalExecutor(cores())
        documents = ingest(manifest, source=str(folder / "corpus.jsonl"), work=folder, executor=local)
        begin = time.monotonic()
        ray = RayExecutor(folder, workers=cores())
        list(ray.map(abs, [1]))
        started = time.monotonic() - begin
        sides = {"local": Watched(local), "ray": Watched(ray)}
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        starts: dict[str, list[float]] = {name: [] for name in sides}
        contents = set()
        for repeat in range(arguments.repeats):
            for name in sorted(sides, reverse=bool(repeat % 2)):
                record = score(manifest, documents, work=folder / f"{name}-{repeat}", executor=sides[name])
                contents.add(record.content)
                speed, start = sides[name].speed()
                speeds[name].append(speed)
                starts[name].append(start)
                print(f"{name}: {speed:,.0f} tokens/s, {start:.1f} s before the first shard", file=sys.stderr)
        ray.close()
    ratios = [a / b for a, b in zip(speeds["ray"], speeds["local"], strict=True)]
    ratio, low, high = interval(ratios)
    found = {
        "tokens": record.counters["tokens"],
        "shards": len(record.shards),
        "workers": cores(),
        "tokens_per_second": {name: round(statistics.median(values)) for name, values in speeds.items()},
        "seconds_before_first_shard": {name: round(statistics.median(values), 1) for name, values in starts.items()},
        "seconds_to_start_ray": round(started, 1),
        "ray_over_local": round(ratio, 3),
        "interval": [round(low, 3), round(high, 3)],
        "pairs": [round(each, 3) for each in ratios],
        "told_apart": not low <= BAR <= high,
        "same_bytes": len(contents) == 1,
        "bars": {"ray_over_local": BAR},
        "holds": ratio >= BAR and len(contents) == 1,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
