"""Time every page of `rpt browse` over a synthetic store of 100 million scored positions, and measure its memory.

Builds documents and scores (numpy), selects and indexes them with the stages, serves them in a process of its own, and
requests every page many times, always with other parameters, so that no answer comes from a cache.
An answer that shows estimates is timed as it comes, and `estimated_first` says how long exact counts took to follow.

    python -m benchmarks.browse                                    # 100 M positions: some minutes, about 8 GB of disk
    python -m benchmarks.browse --positions 2000000 --requests 20
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa

from pipeline.config.base import Config
from pipeline.config.manifest import Manifest
from pipeline.core.artifact import Counters, Record, Shard
from pipeline.core.executor import LocalExecutor
from pipeline.core.parquet import parquet_writer
from pipeline.core.stage import Stage, run_stage
from pipeline.corpus.documents import DOCUMENTS
from pipeline.scoring.table import ROW_GROUP, SCORES

DOCUMENTS_A_SHARD, TOKENS, BYTES = 1000, 500, 4
"""Documents of 500 tokens of four bytes: shards as `corpus.shard_documents` makes them."""

BARS = {"page_p95_ms": 300, "slider_p95_ms": 1000, "where_p95_ms": 1000, "memory_mib": 2048}

MANIFEST = Manifest.model_validate(
    {
        "name": "synthetic",
        "corpus": {"source": "numpy"},
        "proxy": {"model": "demo/proxy"},
        "select": {"where": "entropy > 1.0 AND field = 'solution'"},
        "materialize": {"policy_tokenizer": "demo/policy"},
    }
)


def main() -> None:
    """Build, serve, request and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--positions", type=int, default=100_000_000)
    arguments.add_argument("--requests", type=int, default=100, help="of every kind")
    arguments.add_argument("--folder", type=Path, help="where the store is built, and kept")
    arguments.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.serve:
        serve(given.serve)
        return
    folder = given.folder or Path(tempfile.mkdtemp(prefix="rpt-browse-"))
    try:
        built = build(folder / MANIFEST.name, given.positions)
        print(json.dumps(built, indent=1))
        asked = ask_everything(folder / MANIFEST.name, given.requests)
    finally:
        if not given.folder:
            shutil.rmtree(folder)
    figures = {"positions": built["positions"], "build": built, **asked}
    pages = {name: kind["p95_ms"] for name, kind in asked["kinds"].items() if name not in ("slider", "where")}
    measured = {
        "page_p95_ms": max(pages.values()),
        "slider_p95_ms": asked["kinds"]["slider"]["p95_ms"],
        "where_p95_ms": asked["kinds"]["where"]["p95_ms"],
        "memory_mib": asked["peak_rss_mib"],
    }
    holds = {name: measured[name] <= bar for name, bar in BARS.items()}
    print(json.dumps({"figures": figures, "measured": measured, "bars": BARS, "holds": holds}))


# ------------------------------------------------------------------------------------------------- the store


def build(work: Path, positions: int) -> dict[str, Any]:
    """Documents, scores, selection and index under `work`; how long each took, and how much disk."""
    from commands.inspect.browse import open_library
    from stages.score import ScoreStageConfig
    from stages.select import select

    executor = LocalExecutor()
    count = max(1, positions // (DOCUMENTS_A_SHARD * TOKENS))
    seconds: dict[str, float] = {}
    records: dict[str, Record] = {}

    def timed(name: str, make: Callable[[], Any]) -> Any:
        begin = time.monotonic()
        made = make()
        seconds[name] = round(time.monotonic() - begin, 1)
        return made

    plan = [Shard(i, {}, {}) for i in range(count)]
    scored = ScoreStageConfig(score=MANIFEST.score, dtype="float32", tokenizer=None)
    for stage, run, config in (("ingest", make_documents, MANIFEST.corpus), ("score", make_scores, scored)):
        made = (Stage(stage, 1, run), config, plan, {}, work, executor)
        records[stage] = timed(stage, lambda made=made: run_stage(*made))
    timed("select", lambda: select(MANIFEST, records["ingest"], records["score"], work=work, executor=executor))
    timed("index", lambda: open_library(MANIFEST, work=work, executor=executor))
    size = {
        p.name: round(sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) / 1e6)
        for p in work.iterdir()
        if p.is_dir()
    }
    return {
        "positions": count * DOCUMENTS_A_SHARD * TOKENS,
        "documents": count * DOCUMENTS_A_SHARD,
        "seconds": seconds,
        "mb": size,
    }


