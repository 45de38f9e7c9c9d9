"""Time every view of `rpt board` over a run of 10,000 steps and a million rollouts, and measure its memory.

Writes a run (metrics, and rollouts of every tenth step), serves it in a process of its own, and requests every view
many times, with other parameters each time. A search in texts is timed as its first answer comes, which may say how
much is still to be searched; `search_complete` says how long all of it took.

`--training` measures instead how much slower a training gets when its page is open: it trains the demo by turns without
and with a page that is asked as a browser does, and compares seconds per step of paired turns. It needs an idle
machine, and the demo's shards (`rpt data demo`).

    python -m benchmarks.board                                     # about 1 GB of disk, some minutes
    python -m benchmarks.board --steps 500 --rollouts 20000 --requests 20
    python -m benchmarks.board --training --turns 5
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa
import yaml

from benchmarks.browse import memory, request, spread
from benchmarks.stage_costs import times
from pipeline.core.parquet import parquet_writer
from pipeline.evaluation.intervals import t_quantile
from pipeline.grpo.rollout.rollouts import ROLLOUTS
from pipeline.grpo.run.metrics import read_metrics
from pipeline.task.reward import REASONS

EVERY = 10
"""Steps between those whose rollouts are stored, as in the recipes."""
GROUP = 8
WORDS = 70
"""Mean words of a response."""
BARS = {"view_p95_ms": 300, "memory_mib": 500}
TRAINING_BARS = {"slowdown_percent": 1}


def main() -> None:
    """Write, serve, request and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", type=int, default=10_000)
    arguments.add_argument("--rollouts", type=int, default=1_000_000)
    arguments.add_argument("--requests", type=int, default=40, help="of every kind")
    arguments.add_argument("--training", action="store_true", help="measure the slowdown of a training instead")
    arguments.add_argument("--turns", type=int, default=5, help="pairs of trainings")
    given = arguments.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="rpt-board-"))
    try:
        if given.training:
            figures, bars = paired_trainings(folder, given.turns), TRAINING_BARS
            measured = {name: figures[name] for name in bars}
        else:
            write_run(folder / "run", given.steps, given.rollouts)
            figures, bars = ask_everything(folder / "run", given.requests), BARS
            worst = max(kind["p95_ms"] for kind in figures["kinds"].values())
            measured = {"view_p95_ms": worst, "memory_mib": figures["peak_rss_mib"]}
            figures = {"steps": given.steps, "rollouts": given.rollouts, **figures}
    finally:
        shutil.rmtree(folder)
    holds = {name: measured[name] <= bar for name, bar in bars.items()}
    print(json.dumps({"figures": figures, "measured": measured, "bars": bars, "holds": holds}))


# --------------------------------------------------------------------------------------------------- the run


