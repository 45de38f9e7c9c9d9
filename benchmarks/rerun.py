"""Measure what `rpt data` reads of a large source when only `select.where` has changed, and when nothing has.

    python -m benchmarks.rerun [--megabytes 2000] [--folder FOLDER]

The source is one file of JSON lines, of whose documents about a hundred stay (`corpus.sample`), so that it takes most
of the disk: 1.5 times its size is needed in FOLDER, and freed afterwards. Three runs follow: the first, one with
another rule, and that one again.

Whether any process opened the source in a run is told by inotify: if none did, nothing was read. Otherwise the pages
of the source that came back to the system's page cache are counted, from which they were dropped before. So every way
of reading counts, also what the system read ahead, but reading twice counts once, and pages that the system took back
meanwhile are missing. Linux only, and no file system in memory. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

BARS = {"share_of_source": 0.01, "up_to_date_s": 3.0}
KEPT = 100
"""Documents that stay, about."""
AN_HOUR = 3600 * 10**9


def write_source(path: Path, size: int) -> int:
    """Write documents of about 4 kB, half of each drawn from a few paragraphs; return their number."""
    rng, written, documents = random.Random(0), 0, 0
    words = [f"{a}{b}{c}{d}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lnrst" for d in ("", "a", "ing")]
    paragraphs = [" ".join(rng.choices(words, k=60)) for _ in range(200)]
    with path.open("wb") as file:
        while written < size:
            text = f"No. {documents}. " + " ".join(rng.choices(words, k=60) + rng.choices(paragraphs, k=11))
            written += file.write(json.dumps({"text": text}).encode() + b"\n")
            documents += 1
    times = path.stat()
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns - AN_HOUR))  # a file that just changed is not remembered
    return documents


def drop_pages(path: Path) -> None:
    """Drop a file's pages from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def cached(path: Path) -> int:
    """Return the bytes of a file that are in the page cache, in whole pages."""
    pages = np.memmap(path, np.uint8, "r")
    states = np.zeros(-(-len(pages) // mmap.PAGESIZE), np.uint8)
    failed = ctypes.CDLL(None, use_errno=True).mincore(
        ctypes.c_void_p(pages.ctypes.data), ctypes.c_size_t(len(pages)), ctypes.c_void_p(states.ctypes.data)
    )
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return int(np.count_nonzero(states & 1)) * mmap.PAGESIZE


class Watch:
    """Tells whether any process has opened a file since."""

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK)
        if self._descriptor < 0 or libc.inotify_add_watch(self._descriptor, os.fsencode(path), _OPENED) < 0:
            raise OSError(ctypes.get_errno(), "inotify")

    def opened(self) -> bool:
        """Return whether it was opened, and end the watch."""
        try:
            return bool(os.read(self._descriptor, 1 << 16))
        except BlockingIOError:
            return False
        finally:
            os.close(self._descriptor)


_OPENED = 0x20  # IN_OPEN


def check_meter(path: Path) -> None:
    """Stop unless opening is noticed here, and pages can be dropped and are counted once they are read."""
    drop_pages(path)
    before, calm, watch = cached(path), Watch(path).opened(), Watch(path)
    with path.open("rb") as file:
        file.read(mmap.PAGESIZE)
    if before or calm or not watch.opened() or not cached(path):
        raise SystemExit(f"reading cannot be measured in {path.parent}: name another --folder")


def run(folder: Path, source: Path, where: str) -> dict[str, Any]:
    """Run `rpt data` with a rule; return its seconds, the bytes it read of the source, and which stages it ran."""
    command = [sys.executable, "-m", "commands.cli", "data", str(folder / "rerun.yaml"), "--work", str(folder / "work")]
    drop_pages(source)
    watch = Watch(source)
    start = time.monotonic()
    done = subprocess.run([*command, "--accept", "--set", f"select.where={where}"], capture_output=True, text=True)
    seconds = time.monotonic() - start
    read = cached(source) if watch.opened() else 0
    if done.returncode:
        raise SystemExit(done.stderr)
    lines = [line.split() for line in done.stderr.splitlines()]
    stages = [line[0] for line in lines if line[1:3] == ["done", "in"]]
    return {"where": where, "seconds": round(seconds, 2), "read_of_source": read, "stages": stages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=2000)
    parser.add_argument("--folder", type=Path, help="where the source and the work go; a temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        source = folder / "source.jsonl"
        documents = write_source(source, round(options.megabytes * 1e6))
        manifest = {
            "name": "rerun",
            "corpus": {
                "source": str(source),
                "text": "{text}",
                "sample": min(1.0, KEPT / documents),
                "near_duplicates": None,
                "validation": {"documents": 20},
            },
            "proxy": {"count": {"order": 3}},
            "materialize": {"policy_tokenizer": "proxy"},
        }
        (folder / "rerun.yaml").write_text(yaml.safe_dump(manifest))
        check_meter(source)
        rules = {"first": "entropy > 1.0", "another_rule": "entropy > 1.5", "up_to_date": "entropy > 1.5"}
        found = {}
        for about, where in rules.items():
            found[about] = run(folder, source, where)
            print(json.dumps({about: found[about]}), flush=True)
        size = source.stat().st_size
        other, same = found["another_rule"], found["up_to_date"]
        holds = {
            "first_is_noticed": found["first"]["read_of_source"] > 0,
            "share_of_source": other["read_of_source"] <= BARS["share_of_source"] * size,
            "only_what_changed": set(other["stages"]).isdisjoint({"read", "near", "assign", "ingest", "score"}),
            "up_to_date": same["stages"] == [] and same["seconds"] <= BARS["up_to_date_s"],
        }
    print(json.dumps({"documents": documents, "source_bytes": size, "runs": found, "bars": BARS, "holds": holds}))


if __name__ == "__main__":
    main()