def vocabulary() -> np.ndarray:
    """[V, 4] bytes: words, numbers, punctuation and LaTeX commands of four letters."""
    rng = np.random.default_rng(0)
    letters = rng.integers(97, 123, (4096, BYTES), dtype=np.uint8)
    letters[:2500, 0] = ord(" ")
    letters[2500:2900] = rng.integers(48, 58, (400, BYTES))
    letters[2900:3100] = np.frombuffer(b"+-=()[]{}^_.,;:!", np.uint8)[rng.integers(0, 16, (200, BYTES))]
    letters[3100:3300, 0] = ord("\\")
    letters[3300:3400] = np.frombuffer(b"\n   ", np.uint8)
    return letters


def token_ids(shard: int) -> np.ndarray:
    """[D, T] of a shard's documents, common tokens more often."""
    uniform = np.random.default_rng([1, shard]).random((DOCUMENTS_A_SHARD, TOKENS))
    return (4096 * uniform**2).astype(np.int32)


def texts(shard: int) -> list[str]:
    """The documents of a shard, which can be made again by whoever needs them."""
    return [row.tobytes().decode() for row in vocabulary()[token_ids(shard)].reshape(DOCUMENTS_A_SHARD, -1)]


def doc_ids(made: list[str]) -> list[str]:
    """Return the ids of documents, from their texts."""
    return [hashlib.sha256(text.encode()).hexdigest()[:32] for text in made]


def splits() -> list[str]:
    """Return the split of each document of a shard."""
    return ["validation" if i % 20 == 0 else "train" for i in range(DOCUMENTS_A_SHARD)]


def make_documents(config: Config, shard: Shard, out: Path) -> Counters:
    """One shard of documents."""
    made = texts(shard.index)
    first = shard.index * DOCUMENTS_A_SHARD
    columns = {
        "doc_id": doc_ids(made),
        "text": made,
        "split": splits(),
        "fields": [[{"name": "problem", "start": 0, "end": 480}, {"name": "solution", "start": 480, "end": 2000}]]
        * len(made),
        "source_file": [f"part-{shard.index % 8}.jsonl"] * len(made),
        "source_row": list(range(first, first + len(made))),
        "meta": [json.dumps({"difficulty": i % 10, "domain": f"domain-{i % 37}"}) for i in range(len(made))],
    }
    with parquet_writer(out / "documents.parquet", DOCUMENTS) as writer:
        writer.write_table(
            pa.table({name: pa.array(columns[name], DOCUMENTS.field(name).type) for name in DOCUMENTS.names}, DOCUMENTS)
        )
    return {"documents": len(made)}