def write_run(run: Path, steps: int, rollouts: int) -> None:
    """Metrics of every step, and rollouts of every tenth, whose sites come again every fifth time."""
    (run / "rollouts").mkdir(parents=True)
    (run / "recipe.yaml").write_text(yaml.safe_dump({"name": "fake", "budget": {"steps": steps}}))
    rng = np.random.default_rng(0)
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(steps + 1):
            file.write(json.dumps(metrics(rng, step, steps)) + "\n")
    stored = range(0, steps, EVERY)
    vocabulary = np.array(["".join(rng.choice(list("etaoinshrdlu"), rng.integers(2, 9))) for _ in range(20_000)])
    for n, step in enumerate(stored):
        write_rollouts(run, rng, vocabulary, step, n, max(GROUP, rollouts // len(stored)))


def metrics(rng: np.random.Generator, step: int, steps: int) -> dict[str, float]:
    """The line of one step: the names and sizes of a real one."""
    learned = step / steps
    counts = rng.multinomial(2048, [0.05 + 0.6 * learned, 0.75 - 0.6 * learned, 0.05, 0.02, 0.01, 0.07, 0.05])
    noise = rng.random(16).tolist()
    return {
        "step": step,
        "reward/mean": counts[0] / 2048,
        **dict(zip((f"reward/{reason}" for reason in REASONS), counts.tolist(), strict=True)),
        **{f"groups/{name}": noise[i] for i, name in enumerate(("zero_variance", "all_right", "all_wrong"))},
        **{name: noise[3 + i] for i, name in enumerate(("policy/entropy", "loss", "grad_norm", "loss/kl", "lr"))},
        "sampler/logprob_gap": noise[8],
        **{f"seconds/{name}": noise[9 + i] for i, name in enumerate(("sample", "score", "update", "sync", "step"))},
        "response/length": 200 + 50 * noise[14],
        "tokens/per_second": 10_000 * noise[15],
        "tokens/per_second_sampling": 20_000 * noise[15],
        "memory/host": 4.2,
        **({f"eval/{band}/reasoning{end}": learned / 2 + shift for band in ("easy", "medium", "hard")
            for end, shift in (("", 0.1), ("_low", 0.05), ("_high", 0.15))} if step % 20 == 0 else {}),
    }  # fmt: skip


def write_rollouts(run: Path, rng: np.random.Generator, vocabulary: np.ndarray, step: int, n: int, count: int) -> None:
    """A file of rollouts in groups of `GROUP`."""
    words = vocabulary[(len(vocabulary) * rng.random((count, WORDS)) ** 3).astype(int)]
    responses = [" ".join(row) + f"</think>\\boxed{{{i % 100}}}" for i, row in enumerate(words)]
    sites = [f"{(n % 5) * 10**6 + i // GROUP:032x}-{i // GROUP % 500}" for i in range(count)]
    ids = pa.array([[1, 2, 3, 4]] * count, pa.list_(pa.int32()))
    reward = rng.random(count) < 0.3
    columns = {
        "step": np.full(count, step, np.int32),
        "site_id": sites,
        "band": rng.choice(["easy", "medium", "hard"], count),
        "sample": (np.arange(count) % GROUP).astype(np.int32),
        "prompt_ids": ids,
        "response_ids": ids,
        "context": [f"context {site} " * 8 for site in sites],
        "response": responses,
        "target": [b" 4"] * count,
        "prediction": [b" 4"] * count,
        "reward": reward.astype(np.float32),
        "reason": np.where(reward, "match", rng.choice(REASONS[1:], count)),
        "advantage": rng.standard_normal(count).astype(np.float32),
        "finished": np.ones(count, bool),
        "length": rng.integers(50, 500, count).astype(np.int32),
        "importance": np.ones(count, np.float32),
    }
    arrays = {name: pa.array(columns[name], ROLLOUTS.field(name).type) for name in ROLLOUTS.names}
    with parquet_writer(run / "rollouts" / f"step-{step:06d}.parquet", ROLLOUTS) as writer:
        writer.write_table(pa.table(arrays, ROLLOUTS), row_group_size=2048)


# --------------------------------------------------------------------------------------------- the questions


def ask_everything(run: Path, requests: int) -> dict[str, Any]:
    """Times of every kind of request, one at a time, the kinds interleaved; and the server's memory."""
    server = subprocess.Popen(
        [sys.executable, "-m", "commands.cli", "board", str(run), "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    assert server.stderr
    try:
        port = next(int(found[1]) for line in server.stderr if (found := re.search(r"http://127\.0\.0\.1:(\d+)", line)))
        connection = http.client.HTTPConnection("127.0.0.1", port)

        def get(path: str, **parameters: Any) -> str:
            status, answer = request(connection, "GET", f"{path}?{urlencode(parameters)}")
            assert status == 200, (status, path, parameters)
            return answer

        begin = time.monotonic()
        while "data-unfinished" in get("/run/rollouts"):
            pass
        indexed = time.monotonic() - begin
        times: dict[str, list[float]] = {}
        complete: list[float] = []
        for n in range(requests):
            for name, (path, parameters) in questions(run, n).items():
                if name == "live":
                    with (run / "metrics.jsonl").open("a") as file:
                        file.write(json.dumps({"step": 10**6 + n, "reward/mean": 0.5}) + "\n")
                before = time.monotonic()
                answer = get(path, **parameters)
                times.setdefault(name, []).append(1000 * (time.monotonic() - before))
                if name == "search" and n < 3:  # all of the texts, a few times
                    while "data-unfinished" in answer:
                        time.sleep(0.1)
                        answer = get(path, **parameters)
                    complete.append(time.monotonic() - before)
        sent = len(get("/run/data"))
        peak = memory(server.pid, "VmHWM")
    finally:
        server.terminate()
        server.wait()
    return {
        "kinds": {name: spread(own) for name, own in times.items()},
        "index_s": round(indexed, 1),
        "search_complete_s": round(float(np.median(complete)), 1),
        "data_bytes": sent,
        "peak_rss_mib": peak,
        "requests_each": requests,
    }


def questions(run: Path, n: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """The `n`-th request of every kind: path and parameters."""
    rng = np.random.default_rng(n)
    steps = sorted(int(path.stem.removeprefix("step-")) for path in (run / "rollouts").iterdir())
    site = f"{int(rng.integers(min(5, len(steps)))) * 10**6:032x}-0"
    word = "".join(rng.choice(list("etaoinshrdlu"), 3))
    return {
        "run": ("/run", {"order": ["best", "worst", "longest", "shortest"][n % 4]}),
        "run at a step": ("/run", {"step": int(rng.choice(steps)), "order": ["best", "worst"][n % 2]}),
        "data": ("/run/data", {}),
        "live": ("/run/data", {"since": "an earlier version"}),
        "rollouts": ("/run/rollouts", {"page": int(rng.integers(1, 1000))}),
        "by reward": ("/run/rollouts", {"order": ["best", "worst"][n % 2], "band": "hard", "page": n + 1}),
        "by length": ("/run/rollouts", {"order": ["longest", "shortest"][n % 2], "outcome": "missing", "page": n + 1}),
        "of a step": ("/run/rollouts", {"step": int(rng.choice(steps)), "order": "best"}),
        "search": ("/run/rollouts", {"text": f"{word} {word[0]}"}),
        "site": ("/run/site", {"site": site}),
    }


# ---------------------------------------------------------------------------------------------- the training


def paired_trainings(folder: Path, turns: int) -> dict[str, Any]:
    """Seconds per step of the demo's training without and with its page open, in pairs, and their ratio.

    Which of a pair comes first alternates. `page_percent`: processor time that serving took, of one core.
    """
    pairs, pages = [], []
    for turn in range(turns):
        order = (False, True) if turn % 2 == 0 else (True, False)
        found = {watched: train(folder / f"{turn}-{watched:d}", watched) for watched in order}
        pairs.append([found[False][0], found[True][0]])
        pages.append(found[True][1])
    logs = np.log([watched / alone for alone, watched in pairs])
    half = t_quantile(turns - 1) * float(np.std(logs, ddof=1)) / math.sqrt(turns) if turns > 1 else math.inf
    percent = [round(100 * math.expm1(value), 2) for value in (logs.mean(), logs.mean() - half, logs.mean() + half)]
    return {
        "pairs_s": pairs,
        "slowdown_percent": percent[0],
        "slowdown_interval": percent[1:],
        "page_percent": round(float(np.median(pages)), 2),
        "turns": turns,
    }


def train(run: Path, watched: bool) -> tuple[float, float]:
    """Train the demo for 40 steps, with an open page if `watched`.

    Returns the median seconds of a step, and the processor time of the process that serves the page, in percent of the
    time that it was open: the ranks are processes of their own, and it has nothing else to do.
    """
    command = [sys.executable, "-m", "commands.cli", "train", "demo", "--run", str(run), "--set", "budget.steps=40"]
    process = subprocess.Popen([*command, *(["--browse"] if watched else [])], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    shares = [0.0]
    for line in process.stderr:
        if watched and (found := re.search(r"http://127\.0\.0\.1:(\d+)", line)):
            threading.Thread(target=look, args=(int(found[1]), process, shares), daemon=True).start()
    assert process.wait() == 0
    rows = read_metrics(run / "metrics.jsonl")
    return float(np.median([row["seconds/step"] for row in rows if row["step"] > 5])), shares[-1]


def look(port: int, process: subprocess.Popen[str], shares: list[float]) -> None:
    """Ask for what an open page asks for, every two seconds, until the training has ended.

    Appends to `shares` how much processor time the process has taken since, in percent of the time.
    """
    version, since, before = "", time.monotonic(), times(process.pid)[0]
    while process.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            data = json.loads(request(connection, "GET", f"/run/data?{urlencode({'since': version})}")[1])
            if "charts" in data:
                version = data["version"]
                request(connection, "GET", "/run")
            connection.close()
            shares.append(100 * (times(process.pid)[0] - before) / (time.monotonic() - since))
        except OSError:
            pass
        time.sleep(2)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
