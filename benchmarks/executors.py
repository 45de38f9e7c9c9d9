"""Scoring by the Ray executor against the local one, on the same cores and without faults.

    python -m benchmarks.executors --documents 1200 --repeats 3

Both score the demo corpus, repeated with a number in front so that no two documents are the same, with the demo's proxy
and as many workers as there are cores, in turns; Ray is started once, as one cluster of this machine. A side's speed
is tokens a second between its first published shard and its last: workers have started and loaded the proxy by then.
Start-up, everything before the first shard, stands beside it, and so does Ray's own start.

Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.config import Manifest, load
from pipeline.core.executor import Executor, LocalExecutor
from pipeline.core.hardware import cores
from pipeline.core.ray_executor import RayExecutor
from stages.ingest import ingest
from stages.score import score

BAR = 0.95
ROOT = Path(__file__).parent.parent


class Watched:
    """An executor, and when each of its results came."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.begin = 0.0
        self.came: list[tuple[float, int]] = []

    @property
    def devices(self) -> Sequence[str]:
        return self.executor.devices

    def map(self, function: Callable[[Any], Any], items: Sequence[Any], *, accelerated: bool = False) -> Iterator[Any]:
        self.begin = time.monotonic()
        self.came = []
        for done in self.executor.map(function, items, accelerated=accelerated):
            self.came.append((time.monotonic(), done.counters["tokens"]))
            yield done

    def speed(self) -> tuple[float, float]:
        """Tokens a second from the first shard on, and seconds before it."""
        first = self.came[0][0]
        return sum(count for _, count in self.came[1:]) / (self.came[-1][0] - first), first - self.begin


def corpus(path: Path, count: int) -> None:
    """The demo's problems again and again, numbered."""
    import gzip

    lines = gzip.decompress((ROOT / "demo" / "corpus.jsonl.gz").read_bytes()).splitlines()
    with path.open("w") as out:
        for n in range(count):
            rows = [json.loads(lines[(n * 16 + i) % len(lines)]) for i in range(16)]
            solution = "\n".join(f"{row['problem']} {row['solution']}" for row in rows)
            out.write(json.dumps({"problem": f"Sheet {n}", "solution": solution, "split": "train"}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1200)
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
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
    ratio = statistics.median(a / b for a, b in zip(speeds["ray"], speeds["local"], strict=True))
    found = {
        "tokens": record.counters["tokens"],
        "shards": len(record.completions),
        "workers": cores(),
        "tokens_per_second": {name: round(statistics.median(values)) for name, values in speeds.items()},
        "seconds_before_first_shard": {name: round(statistics.median(values), 1) for name, values in starts.items()},
        "seconds_to_start_ray": round(started, 1),
        "ray_over_local": round(ratio, 3),
        "same_bytes": len(contents) == 1,
        "bars": {"ray_over_local": BAR},
        "holds": ratio >= BAR and len(contents) == 1,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