def make_scores(config: Config, shard: Shard, out: Path) -> Counters:
    """One shard of scores: most positions certain, a long tail uncertain, loss and rank to match."""
    rng = np.random.default_rng([2, shard.index])
    shape = (DOCUMENTS_A_SHARD, TOKENS)
    entropy = np.minimum(rng.exponential(0.55, shape), 2.77 - 1e-3 * rng.random(shape)).astype(np.float32)
    nll = (entropy * rng.exponential(1.2, shape)).astype(np.float32)
    null = np.broadcast_to(np.arange(TOKENS) < 8, shape).reshape(-1)
    offsets = pa.array(np.arange(DOCUMENTS_A_SHARD + 1, dtype=np.int32) * TOKENS)
    values = {
        "token_ids": pa.array(token_ids(shard.index).reshape(-1)),
        "token_ends": pa.array(np.tile((np.arange(TOKENS, dtype=np.int32) + 1) * BYTES, DOCUMENTS_A_SHARD)),
        "field": pa.array(["problem"] * 120 + ["solution"] * 380).take(
            pa.array(np.tile(np.arange(TOKENS), DOCUMENTS_A_SHARD))
        ),
        "entropy": pa.array(entropy.reshape(-1), mask=null),
        "entropy_partial": pa.array((entropy * np.float32(0.9)).reshape(-1), mask=null),
        "nll": pa.array(nll.reshape(-1), mask=null),
        "rank": pa.array(np.expm1(np.minimum(nll.reshape(-1), 11)).astype(np.int32), mask=null),
        "reference_nll": pa.nulls(entropy.size, pa.float32()),
    }
    ids = {"doc_id": pa.array(doc_ids(texts(shard.index))), "split": pa.array(splits())}
    lists = {name: pa.ListArray.from_arrays(offsets, value) for name, value in values.items()}
    with parquet_writer(out / "scores.parquet", SCORES) as writer:
        writer.write_table(
            pa.table({name: (ids | lists)[name].cast(SCORES.field(name).type) for name in SCORES.names}, SCORES),
            row_group_size=ROW_GROUP,
        )
    return {"documents": DOCUMENTS_A_SHARD, "tokens": DOCUMENTS_A_SHARD * TOKENS}


# --------------------------------------------------------------------------------------------- the questions


def serve(work: Path) -> None:
    """The server's process: on any free port, which it prints."""
    from commands.inspect.browse import open_library
    from commands.inspect.browse import serve as serve_library

    serve_library(open_library(MANIFEST, work=work, executor=LocalExecutor()), 0)


def ask_everything(work: Path, requests: int) -> dict[str, Any]:
    """Times of every kind of request, one at a time, the kinds interleaved; and the server's memory."""
    command = [sys.executable, "-m", "benchmarks.browse", "--serve", str(work)]
    begin = time.monotonic()
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr
    try:
        port = next(int(found[1]) for line in server.stderr if (found := re.search(r"http://127\.0\.0\.1:(\d+)", line)))
        started = time.monotonic() - begin
        time.sleep(15)  # `transformers` is imported in the background, and asked for before anyone clicks
        resting = memory(server.pid, "VmRSS")
        times: dict[str, list[float]] = {}
        exact: list[float] = []
        connection = http.client.HTTPConnection("127.0.0.1", port)
        kinds = questions(listed(connection, requests), connection)
        for _ in range(requests):
            for name, ask in kinds.items():
                method, path, body = next(ask)
                before = time.monotonic()
                status, answer = request(connection, method, path, body)
                times.setdefault(name, []).append(1000 * (time.monotonic() - before))
                assert status in (200, 303), (status, path)
                while "data-unfinished" in answer:  # estimates: exact counts follow
                    time.sleep(0.05)
                    answer = request(connection, method, path, body)[1]
                    if "data-unfinished" not in answer:
                        exact.append(1000 * (time.monotonic() - before))
        peak, anonymous = memory(server.pid, "VmHWM"), memory(server.pid, "RssAnon")
    finally:
        server.terminate()
        server.wait()
    return {
        "kinds": {name: spread(t) for name, t in times.items()},
        "estimated_first": {"answers": len(exact), **(spread(exact) if exact else {})},
        "start_s": round(started, 1),
        "resting_rss_mib": resting,
        "peak_rss_mib": peak,
        "anonymous_mib": anonymous,
        "requests_each": requests,
    }


def spread(times: list[float]) -> dict[str, float]:
    """Return the statistics of times in milliseconds."""
    p50, p95, most = np.quantile(times, [0.5, 0.95, 1]).round(1).tolist()
    return {"p50_ms": p50, "p95_ms": p95, "max_ms": most}


def questions(doc_ids: list[str], connection: http.client.HTTPConnection) -> dict[str, Iterator[tuple[str, str, str]]]:
    """Return an endless stream of different requests (method, path, body) by kind."""
    rng = np.random.default_rng(3)
    token = re.search(
        r'name="token" value="([^"]+)"', request(connection, "GET", f"/documents/{doc_ids[0]}?position=9")[1]
    )
    assert token
    words = vocabulary()

    def get(path: str, **parameters: Any) -> tuple[str, str, str]:
        return "GET", f"{path}?{urlencode(parameters)}" if parameters else path, ""

    def document() -> str:
        return doc_ids[rng.integers(len(doc_ids))]

    def number(low: float, high: float) -> float:
        return round(float(rng.uniform(low, high)), 2)

    def where() -> str:
        forms = (
            "entropy > {a} AND nll < {b}",
            "entropy > {a} AND field = 'solution' AND rank > {c}",
            "nll > {b} AND position > {c} AND split = 'train'",
            "entropy BETWEEN {a} AND {b}",
            "entropy_partial > {a} OR rank > {c}",
        )
        return forms[rng.integers(len(forms))].format(a=number(0.3, 2), b=number(2, 3), c=rng.integers(1, 30))

    def text() -> str:
        return words[rng.integers(0, 2500, 2)].tobytes().decode()

    def flag() -> tuple[str, str, str]:
        fields = {"token": token[1], "doc_id": document(), "position": int(rng.integers(500)), "note": "noise"}
        return "POST", "/flags", urlencode(fields)

    asks: dict[str, Callable[[], tuple[str, str, str]]] = {
        "documents": lambda: get("/documents", page=int(rng.integers(1, 200)), least=number(0, 20), order="uncertain"),
        "search": lambda: get("/documents", text=text()),
        "metadata": lambda: get("/documents", meta=f"domain=domain-{rng.integers(37)}", least=number(0, 20)),
        "facet": lambda: get(
            "/documents", **{"in.domain": f"domain-{rng.integers(37)}", "in.difficulty": f"{rng.integers(10)}"}
        ),
        "document": lambda: get(f"/documents/{document()}"),
        "heat map": lambda: get(f"/documents/{document()}/heat-map"),
        "site": lambda: get(f"/documents/{document()}", position=int(rng.integers(500))),
        "what if": lambda: get("/what-if", split=str(rng.choice(["train", "validation"]))),
        "slider": lambda: get("/what-if", entropy=number(0.2, 2.7)),
        "where": lambda: get("/what-if", where=where()),
        "compare": lambda: get("/compare", a=f"entropy > {number(0.8, 1.5)}", b=f"entropy > {number(0.8, 1.5)}"),
        "two heat maps": lambda: get(f"/documents/{document()}/heat-map", rule=f"entropy > {number(0.3, 2)}"),
        "flag": flag,
        "flags": lambda: get("/flags"),
        "export": lambda: get("/flags.parquet"),
    }
    return {name: iter(partial(ask), None) for name, ask in asks.items()}


def listed(connection: http.client.HTTPConnection, pages: int) -> list[str]:
    """Documents from all over the corpus."""
    found: list[str] = []
    for page in range(1, 8000, max(1, 8000 // max(pages, 40))):
        found += re.findall(r"/documents/([0-9a-f]{32})", request(connection, "GET", f"/documents?page={page}")[1])
    return sorted(set(found))


def request(connection: http.client.HTTPConnection, method: str, path: str, body: str = "") -> tuple[int, str]:
    """Send a request and return status and body of the answer."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"} if body else {}
    connection.request(method, path, body or None, headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(errors="replace")


def memory(pid: int, field: str) -> int:
    """MiB of a line of /proc/<pid>/status."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found
    return int(found[1]) // 1024


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
